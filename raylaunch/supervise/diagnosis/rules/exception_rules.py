"""What an exception means by its type and the place that raised it.

All of these come again at each start: the same code meets the same input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from raylaunch.supervise.diagnosis.advice import read_advice
from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, exception_reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.general import config_fields
from raylaunch.supervise.diagnosis.rules.general.key_errors import read_stage_layer
from raylaunch.supervise.diagnosis.rules.general.places import PLACES
from raylaunch.supervise.diagnosis.rules.libraries.library_rules import unknown_to_transformers
from raylaunch.supervise.diagnosis.rules.quant_rules import (
    read_draft_tensor,
    read_quant_description,
    read_quant_tensor,
)
from raylaunch.supervise.diagnosis.rules.refusal_rules import read_plugin_name
from raylaunch.supervise.diagnosis.rules.tables.features import advise_release, name_features
from raylaunch.supervise.diagnosis.rules.tables.option_names import name_flags
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_WEIGHT_NAME = re.compile(
    r"^'?((?:\w{1,40}\.){0,6}(?:layers|blocks|experts)\.\d{1,4}\.[\w.]{1,120}"
    # Layers with a state, which `key_errors` reads: no tensor is called so.
    r"(?<!attn)(?<!k_cache)(?<!mixer)(?<!mamba)(?<!indexer))'?$"
)
_MISSING_ATTRIBUTE = re.compile(
    r"(?<![\w.'])(?:'?([\w.]{1,80})'?(?: object)?|module '([\w.]{1,80})') "
    r"has no attribute '?(\w{1,80})'?"
)
_NO_NAME = re.compile(
    r"cannot import name '([\w.]{1,80})' from (?:partially initialized module )?'([\w.]{1,120})'"
    r"(?: \(([^)\n]{1,300})\))?"
)
_SIGNATURE = re.compile(
    r"(?<![\w.])([\w.]{1,120})\(\) (?:got an unexpected keyword argument '(\w{1,60})'|"
    r"missing \d{1,2} required [\w-]{1,20} arguments?: ([^\n]{1,120})|"
    r"got multiple values for argument '(?:\w{1,60})'|"
    r"takes [^\n]{1,60} positional arguments? but)|"
    r"Can't instantiate abstract class \w{1,80} with"
)
_INIT_FAILED = re.compile(r"init failed, error is\b|NPUModelRunner failed, error is")
_CALL_OF_CANN = re.compile(r"function error: ?(?:call )?acl|call aclnn|error code is \d{5,6}")
_READ_ELSEWHERE = re.compile(r"^Error in memory profiling")
_ASCEND = re.compile(r"^vllm_ascend/(.+)\.py$")
_REQUEST = re.compile(r"^(?:vllm/entrypoints|starlette|fastapi|uvicorn)")
_UNSUPPORTED = (
    *("AttributeError", "NotImplementedError", "AssertionError", "TypeError", "KeyError"),
    *("IndexError", "UnboundLocalError", "NameError", "ValueError"),
)

Rule = Callable[[Raised], Reading | None]


def read_exceptions(log: ServerLog) -> Iterator[Reading]:
    """Yield what the exceptions of a log mean, each by the first rule that knows it."""
    found = list(find_exceptions(log))
    for raised in (*found, *_find_bare_keys(log, {raised.message for raised in found})):
        for rule in _RULES:
            if reading := rule(raised):
                yield reading
                break


def _find_bare_keys(log: ServerLog, known: Collection[str]) -> Iterator[Raised]:
    """Yield what a KeyError prints without its class: vLLM's first engine logged `str(error)`."""
    for line, match in log.errors.find(_BARE_KEY):
        if match[0] not in known:
            yield Raised(line, "KeyError", match[0], (), log.processes[line])


_BARE_KEY = re.compile(r"^'(?:\w{1,40}\.){2,10}\w{1,40}'$", re.MULTILINE)


def _unknown_type(raised: Raised) -> Reading | None:
    """Read that transformers' table of models has no such model type."""
    place = raised.frames[0].module_path if raised.frames else ""
    if raised.type != "KeyError" or not place.endswith("auto/configuration_auto.py"):
        return None
    return unknown_to_transformers(raised.line, "model type", raised.message.strip("'"))


