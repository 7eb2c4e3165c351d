"""Asks an installed vLLM: its flags, its names, and the configuration it makes of command lines.

Run by path, with vLLM's own Python and the environment of a server. Needs only the standard library
and that vLLM, and runs on any Python from 3.10. The first line of stdin is the question as JSON:
`{"names": true, "argvs": {"0": ["vllm", "serve", ...]}}`. The answers are lines of JSON on the
original stdout: `{"names": {...}}`, then one `{"engine": {...}, "server": "0"}` for each command
line, as soon as they are known. What vLLM and its plug-ins print goes to stderr. Exits when its
stdin is closed: the process that asked has exited.

The parser is built as vLLM's command builds it (vLLM 0.23 and 0.32 entrypoints/cli/main.py), so
that the platform's plug-in (vllm-ascend: more values of --quantization) and general plug-ins have
changed it.
"""

import sys

# Python puts this file's folder first. Its modules have names such as `network` and `software`,
# which would hide others of the same name.
FOLDER = __file__.rpartition("/")[0]
sys.path[:] = [folder for folder in sys.path if folder != FOLDER]

import argparse  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import threading  # noqa: E402
import types  # noqa: E402


def main() -> None:
    """Print the answers and exit without cleanup: vLLM's background threads are not waited for."""
    question = json.loads(_read_line(0))
    exit_with_parent()
    original_stdout = os.dup(1)
    os.dup2(2, 1)
    dry_run = _load_beside("ask_engine")
    # Before vLLM is imported: what it logs while it is imported belongs to the answer.
    messages = dry_run.collect_messages()
    root, parser = read_parser()
    if question["names"]:
        _answer(original_stdout, {"names": read_names(parser)})
    forks = _load_beside("fork_inspection")
    if question["argvs"]:
        forks.install()
    for server, argv in question["argvs"].items():
        engine = dry_run.ask_in_fork(root, argv, messages, exit_with_parent, forks.read_from_fork)
        _answer(original_stdout, {"server": server, "engine": engine})
    os._exit(0)


def exit_with_parent() -> None:
    """Start to watch stdin, and exit this process when it is closed."""
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()


def _exit_at_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _read_line(descriptor: int) -> bytes:
    """Read up to the first line feed and not a byte further; the watch reads the rest."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            os._exit(1)
        line += byte
    return line


def _answer(descriptor: int, answer: dict) -> None:  # type: ignore[type-arg]
    with os.fdopen(os.dup(descriptor), "w") as out:
        out.write(json.dumps(answer) + "\n")


def _load_beside(name: str) -> types.ModuleType:
    """Import a file of this folder by its path."""
    spec = importlib.util.spec_from_file_location(name, f"{FOLDER}/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_parser() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Build the parser of `vllm`, and that of its command `serve`."""
    from vllm.entrypoints.cli import serve

    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:  # before 0.12
        from vllm.utils import FlexibleArgumentParser
    root: argparse.ArgumentParser = FlexibleArgumentParser()
    subparsers = root.add_subparsers(dest="subparser")
    parser: argparse.ArgumentParser = serve.cmd_init()[0].subparser_init(subparsers)
    return root, parser


def read_names(parser: argparse.ArgumentParser) -> dict[str, object]:
    """Read everything that depends on the installed packages alone."""
    return {
        "flags": read_flags(parser),
        **read_registered(),
        **_load_beside("ask_names").read_installed_names(),
        "sources": read_sources(),
    }


def read_flags(parser: argparse.ArgumentParser) -> dict[str, dict[str, object]]:
    """Read each long option, without dashes: how many values it takes, and which."""
    flags: dict[str, dict[str, object]] = {}
    for action in parser._actions:  # noqa: SLF001 - argparse offers no other way
        for option in action.option_strings:
            if option.startswith("--"):
                name = option[2:].replace("_", "-")
                flags[name] = {"takes": takes(action), "choices": choices(action)}
    return flags


def takes(action: argparse.Action) -> str:
    """Return how many values an option takes: none, one, maybe (none or one) or many."""
    if action.nargs is None:
        return "one"
    if action.nargs == 0:
        return "none"
    return "maybe" if action.nargs == "?" else "many"


def choices(action: argparse.Action) -> list[str]:
    """Return the values that an option is limited to; [] where they cannot be compared as text."""
    given = list(action.choices or ())
    for choice in given:
        if isinstance(choice, bool) or not isinstance(choice, str | int | float):
            return []
    return [str(choice) for choice in given]


def read_registered() -> dict[str, list[str]]:
    """Read the names of the tool parsers and reasoning parsers.

    The lists are empty where this vLLM keeps them elsewhere.
    """
    found: dict[str, list[str]] = {"tool_parsers": [], "reasoning_parsers": []}
    try:
        from vllm.tool_parsers import ToolParserManager

        found["tool_parsers"] = ToolParserManager.list_registered()
    except (ImportError, AttributeError):
        pass
    try:
        from vllm.reasoning import ReasoningParserManager

        found["reasoning_parsers"] = ReasoningParserManager.list_registered()
    except (ImportError, AttributeError):
        pass
    return found


def read_sources() -> dict[str, int]:
    """Return the files that the answer depends on, with their times of change in ns.

    When one of them has changed, the answer is outdated.
    """
    from vllm.platforms import current_platform

    modules = {
        "vllm.engine.arg_utils",
        "vllm.envs",
        "vllm.tool_parsers",
        "vllm.reasoning",
        "vllm_ascend.ascend_config",
        "vllm_ascend.envs",
        type(current_platform).__module__,
    }
    for name in sys.modules:
        if name.startswith("vllm.") and name.endswith(".cli_args"):
            modules.add(name)
    sources: dict[str, int] = {}
    for name in sorted(modules):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            sources[file] = os.stat(file).st_mtime_ns  # noqa: PTH116 - as `recall` compares it
    return sources


if __name__ == "__main__":
    main()
