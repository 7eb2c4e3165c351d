"""Memory of a device, read with its numbers: who holds it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from raylaunch.supervise.diagnosis.advice import read_advice
from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_SIZE = r"([\d.]{1,12}) ([KMGT]iB)"
_OUT = re.compile(
    r"(NPU|CUDA|HIP|XPU) out of memory\. (?:(\w{1,40})Allocator tried|Tried) to allocate "
    + _SIZE
    + r"([^\n]{0,700})"
)
_TOTAL = re.compile(_SIZE + r" total capacity|total capacity of " + _SIZE)
_FREE = re.compile(r"(?<![\w.])" + _SIZE + r" (?:is )?free")
_RESERVED = re.compile(
    _SIZE + r" reserved in total by PyTorch|this process has " + _SIZE + r" memory in use"
)
_OTHER_PROCESS = re.compile(r"Process (\d{1,9}) has " + _SIZE + r" memory in use")
KV_NEGATIVE_ANCHOR = "Available KV cache memory: -"
KV_ZERO_ANCHOR = "Available memory: 0, total memory: "  # vllm-ascend until 0.11
_KV_NEGATIVE = re.compile(
    r"Available KV cache memory: (-[\d.]{1,12}) ?GiB|Available memory: (0), total memory: \d"
)
# vLLM 0.32 v1/worker/gpu_worker.py:720; vllm-ascend 0.7 worker.py. Values in bytes or GiB.
_PROFILED = re.compile(
    r"Error in memory profiling\.(?: Initial free memory:? ?(\d[\d.]{0,18}\d)( ?[GM]i?B)?,"
    r"[^\n]{0,20}?\s{1,40}current free memory:? ?(\d[\d.]{0,18}\d))?"
)
# What asked for the memory, by the functions and files of the traceback; and what to do first.
_ASKED_FOR: tuple[tuple[str, str, str], ...] = (
    (
        r"mask",
        "the attention mask, which grows with the square of the length",
        "Lower `args.max-model-len` first.",
    ),
    (
        r"initialize_kv_cache|allocate_kv|_kv_cache_tensors|kv_caches?\b",
        "the KV cache",
        "Lower `args.gpu-memory-utilization` first.",
    ),
    (
        r"load_weights|create_weights|load_model|process_weights|weight_loader",
        "the weights",
        (
            "Raise `parallel.tensor` or `parallel.pipeline`, or use quantised weights. If they are "
            "quantised and take twice the size of their files, they were loaded unquantised: set "
            "`args.quantization: ascend`, and download weights of ModelSlim again whose "
            "config.json has a `quantization_config` (it must have none)."
        ),
    ),
    (
        r"sampler|compute_logits|top_k|top_p|penalt|logprobs|softmax",
        "sampling, with a value for each word of the vocabulary and each sequence",
        "Lower `args.max-num-seqs` first.",
    ),
    (
        r"vision|visual|multimodal|mm_encoder|image|video|\bvit",
        "the encoder of images or video",
        "Lower `args.limit-mm-per-prompt` and the pixels (`args.mm-processor-kwargs`) first.",
    ),
    (
        r"capture|aclgraph|acl_graph|cudagraph",
        "graph capture",
        (
            "Lower `args.gpu-memory-utilization` (by 0.02 to 0.05) or capture fewer sizes "
            "(`args.compilation-config: {cudagraph_capture_sizes: [...]}`) first."
        ),
    ),
)
_UNITS = {"KiB": 2**-20, "MiB": 2**-10, "GiB": 1.0, "TiB": 2.0**10}
_OUTSIDE = ("context, NCCL and graphs", "its own HCCL, graphs and context")
_OWN_OVERHEAD_GIB = 8.0
"""CANN's context, HCCL buffers and graphs of one process are outside PyTorch: 2 to 6 GiB."""


def read_memory(log: ServerLog) -> Iterator[Reading]:
    """Yield each device that ran out of memory, with the process that holds the memory."""
    for line, match in log.errors.find(_PROFILED):
        yield _profiling(line, match)
    places = {raised.line: raised for raised in find_exceptions(log)}
    for line, match in log.errors.find(_OUT):
        yield _name_place(_out_of_memory(line, match), places.get(line))
    # vLLM logs it as INFO; it never serves with less than none.
    for line, match in log.everything.find(_KV_NEGATIVE):
        yield _no_cache(line, match)


