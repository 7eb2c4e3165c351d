"""The features of vllm-ascend that a path or a message is about, and how to start without them.

Paths of vllm-ascend 0.7 to 0.23. An exception that names no setting is a defect of the release, or
a combination that it does not support: a newer release is the remedy, and leaving a feature out is
what helps until then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Ordered: the more special feature first. Word in the path, function or message, name, remedy.
_FEATURES: tuple[tuple[str, str, str], ...] = (
    (
        r"mlapo|mla_preprocess|mla_?prolog",
        "the fused MLA operator (MLAPO)",
        "`env.VLLM_ASCEND_ENABLE_MLAPO: 0`",
    ),
    (
        r"fused_mc2|dispatch_ffn|mega_?moe",
        "the fused dispatch of experts",
        "no `env.VLLM_ASCEND_ENABLE_FUSED_MC2`",
    ),
    (
        r"layer_shard|shared_weight_layer|reach_layer",
        "layer sharding",
        "no `layer_sharding` in `args.additional-config`",
    ),
    (
        (
            r"finegrained|oproj_tp|o_?proj_tensor_par|lmhead_tp|embedding_tp|mlp_tp|"
            r"flashcomm2|flash_comm2"
        ),
        "a finer split of single layers",
        (
            "no `finegrained_tp_config` in `args.additional-config` (older: no "
            "VLLM_ASCEND_ENABLE_FLASHCOMM2)"
        ),
    ),
    (
        r"xlite",
        "xlite graphs",
        "no `xlite_graph_config` in `args.additional-config`",
    ),
    (
        r"npugraph_ex|static_kernel|fusion_pass|graph_fusion|ascend_compil",
        "the compiler of vllm-ascend (npugraph_ex)",
        (
            "`ascend_compilation_config: {enable_npugraph_ex: false}` in "
            "`args.additional-config`; or with `args.enforce-eager: true`"
        ),
    ),
    (
        r"batch_job_aware|job_bucket|dyntra|profiling_chunk",
        "a scheduler of additional-config",
        "no `scheduler_config` in `args.additional-config`",
    ),
    (
        r"mamba_utils|preprocess_mamba|mamba_copy|mamba_attn",
        "prefix caching of linear attention",
        "`args.enable-prefix-caching: false` or no `features.speculative`",
    ),
    (
        r"mamba_attn",
        "linear attention with drafts or cached prefixes",
        "no `features.speculative`, or with `args.enable-prefix-caching: false`",
    ),
    (r"gdn|mamba|linear_attn|gated_delta|conv1d", "linear attention (GDN, Mamba)", ""),
    (
        r"dcp|(?:^|[^a-z])cp_|context_parallel|decode_context",
        "context parallelism (DCP/PCP)",
        "`parallel.decode_context: 1` and `parallel.prefill_context: 1`",
    ),
    (r"pcp|prefill_context", "prefill context parallelism (PCP)", "`parallel.prefill_context: 1`"),
    (
        r"spec_decode|eagle|mtp|proposer|draft|ngram|medusa",
        "speculative decoding",
        "no `features.speculative`",
    ),
    (
        (
            r"aclgraph|acl_graph|cudagraph|graph_mode|full_graph|graph_param|capture|"
            r"compilation|torchair|piecewise"
        ),
        "graph capture",
        "`args.enforce-eager: true` or `cudagraph_mode: PIECEWISE`",
    ),
    (
        r"cpu_binding|bind_cpus",
        "the binding of processes to CPU cores",
        "`enable_cpu_binding: false` in `args.additional-config`; or with `env.LC_ALL: C` (lscpu)",
    ),
    (
        r"recompute_sched",
        "the scheduler that computes requests again",
        "no `recompute_scheduler_enable` in `args.additional-config`, or no `features.speculative`",
    ),
    (
        r"netloader|rfork",
        "the loading of weights from another server",
        "no `args.load-format` (netloader, rfork)",
    ),
    (
        r"balance_sched",
        "balance scheduling",
        "no `env.VLLM_ASCEND_BALANCE_SCHEDULING`",
    ),
    (r"ppmissing|pipeline_par", "pipeline parallelism", "`parallel.pipeline: 1`"),
    (r"eplb", "expert load balancing (EPLB)", "EPLB off in `args.additional-config`"),
    (
        r"fc3|flashcomm3|shared_expert_dp|gate_stream|multistream|dual_?batch|dbo",
        "an optimisation of additional-config",
        "no `multistream_*` and `enable_shared_expert_dp` in `args.additional-config`",
    ),
    (
        r"fused_moe|moe|expert|mc2|dispatch|token_dispatcher",
        "mixture-of-experts operators",
        "`parallel.expert: false`",
    ),
    (
        r"quant|w8a8|w4a8|w4a4|modelslim|scale|offset",
        "quantisation",
        "another quantisation of the weights (`model.path`, `args.quantization`)",
    ),
    (
        r"kv_transfer|connector|mooncake|llmdatadist|kv_pool|disaggreg|distributed/kv",
        "KV transfer",
        "no `args.kv-transfer-config`",
    ),
    (
        r"flashcomm|sequence_parallel|enable_sp|linear_op|matmul_and_reduce",
        "FLASHCOMM (sequence parallelism)",
        "no `env.VLLM_ASCEND_ENABLE_FLASHCOMM1`",
    ),
    (
        r"lora|sgmv|bgmv|punica",
        "LoRA",
        "`args.fully-sharded-loras: true`, a lower `args.max-lora-rank`, or no LoRA flags",
    ),
    (
        r"offload|swap_blocks|swap_in|swap_out",
        "KV offloading",
        "no KV offloading flags under `args`",
    ),
    (r"sleep|camem", "sleep mode", "no `args.enable-sleep-mode`"),
    (
        r"chunked_prefill",
        "chunked prefill",
        (
            "`args.enable-chunked-prefill: false` and `ascend_scheduler_config: {enabled: true}` "
            "in `args.additional-config` (graphs of torchair need that)"
        ),
    ),
    (r"multimodal|vision|_vl\b|(?<![a-z])mm_|encoder", "multimodal inputs", ""),
    (r"310p", "the 310P", ""),
    (r"structured|grammar|guided", "structured output", ""),
    (r"sample", "sampling", ""),
    (r"mla|sfa|dsa|attention|attn", "this attention backend", ""),
    (
        r"(?<!recompute_)(?<!balance_)scheduler",
        "the Ascend scheduler",
        "no `ascend_scheduler_config` in `args.additional-config`",
    ),
    (
        r"prefetch|weight_nz",
        "an optimisation of additional-config",
        "no `args.additional-config`",
    ),
)


# vLLM names the parallel ranks in the process: `Worker_PP0_TP3_DCP3_EP7`. Ranks, a word of the
# feature's name, and where it stands among those that the text names.
_RANKS = ((r"_D?PCP\d|_DCP\d", "context", 0), (r"_PP\d", "pipeline", 1))


def name_features(text: str, process: str) -> list[tuple[str, str]]:
    """Return the features of vllm-ascend that a text is about, each with how to switch it off.

    Args:
        text: Paths, functions and message of a traceback.
        process: Prefix of the line, which names the parallel ranks.
    """
    lower = text.lower()
    found = [(name, remedy) for pattern, name, remedy in _FEATURES if re.search(pattern, lower)]
    for ranks, word, place in _RANKS:
        if re.search(ranks, process) and not any(word in name for name, _ in found):
            found.insert(place, next(each[1:] for each in _FEATURES if word in each[1]))
    return found[:2]


def advise_release(package: str, features: Sequence[tuple[str, str]]) -> str:
    """Return the remedy of a defect: the release first, then what to leave out until then.

    Args:
        package: The package whose code failed, as pip calls it.
        features: What the traceback goes through, from `name_features`.
    """
    pair = " with the vLLM that its table of versions names" if package == "vllm-ascend" else ""
    both = " and vllm-ascend that belong together" if package == "vLLM" else ""
    off = [remedy for _, remedy in features if remedy]
    until = f" Until then start with {'; or with '.join(off)}." if off else ""
    return f"Use a newer release or image of {package}{both}{pair}.{until}"