def _unknown_weight(raised: Raised) -> Reading | None:
    found = _WEIGHT_NAME.match(raised.message) if raised.type == "KeyError" else None
    if found is None:
        return None
    return exception_reading(
        raised.line,
        "weights-mismatch",
        f"The checkpoint has a tensor `{found[1]}` that this release's model class does not know: "
        "checkpoint and model class are of different versions, or of another quantisation.",
        "Use the vLLM and vllm-ascend release that the model card names (a newer one), download "
        "the checkpoint again, and check `args.quantization`. A layer with the number "
        "`num_hidden_layers` of config.json is the one for multi-token prediction, which another "
        "release skips or loads.",
    )


def _missing_name(raised: Raised) -> Reading | None:
    found = _NO_NAME.search(raised.message)
    if found is None:
        return None
    name, package, place = found.groups()
    top = package.partition(".")[0]
    if place == "unknown location":
        return exception_reading(
            raised.line,
            "package-shadowed",
            f"Python finds a folder called `{top}` that is not the installed package (no "
            f"`{name}` in it): the working directory or PYTHONPATH contains one, or the "
            "package is only half installed.",
            f"Start from another working directory, or rename the folder `{top}` there; "
            f"`python -c 'import {top}; print({top}.__path__)'` shows which one is found.",
        )
    if "circular import" in raised.message:
        return None
    if place and place.rpartition("/")[2] == f"{top}.py" and "-packages/" not in place:
        return exception_reading(
            raised.line,
            "package-shadowed",
            f"Python takes the file {place} for the package {top}: it has the same name and is "
            "found first.",
            f"Rename {place} (and delete `__pycache__` beside it), or start from another folder.",
        )
    importer = next((f.package for f in raised.frames if f.package != top), "")
    by = f" that {importer} needs" if importer else ""
    return exception_reading(
        raised.line,
        "versions-differ",
        f"The installed {top} has no `{name}`{by} (in {package}): their releases do not belong "
        "together.",
        f"Install the pair of releases that belong together (`pip list | grep -iE "
        f"'{top}{'|' + importer if importer else ''}'`; the compatibility table of vllm-ascend "
        "names them), or use the release's container image.",
    )


def _no_such_user(raised: Raised) -> Reading | None:
    found = _NO_USER.search(raised.message)
    if found is None:
        return None
    return exception_reading(
        raised.line,
        "no-such-user",
        f"The server runs as user id {found[1]}, which has no entry in /etc/passwd of this node or "
        "container, and torch asks for the user's name.",
        "Set `env.USER` and `env.TORCHINDUCTOR_CACHE_DIR` (a writable folder), or add the user to "
        "/etc/passwd of the image.",
    )


_NO_USER = re.compile(r"getpwuid\(\): uid not found: (\d{1,12})")


def _wrong_call(raised: Raised) -> Reading | None:
    found = _SIGNATURE.search(raised.message) if raised.type == "TypeError" else None
    packages = {frame.package for frame in raised.frames}
    of_ascend = "vllm_ascend" in packages or re.search(r"\b(?:Ascend|NPU)[A-Z]\w", raised.message)
    if found is None or not of_ascend:
        return None
    return exception_reading(
        raised.line,
        "versions-differ",
        f"vLLM and vllm-ascend call each other with other arguments or methods than defined "
        f"({shorten(raised.message, 160)}): they are of different releases.",
        "Install the releases that belong together: the vLLM that this vllm-ascend names (`pip "
        "list | grep vllm`; for 0.18.x of one the 0.18.x of the other), or use the release's "
        "container image.",
    )


def _missing_in_module(raised: Raised, module: str, name: str) -> Reading:
    top = module.partition(".")[0]
    # Frames of importlib stand between a loader of plug-ins and the plug-in.
    packages = [frame.package for frame in raised.frames if frame.package != "__init__"]
    # A package that loads its names when they are asked for raises in its own __getattr__.
    lazy = any(frame.function == "__getattr__" for frame in raised.frames)
    # `<string>` and `<stdin>` are scripts without a name.
    others = [package for package in packages if package != top and package[:1] != "<"]
    caller = next(iter(others), "calling program" if lazy else "")
    if not lazy and (packages[:1] == [top] or not caller):
        cause = (
            f"The module `{module}` of {top} has no `{name}` that {top}'s own code uses: files of "
            "two releases lie in one folder (an older compiled module beside newer Python code, "
            "or a checkout that hides the installed package), or it is half installed."
        )
        remedy = (
            f"Uninstall until nothing is left (`pip uninstall -y {top}` twice; `python -c 'import "
            f"{top}; print({top}.__file__)'` outside of its source folder), then install one "
            "release with its plug-ins again, or build it again after removing the old build"
        )
    else:
        cause = (
            f"The installed {top} has no `{module}.{name}` that {'' if others else 'the '}{caller} "
            "uses: their releases do not belong together."
        )
        shown = " ".join([top, *others[:1]])
        remedy = (
            f"Install the {top} release that this {caller} needs (`pip show {shown}`), or "
            f"{top} again if it is that one: it may be half installed"
        )
    remedy += "; or use the release's container image."
    return exception_reading(raised.line, "versions-differ", cause, remedy)


