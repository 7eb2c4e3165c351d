"""Errors of the program itself: an attribute, name, argument or index that is not there.

Python writes these messages, not a check of vLLM: no setting is refused. Either two packages are
of releases that do not belong together, or this release has a defect or does not support the model
with these options. What helps is another release; what helps until then follows from the path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.refusal_rules import is_request_place, is_running_place
from raylaunch.supervise.diagnosis.rules.tables.features import name_features
from raylaunch.supervise.diagnosis.rules.tables.name_owners import find_name_owner
from raylaunch.supervise.diagnosis.rules.tables.option_names import name_options
from raylaunch.supervise.diagnosis.rules.tables.packages import find_package
from raylaunch.supervise.diagnosis.rules.tables.place_options import (
    name_model_class,
    name_place_options,
)
from raylaunch.supervise.diagnosis.tracebacks import Frame, Raised, find_exceptions

_TYPES = (
    *("AttributeError", "TypeError", "NameError", "UnboundLocalError", "IndexError"),
    *("ZeroDivisionError", "KeyError", "RecursionError"),
)
_BY_PYTHON = re.compile(
    r"has no attribute|is not defined|referenced before assignment|not associated with a value|"
    r"(?:is )?not (?:subscriptable|callable|iterable)|unsupported operand|not supported between|"
    r"unexpected keyword argument|required (?:positional|keyword-only) argument|"
    r"positional arguments? but|multiple values for|(?:list|tuple|string) (?:index|indices)|"
    r"out of range|division by zero|division or modulo|recursion|must be \w{1,30}, not |"
    r"can(?:no|')t unpack|values to unpack|can't convert|unhashable|"
    r"bad operand type|can only concatenate|takes no arguments|abstract"
)
_CALL = re.compile(
    r"(?<![\w.])([A-Za-z_][\w.]{1,120})\(\) (?:got an unexpected|missing \d|takes |got multiple)"
)
_OWNER = re.compile(r"(?:type object |module )?'([\w.]{2,120})'(?: object)? has no attribute")
_NO_NAME = re.compile(
    r"cannot import name '[\w.]{1,80}' from '([\w.]{1,120})'|No module named '([\w.]+)'"
)
_UNDEFINED = re.compile(r"name '(\w{2,60})' is not defined")
_OWN = ("vllm", "vllm_omni", "lmcache")
_SKIPPED = ("torch", "torch_npu", "functools", "contextlib", "importlib", "typing", "abc")
_ASCEND_ONLY = re.compile(r"additional-config|VLLM_ASCEND")
_LOOK_AT = 6
_SHOWN = 3


def read_own_defects(log: ServerLog) -> Iterator[Reading]:
    """Yield the errors that Python itself raised in code of vLLM, LMCache and their like."""
    for raised in find_exceptions(log):
        if reading := _defect(raised) or _failed_import(raised):
            yield reading


def _failed_import(raised: Raised) -> Reading | None:
    """Read transformers' report of an import that failed: the reason is on its last line."""
    if not re.match(r"Failed to import \S{3,200} because of the following error", raised.message):
        return None
    said = raised.after.rpartition("\n")[2]
    if not said:
        return None
    found = _OWNER.search(said) or _CALL.search(said) or _NO_NAME.search(said)
    name = found[1] if found else ""
    package = find_name_owner(name) or name.partition(".")[0] if "." in name else ""
    package = package or find_name_owner(name) or "a package that it imports"
    return Reading(
        reason(
            "versions-differ",
            f"transformers could not import a module of its own, because of {package}: "
            f"{shorten(said, 200)} ({shorten(raised.message, 100)}). Packages of different times "
            "are installed together.",
            f"Install the {package} that the other packages were made for: `pip check` lists what "
            "does not fit; update accelerate, peft, deepspeed and torchvision where they are "
            "installed (or remove them), or use the release's image.",
            "transformers/utils/import_utils.py",
            "deterministic",
        ),
        raised.line,
        certain=False,
    )


