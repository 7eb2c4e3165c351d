"""Which component a symbol or a library is of, and what to do where one lacks it."""

from __future__ import annotations

import re


def find_provider(symbol: str) -> str:
    """Return the component that should have the symbol, by its mangled namespace."""
    for pattern, component in _PROVIDERS:
        if re.match(pattern, symbol):
            return component
    return "other component"


_PROVIDERS = (
    (r"_Z\w{0,4}?N?K?(?:3atb|3Mki|4AsdOps|6AsdOps)", "ATB (NNAL)"),
    (r"_Z\w{0,4}N?K?(?:3c10|2at|5torch|8c10_cuda)", "torch"),
    (r"_Z\w{0,4}N?K?(?:7c10_npu|9at_npu|9torch_npu)", "torch_npu"),
    (
        (
            r"(?:_Z\w{0,4}N?K?(?:2ge|3ops|2op|4hccl|5optil|3gert)|acl|Acl|Hccl|hccl|rt[A-Z]|ge|hal|"
            r"dcmi|drv)"
        ),
        "CANN",
    ),
    (r"Msprof|Prof[A-Z]|Adx|Adump|Tsd|mmp|dlog|Dlog|slog|TprtGet|Ra[A-Z]|Mc2", "CANN"),
    (r"Py[A-Z_]|_Py", "Python"),
    (r"cu[A-Z]|nccl|_ZN?\w{0,4}4cuda", "CUDA"),
)
# Below whom a library is linked, for a plain C symbol that names no component.
LINKED_TO = {"torch_npu": "CANN", "vllm-ascend": "CANN", "ATB (NNAL)": "CANN", "CANN": "CANN"}
SYMBOL_REMEDY = {
    "ATB (NNAL)": "Install the NNAL package of the same release as the CANN toolkit and the one "
    "torch_npu was built for, and `source /usr/local/Ascend/nnal/atb/set_env.sh` (its `--cxx_abi` "
    "must fit torch) before `ray start`; do not mix ATB builds on LD_LIBRARY_PATH.",
    "CANN": "Install the CANN toolkit that {needs} was built for (usually a newer one) and source "
    "its set_env.sh, or use the release's image.",
    "torch": "Install the torch release that {needs} was built for (`pip list | grep torch`), or "
    "build {needs} again.",
    "torch_npu": "Install the torch_npu release that {needs} was built for, or build it again.",
    "Python": "{needs} was built for another Python: install its wheel for this interpreter.",
    "CUDA": "A CUDA build is installed in an NPU or CPU environment: install the right build.",
}


def find_owner(library: str) -> str:
    """Return the component that a library is of, by its path."""
    for pattern, owner in _OWNERS:
        if found := re.search(pattern, library):
            return found.expand(owner)
    return "an installed package"


_OWNERS = (
    (r"nnal|libatb|libtbe_adapter|libasdops|libmki|liblcal", "ATB (NNAL)"),
    (r"torch_npu|libop_plugin_atb", "torch_npu"),
    (r"vllm_ascend", "vllm-ascend"),
    (r"torchvision", "torchvision"),
    (r"torchaudio", "torchaudio"),
    (r"triton", "triton"),
    (r"flash_attn_\d?_?cuda|/flash_attn/", "flash-attn"),
    (r"causal_conv1d_cuda", "causal-conv1d"),
    (r"selective_scan_cuda|mamba_ssm", "mamba-ssm"),
    (r"awq_(?:v2_)?ext|/awq/", "autoawq-kernels"),
    (r"/(xformers|bitsandbytes|flashinfer|deep_gemm|deep_ep|flash_mla|xgrammar)/", r"\1"),
    (r"/vllm/|vllm_flash_attn|_C(?:\.abi3)?\.so|_moe_C", "vLLM"),
    (r"mooncake|transfer_engine", "Mooncake"),
    (r"Ascend|libhccl|libascend|libge|libruntime|libopapi|libacl", "CANN"),
    (r"/torch/|libtorch", "torch"),
)
