"""A key that the code reads and does not find: what it was to be read from decides the remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions


class _Source(NamedTuple):
    """Words of the statement that reads the key, what that is, and how to give the key."""

    words: str
    name: str
    remedy: str


# Ordered: the more special source first.
_SOURCES: tuple[_Source, ...] = (
    _Source(
        r"environ|getenv",
        "an environment variable",
        "Set `env.{key}` (and in the shell that starts Ray), or leave out the feature that reads "
        "it.",
    ),
    _Source(
        r"(?:kv_transfer_|transfer_)?params\[",
        "`kv_transfer_params` of a request, which the other server and the proxy pass on",
        "The proxy or router does not fit this connector: use the proxy of this release's examples "
        "for it (a layerwise connector wants the decode server asked first), or the connector that "
        "the proxy was made for (`kv_connector` in `args.kv-transfer-config`, for example "
        "MooncakeConnectorV1), or a newer release, which may do without `{key}`. Clients must not "
        "reach the prefill or decode servers past the proxy.",
    ),
    _Source(
        r"extra_config|kv_transfer_config|kv_connector",
        "`kv_connector_extra_config` of the KV connector",
        "Give `{key}` in `kv_connector_extra_config` of `args.kv-transfer-config`; the connector's "
        "page in vLLM's documentation has a whole example.",
    ),
    _Source(
        r"additional_config",
        "`additional-config`",
        "Give `{key}` in `args.additional-config`, as the page of this vllm-ascend release has it.",
    ),
    _Source(
        r"rope_(?:scaling|parameters|config)",
        "`rope_scaling` (`rope_parameters`) in the model's config.json",
        "This vLLM or transformers reads that entry in another form than the file has it: use a "
        "newer vLLM (with the transformers that it names), or write `{key}` into the entry "
        "(config.json under `model.path`, or `args.hf-overrides`): `type` and `rope_type` have the "
        "same value.",
    ),
    _Source(
        r"quant(?:ization)?_config|quant_cfg|hf_quant",
        "the description of the quantisation in the model's files",
        "The checkpoint was quantised by a tool of another release than this vLLM reads: use the "
        "release that the model card names, or other weights (`model.path`, `args.quantization`).",
    ),
    _Source(
        r"hf_config|(?:model_|text_|vision_)?config(?:_dict)?\[|config\.",
        "the model's config.json",
        "Compare config.json under `model.path` with the hub; the model needs the release of vLLM "
        "or transformers that its card names; `args.hf-overrides` can give `{key}`.",
    ),
    _Source(
        r"(?:spec|lora|pooler|compilation)\w{0,30}_config",
        "an option that takes JSON",
        "Give `{key}` in that option under `args` (`features.speculative` for speculation).",
    ),
)
_KEY = re.compile(r"^['\"]([\w.-]{1,80})['\"]$")
_SUBSCRIPT = r"\[['\"]{key}['\"]\]|(?:pop|getitem|get)\(['\"]{key}['\"]"


# What vLLM calls its layers with a state: no name of a tensor of the checkpoint ends so.
_LAYER = re.compile(
    r"KeyError\)?: ['\"](?P<name>(?:\w{1,40}\.){1,8}(?:\w{1,40}attn|attn|\w{0,40}k_cache|"
    r"\w{0,40}mixer|mamba\w{0,20}|indexer))['\"]"
)


def read_key_errors(log: ServerLog) -> Iterator[Reading]:
    """Yield the keys that a statement names literally, with what they are read from."""
    # Ray writes `RayTaskError(KeyError): ...`, which is no exception of that class.
    for line, match in log.errors.find(_LAYER):
        yield _layer_of_another_stage(line, match["name"])
    for raised in find_exceptions(log):
        if reading := _missing_key(raised):
            yield reading


def read_stage_layer(raised: Raised) -> Reading | None:
    """Read that a rank is asked for a layer with a state that it does not have."""
    found = _LAYER.match(f"{raised.type}: {raised.message}")
    return _layer_of_another_stage(raised.line, found["name"]) if found else None


def _layer_of_another_stage(line: int, name: str) -> Reading:
    return Reading(
        reason(
            "stage-layers",
            f"This rank does not have the layer `{name}` that the description of the KV cache "
            "names: with pipeline parallelism it is a layer of another stage (releases before "
            "vLLM 0.18, and hybrid models in later ones, describe the cache for all stages alike, "
            "and Ray's workers may not be in the order of the ranks); without, a layer of a draft "
            "model, or one that shares another's cache.",
            "Use a newer release of vLLM (and the vllm-ascend that its table names), which leaves "
            "out the layers of other stages. Until then `parallel.pipeline: 1` with a larger "
            "`parallel.tensor` or `parallel.data`, or on one node without Ray "
            "(`args.distributed-executor-backend: mp`); without pipeline parallelism start with no "
            "`features.speculative`.",
            "vLLM PR#36243; vllm#40649, vllm#31903, vllm-ascend#8440",
            "deterministic",
        ),
        line,
        rank=Rank.CAUSE,
        certain=False,
    )


def _missing_key(raised: Raised) -> Reading | None:
    found = _KEY.match(raised.message)
    if raised.type != "KeyError" or found is None:
        return None
    key = found[1]
    in_environment = any(frame.path.endswith("os.py") for frame in raised.frames[:1])
    literal = re.search(_SUBSCRIPT.replace("{key}", re.escape(key)), raised.code)
    # A frame without its statement still says what its function reads.
    by_name = key == "quant_method" and not raised.code and bool(raised.frames)
    if literal is None and not in_environment and not by_name:
        return None
    text = "environ" if in_environment else raised.code or "quant_config["
    source = next((each for each in _SOURCES if re.search(each.words, text)), None)
    if source is None:
        return None
    frame = next((each for each in raised.frames if not each.path.endswith("os.py")), None)
    code = f"`{shorten(raised.code, 100)}` " if raised.code else ""
    where = f" ({code}in {frame.module_path})" if frame else ""
    return Reading(
        reason(
            "key-missing",
            f"The code reads `{key}` from {source.name}, and it is not there{where}.",
            source.remedy.replace("{key}", key),
            "KeyError by its statement",
            "deterministic",
        ),
        raised.line,
        rank=Rank.HINT,
        certain=False,
    )
