"""Exceptions that explain themselves: vLLM, vllm-ascend or transformers refuses, and says what.

The message is the cause. The remedy is read from the options that the message names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.advice import read_advice
from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import QUOTE_CHARS, Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.general.divisors import find_divisors
from raylaunch.supervise.diagnosis.rules.tables.features import advise_release, name_features
from raylaunch.supervise.diagnosis.rules.tables.option_names import name_options, name_topics
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
    r"positional arguments? but|required (?:positional|keyword-only) arguments?|"
    # What tensors are is no refusal: `last_exception` reads it, and whether the server had served.
    # So is what a part that was not set up says; its advice is for the one who wrote the code.
    r"(?:config|context) is not set|"
    r"size of (?:the )?tensor|invalid for input of size|cannot be broadcast|values to unpack|"
    r"Can't get (?:local )?attribute|[Cc]an(?:'t|not) pickle"
)
_REQUEST_PLACE = re.compile(
    r"^vllm/(?:entrypoints/openai|sampling_params|v1/engine/(?:input_)?proc)"
)
_MIN_WORDS = 3
_RUNNING_PLACE = re.compile(r"^vllm(?:_ascend)?/(?:v1/(?:core|engine)|core)/(?!kv_cache_spec)")
_RUNTIME_FEATURES: tuple[tuple[str, str], ...] = (
    (r"kv_xfer|connector|kv_transfer|remote|async_load", "no `args.kv-transfer-config`"),
    (r"spec_|draft|propos|allocate_slots|cache_full_blocks", "no `features.speculative`"),
    (r"prefix|cached_block|popleft|block_pool|free_block", "`args.enable-prefix-caching: false`"),
    (r"multimodal/cache|mm_(?:receiver|input)_cache", "`args.mm-processor-cache-gb: 0`"),
    (r"step_with_batch_queue|async_sched", "`args.async-scheduling: false`"),
)


def is_request_place(place: str) -> bool:
    """Whether a module of vLLM handles single requests: what it refuses is no failed start."""
    return _REQUEST_PLACE.match(place) is not None


def is_running_place(place: str) -> bool:
    """Whether a module of vLLM is the loop of the running engine."""
    return _RUNNING_PLACE.match(place) is not None


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
    if _WRAPPERS.search(message) or is_request_place(place):
        return None
    in_cache = raised.type == "AssertionError" and place == "vllm/multimodal/cache.py"
    if in_cache or (not raised.message and _RUNNING_PLACE.match(place)):
        return _failed_check(raised, place)
    package = innermost.package.replace("_", "-") if innermost else "The server"
    function = innermost.function if innermost else ""
    options = name_options(f"{raised.message} {raised.code}")
    options = options or name_topics(f"{place} {function}".replace("/", " "))
    options = options or name_place_options(raised.frames)
    if not options and innermost is None:
        return None
    if defect := _defect(raised, message):
        return defect
    where = f" in {place}" if place else ""
    release = f"a release of {package}" if innermost else "a release"
    inside = not raised.message or raised.type in ("AttributeError", "KeyError")
    options += [each for each in _parallel(raised.process) if inside and each not in options]
    what = f"{_verb(raised, options)} {' or '.join(options)}" if options else ""
    what = what or _without_feature(raised)
    if numbers := find_divisors(raised.message):
        what = f"{what} ({numbers})"
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


_NOT_SUPPORTED = re.compile(
    r"(?i)not (?:yet |currently )?(?:be )?(?:supported?|implemented|available|compatible|allowed)|"
    r"unsupported|incompatible|does ?n[o']t (?:yet )?support|can(?:not|'t) (?:be used|support|use)"
)


def _verb(raised: Raised, options: list[str]) -> str:
    """Return what to do with the options: set them so, leave them out, or correct them."""
    if any(": " in each for each in options):
        return "Set"
    if not raised.message or raised.type in ("AttributeError", "KeyError"):
        return "Start without, or with another value of,"
    if _NOT_SUPPORTED.search(raised.message):
        return "Leave out, or give another value of,"
    return "Correct"


def _defect(raised: Raised, message: str) -> Reading | None:
    """Read what vllm-ascend's own code says about no setting: a defect, or a combination."""
    own = raised.innermost
    if own is None or own.package != "vllm_ascend" or name_options(message):
        return None
    if read_advice(f"{raised.message}\n{raised.after}"):
        return None
    patch = own.module_path.startswith("vllm_ascend/patch/")
    features = name_features(f"{own.module_path} {own.function} {message}", raised.process)
    why = (
        "it changes parts of one release of vLLM by name, and another one is installed"
        if patch
        else "a defect of this release, or a combination of model and features that it lacks"
    )
    pair = (
        "Install the releases of vLLM and vllm-ascend that belong together (`pip list | grep -i "
        "vllm`; vllm-ascend's table of versions), or use the release's image. If they do: "
        if patch
        else ""
    )
    return Reading(
        reason(
            "ascend-unsupported",
            f"vllm-ascend's own code failed: {shorten(message, QUOTE_CHARS)} ({raised.type} in "
            f"{own.module_path}, {own.function}): {why}.",
            f"{pair}{advise_release('vllm-ascend', features)}",
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
    off = name_topics(way.replace("/", " ").replace("_", " "))
    model = name_model_class(raised.frames)
    if not off and model:
        return (
            f"The class `{model}` of this release does not take these weights or options: compare "
            "the model's files with the hub, serve other weights (`model.path`), or set "
            "`args.model-impl: transformers`"
        )
    if not off:
        return (
            "Compare the values in the message with config.json under `model.path` and with the "
            "options under `args` and `parallel`; if none of them is wrong, it is a defect of this "
            "release with this model: take a newer one, or the one that the model card names"
        )
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
    said = raised.message if raised.type == "AssertionError" else ""
    looked_up = raised.type in ("KeyError", "IndexError")
    what = "A look-up" if looked_up else "A check"
    error = f", {raised.type}: {shorten(raised.message, 60)}" if looked_up else ""
    failed = shorten(said or raised.code or raised.message, 120)
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
            f"{what} of the running engine failed (`{failed}` in {place}{error}): its state is not "
            "what the code expects, usually by a combination of features that this release does "
            "not handle. No setting is refused.",
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