def _defect(raised: Raised) -> Reading | None:
    frame = _place(raised)
    if frame is None or raised.type not in _TYPES or is_request_place(frame.module_path):
        return None
    if raised.type != "KeyError" and not _BY_PYTHON.search(raised.message):
        return None
    if re.search(r"unpickle|pickle|__mp_main__", raised.message):
        return None
    if raised.type in ("KeyError", "IndexError") and is_running_place(frame.module_path):
        return None  # the state of the running engine, which a restart clears
    said = shorten(f"{raised.type}: {raised.message or raised.code}".rstrip(": "), 240)
    where = f"{frame.module_path} ({frame.function or 'module'})"
    package = _other_package(raised, frame)
    if package:
        cause = (
            f"{_name(frame)} uses {package} in a way that the installed {package} does not have: "
            f"{said}, in {where}. Their releases do not belong together."
        )
        first = (
            f"Install the {package} release that this {_name(frame)} was made for (`pip show "
            f"{frame.package}`, `pip check`), or use the release's container image."
        )
    else:
        cause = (
            f"{_name(frame)}'s own code failed in {where}: {said}. It refuses no setting: this "
            "release has a defect, or does not support this model with these options."
        )
        first = _another_release(raised, frame)
    return Reading(
        reason(
            "versions-differ" if package else "code-defect",
            f"{cause}{_through(raised)}",
            f"{first} {_until_then(raised)}".strip(),
            "Python's own error by its place",
            "deterministic",
        ),
        raised.line,
        rank=Rank.HINT,
        certain=False,
    )


def _place(raised: Raised) -> Frame | None:
    """Return the innermost frame that is not of Python or torch, if it is of our packages."""
    for frame in raised.frames[:_LOOK_AT]:
        if frame.package in _SKIPPED or re.search(r"/lib/python3[.\d]{0,4}/\w+\.py$", frame.path):
            continue
        if frame.function in ("__getattr__", "__getattribute__"):
            continue
        return frame if frame.package in _OWN else None
    return None


def _name(frame: Frame) -> str:
    return {"vllm": "vLLM", "lmcache": "LMCache"}.get(frame.package, frame.package)


def _other_package(raised: Raised, frame: Frame) -> str:
    """Return the package whose part is missing or called otherwise; "" for the caller's own."""
    found = _CALL.search(raised.message) or _OWNER.search(raised.message)
    # An optional import that failed leaves its name undefined.
    found = found or _UNDEFINED.search(raised.message)
    owner = find_name_owner(found[1]) if found else ""
    if owner.replace("-", "_") == frame.package or f"{frame.package}/" in owner:
        return ""
    return owner


def _another_release(raised: Raised, frame: Frame) -> str:
    searched = shorten(raised.message or raised.code or frame.function, 80)
    if _CALL.search(raised.message) and "/vllm-workspace/" in frame.path:
        return (
            "Install the vLLM and the vllm-ascend that belong together (vllm-ascend's table of "
            "versions; the path is that of its image): it replaces parts of vLLM, and what it puts "
            "there is called otherwise by this vLLM."
        )
    if _CALL.search(raised.message) and frame.package == "vllm":
        return (
            "With a plug-in (vllm-ascend) install the releases of both that belong together (`pip "
            "list | grep -i vllm`): it replaces parts of vLLM, and this vLLM calls them otherwise. "
            "Without one, files of two releases are mixed: install vLLM again, another release."
        )
    if frame.package == "vllm":
        model = name_model_class(raised.frames)
        by_card = f" that its card names for `{model}`" if model else " that the model card names"
        return (
            f"Use another release of vLLM with its own set of packages (the image): a newer one, "
            f"or the one{by_card}; vLLM's issues can be searched for `{searched}`."
        )
    known = find_package(frame.package)
    of_package = f" {known.remedy}" if known else ""
    return (
        f"Install the release of {_name(frame)} that belongs to this vLLM (a newer one where it "
        f"has the defect itself).{of_package}"
    )


def _through(raised: Raised) -> str:
    names = " and ".join(name for name, remedy in _features(raised) if remedy)
    return f" It goes through {names}." if names else ""


def _until_then(raised: Raised) -> str:
    """Return how to start with this release: without the feature that the path goes through."""
    off = [remedy for _, remedy in _features(raised) if remedy]
    options = name_options(raised.message) or name_place_options(raised.frames)
    options = [each for each in options if not any(each.strip("`") in fix for fix in off)]
    parts = []
    if raised.type == "ZeroDivisionError":
        parts.append(
            "choose a smaller `parallel.tensor` (a number of heads or experts becomes zero when it "
            "is split over more ranks)"
        )
    if off:
        parts.append(f"try {' or '.join(off)}")
    if options:
        parts.append(f"correct, change or leave out {' or '.join(options[:_SHOWN])}")
    if not parts and name_model_class(raised.frames):
        parts.append("serve other weights (`model.path`) or set `args.model-impl: transformers`")
    if not parts:
        parts.append(
            "leave out the options under `args` that the model does not need, one after the other"
        )
    return f"Until then {'; or '.join(parts)}."


def _features(raised: Raised) -> list[tuple[str, str]]:
    own = [each for each in raised.frames[:4] if each.package not in _SKIPPED]
    way = " ".join(f"{each.module_path} {each.function}" for each in own)
    found = name_features(f"{way} {raised.message}", raised.process)
    return [each for each in found if each[1] and not _ASCEND_ONLY.search(each[1])]
