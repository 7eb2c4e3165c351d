"""Python packages around vLLM: what each does in a server, and how to do without it.

An exception from inside such a package rarely names an option of vLLM. What can be changed follows
from the package: another backend, another release, a switch that leaves it out.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Package(NamedTuple):
    """What a package does in a server, and what to do when it fails."""

    names: str
    role: str
    remedy: str


_CLIENT_SIDE = "check the request that was being answered; a newer release of vLLM may refuse it"
# Sources: vLLM 0.32's imports and its flags; the packages' own documentation.
_PACKAGES: tuple[Package, ...] = (
    Package(
        r"flashinfer",
        "kernels for attention, sampling and experts",
        "Choose other kernels (`args.attention-backend`, `env.VLLM_ATTENTION_BACKEND`, "
        "`args.moe-backend`, `env.VLLM_USE_FLASHINFER_SAMPLER: 0`), or install the flashinfer that "
        "`pip show vllm` names.",
    ),
    Package(
        r"flash_attn|vllm_flash_attn|xformers|flash_mla|fla",
        "attention kernels",
        "Choose another backend (`args.attention-backend`, `env.VLLM_ATTENTION_BACKEND`), or "
        "install the build for this torch and device.",
    ),
    Package(
        r"deep_gemm",
        "kernels for 8-bit matrices",
        "Set `env.VLLM_USE_DEEP_GEMM: 0` (or another `args.moe-backend`), or install the DeepGEMM "
        "that this vLLM names, for this CUDA.",
    ),
    Package(
        r"deep_ep|pplx_kernels|mori",
        "the exchange of tokens between the ranks of the experts",
        "Set another `args.all2all-backend` (its low latency mode takes a limited number of tokens "
        "a rank, as `num_max_dispatch_tokens_per_rank` says: for decoding only, with a lower "
        "`args.max-num-batched-tokens`; prefill needs deepep_high_throughput), or install the "
        "build for this torch, NVSHMEM and device.",
    ),
    Package(
        r"aiter",
        "AMD's kernels, which it compiles at start",
        "Start without them (`env.VLLM_ROCM_USE_AITER: 0`), or remove what it has compiled "
        "(aiter/jit/*.so and its build folder, ~/.aiter) and install the aiter of this ROCm image; "
        "it has kernels for MI300 and later, hardly any for Radeon (gfx11, gfx12).",
    ),
    Package(
        r"marlin|cutlass|humming",
        "kernels for matrices and experts",
        "Choose other kernels (`args.moe-backend`, `args.linear-backend`, `args.all2all-backend`, "
        "VLLM_USE_* in `env`), or install the build for this torch and device.",
    ),
    Package(
        r"triton",
        "compiled kernels",
        "Install the Triton that belongs to this torch (on NPUs triton-ascend), and start once "
        "with `args.enforce-eager: true`.",
    ),
    Package(
        r"lmcache(?:_ascend)?",
        "the cache of KV blocks of LMCache",
        "Correct LMCACHE_CONFIG_FILE and the LMCACHE_* variables in `env`, install the LMCache "
        "release that names this vLLM, or leave out `args.kv-transfer-config`.",
    ),
    Package(
        r"nixl|mooncake|memcache|ucm|dlslime",
        "transfer of KV blocks",
        "Correct `args.kv-transfer-config` and its variables in `env`, install the release that "
        "names this vLLM on all servers, or leave KV transfer out.",
    ),
    Package(
        r"xgrammar|outlines|outlines_core|llguidance|lmformatenforcer",
        "structured output",
        "Choose another backend in `args.structured-outputs-config`, or install the release that "
        "`pip show vllm` names.",
    ),
    Package(
        r"modelscope",
        "the model hub ModelScope",
        "Download the model beforehand and give its folder as `model.path`, or unset "
        "`env.VLLM_USE_MODELSCOPE`; else install the modelscope of the release's image.",
    ),
    Package(
        r"huggingface_hub|hf_transfer|hf_xet|fsspec",
        "downloads from the hub",
        "Download the model beforehand and give its folder as `model.path` with "
        "`env.HF_HUB_OFFLINE: 1`; else install the huggingface_hub that transformers asks for "
        "(`pip check`).",
    ),
    Package(
        r"runai_model_streamer",
        "the reader of weights from object stores",
        "Check that this node reads the address in `model.path` (`aws s3 ls`, `gsutil ls`): "
        "credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY in `env`), AWS_ENDPOINT_URL or "
        "RUNAI_STREAMER_S3_ENDPOINT, region, and RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING: 0 for "
        "stores other than AWS; else leave out `args.load-format` and download the model.",
    ),
    Package(
        r"tensorizer|fastsafetensors|instanttensor|gguf",
        "a reader of weights",
        "Leave out `args.load-format` (and `args.model-loader-extra-config`), or install that "
        "reader's release for this vLLM.",
    ),
    Package(
        r"compressed_tensors|bitsandbytes|auto_gptq|gptqmodel|autoawq|torchao|auto_round",
        "quantised weights",
        "Install its release that `pip show vllm` names, or serve other weights (`model.path`, "
        "`args.quantization`).",
    ),
    Package(
        r"mistral_common|tokenizers|sentencepiece|tiktoken",
        "the tokenizer",
        "Check the tokenizer files under `model.path` and `args.tokenizer-mode`, and install the "
        "release that `pip show vllm` and transformers name.",
    ),
    Package(
        r"PIL|cv2|av|decord|librosa|soundfile|torchcodec|torchvision|torchaudio|timm|"
        r"qwen_vl_utils|open_clip",
        "images, video and sound",
        "Install the release that fits this torch; if the model is to read text only, "
        '`args.limit-mm-per-prompt: {"image": 0, "video": 0}` leaves it out. If a request was '
        f"being answered, {_CLIENT_SIDE}.",
    ),
    Package(
        r"uvicorn|fastapi|starlette|uvloop|httptools|h11|prometheus_client|"
        r"prometheus_fastapi_instrumentator|openai|openai_harmony|anthropic|mcp|model_hosting\w*|"
        r"sse_starlette",
        "the HTTP server",
        "Install its release that `pip show vllm` names (`pip check` lists what does not fit), or "
        "use the release's image.",
    ),
    Package(
        r"opentelemetry",
        "traces",
        "Leave out `args.otlp-traces-endpoint`, or install the opentelemetry packages of one "
        "release.",
    ),
    Package(
        r"ray",
        "the cluster",
        "Install the same Ray on all nodes, in the range that `pip show vllm` names; or start on "
        "one node without it (`args.distributed-executor-backend: mp`).",
    ),
    Package(
        r"zmq|msgspec|msgpack|cloudpickle",
        "messages between the processes of a server",
        "Install the release of the image on all nodes, and compare the addresses and ports of "
        "the recipe (`network`).",
    ),
    Package(
        r"peft",
        "LoRA adapters",
        "Check the adapter's files and `args.lora-modules`, and install the peft that the adapter "
        "was made with.",
    ),
    Package(
        r"numba|numpy|scipy|pandas|pyarrow|sklearn|networkx|sympy",
        "arithmetic on the host",
        "Install the set of the release's image (`pip check`; numba and NumPy bind each other's "
        "releases).",
    ),
    Package(
        r"kernels|accelerate|safetensors|einops|pydantic|pydantic_core|pydantic_settings|"
        r"typing_extensions|google|grpc|attr|jinja2|yaml|cbor2|blake3|partial_json_parser|psutil|"
        r"cpuinfo|setproctitle|regex|lark|depyf|diskcache|filelock|requests|urllib3|aiohttp|httpx",
        "a part of vLLM's dependencies",
        "Install the release that vLLM and transformers ask for (`pip check` in the server's "
        "environment), or use the release's image.",
    ),
)


# What a package calls that it was not installed with.
_BUILT_ON = {
    "fastapi": "starlette and pydantic",
    "prometheus_fastapi_instrumentator": "fastapi and starlette",
    "model_hosting_container_standards": "fastapi and starlette",
    "sse_starlette": "starlette",
    "mcp": "starlette and pydantic",
    "transformers": "huggingface_hub and tokenizers",
    "compressed_tensors": "transformers and torch",
    "peft": "transformers and accelerate",
    "accelerate": "torch",
    "torchvision": "torch",
    "torchaudio": "torch",
    "timm": "torch and torchvision",
    "bitsandbytes": "torch and triton",
    "flash_attn": "torch",
    "flashinfer": "torch and apache-tvm-ffi",
    "xgrammar": "torch and apache-tvm-ffi",
    "huggingface_hub": "httpx and fsspec",
    "openai": "httpx and pydantic",
    "datasets": "fsspec and pyarrow",
}


def name_foundation(name: str) -> str:
    """Return the packages that a package is built on; "" when they are not known."""
    return _BUILT_ON.get(name, "")


def find_package(name: str) -> Package | None:
    """Return what is known about a package; None for vLLM itself, torch and unknown ones."""
    return next((each for each in _PACKAGES if re.fullmatch(each.names, name)), None)
