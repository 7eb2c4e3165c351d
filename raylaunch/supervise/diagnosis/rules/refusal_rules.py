"""Exceptions that explain themselves: vLLM, vllm-ascend or transformers refuses, and says what.

The message is the cause. The remedy is read from the options that the message names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.plan.known_flags import read_flags
from raylaunch.supervise.diagnosis.advice import read_advice
from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import QUOTE_CHARS, Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.tables.packages import find_package
from raylaunch.supervise.diagnosis.rules.tables.place_options import (
    name_model_class,
    name_place_options,
)
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_TYPES = (
    "ValueError",
    "NotImplementedError",
    "AssertionError",
    "RuntimeError",
    "TypeError",
    "ImportError",
    "OSError",
    "AttributeError",
    "KeyError",
)
_OWN = ("vllm", "vllm_ascend", "transformers", "lmcache", "lmcache_ascend", "compressed_tensors")
_WRAPPERS = re.compile(
    r"See (?:root cause|stack trace)|(?:Engine|Worker)[\w ]{0,20} (?:failed|died|process)|"
    r"cancelled|check the stack trace|Cannot re-initialize|initialization failed due to|"
    r"The Inner error is reported as above|error code is|function error|call acl|"
    r"error\(s\) in loading|DataLoader worker|unexpected keyword argument|unpickle|"
    # What tensors are is no refusal: `last_exception` reads it, and whether the server had served.
    r"size of (?:the )?tensor|invalid for input of size|cannot be broadcast|values to unpack|"
    r"Can't get (?:local )?attribute|[Cc]an(?:'t|not) pickle"
)
_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]{1,60})")
_NAME = re.compile(r"(?<![\w.])([a-z][a-z0-9]{0,30}(?:_[a-z0-9]{1,30}){1,8})(?![\w(])")
_VARIABLE = re.compile(
    r"\b((?:VLLM|HCCL|ASCEND|RAY|PYTORCH|GLOO|HF|TORCH|MC)_[A-Z][A-Z0-9_]{2,60})\b"
)
_REQUEST_PLACE = re.compile(
    r"^vllm/(?:entrypoints/openai|sampling_params|v1/engine/(?:input_)?proc)"
)
_NAMED_VARIABLE = re.compile(
    r"(?i:env(?:ironment)? ?var(?:iable)?s?)[ ,:]{0,3}[`'\"]?([A-Z_][A-Z0-9_]{3,60})\b|"
    r"\b([A-Z][A-Z0-9]{1,20}(?:_[A-Z0-9]{1,20}){1,6})=|"
    r"(?:\$|\b[Ss]et |[Uu]nset )[`'\"]?([A-Z][A-Z0-9]{1,20}(?:_[A-Z0-9]{1,20}){1,6})\b"
)
_FOR_DEBUGGING = re.compile(r"DEBUG|LOGS?$|VERBOSE|LAUNCH_BLOCKING|_DSA$|TRACE")
_ADDRESS = re.compile(r"https?://\S{1,300}")
_VALUES = re.compile(
    r"(?:[Vv]alid|[Ss]upported|[Aa]llowed|[Aa]vailable|[Kk]nown|[Rr]egistered)"
    r"(?: \w{1,20}){0,3}:? (?:are|is)\b|choose from|must be one of|should be one of|"
    r"[Ss]upported \w{1,30}: "
)
_MIN_WORDS = 3
_RUNNING_PLACE = re.compile(r"^vllm(?:_ascend)?/(?:v1/(?:core|engine)|core)/(?!kv_cache_spec)")
_RUNTIME_FEATURES: tuple[tuple[str, str], ...] = (
    (r"kv_xfer|connector|kv_transfer|remote|async_load", "no `args.kv-transfer-config`"),
    (r"spec_|draft|propos", "no `features.speculative`"),
    (r"prefix|cached_block|popleft|block_pool|free_block", "`args.enable-prefix-caching: false`"),
    (r"step_with_batch_queue|async_sched", "`args.async-scheduling: false`"),
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
        r"speculat|draft|eagle|\bmtp\b|medusa|ngram|sampled_token_ids\.shape|num_spec",
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
    (r"chat template", "`args.chat-template`"),
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
    (r"multi-?modal|\bmm_|image processor|video", "`args.limit-mm-per-prompt` and its like"),
    (r"tokenizer", "`args.tokenizer-mode`, and the tokenizer files under `model.path`"),
    (r"rope[_ ]scaling|rope[_ ]type", "config.json under `model.path`, or another transformers"),
)


def read_refusals(log: ServerLog) -> Iterator[Reading]:
    """Yield the exceptions whose message says what is refused."""
    for raised in find_exceptions(log):
        if reading := _refusal(raised):
            yield reading


def _refusal(raised: Raised) -> Reading | None:
    innermost = raised.innermost
    if innermost is not None and innermost.package not in _OWN:
        return None
    if raised.type in ("KeyError", "IndexError") and _RUNNING_PLACE.match(
        innermost.module_path if innermost else ""
    ):
        return _failed_check(raised, innermost.module_path if innermost else "")
    message = raised.message or (raised.code if raised.code.startswith("assert ") else "")
    if raised.type not in _TYPES or len(message.split()) < _MIN_WORDS:
        return None
    place = innermost.module_path if innermost else ""
    if _WRAPPERS.search(message) or _REQUEST_PLACE.match(place):
        return None
    if not raised.message and _RUNNING_PLACE.match(place):
        return _failed_check(raised, place)
    package = innermost.package.replace("_", "-") if innermost else "The server"
    function = innermost.function if innermost else ""
    options = name_options(f"{raised.message} {raised.code}")
    options = options or _name_topics(f"{place} {function}".replace("/", " "))
    options = options or name_place_options(raised.frames)
    if not options and innermost is None:
        return None
    where = f" in {place}" if place else ""
    release = f"a release of {package}" if innermost else "a release"
    options += [each for each in _parallel(raised.process) if not raised.message]
    verb = "Correct" if raised.message else "Start without, or with another value of,"
    if any(": " in each for each in options):
        verb = "Set"
    what = f"{verb} {' or '.join(options)}" if options else _without_feature(raised)
    if advice := read_advice(f"{raised.message}\n{raised.after}"):
        what = f"The message advises: {advice}. {what}"
    known = find_package(innermost.package) if innermost else None
    of_package = f" {known.remedy}" if known else ""
    return Reading(
        reason(
            "refused",
            f"{package} refused: {shorten(message, QUOTE_CHARS)} ({raised.type}{where}).",
            f"{what}; if that is needed as it is, use {release} that supports it with this model."
            f"{of_package}",
            "exception with a message",
            "deterministic",
        ),
        raised.line,
        rank=Rank.HINT,
        certain=False,
    )


_PARALLEL = (("PP", "`parallel.pipeline`"), ("DCP", "`parallel.decode_context`"))


def _parallel(process: str) -> list[str]:
    """Return the fields of the parallel ranks that vLLM writes into the name of a worker."""
    return [field for rank, field in _PARALLEL if re.search(rf"_{rank}\d", process)]


def _without_feature(raised: Raised) -> str:
    """Return what to do about a refusal that names no option: leave off what it goes through."""
    way = " ".join(f"{frame.module_path} {frame.function}" for frame in raised.frames[:4])
    off = _name_topics(way.replace("/", " ").replace("_", " "))
    model = name_model_class(raised.frames)
    if not off and model:
        return (
            f"The class `{model}` of this release does not take these weights or options: compare "
            "the model's files with the hub, serve other weights (`model.path`), or set "
            "`args.model-impl: transformers`"
        )
    if not off:
        return "Correct what the message names"
    return f"Correct what the message names; it goes through code for {' and '.join(off)}"


_PLUGIN_NAME = re.compile(
    r"(?i)\b(?:unknown|invalid|unsupported|unrecogni[sz]ed|no such)\b[^\n'\"]{0,60}"
    r"['\"]((?:ascend|npu|hccl)\w{0,40})['\"]"
)


def read_plugin_name(raised: Raised) -> Reading | None:
    """Read that vLLM does not know a name which vllm-ascend registers."""
    found = _PLUGIN_NAME.search(raised.message)
    frame = raised.innermost
    if found is None or raised.type not in ("ValueError", "KeyError", "RuntimeError"):
        return None
    if frame is None or frame.package not in ("vllm", "torch", "transformers"):
        return None
    return Reading(
        reason(
            "versions-differ",
            f"{frame.package} does not know `{found[1]}`, a name that vllm-ascend registers "
            f"({shorten(raised.message, 120)}): the two are of different releases, or the plug-in "
            "was not loaded in this process.",
            "Install the releases of vLLM and vllm-ascend that belong together (`pip list | grep "
            "-i vllm`), or use the release's image; the log of a good start has `Platform plugin "
            "ascend is activated`.",
            "exception by its words",
            "deterministic",
        ),
        raised.line,
        certain=False,
    )


def _failed_check(raised: Raised, place: str) -> Reading:
    """Read an assertion without a message in the running engine: its state is not as expected."""
    way = " ".join(f"{frame.module_path} {frame.function}" for frame in raised.frames)
    if _AT_START.search(way):
        return _failed_at_start(raised, place, way)
    off = [fix for words, fix in _RUNTIME_FEATURES if re.search(words, f"{way} {raised.code}")]
    failed = shorten(raised.code or raised.message, 120)
    switch = (
        f"start once without the features it goes through ({'; '.join(off)})"
        if off
        else (
            "start once without prefix caching (`args.enable-prefix-caching: false`), speculative "
            "decoding and KV transfer, one after the other"
        )
    )
    return Reading(
        reason(
            "engine-check-failed",
            f"A check of the running engine failed (`{failed}` in {place}): its state is not what "
            "the code expects, usually by a combination of features that this release does not "
            "handle. No setting is refused.",
            f"A restart serves again. If it recurs, {switch}, or use a newer release.",
            "assertion in vllm/v1",
            "transient",
        ),
        raised.line,
        rank=Rank.HINT,
        certain=False,
    )


_AT_START = re.compile(
    r"initialize_kv_cache|initialize_from_config|get_kv_cache_(?:groups|config)|kv_cache_spec|"
    r"determine_available_memory|load_model|init_device|profile_run|run_engine_core __init__"
)


def _failed_at_start(raised: Raised, place: str, way: str) -> Reading:
    """Read an assertion without a message during the start: each start meets it again."""
    about = "the layout of the KV cache" if "kv_cache" in way else "the start"
    return Reading(
        reason(
            "start-check-failed",
            f"A check of {about} failed (`{shorten(raised.code, 120)}` in {place}): this release "
            "does not support the model with this combination of options.",
            "Start without what adds another kind of layer or cache: `features.speculative`, "
            "`args.kv-cache-dtype`, `args.kv-transfer-config`, `args.block-size`; or use a newer "
            "release of vLLM (and vllm-ascend).",
            "assertion in vllm/v1",
            "deterministic",
        ),
        raised.line,
        rank=Rank.HINT,
        certain=False,
    )


def name_options(message: str) -> list[str]:
    """Return the recipe fields that a message names or is about, at most three."""
    # Names of models and of the values that would be valid are no options.
    bare = _VALUES.split(_ADDRESS.sub("", message))[0]
    return name_flags(bare) or _name_spelled(bare) or _name_topics(bare)


def name_flags(message: str) -> list[str]:
    """Return the recipe fields that a message calls by the name of a flag or variable."""
    flags = read_flags()
    named = [match.rstrip("-") for match in _FLAG.findall(message)]
    named += [match.replace("_", "-") for match in _NAME.findall(message)]
    fields = [_field(name) for name in named if name in flags or name in _FIELDS]
    fields += [f"`env.{name}`" for name in _VARIABLE.findall(message)]
    found = (next(filter(None, groups)) for groups in _NAMED_VARIABLE.findall(message))
    fields += [f"`env.{name}`" for name in found if not _FOR_DEBUGGING.search(name)]
    return list(dict.fromkeys(fields))[:3]


def _name_spelled(message: str) -> list[str]:
    """Return the fields of flags that a message writes as words: "executor backend"."""
    lower = message.lower()
    found = []
    for flag in read_flags():
        words = flag.removeprefix("enable-").replace("-", " ")
        if " " in words and words in lower:
            found.append(_field(flag))
    return found[:3]


def _name_topics(text: str) -> list[str]:
    return [field for words, field in _TOPICS if re.search(words, text, re.IGNORECASE)][:3]


def _field(flag: str) -> str:
    return f"`{_FIELDS.get(flag, f'args.{flag}')}`"
