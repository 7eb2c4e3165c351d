"""Calls into a compiled package with arguments that it does not take (pybind11's message).

`TypeError: __init__(): incompatible constructor arguments. The following argument types are
supported:` goes on with the signatures that the installed package has, each with its full name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_MESSAGE = re.compile(r"(?:(\w{2,60})\(\): )?incompatible (constructor|function) arguments")
# `1. torch._C._distributed_c10d.ProcessGroup(arg0: ...`, `1. (self: mooncake.store.Store, ...`
_SIGNATURE = re.compile(r"^\s{0,8}1\. (?:\(self: )?([A-Za-z_][\w.]{2,120})[,(:)]", re.MULTILINE)
# Its messages are about a request's grammar, which `rules/general/places.py` reads.
_GRAMMAR = ("xgrammar", "llguidance", "outlines_core")
_TORCH = (
    "Install the torch and torch_npu that this vLLM and vllm-ascend name (`pip show vllm "
    "vllm-ascend torch torch-npu`; vLLM from 0.8.5 on is written for torch 2.6 and newer), or use "
    "the release's image, in which they fit."
)


def read_compiled_calls(log: ServerLog) -> Iterator[Reading]:
    """Yield the compiled packages that are of another release than their callers."""
    for raised in find_exceptions(log):
        if raised.type != "TypeError":
            continue
        found = _MESSAGE.search(raised.message)
        owner = _SIGNATURE.search(raised.after) if found else None
        if found and owner and owner[1].partition(".")[0] not in _GRAMMAR:
            yield _other_release(raised, owner[1], found[1] or "")


def _other_release(raised: Raised, owner: str, function: str) -> Reading:
    package = owner.partition(".")[0]
    caller = next((f for f in raised.frames if f.package != package), None)
    by = f"{caller.package} ({caller.module_path}, {caller.function})" if caller else "its caller"
    called = owner if function in ("", "__init__") else f"{owner}.{function}"
    remedy = (
        f"Install the {package} release that {caller.package if caller else 'the caller'} was made "
        "for, the same on all nodes, or use the release's image."
    )
    return Reading(
        reason(
            "call-mismatch",
            f"The installed {package} does not take the arguments with which {by} calls `{called}`:"
            " the two are of releases that do not belong together.",
            _TORCH if package == "torch" else remedy,
            "pybind11's message; vllm-ascend#441, #924; vllm PR#18763",
            "deterministic",
        ),
        raised.line,
        rank=Rank.HINT,
        certain=False,
    )