def _no_cache(line: int, match: re.Match[str]) -> Reading:
    old = match[1] is None
    others = (
        " This release counts the memory of other servers on the same device as its own."
        if old
        else ""
    )
    shared = (
        " If `npu-smi info` shows another server on the device, the share must hold both: raise it "
        "to the sum of both, or use a newer release of vllm-ascend, which counts its own only."
        if old
        else ""
    )
    return Reading(
        reason(
            "kv-none",
            f"Nothing is left for the KV cache: weights and activations need more than the "
            f"server's share of the memory ({match[1] or match[2]} GiB are left).{others}",
            "Raise `args.gpu-memory-utilization`, lower `args.max-num-batched-tokens` or "
            "`args.max-model-len`, raise `parallel.tensor`, or use quantised weights."
            f"{shared}",
            "vllm-ascend#9372, #4404",
            "deterministic",
        ),
        line,
        certain=not old,
    )


def _name_place(reading: Reading, raised: Raised | None) -> Reading:
    """Add what asked for the memory, if the traceback shows it, and what helps against that."""
    own = [f for f in raised.frames if f.package.startswith("vllm")] if raised else []
    for frame in own[:4]:
        place = f"{frame.function} {frame.module_path}"
        for words, what, first in _ASKED_FOR:
            if re.search(words, place):
                told = reading.reason
                cause = f"{told.cause} It was asked for {what} ({frame.function})."
                named = replace(told, cause=cause, remedy=f"{first} {told.remedy}")
                return replace(reading, reason=named)
    return reading


def _gib(match: re.Match[str] | None) -> float | None:
    if match is None:
        return None
    numbers = [group for group in match.groups() if group]
    amount, unit = numbers[-2:]
    return float(amount.rstrip(".")) * _UNITS[unit] if amount.count(".") <= 1 else None


def _out_of_memory(line: int, match: re.Match[str]) -> Reading:
    device, allocator, amount, unit, rest = match.groups()
    asked = f"{amount} {unit}"
    advice = read_advice(rest)
    total = _gib(_TOTAL.search(rest))
    free = _gib(_FREE.search(rest))
    reserved = _gib(_RESERVED.search(rest))
    named = _gib(_OTHER_PROCESS.search(rest))
    if allocator is not None and "Workspace" in allocator:
        left = f" ({free:.2f} of {total:.2f} GiB are free)" if total and free else ""
        return _workspace(line, device, f"{asked}{left}", advice)
    wanted = float(amount) * _UNITS[unit] if amount.count(".") <= 1 else 0.0
    if total and free and total > free > max(1.0, 2 * wanted):
        return _free_but_refused(line, device, asked, f"{free:.2f} of {total:.2f} GiB")
    if total is None or free is None or reserved is None:
        return _own(line, device, asked, "")
    others = max(0.0, total - free - reserved, named or 0.0)
    numbers = (
        f"of {total:.2f} GiB this process has reserved {reserved:.2f} GiB, {free:.2f} GiB are "
        f"free, so {others:.2f} GiB are held outside PyTorch of this process"
    )
    if others <= _OWN_OVERHEAD_GIB or others < total * 0.15:
        return _own(line, device, asked, f": {numbers} ({_OUTSIDE[device == 'NPU']})")
    return Reading(
        reason=reason(
            "npu-oom-others" if device == "NPU" else "gpu-oom-others",
            f"The {device}'s memory is held by another process: {numbers}. {asked} more were "
            "requested.",
            "`npu-smi info` (GPU: `nvidia-smi`) shows the processes on that device, also of "
            "other containers: stop the other one or an orphan (`raylaunch clean`), choose other "
            "devices, or lower `args.gpu-memory-utilization` to what is left.",
            "arithmetic of the allocator's message",
            "transient",
        ),
        line=line,
    )


