"""What the runtime of a GPU says when a call fails: each message has a meaning of its own.

vllm-ascend's users meet them on other nodes, and ROCm and MUSA say the same words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason, shorten
from raylaunch.supervise.diagnosis.signatures import Kind

_ASSERT = re.compile(r"Assertion `([^`\n]{2,300})` failed")
_ASSERT_LINES = 200
_ERROR = re.compile(
    r"\b(?:CUDA|HIP|MUSA|NPU|XPU)(?: driver)? error(?: \((\S{3,200}?)(?::\d{1,6})?\))?: "
    r"([^\n]{3,200})|Triton Error \[\w{2,6}\]: ([^\n]{3,160})|\b(CUBLAS_STATUS_\w{3,40})"
)


class _Message(NamedTuple):
    words: str
    cause: str
    remedy: str
    kind: Kind


# Source: the table of cudaError_t in the CUDA runtime's documentation.
_MESSAGES: tuple[_Message, ...] = (
    _Message(
        r"invalid device ordinal",
        "a rank asks for a device number that this process does not see: more ranks on the node "
        "than visible devices, or the numbers are counted twice (Ray and the server both set the "
        "variable)",
        "Compare the ranks of this node (`parallel.tensor`, `parallel.data_local`) with the "
        "devices in CUDA_VISIBLE_DEVICES (NPUs: ASCEND_RT_VISIBLE_DEVICES) of the process; unset "
        "the variable in `env` and in the shell of `ray start`; under Ray ask for as many devices "
        "as ranks, or use another `args.data-parallel-backend`.",
        "deterministic",
    ),
    _Message(
        r"CUBLAS_STATUS_(?:NOT_INITIALIZED|ALLOC_FAILED)",
        "cuBLAS could not get memory for its workspace, or a call before it had failed",
        "Lower `args.gpu-memory-utilization`; otherwise `env.CUDA_LAUNCH_BLOCKING: 1` shows the "
        "call that failed first.",
        "deterministic",
    ),
    _Message(
        r"CUBLAS_STATUS_(?:INVALID_VALUE|NOT_SUPPORTED|ARCH_MISMATCH)",
        "cuBLAS does not take these sizes or types: another cuBLAS is found first than the one "
        "that torch was built with, or the device does not support the type",
        "Unset LD_LIBRARY_PATH entries with another CUDA (`pip list | grep cublas`), or choose "
        "another `args.dtype` or `args.quantization`.",
        "deterministic",
    ),
    _Message(
        r"no kernel image|kernel image is invalid",
        "the wheel (torch, vLLM or a kernel package) was built for other GPU models than this one",
        "Install wheels built for this GPU's compute capability (a newer or older release, or "
        "build with TORCH_CUDA_ARCH_LIST), or use other kernels (`args.attention-backend`).",
        "deterministic",
    ),
    _Message(
        r"driver version is insufficient|PTX was compiled with an unsupported toolchain|"
        r"forward compatibility|unsupported display driver|system has unsupported",
        "the driver of the node is older than the CUDA that the wheel was built with",
        "Update the driver on that node (`nvidia-smi` shows the highest CUDA it knows), or "
        "install the wheels or image for an older CUDA.",
        "deterministic",
    ),
    _Message(
        r"no CUDA-capable device|no .{0,10}device is detected",
        "the process sees no device at all",
        "Give the container the devices (`--gpus all`), and check CUDA_VISIBLE_DEVICES and "
        "`nvidia-smi` in it.",
        "deterministic",
    ),
    _Message(
        r"peer access|peer mapping",
        "two devices cannot read each other's memory directly",
        "Set `args.disable-custom-all-reduce: true` (and `env.NCCL_P2P_DISABLE: 1`).",
        "deterministic",
    ),
    _Message(
        r"busy or unavailable|exclusive",
        "another process holds the device, which is in exclusive mode or hangs",
        "Find the process (`nvidia-smi`), stop it, or set the compute mode to Default "
        "(`nvidia-smi -c 0`).",
        "transient",
    ),
    _Message(
        r"initialization error|system not yet initialized|system not initialized",
        "the driver's services are not ready (on systems with NVSwitch the fabric manager), or "
        "the process was forked after its parent had used the device",
        "Check `systemctl status nvidia-fabricmanager` (same release as the driver); set "
        "`env.VLLM_WORKER_MULTIPROC_METHOD: spawn`.",
        "deterministic",
    ),
    _Message(
        r"uncorrectable ECC|unrecoverable|hardware|lost|fallen off",
        "the device itself reports a fault",
        "Take the node out, read `nvidia-smi -q` and `dmesg -T | grep -i xid`, and reset the "
        "device.",
        "transient",
    ),
    _Message(
        r"illegal memory access|unspecified launch failure|misaligned address|device-side assert|"
        r"illegal instruction|invalid (?:argument|configuration argument|value)|launch failed",
        "a kernel failed: it was given a wrong address, index or size. That is a defect of a "
        "kernel with this model and these options; the line may be of a later call than the one "
        "that failed",
        "`env.CUDA_LAUNCH_BLOCKING: 1` shows the kernel. Then leave out the feature that calls "
        "it: once `args.enforce-eager: true`, once another `args.attention-backend`, once without "
        "`features.speculative` or `args.quantization`'s kernels; or use a newer release.",
        "transient",
    ),
    _Message(
        r"operation not permitted when stream is capturing|capture",
        "a call that is not allowed during graph capture",
        "Set `args.enforce-eager: true` or `cudagraph_mode: PIECEWISE` in "
        "`args.compilation-config`, or use a newer release.",
        "deterministic",
    ),
)


def read_device_messages(log: ServerLog) -> Iterator[Reading]:
    """Yield what a message of the device's runtime means, where its words are known."""
    for line, match in log.errors.find(_ERROR):
        text = (match[2] or match[3] or match[4]).split("\\n")[0]  # of a message in a repr
        known = _find(text)
        if known is None:
            continue
        said = text.strip(" .'\"")
        source = f" (in {match[1].rpartition('/')[2]})" if match[1] else ""
        check, beyond = _assertion(log, line) if "assert" in said else ("", "")
        yield Reading(
            reason(
                "cuda-error",
                f"The device's runtime reports `{said}`{source}{check}: {known.cause}.",
                f"{beyond}{known.remedy}",
                "CUDA runtime, cudaError_t",
                known.kind,
            ),
            line,
            certain=False,
        )


def _find(said: str) -> _Message | None:
    return next((each for each in _MESSAGES if re.search(each.words, said, re.IGNORECASE)), None)


def _assertion(log: ServerLog, line: int) -> tuple[str, str]:
    """Return the check that failed in the kernel, and what an index beyond a table means."""
    above = reversed(log.cleaned[max(0, line - _ASSERT_LINES) : line])
    found = next((match for text in above if (match := _ASSERT.search(text))), None)
    if found is None:
        return "", ""
    beyond = ""
    if re.search(r"out of bounds|index|srcIndex", found[1]):
        beyond = (
            "An index is beyond its table: a position beyond the model's length (`args."
            "max-model-len` above that of config.json, VLLM_ALLOW_LONG_MAX_MODEL_LEN, a request "
            "near the limit), or a token beyond the vocabulary (a tokenizer or LoRA of another "
            "model). "
        )
    return f" (check `{shorten(found[1], 140)}`)", beyond
