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
        r"Failed to compile /\S{1,200}launcher\w{0,30}\.cxx|aclOpExecutor",
        "triton-ascend compiles the launcher of its kernels at the first start with the headers of "
        "torch_npu and CANN, and these are not of releases that belong together (or a header "
        "compiled earlier is in the cache)",
        "Install the torch_npu, triton-ascend and CANN that this vllm-ascend names (`pip list | "
        "grep -iE 'torch|triton'`, without a newer `.post` release of torch_npu), or use the "
        "release's image; remove `~/.triton/cache` on every node and start again.",
    ),
    CompileReason(
        r"size of tensor a \(\(?s\d{1,4}//\d|size of tensor b \(\(?s\d{1,4}//\d|"
        r"device='npu[^\n]{0,40}size=\(\(s\d{1,4}//\d",
        "sequence parallelism (FLASHCOMM) splits the tokens of one tensor and not those of the "
        "other: this release does not support it for this model (size of tensor: s//ranks)",
        "Leave it out: no `env.VLLM_ASCEND_ENABLE_FLASHCOMM1` (older: VLLM_ASCEND_ENABLE_"
        "FLASHCOMM) and no enable_sp in `args.compilation-config`; or use a newer release of "
        "vllm-ascend.",
    ),
    CompileReason(
        r"bishengir-\w{1,20}: (?:Unknown command line argument|for the -{1,2}[\w-]{1,40} option)",
        "CANN's BiSheng compiler does not know an option that triton-ascend gives it: CANN is "
        "older than this triton-ascend needs",
        "Install the CANN release that this triton-ascend and vllm-ascend name (usually a newer "
        "one, with set_env.sh sourced so that its bishengir-compile is first on PATH), or the "
        "triton-ascend made for this CANN; or use the release's image.",
    ),
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
        "the compiler (ptxas: Triton brings its own, else that of the CUDA toolkit) is older than "
        "this device",
        "Install a CUDA toolkit that knows the device and let Triton use its ptxas "
        "(`env.TRITON_PTXAS_PATH: /usr/local/cuda/bin/ptxas`), or the torch and Triton wheels "
        "built with that CUDA.",
    ),
)


def find_compile_reason(said: str) -> CompileReason | None:
    """Return what the words of a compiler mean; None when they are not known."""
    return next((each for each in _REASONS if re.search(each.words, said)), None)


def find_build_reason(said: re.Match[str]) -> CompileReason:
    """Return what the linker, the shell or nvcc means; one of the four groups took part."""
    library, program, identifier, refused = said.groups()
    if library:
        return CompileReason(
            "",
            f"the linker does not find lib{library}.so, because no CUDA toolkit is installed, or "
            "CUDA_HOME names a folder without it in lib64",
            "Install the CUDA toolkit of the CUDA that torch was built with, and set "
            f"`env.CUDA_HOME` to it (`find / -name 'lib{library}.so*'`), or use the release's "
            "image.",
        )
    if program:
        colon = ", whose name begins with a colon" if program.startswith(":") else ""
        return CompileReason(
            "",
            f"the shell does not find the program {program}{colon}: CUDA_HOME or PATH of the "
            "process names a wrong folder",
            "Set `env.CUDA_HOME` to the folder of the CUDA toolkit (without a colon, one folder), "
            "in which bin/nvcc is, and install the toolkit if it is not there.",
        )
    if identifier:
        return CompileReason(
            "",
            f"`{identifier}` is not known to the compiler: the CUDA toolkit (or NVRTC) is older "
            "or newer than the package needs",
            "Install the release of the package for the CUDA that torch was built with, and that "
            "CUDA toolkit; a newer release of both may have it fixed.",
        )
    return CompileReason(
        "",
        f"nvcc says: {refused.strip()}",
        "Install a CUDA toolkit that knows this device (the CUDA of torch or newer), and set "
        "`env.CUDA_HOME` to it; TORCH_CUDA_ARCH_LIST names the devices to build for.",
    )
