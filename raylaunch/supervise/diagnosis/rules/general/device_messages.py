"""What the runtime of a GPU says when a call fails: each message has a meaning of its own.

vllm-ascend's users meet them on other nodes, and ROCm and MUSA say the same words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.tables.place_options import name_place_options
from raylaunch.supervise.diagnosis.signatures import Kind
from raylaunch.supervise.diagnosis.tracebacks import Frame

_ASSERT = re.compile(r"Assertion `([^`\n]{2,300})` failed")
_ASSERT_LINES = 200
_ERROR = re.compile(
    r"\b(?:CUDA|HIP|MUSA|NPU|XPU)(?: driver)? error(?: \((\S{3,200}?)(?::\d{1,6})?\))?: "
    r"([^\n]{3,200})|Triton Error \[\w{2,6}\]: ([^\n]{3,160})|\b(CUBLAS_STATUS_\w{3,40})|"
    r"\b((?:UR|ZE)_RESULT_ERROR_\w{3,40})|"
    r"Failed: Cuda error (\S{3,200}?):\d{1,6} '([^'\n]{3,160})'"
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
        r"^out of memory",
        "the device's memory was used up outside PyTorch's own allocator: graphs, kernels, NCCL or "
        "another process",
        "Lower `args.gpu-memory-utilization` by 0.02 to 0.05, and capture fewer graphs "
        "(`args.max-num-seqs`, `cudagraph_capture_sizes` in `args.compilation-config`, or "
        "`args.enforce-eager: true`); `nvidia-smi` shows other processes on the device.",
        "deterministic",
    ),
    _Message(
        r"device not ready",
        "the driver did not carry out a call on the device's memory",
        "Otherwise read `dmesg -T` for an error of the driver, and use a newer driver.",
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
        r"no kernel image|kernel image is invalid|invalid device function|invalid kernel file",
        "the wheel (torch, vLLM or a kernel package) was built for other GPU models than this one",
        "Install wheels built for this GPU's compute capability (a newer or older release, or "
        "build with TORCH_CUDA_ARCH_LIST), or use other kernels (`args.attention-backend`). For "
        "AMD `rocminfo | grep gfx` names the model: take the ROCm image or build "
        "(PYTORCH_ROCM_ARCH) that lists it; `env.HSA_OVERRIDE_GFX_VERSION` makes a near "
        "relative of a listed one run.",
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
        r"RESULT_ERROR_DEVICE_LOST|RESULT_ERROR_\w{0,20}(?:UNAVAILABLE|UNINITIALIZED)",
        "the driver has reset or lost the Intel GPU (a page fault or a kernel that hung), or the "
        "process may not use it",
        "Read `dmesg -T | grep -iE 'xe|i915'` on that node; update its driver and firmware, reset "
        "the device, and start once with `args.enforce-eager: true` and a smaller "
        "`parallel.tensor`.",
        "transient",
    ),
    _Message(
        r"RESULT_ERROR_OUT_OF_(?:\w{1,12}_)?(?:RESOURCES|MEMORY)",
        "the memory of the Intel GPU or of the node is used up, or the GPU was reset before",
        "Lower `args.gpu-memory-utilization` and `args.max-num-batched-tokens`; read `dmesg -T | "
        "grep -iE 'xe|i915'` for a reset of the GPU.",
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


_NO_TYPE = re.compile(
    r"[\"']([\w<>:]{3,100})[\"'] not implemented for "
    r"[\"'](Half|BFloat16|Float8_\w{2,10}|Float)[\"']"
)
_OTHER_TYPES = {
    "Half": ("float16", "`args.dtype: bfloat16` (or `float32`)"),
    "BFloat16": ("bfloat16", "`args.dtype: float16` (or `float32`)"),
    "Float": ("float32", "`args.dtype: bfloat16` or `float16`"),
}
_UNPINNED = re.compile(r"cudaHostRegister failed[^\n]{0,60}")
_NODE_FILES = re.compile(r"oneCCL: ze_fd_manager[^\n]{0,200}open failed")


def _missing_types(log: ServerLog) -> Iterator[Reading]:
    """Read that an operator has no code for a type of numbers on this device."""
    for line, match in log.errors.find(_NO_TYPE):
        number, other = _OTHER_TYPES.get(
            match[2], ("an 8-bit type", "`args.kv-cache-dtype: auto` and weights of another type")
        )
        yield Reading(
            reason(
                "dtype-unsupported",
                f"The operator `{match[1]}` has no code for {number} ({match[2]}) on this device.",
                f"Set {other}; or choose another `args.attention-backend`.",
                "ATen Dispatch.h",
                "deterministic",
            ),
            line,
        )


_AMD_LIBRARY = re.compile(
    r"roc(?:blaslt|BLAS) error: (?:Could not load|Cannot read) (/\S{3,200}?)(?=[:\s]|$)"
)
_AMD_TARGET = re.compile(r"Please provide architecture for which code is to be generated")


def _amd_parts(log: ServerLog) -> Iterator[Reading]:
    """Read which part of ROCm does not know the GPU, or does not find it."""
    for line, match in log.errors.find(_AMD_LIBRARY):
        yield Reading(
            reason(
                "device-library-missing",
                f"ROCm's library of matrix kernels cannot read its file for this GPU "
                f"({match[1].rpartition('/')[2]}): the wheel has none for this model, or the "
                "process may open no more files.",
                "Compare `rocminfo | grep gfx` with the files in that folder: install the wheel or "
                "image that has them, or set `env.HSA_OVERRIDE_GFX_VERSION`. If the file is there, "
                "set `env.TORCH_BLAS_PREFER_HIPBLASLT: 0` and raise `ulimit -n`.",
                "hipBLASLt, rocBLAS Tensile",
                "deterministic",
            ),
            line,
            certain=False,
        )
    for line, _ in log.errors.find(_AMD_TARGET):
        yield Reading(
            reason(
                "device-not-found",
                "ROCm's compiler does not find the AMD GPU that it is to compile for (hip runtime "
                "failed to load, no architecture).",
                "Name it: `env.PYTORCH_ROCM_ARCH` and `env.HIP_ARCHITECTURES` (`rocminfo | grep "
                "gfx`); give the container /dev/kfd and /dev/dri, and the whole ROCm (ROCM_PATH). "
                "`args.enforce-eager: true` avoids torch's own compilation.",
                "hipcc",
                "deterministic",
            ),
            line,
            certain=False,
        )


def _host_devices(log: ServerLog) -> Iterator[Reading]:
    """Read that the files of the Intel GPUs are not in the container."""
    for line, match in log.errors.find(_NODE_FILES):
        yield Reading(
            reason(
                "device-files-missing",
                f"oneCCL cannot open the files of the Intel GPUs ({shorten(match[0], 160)}): "
                "/dev/dri or /dev/dri/by-path is not in the container.",
                "Start the container with `--device /dev/dri -v /dev/dri/by-path:/dev/dri/by-path` "
                "and the group render; or set `env.CCL_ZE_IPC_EXCHANGE: sockets`.",
                "oneCCL ze_fd_manager.cpp",
                "deterministic",
            ),
            line,
            certain=False,
        )


def read_device_messages(log: ServerLog) -> Iterator[Reading]:
    """Yield what a message of the device's runtime means, where its words are known."""
    yield from _missing_types(log)
    yield from _host_devices(log)
    yield from _amd_parts(log)
    for line, match in log.errors.find(_ERROR):
        text = (match[2] or match[3] or match[4] or match[5] or match[7]).split("\\n")[
            0
        ]  # of a message in a repr
        known = _find(text)
        if known is None:
            continue
        said = text.strip(" .'\"")
        file = match[1] or match[6] or ""
        source = f" (in {file.rpartition('/')[2]})" if file else ""
        options = name_place_options([Frame(file, "")]) if file else []
        if "out of memory" in said and next(log.warnings.find(_UNPINNED), None):
            yield _unpinned(line, said)
            continue
        first = _SEGMENTS if "driver error" in match[0] and _REFUSED.search(said) else ""
        verb = "Set" if any(": " in each for each in options) else "Change or leave out"
        first += f"{verb} {' or '.join(options)} first. " if options else ""
        check, beyond = _assertion(log, line) if "assert" in said else ("", "")
        yield Reading(
            reason(
                "cuda-error",
                f"The device's runtime reports `{said}`{source}{check}: {known.cause}.",
                f"{first}{beyond}{known.remedy}",
                "CUDA runtime, cudaError_t",
                known.kind,
            ),
            line,
            certain=False,
        )


_REFUSED = re.compile(r"out of memory|not ready|not supported|invalid argument")
# torch checks the calls of the driver's own interface with these words (C10_CUDA_DRIVER_CHECK):
# those of expandable segments.
_SEGMENTS = (
    "If `nvidia-smi` shows free memory, and always under WSL2, set `env.PYTORCH_CUDA_ALLOC_CONF: "
    "expandable_segments:False`: the driver refuses the calls that expandable segments make "
    "there. "
)


def _unpinned(line: int, said: str) -> Reading:
    return Reading(
        reason(
            "cuda-error",
            "The memory of the node for offloaded KV blocks could not be pinned (cudaHostRegister "
            f"failed, a line above), and the next call reports that as `{said}`: the region is "
            "larger than the driver registers at once (512 GiB), than the limit of locked memory, "
            "or than the free memory of the node.",
            "Lower `args.kv-offloading-size` or cpu_bytes_to_use in `args.kv-transfer-config`; "
            "raise the limit (`ulimit -l unlimited`, docker `--ulimit memlock=-1`) and look at "
            "`free -g`; a newer vLLM registers the region in parts.",
            "vllm/v1/kv_offload/cpu; vllm#51081",
            "deterministic",
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
