"""The options that decide about a piece of vLLM's code, by its path.

A message that names no option still comes from a file that only some options lead to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from raylaunch.supervise.diagnosis.tracebacks import Frame

# Ordered: the more special place first. Paths of vLLM 0.6 to 0.32.
_PLACES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"kv_transfer|kv_connector|ec_connector", ("`args.kv-transfer-config`",)),
    (r"kv_offload|simple_kv_offload", ("`args.kv-offloading-size`", "`args.kv-transfer-config`")),
    (r"structured_output|guided_decoding", ("`args.structured-outputs-config`",)),
    (r"tool_parser", ("`features.tool_calling.tool_parser`",)),
    (r"vllm/reasoning", ("`features.tool_calling.reasoning_parser`",)),
    (r"spec_decode|speculat|eagle|medusa|_mtp\b|draft", ("`features.speculative`",)),
    (r"eplb", ("`args.enable-eplb`", "`args.eplb-config`")),
    (r"vllm/lora|punica", ("`args.max-lora-rank`", "`args.lora-modules`")),
    (r"cumem|device_allocator|camem", ("`args.enable-sleep-mode`",)),
    (r"model_loader/(?:gguf|bitsandbytes|tensorizer|runai|sharded)", ("`args.load-format`",)),
    (r"layers/quantization", ("`args.quantization`", "other weights (`model.path`)")),
    (
        r"^(?!vllm_ascend/)[\w/.-]{0,200}(?:rotary_embedding|rope)",
        ("`args.hf-overrides` (rope_parameters)", "config.json under `model.path`"),
    ),
    (
        r"fused_moe|all2all|device_communicators/.{0,80}expert",
        ("`args.moe-backend`", "`args.all2all-backend`", "`parallel.expert`"),
    ),
    (r"mamba|gdn|linear_attn|causal_conv", ("`args.mamba-cache-mode`", "`args.mamba-block-size`")),
    (
        r"attention/(?:selector|backends|layer|utils)|v1/attention|mla_attention",
        ("`args.attention-backend`", "`args.kv-cache-dtype`", "`args.block-size`"),
    ),
    (
        r"vllm/multimodal|mm_encoder|models/vision|renderers|processor",
        ("`args.limit-mm-per-prompt`", "`args.mm-processor-kwargs`"),
    ),
    (r"cudagraph|compilation/|acl_?graph", ("`args.compilation-config`", "`args.enforce-eager`")),
    (
        r"ray_utils|ray_executor|ray_distributed",
        ("`parallel`", "`args.distributed-executor-backend`"),
    ),
    (r"pool(?:er|ing)|classif|embedding_", ("`args.runner`", "`args.pooler-config`")),
    (
        r"tokenizers?/|transformers_utils/tokenizer|tokenizer_group",
        ("`args.tokenizer-mode`", "`args.tokenizer`"),
    ),
    (
        r"transformers_utils/(?:config|configs/|model_arch)",
        ("`args.hf-overrides`", "config.json under `model.path`"),
    ),
    (
        r"model_loader",
        ("`args.load-format`", "`args.model-loader-extra-config`", "the files under `model.path`"),
    ),
    (
        r"distributed/(?:parallel_state|utils)|coordinator|core_client|engine/utils",
        ("`parallel`", "`network`"),
    ),
    (r"custom_all_reduce|quick_all_reduce", ("`args.disable-custom-all-reduce: true`",)),
    (r"symm_mem", ("`env.VLLM_ALLREDUCE_USE_SYMM_MEM: 0`",)),
    (r"profil", ("`args.profiler-config`",)),
    (r"tracing|otel", ("`args.otlp-traces-endpoint`",)),
    (r"vllm/plugins", ("`env.VLLM_PLUGINS`",)),
    (r"weight_transfer", ("`args.weight-transfer-config`",)),
    (r"vllm/logg", ("`env.VLLM_LOGGING_CONFIG_PATH`",)),
)
_MOST = 3
_FRAMES = 3
_MODEL = re.compile(r"model_executor/models/(\w{2,60})\.py")


def name_place_options(frames: Sequence[Frame]) -> list[str]:
    """Return the recipe fields that lead to the innermost frames, at most three."""
    for frame in frames[:_FRAMES]:
        place = f"{frame.module_path} {frame.function}"
        for words, options in _PLACES:
            if re.search(words, place):
                return list(options[:_MOST])
    return []


def name_model_class(frames: Sequence[Frame]) -> str:
    """Return the file of the model's class that an exception goes through; "" without one."""
    found = (_MODEL.search(frame.module_path) for frame in frames[:_FRAMES])
    return next((match[1] for match in found if match), "")
