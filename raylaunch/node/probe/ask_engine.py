"""Makes vLLM build the engine configuration of a command line, and reports what became of it.

Part of `ask_vllm.py`: runs in vLLM's own Python, and needs only the standard library and that vLLM.

The steps are those of `vllm serve` up to the start of the engine (vLLM 0.23 and 0.32
entrypoints/cli/serve.py): parse, validate, `AsyncEngineArgs.create_engine_config()` with the
platform's plug-in, and the choice of the executor. None of them opens a device.
"""

import argparse
import ast
import dataclasses
import enum
import importlib
import inspect
import json
import logging
import re
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator

PACKAGES = ("vllm", "vllm_ascend")
_MAX_CHARS = 4000
_MAX_MESSAGES = 60

BECAME = {
    "model": "model_config.architecture",
    "max_model_len": "model_config.max_model_len",
    "dtype": "model_config.dtype",
    "quantization": "model_config.quantization",
    "kv_block_size": "cache_config.block_size",
    "kv_cache_dtype": "cache_config.cache_dtype",
    "prefix_caching": "cache_config.enable_prefix_caching",
    "max_num_seqs": "scheduler_config.max_num_seqs",
    "max_num_batched_tokens": "scheduler_config.max_num_batched_tokens",
    "chunked_prefill": "scheduler_config.enable_chunked_prefill",
    "async_scheduling": "scheduler_config.async_scheduling",
    "scheduler": "scheduler_config.scheduler_cls",
    "compilation_mode": "compilation_config.mode",
    "cudagraph_mode": "compilation_config.cudagraph_mode",
    "cudagraph_sizes": "compilation_config.cudagraph_capture_sizes",
    "tensor_parallel": "parallel_config.tensor_parallel_size",
    "pipeline_parallel": "parallel_config.pipeline_parallel_size",
    "prefill_context_parallel": "parallel_config.prefill_context_parallel_size",
    "decode_context_parallel": "parallel_config.decode_context_parallel_size",
    "expert_parallel": "parallel_config.enable_expert_parallel",
    "data_parallel": "parallel_config.data_parallel_size",
    "data_parallel_local": "parallel_config.data_parallel_size_local",
    "data_parallel_rank": "parallel_config.data_parallel_rank",
    "worker": "parallel_config.worker_cls",
    "speculative_method": "speculative_config.method",
    "speculative_tokens": "speculative_config.num_speculative_tokens",
}
"""Name in the report -> where VllmConfig has it (0.23 and 0.32); what is missing is left out."""


class RefusedArgumentsError(Exception):
    """What the parser would print before it exits with code 2."""


