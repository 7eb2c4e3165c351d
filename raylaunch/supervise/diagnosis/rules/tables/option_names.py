"""Which recipe fields a message names: by a flag, a variable, their words, or its topic."""

from __future__ import annotations

import re

from raylaunch.plan.known_flags import read_flags
from raylaunch.supervise.diagnosis.rules.tables.additional_keys import split_additional_keys

_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]{1,60})")
_NAME = re.compile(r"(?<![\w.])([a-z][a-z0-9]{0,30}(?:_[a-z0-9]{1,30}){1,8})(?![\w(])")
_VARIABLE = re.compile(
    r"\b(?!VLLM_COMPILE\b)"  # a mode of compilation
    r"((?:VLLM|HCCL|ASCEND|RAY|PYTORCH|GLOO|HF|TORCH|MC)_[A-Z][A-Z0-9_]{2,60})\b"
)
_NAMED_VARIABLE = re.compile(
    r"(?i:env(?:ironment)? ?var(?:iable)?s?)[ ,:]{0,3}[`'\"]?([A-Z_][A-Z0-9_]{3,60})\b|"
    r"\b([A-Z][A-Z0-9]{1,20}(?:_[A-Z0-9]{1,20}){1,6})=|"
    r"(?:\$|\b[Ss]et |[Uu]nset )[`'\"]?([A-Z][A-Z0-9]{1,20}(?:_[A-Z0-9]{1,20}){1,6})\b"
)
_FOR_DEBUGGING = re.compile(r"DEBUG|LOGS?$|VERBOSE|LAUNCH_BLOCKING|_DSA$|TRACE")
_ADDRESS = re.compile(r"https?://\S{1,300}")
_MODEL_NAME = re.compile(r"\bmodel (?:name )?['\"]?[\w.-]{2,60}/[\w.-]{2,100}")
_VALUES = re.compile(
    r"(?:[Vv]alid|[Ss]upported|[Aa]llowed|[Aa]vailable|[Kk]nown|[Rr]egistered)"
    r"(?: \w{1,20}){0,3}:? (?:are|is)\b|choose from|must be one of|should be one of|"
    r"[Ss]upported \w{1,30}: "
)
_FIELDS = {
    "tensor-parallel-size": "parallel.tensor",
    "pipeline-parallel-size": "parallel.pipeline",
    "data-parallel-size": "parallel.data",
    "data-parallel-size-local": "parallel.data_local",
    "enable-expert-parallel": "parallel.expert",
    "decode-context-parallel-size": "parallel.decode_context",
    "prefill-context-parallel-size": "parallel.prefill_context",
    "speculative-config": "features.speculative",
    "num-speculative-tokens": "features.speculative",
    "tool-call-parser": "features.tool_calling.tool_parser",
    "reasoning-parser": "features.tool_calling.reasoning_parser",
}
# Words of a message that stand for an option without naming it.
_TOPICS: tuple[tuple[str, str], ...] = (
    (
        r"tensor[- ]parallel|\btp[_ ]?size\b|\bTP\b|is not divisible by \d",
        "`parallel.tensor`",
    ),
    (r"world[_ ]size", "`parallel.tensor`, `parallel.pipeline` and `hardware.npus_per_server`"),
    (
        r"intermediate_tensors|pipeline[- ]parallel|\bpp[_ ]?size\b|\b_?pp[_ ]",
        "`parallel.pipeline`",
    ),
    (r"expert[- ]parallel|\bep[_ ]?size\b|EPLB|redundant[_ ]expert", "`parallel.expert`"),
    (
        r"context[- ]parallel|\bDCP\b|\bPCP\b",
        "`parallel.decode_context`, `parallel.prefill_context`",
    ),
    (
        (
            r"speculat|draft|eagle|dspark|dflash|\bmtp\b|medusa|ngram|"
            r"sampled_token_ids\.shape|num_spec"
        ),
        "`features.speculative`",
    ),
    (
        (
            r"(?:fp8|int8|quantized|nvfp4)[^\n]{0,12} (?:kv|attention)|"
            r"kv[-_ ]?cache[-_ ]?(?:data ?)?type|"
            r"kv[-_ ]cache[-_ ]dtype|cache_dtype"
        ),
        "`args.kv-cache-dtype`",
    ),
    (
        r"quantiz|\bfp8\b|\bw8a8\b|\bawq\b|\bgptq\b|bitsandbytes",
        "`args.quantization` or other weights (`model.path`)",
    ),
    (
        r"max\w{0,20}_tokens|tokens_per_(?:rank|expert|batch)",
        "`args.max-num-batched-tokens` or `args.max-num-seqs`",
    ),
    (r"\blora\b", "the LoRA options under `args`"),
    (r"bfloat16|float16|\bdtype\b", "`args.dtype`"),
    (
        r"flashinfer|flash_?mla|marlin|deep_?gemm|\btrtllm",
        "the choice of kernels (`args.moe-backend`, `args.attention-backend`, VLLM_USE_* in `env`)",
    ),
    (
        r"mixture_of_experts|is_moe\b",
        "`args.enable-eplb` and `parallel.expert`, which are for models with experts",
    ),
    (r"torchair", "`torchair_graph_config` in `args.additional-config`"),
    (r"chat template", "`args.chat-template`"),
    (r"[Dd]ata parallel", "`parallel.data`"),
    (r"model[_ ]runner[_ ]v2", "`env.VLLM_USE_V2_MODEL_RUNNER: 0`"),
    (
        r"captur|cuda ?graph|acl ?graph|graph mode",
        "`args.compilation-config` or `args.enforce-eager`",
    ),
    (
        r"hybrid kv cache",
        (
            "`args.kv-transfer-config` (a KV connector may switch the hybrid manager off) or "
            "`args.disable-hybrid-kv-cache-manager`"
        ),
    ),
    (r"kv[ _-]?(?:connector|transfer)", "`args.kv-transfer-config`"),
    (r"\bblock[_ ]size\b(?!_)", "`args.block-size`"),
    (r"memory utilization", "`args.gpu-memory-utilization`"),
    (r"swap space", "`args.swap-space`"),
    (r"num_cache_lines", "`args.max-num-seqs` (fewer), or a larger `args.gpu-memory-utilization`"),
    (
        r"mistral[- ]format|params\.json",
        "`args.config-format`, `args.load-format` and `args.tokenizer-mode` (leave mistral out)",
    ),
    (r"multi-?modal|\bmm_|image processor|video", "`args.limit-mm-per-prompt` and its like"),
    (r"tokenizer", "`args.tokenizer-mode`, and the tokenizer files under `model.path`"),
    (r"rope[_ ]scaling|rope[_ ]type", "config.json under `model.path`, or another transformers"),
)


