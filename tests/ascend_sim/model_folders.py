"""Folders with the config.json of each model that a shipped recipe serves, a tokenizer, no weights.

The numbers are those of the models' public config.json files (read 2026-11-28), as far as vLLM's
configuration reads them. Two are assumed, because no public file was found: Qwen3.8 has the shape
of Qwen3.5 (its tutorial says that it is built on that architecture), and the Eagle3 drafter of
MiniMax-M2 is a Llama layer of the target's width.
"""

from __future__ import annotations

import json
from pathlib import Path

from raylaunch.recipe.model import Recipe

YARN = {
    "rope_type": "yarn",
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "float8_e4m3fn",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
}
COMMON = {"dtype": "bfloat16", "hidden_act": "silu", "rms_norm_eps": 1e-6}

MINIMAX_M2 = COMMON | {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "attn_type_list": [1] * 62,
    "head_dim": 128,
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "max_position_embeddings": 196608,
    "num_attention_heads": 48,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 62,
    "num_key_value_heads": 8,
    "num_local_experts": 256,
    "qk_norm_type": "per_layer",
    "rope_theta": 5000000,
    "rotary_dim": 64,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "vocab_size": 200064,
}
EAGLE3_M2 = COMMON | {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "draft_vocab_size": 32000,
    "head_dim": 128,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 196608,
    "num_attention_heads": 48,
    "num_hidden_layers": 1,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "vocab_size": 200064,
}
DEEPSEEK_V3 = COMMON | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "moe_layer_freq": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 163840,
    "rope_theta": 10000,
    "rope_scaling": YARN,
}
DEEPSEEK_V32 = DEEPSEEK_V3 | {
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 2048,
}
DEEPSEEK_V4 = COMMON | {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "moe_intermediate_size": 3072,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 1,
    "head_dim": 512,
    "q_lora_rank": 1536,
    "o_lora_rank": 1024,
    "o_groups": 16,
    "qk_rope_head_dim": 64,
    "n_shared_experts": 1,
    "n_routed_experts": 384,
    "num_experts_per_tok": 6,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "num_hash_layers": 3,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 1024,
    "sliding_window": 128,
    "compress_ratios": [0, 0, *[4, 128] * 29, 4, 0],
    "compress_rope_theta": 160000,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "swiglu_limit": 10.0,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 1048576,
    "rope_theta": 10000,
    "rope_scaling": YARN | {"factor": 16, "original_max_position_embeddings": 65536},
}
GLM_4 = COMMON | {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "vocab_size": 151552,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "num_hidden_layers": 92,
    "num_attention_heads": 96,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 202752,
    "rope_theta": 1000000,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "moe_intermediate_size": 1536,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 160,
    "routed_scaling_factor": 2.5,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "use_qk_norm": True,
    "num_nextn_predict_layers": 1,
}
GLM_5 = COMMON | {
    "architectures": ["GlmMoeDsaForCausalLM"],
    "model_type": "glm_moe_dsa",
    "vocab_size": 154880,
    "hidden_size": 6144,
    "intermediate_size": 12288,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 78,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 2048,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "qk_nope_head_dim": 192,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 202752,
    "index_topk": 2048,
    "index_head_dim": 128,
    "index_n_heads": 32,
    "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
}
GLM_52 = GLM_5 | {"max_position_embeddings": 1048576}
KIMI_TEXT = DEEPSEEK_V3 | {
    "model_type": "kimi_k2",
    "vocab_size": 163840,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "n_routed_experts": 384,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 262144,
    "rope_theta": 50000,
    "num_nextn_predict_layers": 0,
    "rope_scaling": YARN | {"factor": 64},
}
KIMI_K25 = {
    "architectures": ["KimiK25ForConditionalGeneration"],
    "model_type": "kimi_k25",
    "dtype": "bfloat16",
    "text_config": KIMI_TEXT,
    "vision_config": {
        "patch_size": 14,
        "init_pos_emb_height": 64,
        "init_pos_emb_width": 64,
        "init_pos_emb_time": 4,
        "vt_num_attention_heads": 16,
        "vt_num_hidden_layers": 27,
        "vt_hidden_size": 1152,
        "vt_intermediate_size": 4304,
        "mm_hidden_size": 1152,
        "text_hidden_size": 7168,
    },
    "media_placeholder_token_id": 163605,
}
EAGLE3_KIMI = KIMI_TEXT | {
    "architectures": ["Eagle3DeepseekV2ForCausalLM"],
    "num_hidden_layers": 1,
    "draft_vocab_size": 163840,
}
QWEN3_TEXT = COMMON | {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "moe_intermediate_size": 1536,
    "num_experts_per_tok": 8,
    "num_experts": 128,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
QWEN3 = QWEN3_TEXT | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
VISION = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "out_hidden_size": 4096,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_position_embeddings": 2304,
}
QWEN3_VL = {
    "architectures": ["Qwen3VLMoeForConditionalGeneration"],
    "model_type": "qwen3_vl_moe",
    "dtype": "bfloat16",
    "text_config": QWEN3_TEXT
    | {
        "model_type": "qwen3_vl_moe_text",
        "max_position_embeddings": 262144,
        "rope_theta": 5000000,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
        },
    },
    "vision_config": VISION
    | {"model_type": "qwen3_vl_moe", "deepstack_visual_indexes": [8, 16, 24]},
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
QWEN35 = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "model_type": "qwen3_5_moe",
    "dtype": "bfloat16",
    "text_config": COMMON
    | {
        "model_type": "qwen3_5_moe_text",
        "vocab_size": 248320,
        "hidden_size": 4096,
        "num_hidden_layers": 60,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "max_position_embeddings": 262144,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 64,
        "moe_intermediate_size": 1024,
        "shared_expert_intermediate_size": 1024,
        "num_experts_per_tok": 10,
        "num_experts": 512,
        "layer_types": [*["linear_attention"] * 3, "full_attention"] * 15,
        "full_attention_interval": 4,
        "mtp_num_hidden_layers": 1,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
        },
        "attn_output_gate": True,
    },
    "vision_config": VISION | {"model_type": "qwen3_5_moe", "deepstack_visual_indexes": []},
    "image_token_id": 248056,
    "video_token_id": 248057,
    "vision_start_token_id": 248053,
    "vision_end_token_id": 248054,
}