def collect_messages() -> list[dict[str, str]]:
    """Collect from now on what vLLM and its plug-ins log, and return the growing list."""
    messages: list[dict[str, str]] = []
    make_record = logging.getLogRecordFactory()

    def collect(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        if record.name.partition(".")[0] in PACKAGES and record.levelno >= logging.INFO:
            try:
                text = record.getMessage()
            except (TypeError, ValueError):  # a message that does not fit its arguments
                text = str(record.msg)
            _add(messages, record.levelname.lower(), text)
        return record

    # A handler would be lost: vLLM configures its loggers again when it has parsed its flags.
    logging.setLogRecordFactory(collect)

    def show(message: object, category: type, filename: str, *_: object, **__: object) -> None:
        if any(f"/{package}/" in filename for package in PACKAGES):
            _add(messages, "warning", f"{category.__name__}: {message}")

    warnings.showwarning = show
    return messages


def _add(messages: list[dict[str, str]], level: str, text: str) -> None:
    entry = {"level": level, "text": text[:_MAX_CHARS]}
    if len(messages) < _MAX_MESSAGES and entry not in messages:
        messages.append(entry)


def ask_in_fork(
    root: argparse.ArgumentParser,
    argv: list[str],
    messages: list[dict[str, str]],
    watch_parent: Callable[[], None],
    read_from_fork: Callable[[Callable[[], bytes]], tuple[bytes, int]],
) -> dict[str, object]:
    """Ask for one command line in a fork: an exit, a crash or changed globals stay in it."""

    def answer() -> bytes:
        watch_parent()  # threads do not survive a fork
        return json.dumps(ask(root, argv, messages)).encode()

    text, status = read_from_fork(answer)
    if not text:
        return {"crashed": f"wait status {status}"}
    parsed: dict[str, object] = json.loads(text)
    return parsed


def ask(
    root: argparse.ArgumentParser, argv: list[str], messages: list[dict[str, str]]
) -> dict[str, object]:
    """Return the configuration of a command line, or vLLM's refusal, and what it logged."""
    stage = ["parse"]
    try:
        became = _configure(root, argv, stage)
    # Whatever vLLM raises, SystemExit included, is its refusal.
    except BaseException as error:  # noqa: BLE001
        refusal = _explain(error, stage[0], argv)
        return {"refusal": refusal, "messages": messages}
    return {"became": became, "messages": messages}


def _configure(root: argparse.ArgumentParser, argv: list[str], stage: list[str]) -> dict[str, str]:
    for parser in _parsers(root):
        parser.error = _refuse  # type: ignore[method-assign]
    args = root.parse_args(argv[1:])
    stage[0] = "validate"
    from vllm.entrypoints.cli import serve

    serve.cmd_init()[0].validate(args)
    if getattr(args, "model_tag", None) is not None:
        args.model = args.model_tag
    headless = bool(getattr(args, "headless", False))
    if not headless:
        _validate_api_server(args)
    stage[0] = "config"
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.executor import Executor

    engine_args = AsyncEngineArgs.from_cli_args(args)
    servers = getattr(args, "api_server_count", None) or 1
    if servers > 1 and not headless and hasattr(engine_args, "_api_process_count"):
        engine_args._api_process_count = servers  # noqa: SLF001 - as vLLM's own command does
        engine_args._api_process_rank = -1  # noqa: SLF001
    options = {"usage_context": UsageContext.OPENAI_API_SERVER}
    if "headless" in inspect.signature(engine_args.create_engine_config).parameters:
        options["headless"] = headless
    config = engine_args.create_engine_config(**options)
    stage[0] = "executor"
    executor = Executor.get_class(config)
    return {**_describe(config), "executor": executor.__name__, "balancing": _balancing(config)}


def _parsers(root: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    parsers = [root]
    for action in root._actions:  # noqa: SLF001 - argparse offers no other way
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            parsers += action.choices.values()
    return parsers


def _refuse(message: str) -> typing.NoReturn:
    raise RefusedArgumentsError(message)


def _validate_api_server(args: argparse.Namespace) -> None:
    """Check the names of parsers, as the server does before it binds its port."""
    for name in ("vllm.entrypoints.launchers.launcher", "vllm.entrypoints.openai.api_server"):
        try:
            module = importlib.import_module(name)
        except ImportError:  # the other version's place
            continue
        if hasattr(module, "validate_api_server_args"):
            _import_parser_plugins(args)
            module.validate_api_server_args(args)
            return


def _import_parser_plugins(args: argparse.Namespace) -> None:
    if getattr(args, "tool_parser_plugin", None):
        from vllm.tool_parsers import ToolParserManager

        ToolParserManager.import_tool_parser(args.tool_parser_plugin)
    if getattr(args, "reasoning_parser_plugin", None):
        from vllm.reasoning import ReasoningParserManager

        ReasoningParserManager.import_reasoning_parser(args.reasoning_parser_plugin)


def _describe(config: object) -> dict[str, str]:
    described = {}
    for name, path in BECAME.items():
        value: object = config
        for part in path.split("."):
            value = getattr(value, part, None)
        if value is not None:
            described[name] = _as_text(value)
    return described


def _as_text(value: object) -> str:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, list | tuple):
        return ",".join(map(_as_text, value))
    return str(value).removeprefix("torch.")


def _balancing(config: object) -> str:
    parallel = getattr(config, "parallel_config", None)
    if getattr(parallel, "data_parallel_external_lb", False):
        return "external"
    return "hybrid" if getattr(parallel, "data_parallel_hybrid_lb", False) else "internal"


# -- refusals ----------------------------------------------------------------------------------


def _explain(error: BaseException, stage: str, argv: list[str]) -> dict[str, object]:
    """Describe an exception: vLLM's words, and what in its source led to them."""
    words, fields = _words(error)
    cause = _innermost(error)
    return {
        "stage": stage,
        "kind": type(error).__name__,
        "words": words[:_MAX_CHARS],
        "fields": fields,
        "conditions": _condition_names(cause),
        "files": _files(cause),
        "choices": _choices_of(argv),
    }


def _words(error: BaseException) -> tuple[str, list[str]]:
    """Return the message of an exception, and the fields that pydantic names in it."""
    errors = getattr(error, "errors", None)
    if not callable(errors) or not hasattr(error, "title"):
        is_key = isinstance(error, KeyError) and error.args
        return str(error.args[0] if is_key else error) or type(error).__name__, []
    lines = []
    fields = [_flag_like(str(error.title))]
    for one in errors():
        place = ".".join(str(part) for part in one["loc"])
        fields += [str(part) for part in one["loc"]]
        text = one["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        given = f" (given: {one['input']!r})" if place and _is_short(one["input"]) else ""
        lines.append(f"{place}: {text}{given}" if place else text)
    return "; ".join(dict.fromkeys(lines)), fields


def _flag_like(class_name: str) -> str:
    """Turn `SpeculativeConfig` into `speculative_config`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_name).lower()


def _is_short(value: object) -> bool:
    return isinstance(value, str | int | float) and len(str(value)) < 80


def _innermost(error: BaseException) -> BaseException:
    """Return the exception that a pydantic validator raised, where pydantic kept it."""
    errors = getattr(error, "errors", None)
    if callable(errors) and hasattr(error, "title"):
        for one in errors():
            inner = one.get("ctx", {}).get("error")
            if isinstance(inner, BaseException) and inner.__traceback__ is not None:
                return inner
    return error


def _frames(error: BaseException) -> list[tuple[str, int]]:
    """Return file and line of the frames in vLLM and its plug-ins, the innermost last."""
    return [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.lineno and any(f"/{package}/" in frame.filename for package in PACKAGES)
    ]


def _files(error: BaseException) -> list[str]:
    """Return the files of a traceback below their package, without repetition."""
    found: dict[str, None] = {}
    for file, _ in _frames(error):
        for package in PACKAGES:
            if f"/{package}/" in file:
                found[f"{package}/{file.rpartition(f'/{package}/')[2]}"] = None
    return list(found)


def _condition_names(error: BaseException) -> list[str]:
    """Return the names in the conditions around the line that raised: the settings it judged."""
    frames = _frames(error)
    if not frames:
        return []
    file, line = frames[-1]
    try:
        with open(file, encoding="utf-8") as opened:  # noqa: PTH123
            tree = ast.parse(opened.read())
    except (OSError, SyntaxError):
        return []
    names: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.Assert) and node.lineno <= line <= (node.end_lineno or 0):
            names.update(dict.fromkeys(_names_in(node.test)))
    return list(names)


def _names_in(expression: ast.AST) -> Iterator[str]:
    for node in ast.walk(expression):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name):
            yield node.id


def _choices_of(argv: list[str]) -> dict[str, dict[str, list[str]]]:
    """Return, for each flag with a JSON value, its keys and the values that they are limited to."""
    import vllm.config

    classes = {name.lower(): getattr(vllm.config, name) for name in dir(vllm.config)}
    found: dict[str, dict[str, list[str]]] = {}
    for word in argv:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("_", "-")
            class_ = classes.get(name.replace("-", ""))
            if isinstance(class_, type) and dataclasses.is_dataclass(class_):
                found[name] = _choices_of_class(class_)
    return found


def _choices_of_class(class_: type) -> dict[str, list[str]]:
    try:
        hints = typing.get_type_hints(class_)
    except (NameError, TypeError):  # a type that is imported for type checkers only
        hints = {}
    found: dict[str, list[str]] = {}
    for field in dataclasses.fields(class_):
        found[field.name] = list(dict.fromkeys(_values(hints.get(field.name))))
    return found


def _values(hint: object) -> Iterator[str]:
    """Yield the texts that a type allows: those of Literal, and the members of an Enum."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        for member in hint:
            yield member.name
    for part in typing.get_args(hint):
        if isinstance(part, str):
            yield part
        elif not isinstance(part, int | float):
            yield from _values(part)
