"""The keys of vllm-ascend's `--additional-config` that its messages name.

From ascend_config.py of vllm-ascend 0.8 to 0.25.
"""

from __future__ import annotations

import re

# fmt: off
_KEYS = frozenset(
    (
        "SLO_limits_for_dynamic_batch", "ascend_compilation_config", "ascend_fusion_config",
        "ascend_scheduler_config", "batch_job_sched_config", "chunked_prefill_for_mla",
        "dump_config", "dump_config_path", "dynamic_eplb", "dynamic_spec_config",
        "dyntra_lb_config", "embedding_tensor_parallel_size", "enable_async_exponential",
        "enable_balance_scheduling", "enable_cpu_binding", "enable_dsa_cp", "enable_flashcomm1",
        "enable_fused_mc2", "enable_kv_nz", "enable_mc2_hierarchy_comm", "enable_npugraph_ex",
        "enable_prefill_mc2", "enable_reduce_sample", "enable_shared_expert_dp",
        "enable_sparse_li_c8", "enable_sparse_sfa_c8", "enable_static_kernel",
        "enable_weight_nz_layout", "eplb_heat_collection_stage", "eplb_policy_type",
        "expert_map_path", "expert_map_record_path", "finegrained_tp_config", "fuse_allreduce_rms",
        "fuse_muls_add", "fuse_norm_quant", "fuse_qknorm_rope", "gate_eplb",
        "init_redundancy_expert", "layer_sharding", "lmhead_tensor_parallel_size",
        "load_collection_phase", "mega_moe_max_tokens", "mix_placement", "mlp_tensor_parallel_size",
        "multistream_dsv4_dsa_overlap", "multistream_overlap_gate",
        "multistream_overlap_shared_expert", "num_iterations_eplb_update",
        "num_wait_worker_iterations", "olora_tensor_parallel_size", "oproj_tensor_parallel_size",
        "pa_shape_list", "profiling_chunk_config", "recompute_scheduler_enable",
        "rejection_sampler_config", "rl_config", "scheduler_config", "short_request_first_config",
        "sparse_kv_offload_config", "torchair_graph_config", "weight_nz_mode",
        "weight_prefetch_config", "xlite_graph_config",
    )
)
# fmt: on
_NAME = re.compile(
    r"\b(additional_config\.)?([A-Za-z][a-z0-9]{0,20}(?:_[a-z0-9]{1,20}){1,6})"
    r"((?:\.[a-z][a-z0-9_]{2,60})?)\b"
)


def split_additional_keys(message: str) -> tuple[list[str], str]:
    """Return the keys of additional-config that a message names, and the message without them."""
    keys: list[str] = []
    rest, end = "", 0
    for found in _NAME.finditer(message):
        marked, name, part = found.groups()
        if not marked and name not in _KEYS:
            continue
        keys.append(f"`{name}{part}` in `args.additional-config`")
        rest += f"{message[end : found.start()]} "
        end = found.end()
    return list(dict.fromkeys(keys)), rest + message[end:]