def _free_but_refused(line: int, device: str, asked: str, free: str) -> Reading:
    conf = "PYTORCH_NPU_ALLOC_CONF" if device == "NPU" else "PYTORCH_CUDA_ALLOC_CONF"
    return Reading(
        reason(
            "npu-oom" if device == "NPU" else "gpu-oom",
            f"{asked} of the {device}'s memory were refused although {free} are "
            "free: the process may not use them (a limit of a virtual device, of WSL or of "
            "`set_per_process_memory_fraction`), the host's memory that the driver needs for it "
            "ran out, or another process gave them back in that moment.",
            f"Look at the limit of the virtual {device} (`npu-smi info`, `nvidia-smi`) and at the "
            "memory of the host (`free -g`, the container's limit, with WSL `.wslconfig`); start "
            "again when no other process starts or ends on the device; "
            f"`env.{conf}: expandable_segments:True`, or the same without it if it is set; lower "
            "`args.gpu-memory-utilization`.",
            "arithmetic of the allocator's message",
            "transient",
        ),
        line,
        certain=False,
    )


def _workspace(line: int, device: str, asked: str, advice: str) -> Reading:
    advised = f" The message advises: {advice}." if advice else ""
    return Reading(
        reason=reason(
            "npu-oom" if device == "NPU" else "gpu-oom",
            f"The workspace of an operator does not fit into the {device}'s memory beside weights "
            f"and KV cache: {asked} were requested outside the share of the cache.",
            "Lower `args.gpu-memory-utilization` (workspaces and HCCL buffers are outside its "
            "share) or `args.max-num-batched-tokens`; `env.TASK_QUEUE_ENABLE: 1` needs less than "
            f"2.{advised}",
            "torch_npu OpParamMaker.cpp; Ascend/sglang#617",
            "deterministic",
        ),
        line=line,
    )


_NAMES = {"CUDA": "GPU", "HIP": "GPU", "XPU": "GPU"}
_OWN_NPU = (
    "Lower `args.max-num-batched-tokens`, `args.max-num-seqs`, `args.max-model-len` or "
    "`args.gpu-memory-utilization` (HCCL buffers are outside its share), lower "
    "`env.HCCL_BUFFSIZE`, or raise `parallel.tensor`. `env.PYTORCH_NPU_ALLOC_CONF: "
    "expandable_segments:True` helps against fragmentation."
)
_OWN_GPU = (
    "Lower `args.max-num-batched-tokens`, `args.max-num-seqs`, `args.max-model-len` or "
    "`args.gpu-memory-utilization`, raise `parallel.tensor`, or use quantised weights. "
    "`env.PYTORCH_CUDA_ALLOC_CONF: expandable_segments:True` helps against fragmentation."
)


def _own(line: int, device: str, asked: str, numbers: str) -> Reading:
    return Reading(
        reason=reason(
            "npu-oom" if device == "NPU" else "gpu-oom",
            f"Weights, activations and buffers do not fit into the {_NAMES.get(device, device)}'s "
            f"memory; {asked} more were requested{numbers}.",
            _OWN_NPU if device == "NPU" else _OWN_GPU,
            "vllm-ascend#5020, #1987, #3357",
            "deterministic",
        ),
        line=line,
    )


def _profiling(line: int, match: re.Match[str]) -> Reading:
    before, unit, after = match.groups()
    if before and before == after:
        cause = (
            f"vLLM's trial run used no memory of the device (free before and after it: {before}"
            f"{unit or ''}): older releases take that for an error, and so does a device whose "
            "memory another process or a trainer in the same process changes meanwhile."
        )
        remedy = (
            "Use a newer release of vLLM (and vllm-ascend), which accepts equal values; with a "
            "trainer on the same card create the engine first, on a device of its own, or free "
            "the trainer's memory before."
        )
        return Reading(
            reason("memory-grew", cause, remedy, "vLLM gpu_worker.py", "deterministic"),
            line,
            certain=False,
        )
    numbers = f" (free memory grew from {before} to {after}{unit or ' bytes'})" if before else ""
    return Reading(
        reason(
            "memory-grew",
            "Another process freed device memory while vLLM measured how much it needs, so the "
            f"measurement is invalid{numbers}. Typical right after a restart.",
            "Start it again: the next attempt usually succeeds. Servers that share a device are "
            "started one after the other, and no other process on it may stop meanwhile "
            "(`npu-smi info`, `nvidia-smi`); raise `health.device_pause_s` if it recurs.",
            "vLLM gpu_worker.py",
            "transient",
        ),
        line,
    )
