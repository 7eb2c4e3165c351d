"""What a check says that it needs: a library, a setting, an object of another class."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.plan.known_flags import read_flags
from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.tables.option_names import (
    name_flags,
    name_options,
    name_topics,
)
from raylaunch.supervise.diagnosis.rules.tables.packages import find_package
from raylaunch.supervise.diagnosis.rules.tables.place_options import name_place_options
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_NOT_THERE = re.compile(
    r"^(?:The )?(?:package |library |module )?[`'\"]?([A-Za-z][\w-]{1,30})[`'\"]? "
    r"(?:library |package )?"
    r"(?:is|was|are|could|can) ?n[o']t (?:be )?(?:available|installed|found|imported|importable)\b"
)
_SETTING = re.compile(
    r"^assert (not )?\(?(?:self|cls)?\.?(?:\w{0,30}(?:config|cfg|args|settings)\.)?"
    r"([a-z][a-z0-9_]{2,60})"
    r"(?: (is not None|is None|==|!=|>=?|<=?|in|not in)(?: ([^,\n]{1,80}))?)?\)?"
    r"(?:, ?[^\n]{0,200})?$"
)
_CONFIG_PLACE = re.compile(r"config|arg_utils|settings|args\.py")
_CHECKS = re.compile(r"valid|post_init|check|verify|__init__")
_OBJECT = re.compile(
    r"Invalid type of HuggingFace (\w{3,20})\. Expected type: (.{3,200}?), "
    r"but found type: (.{3,200})"
)
_METHOD = re.compile(r"Method ['\"`](\w{3,60})['\"`] is not implemented")
_OPTION = r"(?<![\w-])([\w-]{4,60})[`'\"]?"
_GIVEN = r"(?:set|enabled|provided|specified|given|defined|passed|configured|switched on|turned on)"
_NEEDED = re.compile(
    rf"{_OPTION} (?:must|should|has to|have to|needs? to) (?:also )?be {_GIVEN}\b|"
    rf"{_OPTION} (?:is|are) required\b|"
    rf"\b[Rr]equires? [`'\"]?{_OPTION} (?:to be |be )?{_GIVEN}\b|"
    rf"\b(?:[Pp]lease|[Mm]ust|[Nn]eed to|[Hh]ave to) (?:also )?(?:specify|provide|set|pass|enable|"
    rf"define|configure) (?:either |the |an? )?[`'\"]?{_OPTION}"
)
_LOOKS_LIKE_AN_OPTION = re.compile(r"--[a-z]|[A-Za-z][A-Za-z0-9]{0,40}_\w")
_VALUE = re.compile(r"^ (?:to|as) (?!be\b|the\b|an?\b)([`'\"]?[\w.\[\]-]{1,40}[`'\"]?)")
_PIP_NAMES = {"mooncake": "mooncake-transfer-engine", "flash_attn": "flash-attn"}
_CLASS = re.compile(r"'([\w.]{3,200})'")


def read_stated_needs(log: ServerLog) -> Iterator[Reading]:
    """Yield the exceptions that say what is missing for a part of the server."""
    for raised in find_exceptions(log):
        for read in (_library, _setting, _other_setting, _object, _method):
            if reading := read(raised):
                yield reading
                break


def _library(raised: Raised) -> Reading | None:
    """Read that a library which an option needs is not installed."""
    found = _NOT_THERE.match(raised.message)
    if found is None or raised.type not in ("RuntimeError", "ImportError", "ValueError"):
        return None
    name = found[1]
    known = find_package(name.lower().replace("-", "_"))
    if known is None:
        return None
    pip = _PIP_NAMES.get(name.lower(), name.lower())
    options = name_place_options(raised.frames) or ["the option that uses it"]
    return _reading(
        raised,
        "package-not-installed",
        f"The library {name} ({known.role}) is not installed in the server's environment, or "
        f"cannot be loaded there ({shorten(raised.message, 120)}).",
        f"Install {name} there, on every node (`pip install {pip}`; `python -c 'import "
        f"{name.lower()}'` shows why it does not load), or use an image that has it; to start "
        f"without it, leave out {' or '.join(options)}.",
    )


def _setting(raised: Raised) -> Reading | None:
    """Read an assertion without words about one setting, in code that checks a configuration."""
    frame = raised.innermost
    if frame is None or raised.type != "AssertionError" or raised.message:
        return None
    if not _CONFIG_PLACE.search(frame.module_path) or not _CHECKS.search(frame.function):
        return None
    found = _SETTING.match(raised.code)
    if found is None:
        return None
    negated, name, operator, value = found.groups()
    wanted = _wanted(negated is not None, operator, value)
    where = _where(name, frame.package)
    return _reading(
        raised,
        "setting-needed",
        f"{frame.package} checks its configuration and wants {where} set {wanted} "
        f"(`{shorten(raised.code, 120)}` in {frame.module_path}): another setting asks for it.",
        f"Set {where} {wanted}, or leave out the setting that needs it (the lines of the traceback "
        f"above show which part is checked, {frame.function}).",
    )


def _other_setting(raised: Raised) -> Reading | None:
    """Read that one setting asks for another one, which is missing."""
    found = _NEEDED.search(raised.message)
    if found is None or raised.type not in ("ValueError", "AssertionError", "RuntimeError"):
        return None
    name = next(filter(None, found.groups()))
    if not _LOOKS_LIKE_AN_OPTION.match(name):
        return None
    own = name_flags(name)
    others = [field for field in name_flags(raised.message) if field not in own]
    topics = [] if own else name_topics(raised.message) or name_place_options(raised.frames)
    if not own and not others and not topics:
        return None
    where = _key_or_field(name, own, topics)
    value = _VALUE.match(raised.message[found.end() :])
    asked = f" to {value[1]}" if value else ""
    left_out = f", or leave out what needs it ({', '.join(others[:2])})" if others else ""
    said = shorten(raised.message, 240).rstrip(". ")
    return _reading(
        raised,
        "setting-needed",
        f"A setting is missing that another one needs, {where}: {said}.",
        f"Set {where}{asked}{left_out}.",
    )


def _key_or_field(name: str, own: list[str], topics: list[str]) -> str:
    """Return the field of a name, or the name as a key of the field that it is set in."""
    if own and (name.startswith("--") or own[0].endswith(f".{name.replace('_', '-')}`")):
        return own[0]
    fields = own or topics  # `kv_role` is a key of `args.kv-transfer-config`
    return f"`{name}` in {fields[0]}" if fields else f"`{name}`"


def _wanted(negated: bool, operator: str | None, value: str | None) -> str:
    if operator is None:
        return "to false (or leave it out)" if negated else "to true (or give it a value)"
    if operator == "is not None":
        return "to a value"
    if operator == "is None":
        return "to nothing (left out)"
    return f"so that it is {operator} {(value or '').strip()}".rstrip()


def _where(name: str, package: str) -> str:
    if package.startswith("lmcache"):
        return f"`{name}` in the file of LMCACHE_CONFIG_FILE (`env.LMCACHE_{name.upper()}`)"
    flag = name.replace("_", "-")
    return f"`args.{flag}`" if flag in read_flags() else f"`{name}`"


def _object(raised: Raised) -> Reading | None:
    """Read that the model's files led to an object of another class than vLLM's code needs."""
    found = _OBJECT.search(raised.message)
    if found is None:
        return None
    what, expected, got = found[1], _short(found[2]), _short(found[3])
    if what == "config":
        return _reading(
            raised,
            "model-files-unread",
            f"config.json of the model is read as `{got}`, and vLLM's class of the model needs "
            f"`{expected}`: the file is that of a part of the model (as a fine-tuning or "
            "quantisation tool saved it, text only), or transformers has its class under another "
            "name.",
            "Put config.json of the base model (`model_type`, `architectures`, with its own "
            "`quantization_config`) into `model.path`, or name the architecture that fits these "
            'files (`args.hf-overrides: {"architectures": ["..."]}`), or use a newer vLLM that '
            "knows the text-only class, with the transformers that it names.",
        )
    return _reading(
        raised,
        "model-files-unread",
        f"The {what} of the model is read as `{got}`, and vLLM's class of the model needs "
        f"`{expected}`: preprocessor_config.json or processor_config.json is missing under "
        "`model.path`, or the installed transformers does not know the model's class.",
        "Copy preprocessor_config.json, processor_config.json and the tokenizer files of the base "
        "model to `model.path`, and install the transformers that the model card names (within "
        "the range of this vLLM); a class of the model's own needs `args.trust-remote-code: true`.",
    )


def _method(raised: Raised) -> Reading | None:
    """Read that the engine calls a method that this class of workers does not have."""
    found = _METHOD.search(raised.message)
    if found is None:
        return None
    feature = name_options(found[1].replace("_", " "))
    named = [*feature, "`features.speculative`", "`args.worker-cls`"]
    return _reading(
        raised,
        "worker-method-missing",
        f"The engine calls the method `{found[1]}` of its workers, and the worker class of this "
        "process has none: this feature is not written for these workers (speculative decoding, "
        "another device or plug-in), or the worker class is of another release.",
        f"Start without the feature that calls it, or without the one that changes the workers "
        f"({', '.join(dict.fromkeys(named))}), or use a release of vLLM and its plug-in that have "
        "both.",
    )


def _short(text: str) -> str:
    found = _CLASS.search(text)
    return found[1].rpartition(".")[2] if found else shorten(text, 80)


def _reading(raised: Raised, id_: str, cause: str, remedy: str) -> Reading:
    return Reading(
        reason(id_, cause, remedy, "exception that states a need", "deterministic"),
        raised.line,
        rank=Rank.HINT,
        certain=False,
    )
