"""Kernels that fail on an NPU, as the device reports them: which core, which kernel, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason, shorten

# CANN runtime, device_error_core_proc.cc: one line per core, then the device's own explanation.
_CORE_ERROR = re.compile(
    r"(?:error from device\(chipId: ?(\d{1,3})[^\n]{0,100})?there is an? (?:exception of )?"
    r"((?:fftsplus )?(?:aicore|aivec|aivector|aicpu|sdma|mix)(?: \w{1,12})?) error"
    r"(?!, core id is \d{1,4}, error code = 0x[\da-f]{1,16}, dump info[^\n]{0,40}timeout)"
)
_ERROR_TEXT = re.compile(r"errorStr: ?([^\n.]{4,300})")
_KERNEL = re.compile(
    r"(?:fault kernel_name|kernel_name|fault kernel name|kernelName)[=:] ?([\w.:-]{3,160})"
)
_TASK_DEVICE = re.compile(
    r"(?:Aicore|Aivec|AIV|Aicpu) [Kk]ernel execute failed, device_id=(\d{1,3})"
)
_NEAR_LINES = 40
_CORES = {
    "aicore": "AI core",
    "aivec": "vector core",
    "aivector": "vector core",
    "aicpu": "AI CPU",
    "sdma": "SDMA engine",
    "mix": "AI core",
}
_REMEDY = (
    "It is an operator's defect, a wrong address or size given to it, or the card: see whether "
    "`npu-smi info` shows an alarm. If it recurs, switch off the feature that calls the kernel "
    "(`args.enforce-eager: true` for graphs), or use another release of vllm-ascend; the plog of "
    "the process under `~/ascend/log/debug/plog` has the operator's inputs."
)


_COLLECTIVE = re.compile(
    r"libccl_kernel|RunAicpuRpc|(?i:kernelName=\w*(?:hccl|allreduce|alltoall))"
)
_OF_A_COLLECTIVE = (
    "It is a collective of HCCL that the NPU's own CPUs carry out. Two collectives of one group at "
    "the same time break it: switch off what overlaps them (`env.VLLM_ASCEND_ENABLE_FLASHCOMM1`, "
    "dual batch, multistream options of `args.additional-config`); try "
    "`env.HCCL_OP_EXPANSION_MODE: AIV`. Compare CANN and driver on all nodes with the image's, and "
    "read the plog of the other ranks."
)


def read_devices(log: ServerLog) -> Iterator[Reading]:
    """Yield one reading per log: the first kernel that failed, with what the device says of it."""
    cores = list(log.errors.find(_CORE_ERROR))
    tasks = list(log.errors.find(_TASK_DEVICE))
    if not cores and not tasks:
        return
    first = min(line for line, _ in (*cores, *tasks))
    near = [index for index in log.errors.lines if first <= index <= first + _NEAR_LINES]
    text = "\n".join(log.cleaned[index] for index in near)
    yield Reading(
        reason(
            "npu-kernel-fault",
            f"A kernel failed on {_device(cores, tasks)}: {_core(cores, text)}{_explained(text)}.",
            _OF_A_COLLECTIVE if _COLLECTIVE.search(text) else _REMEDY,
            "CANN device_error_core_proc.cc; vllm-ascend#2976, #16654",
            "transient",
        ),
        first,
        covers=frozenset(line for line, _ in (*cores, *tasks)),
        certain=False,
    )


def _device(cores: list[tuple[int, re.Match[str]]], tasks: list[tuple[int, re.Match[str]]]) -> str:
    numbers = [match[1] for _, match in (*cores, *tasks) if match[1]]
    return f"NPU {numbers[0]}" if numbers else "an NPU"


def _core(cores: list[tuple[int, re.Match[str]]], text: str) -> str:
    if not cores:
        core = "AI CPU" if re.search(r"[Aa]icpu [Kk]ernel", text) else "core"
        return f"the {core} raised an exception"
    words = cores[0][1][2].split()
    core = next((_CORES[word] for word in words if word in _CORES), words[-1])
    return f"the {core} raised an exception ({cores[0][1][2]} error)"


def _explained(text: str) -> str:
    """Return what the device says about the fault, and the kernel it names."""
    parts = []
    if said := _ERROR_TEXT.search(text):
        parts.append(f": {shorten(said[1], 200)}")
    if kernel := _KERNEL.search(text):
        what = ", a collective of HCCL" if _COLLECTIVE.search(text) else ""
        parts.append(f" in kernel `{kernel[1]}`{what}")
    return "".join(parts)
