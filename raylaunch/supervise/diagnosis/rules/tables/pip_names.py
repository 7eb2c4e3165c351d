"""Modules that a server may lack: how each is installed, and its name in the registry."""

from __future__ import annotations

_PIP = {
    "PIL": "pillow",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "compressed_tensors": "compressed-tensors",
    "cpuinfo": "py-cpuinfo",
    "cv2": "opencv-python-headless",
    "decord": "decord2",
    "flash_attn": "flash-attn",
    "flashinfer": "flashinfer-python",
    "google.protobuf": "protobuf",
    "grpc": "grpcio",
    "hf_xet": "hf-xet",
    "huggingface_hub": "huggingface-hub",
    "lmformatenforcer": "lm-format-enforcer",
    "mistral_common": "mistral-common",
    "mooncake": "mooncake-transfer-engine",
    "open_clip": "open-clip-torch",
    "qwen_vl_utils": "qwen-vl-utils",
    "runai_model_streamer": "runai-model-streamer",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "transfer_queue": "TransferQueue",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}

_CANN_PATH = (
    "`source /usr/local/Ascend/ascend-toolkit/set_env.sh` before `ray start`: it sets PYTHONPATH "
    "for CANN's own modules."
)
MODULES = {
    "torch_npu": "Install the torch_npu that fits torch and CANN, or use a released image; "
    "`which python vllm` shows whether the right environment is active.",
    "vllm_ascend": "Install vllm-ascend in the environment from which Ray was started.",
    "vllm": "Install vLLM in the environment from which Ray was started (`which python vllm`).",
    "acl": _CANN_PATH,
    "te": _CANN_PATH,
    "tbe": _CANN_PATH,
    "hccl": _CANN_PATH,
    "llm_datadist": _CANN_PATH,
    "torchair": "It is a part of torch_npu (torch_npu/dynamo/torchair), not a package to install: "
    "use the torch_npu of the release's image, or add that folder's parent to PYTHONPATH.",
    "triton": "On NPUs install triton-ascend (the release that the table of vllm-ascend names, "
    "with the CANN that it needs), not triton; on GPUs the triton that belongs to torch.",
    "torch_atb": "`source /usr/local/Ascend/nnal/atb/set_env.sh` (NNAL) before `ray start`.",
    "atb_llm": "It belongs to MindIE's ATB models: use MindIE's image, and source its set_env.sh.",
    "mooncake": "Install mooncake-transfer-engine (for NPUs the build of the vllm-ascend image).",
    "custom_ops": "It is the package of operators for DeepSeek-V3.2 beside vllm-ascend (a wheel "
    "for one NPU generation, in no registry): use the image that has it, or a newer vllm-ascend, "
    "which has them built in.",
    "transformers_modules": "It is the model's own code, which only the process that read the "
    "model knows: put the model under the same path on every node, set `args.trust-remote-code: "
    "true`, and use a release of vLLM that sends such code to Ray's workers.",
    "mindie_turbo": "Install MindIE-Turbo, or use a vllm-ascend release that does not need it.",
}


def pip_name(module: str) -> str:
    """Return the name of the package that provides a module, as `pip install` takes it."""
    top = module.partition(".")[0]
    return _PIP.get(module) or _PIP.get(top) or _PIP.get(top.lower()) or top