def _missing_attribute(raised: Raised) -> Reading | None:
    found = _MISSING_ATTRIBUTE.search(raised.message)
    if raised.type != "AttributeError" or found is None:
        return None
    owner, module, name = found.groups()
    if module:
        return _missing_in_module(raised, module, name)
    if reading := config_fields.read_missing_field(raised, owner, name):
        return reading
    if re.search(r"^\w+Config$", owner) and _OF_THE_TEXT_PART.match(name):
        return _of_the_text_part(raised, owner, name)
    if re.search(r"Tokenizer|Processor|PretrainedConfig|^\w+Config$", owner) and not _is_ascend(
        raised
    ):
        return exception_reading(
            raised.line,
            "transformers-version",
            f"`{owner}` has no `{name}`: the installed transformers (or the model's own code) is "
            "of another release than this vLLM expects.",
            "Install the transformers release that this vLLM names (`pip show vllm` lists the "
            "range), or use the release's container image.",
        )
    return None


_OF_THE_TEXT_PART = re.compile(
    r"(?:num_(?:hidden_layers|attention_heads|key_value_heads)|hidden_size|vocab_size"
    r"|head_dim|intermediate_size|max_position_embeddings)$"
)


def _of_the_text_part(raised: Raised, owner: str, name: str) -> Reading:
    reading = exception_reading(
        raised.line,
        "config-of-text-part",
        f"`{owner}` has no `{name}`: a model of several parts keeps it in its text part "
        "(`text_config` or `llm_config` in config.json), and this release asks the whole "
        "configuration for it.",
        "Use a newer vLLM (or vllm-ascend, if the traceback is in it) whose list of supported "
        "models names this one, with the transformers that it names.",
    )
    return replace(reading, certain=False)


def _is_ascend(raised: Raised) -> bool:
    return any(_ASCEND.match(frame.module_path) for frame in raised.frames[:3])


_OF_A_REQUEST = re.compile(r"kv_transfer[^ ]{0,80} .{0,80}params\[")


def _ascend_feature(raised: Raised) -> Reading | None:
    """Read an exception whose innermost own frame is in `vllm_ascend/<feature>/`."""
    own = next((f for f in raised.frames if not f.module_path.startswith("torch/")), None)
    found = _ASCEND.match(own.module_path) if own else None
    if own is None or found is None:
        return None
    wraps = raised.type == "RuntimeError" and _INIT_FAILED.search(raised.message) is not None
    if raised.type not in _UNSUPPORTED and not wraps:
        return None
    if _READ_ELSEWHERE.search(raised.message) or (wraps and _CALL_OF_CANN.search(raised.message)):
        return None  # the block of CANN below it names the operator and why it failed
    if raised.type in ("KeyError", "IndexError") and "patch/" in found[1]:
        return None
    calls = " ".join(frame.function for frame in raised.frames) if wraps else own.function
    if raised.type == "KeyError" and _OF_A_REQUEST.search(f"{found[1]} {raised.code}"):
        return None  # `key_errors` reads what the proxy passes on
    said = raised.message or raised.code
    if any("spec_decode/" in frame.module_path for frame in raised.frames):
        calls = f"{calls} spec_decode"
    operators = " ".join(_OPERATOR_CALL.findall(own.code))
    features = name_features(f"{found[1]} {calls} {operators} {said}", raised.process)
    if _UNEVEN.search(raised.message):
        features.append(("experts that the ranks do not divide", _EVEN))
    if not any(remedy for _, remedy in features):
        features += _of_the_callers(raised)
    names = " with ".join(name for name, _ in features) or f"what `{own.module_path}` does"
    if "NoneType" in said and raised.code:
        said = f"{said} (`{raised.code}`)"
    said = shorten(f"{raised.type}: {said}", 240) if said else raised.type
    return Reading(
        reason=reason(
            "ascend-unsupported",
            f"This release of vllm-ascend does not support {names} for this model and these "
            f"flags: {own.module_path} ({own.function or 'module'}) raised {said}.",
            f"{_advised(raised)}{advise_release('vllm-ascend', features)}"
            f"{_searched(raised, own.function)}",
            "exception by place",
            "deterministic",
        ),
        line=raised.line,
        # Anything else may also come from a vLLM of another release, or from one odd request.
        certain=bool(raised.message) and raised.type == "NotImplementedError",
    )


