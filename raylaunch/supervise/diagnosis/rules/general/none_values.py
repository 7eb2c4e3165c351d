"""A value that is None where the code uses it: not given, not loaded, or not set up."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.tables.features import advise_release, name_features
from raylaunch.supervise.diagnosis.rules.tables.option_names import name_options
from raylaunch.supervise.diagnosis.rules.tables.place_options import (
    name_model_class,
    name_place_options,
)
from raylaunch.supervise.diagnosis.tracebacks import Frame, Raised, find_exceptions

_NONE = re.compile(
    r"'NoneType' object (?:has no attribute '(\w{1,60})'|is not (subscriptable|iterable|callable))|"
    r"(?:argument of type|unsupported operand[^\n]{0,60}) '?NoneType'?"
)
_OWN = ("vllm", "vllm_omni", "lmcache", "transformers")
_HELPER = re.compile(r"^vllm/utils(?:\.py|/)")
_ARGUMENT = re.compile(r"\b\w{2,60}\(([A-Za-z_][\w.]{0,80})[,)]")
_REQUEST = re.compile(r"entrypoints/(?:openai|serve|pooling)|serving_|sampling_params")


def read_none_values(log: ServerLog) -> Iterator[Reading]:
    """Yield the names that were None, with the options that would set them."""
    for raised in find_exceptions(log):
        if reading := _none(raised):
            yield reading


def _none(raised: Raised) -> Reading | None:
    found = _NONE.search(raised.message)
    frame = raised.innermost
    if found is None or frame is None or frame.package not in _OWN or not raised.code:
        return None
    if _REQUEST.search(frame.module_path):
        return None
    if _HELPER.search(frame.module_path) and len(raised.frames) > 1:
        return _of_the_caller(raised, raised.frames[1])
    name = _name(raised.code, found[1] or "")
    if not name:
        return None
    last = name.rpartition(".")[2]
    options = name_options(last.replace("_", " ")) or name_options(last)
    options = options or name_place_options(raised.frames)
    class_ = name_model_class(raised.frames)
    model = f" The model's class is `{class_}`." if class_ else ""
    give = f"Give or correct {' or '.join(options)}, or leave that feature out. " if options else ""
    return Reading(
        reason(
            "value-none",
            f"`{name}` is not set (None) where {frame.package.replace('_', '-')} uses it "
            f"(`{shorten(raised.code, 100)}` in {frame.module_path}, {frame.function}).{model} An "
            "option or a file of the model is missing, or this release does not set it up for "
            "this model with these options.",
            f"{_pair(frame.package)}{give}Compare the model's files under `model.path` with the "
            "hub, and use the release of vLLM that the model card names, or a newer one.",
            "NoneType by its statement",
            "deterministic",
        ),
        raised.line,
        rank=Rank.HINT,
        certain=False,
    )


def _pair(package: str) -> str:
    """Return what to do first where a package that vLLM calls got None."""
    if package in ("vllm", "transformers"):
        return ""
    shown = package.replace("_", "-")
    return (
        f"Install the release of {shown} that belongs to this vLLM (`pip list | grep -iE 'vllm|"
        f"{shown}'`; a newer {shown}): vLLM calls it with other arguments than it expects. "
    )


def _of_the_caller(raised: Raised, caller: Frame) -> Reading | None:
    """Read a None that a helper function was called with: the caller's statement names it."""
    found = _ARGUMENT.search(caller.code)
    if found is None or caller.package not in (*_OWN, "vllm_ascend"):
        return None
    package = caller.package.replace("_", "-")
    features = name_features(f"{caller.module_path} {caller.function}", raised.process)
    return Reading(
        reason(
            "value-none",
            f"`{found[1]}` is None where {package} uses it (`{shorten(caller.code, 100)}` in "
            f"{caller.module_path}, {caller.function}): this release does not set it up for this "
            "model with these options.",
            f"{advise_release(package, features)} Compare the model with the release's list of "
            "supported models.",
            "NoneType by its statement",
            "deterministic",
        ),
        raised.line,
        rank=Rank.HINT,
        certain=False,
    )


def _name(code: str, attribute: str) -> str:
    """Return the expression that was None: what stands before the attribute or bracket."""
    before = rf"\.{attribute}\b" if attribute else r"[\[(]"
    found = re.search(rf"([A-Za-z_][\w.]{{0,80}}?){before}", code)
    return found[1] if found else ""
