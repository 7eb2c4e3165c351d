"""Triton that is not active, or not the one for NPUs: `triton` and `triton-ascend` in one folder.

triton-ascend is a distribution of its own that installs the module `triton`. xgrammar and torch
pull in plain `triton` on x86, and of two distributions that write the same files the last one wins
(triton-ascend#277, #306). Without a usable Triton vLLM puts placeholders in its place
(`vllm/triton_utils/importing.py`), and a kernel is then a plain function.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason, shorten

_BROKEN = re.compile(
    r"cannot import name '(?P<name>\w{2,60})' from '(?P<module>triton(?:\.\w{1,40}){0,6})'"
    r"(?! \(unknown)|"
    r"No module named '(?P<missing>triton\.[\w.]{2,80})'|"
    r"module '(?P<owner>triton(?:\.\w{1,40}){0,5})' has no attribute '(?P<attribute>\w{1,60})|"
    r"(?P<drivers>\b0 active drivers \(\[\]\))"
)
_NO_KERNEL = re.compile(r"TypeError: 'function' object is not subscriptable")
_LAUNCH = re.compile(r"\b(\w{2,80})\[[\w, ()*//]{1,60}\]\(")
_LAUNCH_LINES = 6
_UNRESOLVED = re.compile(
    r"Triton op '(\w{2,60})' cannot be resolved because HAS_TRITON is False|"
    r"Failed to resolve Triton op '(\w{2,60})'"
)
_NPU = re.compile(r"(?i)ascend|(?<![a-z])npu(?![a-z])|\bCANN\b|hccl|_npu\b")
_COMPILED = ("triton._C",)
_OPTIONAL = "Failed to import Triton kernels"
"""vLLM goes on without these (known/notes.yaml)."""

_ONE_TRITON = (
    "`pip uninstall -y triton triton-ascend` until neither is left, then `pip install --no-deps "
    "triton-ascend==VERSION` as the last package, of the release that this vllm-ascend names "
    "(its table of versions), on all nodes; `python -c 'import triton.backends as b; "
    "print(b.backends)'` must then list `ascend`; or use the release's image. 310P has no "
    "triton-ascend: uninstall both there."
)


def read_triton(log: ServerLog) -> Iterator[Reading]:
    """Yield what shows that Triton is not the one for this device, the first sign of a log."""
    npu = any(_NPU.search(text) for text in log.cleaned)
    broken = [
        (line, match)
        for line, match in log.errors.find(_BROKEN)
        if not (match["missing"] or "").startswith(_COMPILED) and _OPTIONAL not in log.cleaned[line]
    ]
    # On GPUs torch and triton are a pair, and a traceback names who asks for what.
    if broken and (npu or any(match["drivers"] for _, match in broken) or not _has_frames(log)):
        line, match = broken[0]
        covers = frozenset(line for line, _ in broken)
        yield replace(_wrong_one(line, match, npu=npu), covers=covers)
        return
    for line, match in log.errors.find(_UNRESOLVED):
        yield _inactive(line, match[1] or match[2], npu=True)
        return
    for line, _ in log.errors.find(_NO_KERNEL):
        near = log.cleaned[max(0, line - _LAUNCH_LINES) : line]
        kernel = next((found[1] for text in near if (found := _LAUNCH.search(text))), "")
        if kernel:
            yield _inactive(line, kernel, npu=npu or kernel.endswith("_npu"))
            return


def _has_frames(log: ServerLog) -> bool:
    return any(text.lstrip().startswith('File "') for text in log.cleaned)


def _wrong_one(line: int, match: re.Match[str], *, npu: bool) -> Reading:
    lacks = shorten(match[0], 140)
    if match["drivers"]:
        cause = (
            "Triton has no driver for this device (0 active drivers): the installed `triton` is "
            "not the one for it; on NPUs `triton` overwrites triton-ascend, or triton-ascend's "
            "part cannot be imported."
        )
    else:
        cause = (
            f"The installed Triton is not the one that vllm-ascend or torch_npu uses on NPUs "
            f"({lacks}): plain `triton` lies beside or over triton-ascend, or triton-ascend is of "
            "another release than this torch_npu and vllm-ascend expect."
        )
    remedy = (
        _ONE_TRITON
        if npu
        else f"On NPUs: {_ONE_TRITON} On GPUs install the triton that torch "
        "names (`pip show torch`), and check that the driver is visible (`nvidia-smi`)."
    )
    return Reading(
        reason("triton-wrong", cause, remedy, "triton-ascend#277, #306", "deterministic"),
        line,
        certain=npu,
    )


def _inactive(line: int, kernel: str, *, npu: bool) -> Reading:
    where = (
        "triton-ascend is not installed or cannot be imported, or plain `triton` overwrote it "
        "(310P has none)"
        if npu
        else "Triton is not installed or finds no device"
    )
    remedy = (
        _ONE_TRITON
        if npu
        else f"On NPUs: {_ONE_TRITON} On a CPU use a newer vLLM, in which this path "
        "does without Triton; on GPUs install the triton that torch names."
    )
    return Reading(
        reason(
            "triton-wrong",
            f"The Triton kernel `{kernel}` cannot be started, because Triton is not active in this "
            f"process and vLLM has put a placeholder in its place: {where}.",
            remedy,
            "vllm triton_utils/importing.py; vllm-ascend#11681",
            "deterministic",
        ),
        line,
        certain=False,
    )