def name_options(message: str) -> list[str]:
    """Return the recipe fields that a message names or is about, at most three."""
    # Names of models and of the values that would be valid are no options.
    bare = _VALUES.split(_MODEL_NAME.sub(" ", _ADDRESS.sub("", message)))[0]
    keys, bare = split_additional_keys(bare)
    return (keys + (name_flags(bare) or _name_spelled(bare) or name_topics(bare)))[:3]


def name_flags(message: str) -> list[str]:
    """Return the recipe fields that a message calls by the name of a flag or variable."""
    flags = read_flags()
    named = [match.rstrip("-") for match in _FLAG.findall(message)]
    named += [match.replace("_", "-") for match in _NAME.findall(message)]
    fields = [_field(name) for name in named if name in flags or name in _FIELDS]
    fields += [f"`env.{name}`" for name in _VARIABLE.findall(message)]
    found = (next(filter(None, groups)) for groups in _NAMED_VARIABLE.findall(message))
    fields += [f"`env.{name}`" for name in found if not _FOR_DEBUGGING.search(name)]
    return [_with_value(field, message) for field in dict.fromkeys(fields)][:3]


def _with_value(field: str, message: str) -> str:
    """Return a variable with the value that a message says to set: "disable it with NAME=0"."""
    name = field.strip("`").removeprefix("env.")
    advised = rf"(?:[Ww]ith|[Ss]et(?:ting)?|[Ee]xport(?:ing)?) [`'\"]?{name}=([\w:-]{{1,40}})"
    found = re.search(advised, message) if "env." in field else None
    return f"`env.{name}: {found[1]}`" if found else field


def _name_spelled(message: str) -> list[str]:
    """Return the fields of flags that a message writes as words: "executor backend"."""
    lower = message.lower().replace("prefix cache", "prefix caching")
    found = []
    for flag in read_flags():
        words = flag.removeprefix("enable-").replace("-", " ")
        if " " in words and words in lower:
            found.append(_field(flag))
    return found[:3]


def name_topics(text: str) -> list[str]:
    """Return the recipe fields of the topics that a text is about, at most three."""
    return [field for words, field in _TOPICS if re.search(words, text, re.IGNORECASE)][:3]


def _field(flag: str) -> str:
    return f"`{_FIELDS.get(flag, f'args.{flag}')}`"