_OPERATOR_CALL = re.compile(r"\btorch(?:\.ops\.\w{2,20}|_npu)\.(\w{3,80})\(")
_UNEVEN = re.compile(r"(?i)expert[^\n]{0,60}(?:mismatch|divisible|uneven|multiple of)")
_EVEN = "`parallel.data` and `parallel.tensor` whose ranks divide the experts evenly"


def _of_the_callers(raised: Raised) -> list[tuple[str, str]]:
    """Return the features of the next frames: what is used by all is called for one of them."""
    callers = [frame for frame in raised.frames[1:4] if frame.package == "vllm_ascend"]
    for frame in callers:
        features = name_features(f"{frame.module_path} {frame.function}", raised.process)
        if known := [each for each in features if each[1]]:
            return known[:1]
    return []


def _advised(raised: Raised) -> str:
    advice = read_advice(f"{raised.message}\n{raised.after}")
    return f"The message advises: {advice}. " if advice else ""


def _searched(raised: Raised, function: str) -> str:
    """Return a sentence with what the issue list can be searched for: words, not a number."""
    words = raised.message if re.search(r"[A-Za-z]{3}", raised.message) else raised.code
    said = shorten(words or function, 80)
    return f" Its issue list can be searched for `{said}`." if said else ""


def _refused_configuration(raised: Raised) -> Reading | None:
    """Read a ValueError or AssertionError that a configuration check raised with a message."""
    frame = raised.innermost
    if not raised.message or frame is None or frame.package not in ("vllm", "vllm_ascend"):
        return None
    checks = frame.package == "vllm_ascend" and (
        frame.module_path == "vllm_ascend/ascend_config.py" or _CHECKS.match(frame.function)
    )
    if raised.type not in (*_REFUSALS, *(("TypeError", "RuntimeError") if checks else ())):
        return None
    if _NOT_SET_UP.search(raised.message):
        return None
    in_config = checks or _CONFIG_PLACE.search(frame.module_path) is not None
    at_start = not _REQUEST.match(frame.module_path) and bool(name_flags(raised.message))
    if not in_config and not at_start:
        return None
    return exception_reading(
        raised.line,
        "config-refused",
        f"{frame.package.replace('_', '-')} refused the configuration: {shorten(raised.message)}",
        f"{config_fields.correct(raised)}; the check is in {frame.module_path}.",
    )


_NOT_SET_UP = re.compile(
    r"not (?:initiali[sz]ed|set)\. |called outside of|(?:config|context) is not set|"
    r"not (?:been )?initiali[sz]ed|"
    # What the memory rules read with its numbers.
    r"larger than the (?:maximum number of tokens|available KV cache)"
)
_REFUSALS = ("ValueError", "AssertionError", "NotImplementedError")
_CHECKS = re.compile(
    r"_?(?:check|validate|verify|update)_\w{0,40}(?:config|capture_sizes)$|_?validate$"
)
_CONFIG_PLACE = re.compile(
    r"^vllm(?:_ascend)?/(?:config(?:/\w+)?|\w*config|engine/arg_utils|platform|platforms/\w+|"
    r"ascend_config|entrypoints/cli/\w+|quantization/\w*config)\.py$"
)


_RULES: tuple[Rule, ...] = (
    _no_such_user,
    _unknown_type,
    read_quant_description,
    read_draft_tensor,
    read_quant_tensor,
    read_stage_layer,
    _unknown_weight,
    *PLACES,
    _missing_name,
    _wrong_call,
    read_plugin_name,
    _refused_configuration,
    _missing_attribute,
    _ascend_feature,
)
