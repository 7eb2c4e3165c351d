"""Which variable or flag holds the time-out that a message is about.

Sources: vllm/envs.py, vllm's flags, CANN's and Hugging Face's documentation.
"""

from __future__ import annotations

import re

_MEDIA = (
    "`env.VLLM_IMAGE_FETCH_TIMEOUT`, VLLM_VIDEO_FETCH_TIMEOUT (send the bytes as base64, or a "
    "local file with `args.allowed-local-media-path`, where the server has no way to the address)"
)
# Words of the message and its frames, the option, what waits for it.
_TIMEOUTS: tuple[tuple[str, str, str], ...] = (
    (
        r"MQLLMEngine|rpc/|engine/multiprocessing",
        "`env.VLLM_RPC_TIMEOUT` (milliseconds; vLLM before 0.11)",
        "the API server for its engine",
    ),
    (
        r"execute_model|sample_tokens|collective_rpc|shm_broadcast",
        "`env.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS`",
        "the engine for its workers",
    ),
    (
        r"ready|startup|wait_for_engine|engine core proc|launch_core_engines",
        "`env.VLLM_ENGINE_READY_TIMEOUT_S`",
        "the API server for its engines",
    ),
    (r"nixl", "`env.VLLM_NIXL_ABORT_REQUEST_TIMEOUT`", "a server for the other side of NIXL"),
    (
        r"mooncake",
        "`env.VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT`",
        "a server for the other side of Mooncake",
    ),
    (r"p2p_nccl|p2p_handshake", "`env.VLLM_P2P_HANDSHAKE_TIMEOUT_S`", "the other KV partner"),
    (r"ascend_direct|adxl|hixl", "`env.ASCEND_CONNECT_TIMEOUT`", "the other NPU"),
    (r"hccl|Hccl|HCCL", "`env.HCCL_CONNECT_TIMEOUT`, `env.HCCL_EXEC_TIMEOUT`", "another rank"),
    (
        r"gloo|Gloo|cpu_group|monitoredBarrier",
        "`args.cpu-distributed-timeout-seconds`",
        "another rank",
    ),
    (
        r"init_process_group|distributed_c10d|TCPStore|c10d|nccl|NCCL",
        "`args.distributed-timeout-seconds`",
        "another rank",
    ),
    (r"huggingface|hf_hub|hub_download", "`env.HF_HUB_DOWNLOAD_TIMEOUT`", "the model hub"),
    (r"compiled_dag|cgraph|channel", "`env.RAY_CGRAPH_get_timeout`", "a worker of Ray"),
    (r"aiohttp|image|video|audio|media", _MEDIA, "a media server (images, videos of a request)"),
    (r"lmcache", "`blocking_timeout_secs` of LMCache", "the LMCache server"),
)


def name_timeout(text: str) -> str:
    """Return a sentence that names the time-out a text is about; "" when none is known."""
    for words, option, who in _TIMEOUTS:
        if re.search(words, text):
            return f"The wait of {who} is set by {option}. "
    return ""
