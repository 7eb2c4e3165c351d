"""Flags and variables reserved to the planner, and the recipe field that sets each of them."""

from __future__ import annotations

_INTERNAL_LB = "nothing: raylaunch deploys vLLM's internal load balancing"

_ARGS = {
    "model": "model.path",
    "served-model-name": "model.served_name",
    "host": "network.host",
    "port": "network.http_port",
    "tensor-parallel-size": "parallel.tensor",
    "pipeline-parallel-size": "parallel.pipeline",
    "prefill-context-parallel-size": "parallel.prefill_context",
    "decode-context-parallel-size": "parallel.decode_context",
    "enable-expert-parallel": "parallel.expert",
    "api-server-count": "parallel.api_servers",
    "data-parallel-size": "parallel.data",
    "data-parallel-size-local": "parallel.data_local",
    "data-parallel-rpc-port": "network.rpc_port",
    "data-parallel-address": "network.interface (the address follows from it)",
    "data-parallel-start-rank": "parallel.data_local (ranks follow from it)",
    "data-parallel-rank": "parallel.data_local (ranks follow from it)",
    "data-parallel-backend": (
        "nothing: raylaunch places the servers itself, with vLLM's default backend"
    ),
    "data-parallel-hybrid-lb": _INTERNAL_LB,
    "data-parallel-external-lb": _INTERNAL_LB,
    "data-parallel-multi-port-external-lb": _INTERNAL_LB,
    "headless": "parallel.data_local (every server but the first is headless)",
    "nnodes": "parallel.data",
    "node-rank": "parallel.data",
    "master-addr": "network.interface",
    "master-port": "network.rpc_port",
    "enable-auto-tool-choice": "features.tool_calling",
    "tool-call-parser": "features.tool_calling.tool_parser",
    "reasoning-parser": (
        "features.tool_calling.reasoning_parser (without tool calling: features.reasoning_parser)"
    ),
    "profiler-config": "features.profiling",
    "speculative-config": "features.speculative",
}

_SHORT = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "pcp": "prefill-context-parallel-size",
    "dcp": "decode-context-parallel-size",
    "dp": "data-parallel-size",
    "dpl": "data-parallel-size-local",
    "dpr": "data-parallel-start-rank",
    "dpn": "data-parallel-rank",
    "dpa": "data-parallel-address",
    "dpp": "data-parallel-rpc-port",
    "dpb": "data-parallel-backend",
    "dph": "data-parallel-hybrid-lb",
    "dpe": "data-parallel-external-lb",
    "dpm": "data-parallel-multi-port-external-lb",
    "asc": "api-server-count",
    "ep": "enable-expert-parallel",
    "sc": "speculative-config",
    "n": "nnodes",
    "r": "node-rank",
    "cc": "compilation-config",
}
"""vLLM's short options (vLLM 0.32 arg_utils)."""

_SEVERAL = "network.interface (set where a deployment has several servers; one alone needs none)"

_ENV = {
    "HCCL_IF_IP": f"{_SEVERAL}; network.hccl_if_ip=false leaves it unset",
    "HCCL_SOCKET_IFNAME": _SEVERAL,
    "GLOO_SOCKET_IFNAME": _SEVERAL,
    "TP_SOCKET_IFNAME": _SEVERAL,
    "VLLM_HOST_IP": _SEVERAL,
    "HCCL_IF_BASE_PORT": "network.hccl_base_port",
    "ASCEND_RT_VISIBLE_DEVICES": "hardware.npus_per_server (Ray assigns the devices)",
    "VLLM_TORCH_PROFILER_DIR": "features.profiling.dir (current vLLM ignores the variable)",
    "VLLM_TORCH_PROFILER_WITH_STACK": (
        "features.profiling.with_stack (current vLLM ignores the variable)"
    ),
}


def normalise_flag(name: str) -> str:
    """Return a flag's canonical long name without dashes: `--max_num_seqs` -> `max-num-seqs`.

    vLLM's parser reads `_` as `-` in option names (0.23 and 0.32).
    """
    head, dot, rest = name.lstrip("-").partition(".")
    head = head.replace("_", "-")
    return _SHORT.get(head, head) + dot + rest


def reserved_arg(name: str) -> str | None:
    """Return the recipe field to use instead of the flag `name`; None when the flag is free."""
    flag = normalise_flag(name).partition(".")[0]
    # `--no-enable-expert-parallel` is reserved as its positive form is.
    return _ARGS.get(flag.removeprefix("no-"))


def reserved_env(name: str) -> str | None:
    """Return the recipe field to use instead of the variable `name`; None when it is free."""
    if name.startswith("RAYLAUNCH_"):
        return "nothing: raylaunch marks its own processes with it"
    return _ENV.get(name)
