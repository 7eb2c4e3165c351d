"""Why a compilation of a kernel or graph failed, by the words of the compiler."""

from __future__ import annotations

import re
from typing import NamedTuple


class CompileReason(NamedTuple):
    """Words of a compiler, what they mean, and what to do."""

    words: str
    cause: str
    remedy: str


# Ordered. Sources: torch/_inductor/exc.py and scheduler.py, triton/compiler.
_REASONS: tuple[CompileReason, ...] = (
    CompileReason(
        r"working triton installation|TritonMissing|No module named 'triton'",
        "Triton is not installed in this environment, or is too old for this torch",
        "Install the Triton that belongs to this torch (`pip show torch` names it; on NPUs "
        "triton-ascend), or start with `args.enforce-eager: true`.",
    ),
    CompileReason(
        r"too old to be supported|GPUTooOld|[Cc]apability >=|requires? (?:compute )?capability",
        "this device is too old for Triton's compiler",
        "Use a newer device, or start without compiled kernels: `args.enforce-eager: true`, "
        "another `args.attention-backend`, unquantised weights.",
    ),
    CompileReason(
        r"not supported in this architecture|type fp8\w{1,10}|fp8e4\w{1,3}",
        "this device has no such 8-bit floating-point type",
        "Choose another `args.kv-cache-dtype` (`fp8_e5m2` or `auto`), and weights of another "
        "quantisation (`model.path`), that this device supports.",
    ),
    CompileReason(
        r"out of resource: shared memory|OutOfResources|exceeds? (?:the )?(?:shared|hardware)",
        "a Triton kernel needs more memory on the chip than this device has",
        "Lower `args.block-size` or `args.max-num-batched-tokens`, choose another "
        "`args.attention-backend` or `args.moe-backend`, or use a release with smaller tiles.",
    ),
    CompileReason(
        r"kernel image is invalid|no kernel image",
        "the driver does not take the compiled kernel: the driver is older than the CUDA of "
        "Triton, or the kernel was compiled for another device (a cache from another node)",
        "Update the driver, or install the torch and Triton of an older CUDA; remove the caches "
        "(`~/.triton/cache`, `~/.cache/vllm/torch_compile_cache`); `args.enforce-eager: true` "
        "starts without.",
    ),
    CompileReason(
        r"PY_SSIZE_T_CLEAN|SystemError|\w{1,40} returned (?:NULL|a result with)",
        "a compiled part of Triton was made for another release of Python",
        "Install the Triton that belongs to this torch and this Python (`pip show torch`), a "
        "newer one for Python 3.10 and later, and remove `~/.triton/cache`; or start with "
        "`args.enforce-eager: true`.",
    ),
    CompileReason(
        r"ptxas|PTXASError|sm_\d{2,3}\w? is not|gpu-name|Unsupported gpu architecture",
        "the compiler of the installed CUDA toolkit does not know this device",
        "Install a CUDA toolkit that knows it (`env.TRITON_PTXAS_PATH` names its ptxas), and the "
        "wheels built with that CUDA.",
    ),
)


def find_compile_reason(said: str) -> CompileReason | None:
    """Return what the words of a compiler mean; None when they are not known."""
    return next((each for each in _REASONS if re.search(each.words, said)), None)
