"""Which package a class, function or module belongs to, by the form of its name.

A message names what one package asked of another one ("X.__init__() got an unexpected keyword
argument"), but not the package: the releases to compare follow from the name.
"""

from __future__ import annotations

import re

# Ordered: the more special name first. Names as vLLM 0.6 to 0.32 imports them.
_OWNERS: tuple[tuple[str, str], ...] = (
    (r"(?i)lmcache|^StorageManager$", "lmcache"),
    (r"^(?:UCM|Ucm)[A-Z]", "ucm"),
    (r"(?i)nixl", "nixl"),
    (r"MooncakeDistributedStore|TransferEngine|(?i:mooncake)", "mooncake-transfer-engine"),
    (r"(?i)flashinfer|trtllm_|cutlass_fused_moe|BatchDecodeWith|BatchPrefillWith", "flashinfer"),
    (r"(?i)deep_?gemm|m_grouped_|fp8_gemm_nt|fp8_m_grouped", "deep_gemm"),
    (r"(?i)deep_?ep\b|^Buffer\.(?:dispatch|combine|low_latency)", "deep_ep"),
    (r"flash_attn_(?:varlen|with_kvcache)|get_scheduler_metadata|varlen_fwd", "vllm-flash-attn"),
    (r"flash_?mla", "flash_mla"),
    (r"(?i)xgrammar|^Grammar(?:Compiler|Matcher)|StructuralTag", "xgrammar"),
    (r"(?i)outlines|RegexGuide|IndexSerial", "outlines_core"),
    (r"^triton\b|JITFunction|ASTSource|CompiledKernel|constexpr", "triton"),
    (r"(?i)compressed_tensors|QuantizationArgs|QuantizationScheme", "compressed-tensors"),
    (r"MistralTokenizer|Tekkenizer|SentencePieceTokenizer", "mistral_common"),
    (r"(?:Processor|Tokenizer(?:Fast|Base)?|FeatureExtractor)\b", "transformers"),
    (r"Pre[tT]rained(?:Config|Model)|GenerationConfig|AutoConfig|DynamicCache", "transformers"),
    (r"^(?:fastapi|FastAPI|APIRouter|Starlette|uvicorn|Middleware|Router)\b", "fastapi"),
    (r"FieldInfo|ModelField|BaseModel|BaseSettings|^pydantic", "pydantic"),
    (r"Instrumentator", "prometheus-fastapi-instrumentator"),
    (r"(?:^|\.)(?:ActorHandle|CompiledDAG|ClassMethodNode|PlacementGroup)", "ray"),
    (r"HarmonyEncoding|Harmony", "openai-harmony"),
    (r"^(?:ChatCompletion|Response)\w+Param|^openai\.", "openai"),
    (r"FakeTensor|FunctionalTensor|ShapeEnv|GraphModule|InductorAdaptor|torch\.", "torch"),
    (r"^(?:hf_hub_|snapshot_download|HfApi|HfFileSystem)", "huggingface_hub"),
    (r"PeftConfig|LoraConfig", "peft"),
)


def find_name_owner(name: str) -> str:
    """Return the package that a name belongs to; "" when its form does not tell."""
    return next((package for words, package in _OWNERS if re.search(words, name)), "")