CONFIGS = {
    "MiniMax-M2": MINIMAX_M2,
    "DeepSeek-R1": DEEPSEEK_V3,
    "DeepSeek-V3.1": DEEPSEEK_V3,
    "DeepSeek-V3.2": DEEPSEEK_V32,
    "DeepSeek-V4": DEEPSEEK_V4,
    "GLM-4": GLM_4,
    "GLM-5.2": GLM_52,
    "GLM-5": GLM_5,
    "Kimi-K2.5": KIMI_K25,
    "Qwen3-VL": QWEN3_VL,
    "Qwen3.5": QWEN35,
    "Qwen3.8": QWEN35,
    "Qwen3-235B": QWEN3,
}
"""What the name of the weights begins with -> config.json. The first that fits counts."""


def write_model(recipe: Recipe, folder: Path) -> Path:
    """Write the folder that stands for a recipe's weights; return it."""
    name = Path(recipe.model.path).name
    config = next(config for start, config in CONFIGS.items() if name.startswith(start))
    quantised = recipe.args.get("quantization") == "ascend"
    if config is MINIMAX_M2 and not quantised:
        config = config | {"quantization_config": FP8}
    write_folder(config, folder)
    if quantised:
        _write(folder / "quant_model_description.json", _quantisation(config))
    return folder


def write_drafter(recipe: Recipe, folder: Path) -> Path:
    """Write the folder that stands for the recipe's Eagle3 drafter; return it."""
    write_folder(EAGLE3_KIMI if "kimi" in recipe.model.served_name else EAGLE3_M2, folder)
    return folder


def write_folder(config: dict[str, object], folder: Path) -> None:
    """Write config.json and a tokenizer of 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # The tokens that vLLM's reasoning and tool parsers look up when they are built.
    tokenizer.add_special_tokens(["<think>", "</think>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    _write(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    _write(folder / "config.json", config)


def _quantisation(config: dict[str, object]) -> dict[str, str]:
    """Return ModelSlim's description of W8A8 weights, as short as vllm-ascend accepts it."""
    described = {"model_quant_type": "W8A8_DYNAMIC", "version": "1.0.0"}
    if config is not MINIMAX_M2:
        return described | {
            "model.layers.0.self_attn.q_a_proj.weight": "W8A8",
            "model.layers.0.mlp.gate_proj.weight": "W8A8_DYNAMIC",
        }
    for layer in range(62):
        prefix = f"model.layers.{layer}"
        for name in "qkvo":
            described[f"{prefix}.self_attn.{name}_proj.weight"] = "W8A8"
        described[f"{prefix}.block_sparse_moe.gate.weight"] = "FLOAT"
        for expert in range(256):
            for name in ("w1", "w2", "w3"):
                key = f"{prefix}.block_sparse_moe.experts.{expert}.{name}.weight"
                described[key] = "W8A8_DYNAMIC"
    return described


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content))
