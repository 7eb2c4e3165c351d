"""What an exception means by its type and the place that raised it.

All of these come again at each start: the same code meets the same input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.general import config_fields
from raylaunch.supervise.diagnosis.rules.general.places import PLACES
from raylaunch.supervise.diagnosis.rules.refusal_rules import (
    name_flags,
    name_options,
    read_plugin_name,
)
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_QUANT_TENSOR = re.compile(
    r"(?i)(?<![\w.])([\w.]{0,160}?(?:_scales?|_scale_inv|_offset|zero_point|_zeros|_bias_quant|"
    r"quant_bias|"
    r"qweight|qzeros|g_idx|weight_packed|_scale_bias|scale_second))\b"
)
_NO_PARAMETER = re.compile(r"no module or parameter named '([\w.]{1,200})' in (\w{1,80})")
_WEIGHT_NAME = re.compile(
    r"^'?((?:\w{1,40}\.){0,6}(?:layers|blocks|experts)\.\d{1,4}\.[\w.]{1,120})'?$"
)
_MISSING_ATTRIBUTE = re.compile(
    r"(?<![\w.'])(?:'?([\w.]{1,80})'?(?: object)?|module '([\w.]{1,80})') "
    r"has no attribute '?(\w{1,80})'?"
)
_NO_NAME = re.compile(
    r"cannot import name '([\w.]{1,80})' from (?:partially initialized module )?'([\w.]{1,120})'"
    r"(?: \(([^)\n]{1,300})\))?"
)
_SIGNATURE = re.compile(
    r"(?<![\w.])([\w.]{1,120})\(\) (?:got an unexpected keyword argument '(\w{1,60})'|"
    r"missing \d{1,2} required [\w-]{1,20} arguments?: ([^\n]{1,120})|"
    r"takes [^\n]{1,60} positional arguments? but)"
)
_INIT_FAILED = re.compile(r"init failed, error is\b|NPUModelRunner failed, error is")
_CALL_OF_CANN = re.compile(r"function error: ?(?:call )?acl|call aclnn|error code is \d{5,6}")
_ASCEND = re.compile(r"^vllm_ascend/(.+)\.py$")
# Ordered: the more special feature first. Word in the path, function or message, name, remedy.
_FEATURES: tuple[tuple[str, str, str], ...] = (
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
        r"aclgraph|acl_graph|cudagraph|graph_mode|full_graph|graph_param|capture|compilation|torchair|piecewise",
        "graph capture",
        "`args.enforce-eager: true` or `cudagraph_mode: PIECEWISE`",
    ),
    (r"ppmissing|pipeline_par", "pipeline parallelism", "`parallel.pipeline: 1`"),
    (r"eplb", "expert load balancing (EPLB)", "EPLB off in `args.additional-config`"),
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
        r"flashcomm|sequence_parallel|enable_sp",
        "FLASHCOMM (sequence parallelism)",
        "no `env.VLLM_ASCEND_ENABLE_FLASHCOMM1`",
    ),
    (
        r"lora|sgmv|bgmv|punica",
        "LoRA",
        "a lower `args.max-lora-rank`, or no LoRA flags under `args`",
    ),
    (
        r"offload|swap_blocks|swap_in|swap_out",
        "KV offloading",
        "no KV offloading flags under `args`",
    ),
    (r"sleep|camem", "sleep mode", "no `args.enable-sleep-mode`"),
    (r"multimodal|vision|_vl\b|mm_|encoder", "multimodal inputs", ""),
    (r"310p", "the 310P", ""),
    (r"structured|grammar|guided", "structured output", ""),
    (r"sample", "sampling", ""),
    (r"mla|sfa|dsa|attention|attn", "this attention backend", ""),
    (
        r"scheduler",
        "the Ascend scheduler",
        "no `ascend_scheduler_config` in `args.additional-config`",
    ),
    (
        r"xlite|multistream|prefetch|weight_nz",
        "an optimisation of additional-config",
        "no `args.additional-config`",
    ),
)
_REQUEST = re.compile(r"^(?:vllm/entrypoints|starlette|fastapi|uvicorn)")
_UNSUPPORTED = (
    *("AttributeError", "NotImplementedError", "AssertionError", "TypeError", "KeyError"),
    *("IndexError", "UnboundLocalError", "NameError", "ValueError"),
)

Rule = Callable[[Raised], Reading | None]


def read_exceptions(log: ServerLog) -> Iterator[Reading]:
    """Yield what the exceptions of a log mean, each by the first rule that knows it."""
    for raised in find_exceptions(log):
        for rule in _RULES:
            if reading := rule(raised):
                yield reading
                break


def _quant_tensor(raised: Raised) -> Reading | None:
    unknown = _NO_PARAMETER.search(raised.message)
    if raised.type != "KeyError" and unknown is None:
        return None
    found = _QUANT_TENSOR.search(unknown[1] if unknown else raised.message)
    if found is None:
        return None
    owner = f" of {unknown[2]}" if unknown else ""
    return _deterministic(
        raised,
        "quant-tensor-unknown",
        f"The weights are quantised (tensor `{found[1]}`), and the model's loader{owner} has no "
        "such parameter: quantisation is not switched on, this release of vllm-ascend does not "
        "support this quantisation for this model, or the checkpoint is for another one.",
        "For a w8a8 or w4a8 checkpoint of ModelSlim set `args.quantization: ascend` and use a "
        "vllm-ascend release that lists the model as quantised (0.7.3 needs MindIE-Turbo); check "
        "quant_model_description.json under `model.path`; or serve unquantised weights.",
    )


def _quant_description(raised: Raised) -> Reading | None:
    own = raised.innermost
    if raised.type != "KeyError" or own is None or not raised.message:
        return None
    if not re.match(r"vllm_ascend/quantization/", own.module_path):
        return None
    if "quant_description" not in raised.code and "quant_description" not in raised.message:
        return None
    return _deterministic(
        raised,
        "quant-description",
        f"The description of the quantisation has no entry for {shorten(raised.message, 160)}: "
        "quant_model_description.json is of other weights, or this release of vllm-ascend does "
        "not know how this model names its layers.",
        "Leave out `args.quantization: ascend` if ModelSlim did not quantise these weights. Else "
        "use the vllm-ascend release that the model card names, and quantise or download the model "
        "again if quant_model_description.json under `model.path` lacks the entry.",
    )


def _unknown_weight(raised: Raised) -> Reading | None:
    found = _WEIGHT_NAME.match(raised.message) if raised.type == "KeyError" else None
    if found is None:
        return None
    return _deterministic(
        raised,
        "weights-mismatch",
        f"The checkpoint has a tensor `{found[1]}` that this release's model class does not know: "
        "checkpoint and model class are of different versions, or of another quantisation.",
        "Use the vLLM and vllm-ascend release that the model card names, download the checkpoint "
        "again, and check `args.quantization`.",
    )


def _missing_name(raised: Raised) -> Reading | None:
    found = _NO_NAME.search(raised.message)
    if found is None:
        return None
    name, package, place = found.groups()
    top = package.partition(".")[0]
    if place == "unknown location":
        return _deterministic(
            raised,
            "package-shadowed",
            f"Python finds a folder called `{top}` that is not the installed package (no "
            f"`{name}` in it): the working directory or PYTHONPATH contains one, or the "
            "package is only half installed.",
            f"Start from another working directory, or rename the folder `{top}` there; "
            f"`python -c 'import {top}; print({top}.__path__)'` shows which one is found.",
        )
    if "circular import" in raised.message:
        return None
    importer = next((f.package for f in raised.frames if f.package != top), "")
    by = f" that {importer} needs" if importer else ""
    return _deterministic(
        raised,
        "versions-differ",
        f"The installed {top} has no `{name}`{by} (in {package}): their releases do not belong "
        "together.",
        f"Install the pair of releases that belong together (`pip list | grep -iE "
        f"'{top}{'|' + importer if importer else ''}'`; the compatibility table of vllm-ascend "
        "names them), or use the release's container image.",
    )


def _no_such_user(raised: Raised) -> Reading | None:
    found = _NO_USER.search(raised.message)
    if found is None:
        return None
    return _deterministic(
        raised,
        "no-such-user",
        f"The server runs as user id {found[1]}, which has no entry in /etc/passwd of this node or "
        "container, and torch asks for the user's name.",
        "Set `env.USER` and `env.TORCHINDUCTOR_CACHE_DIR` (a writable folder), or add the user to "
        "/etc/passwd of the image.",
    )


_NO_USER = re.compile(r"getpwuid\(\): uid not found: (\d{1,12})")


def _wrong_call(raised: Raised) -> Reading | None:
    found = _SIGNATURE.search(raised.message) if raised.type == "TypeError" else None
    packages = {frame.package for frame in raised.frames}
    if found is None or "vllm_ascend" not in packages:
        return None
    return _deterministic(
        raised,
        "versions-differ",
        f"vLLM and vllm-ascend call each other with other arguments than defined "
        f"({shorten(raised.message, 160)}): they are of different releases.",
        "Install the vLLM release that this vllm-ascend names (`pip list | grep vllm`; for "
        "0.18.x of one the 0.18.x of the other), or use the release's container image.",
    )


def _missing_attribute(raised: Raised) -> Reading | None:
    found = _MISSING_ATTRIBUTE.search(raised.message)
    if raised.type != "AttributeError" or found is None:
        return None
    owner, module, name = found.groups()
    if module:
        top = module.partition(".")[0]
        caller = raised.innermost.package if raised.innermost else "the caller"
        return _deterministic(
            raised,
            "versions-differ",
            f"The installed {top} has no `{module}.{name}` that {caller} uses: their releases do "
            "not belong together.",
            f"Install the {top} release that {caller} was made for, or use the release's "
            "container image.",
        )
    if reading := config_fields.read_missing_field(raised, owner, name):
        return reading
    if re.search(r"Tokenizer|Processor|PretrainedConfig|^\w+Config$", owner) and not _is_ascend(
        raised
    ):
        return _deterministic(
            raised,
            "transformers-version",
            f"`{owner}` has no `{name}`: the installed transformers (or the model's own code) is "
            "of another release than this vLLM expects.",
            "Install the transformers release that this vLLM names (`pip show vllm` lists the "
            "range), or use the release's container image.",
        )
    return None


def _is_ascend(raised: Raised) -> bool:
    return any(_ASCEND.match(frame.module_path) for frame in raised.frames[:3])


def _ascend_feature(raised: Raised) -> Reading | None:
    """Read an exception whose innermost own frame is in `vllm_ascend/<feature>/`."""
    own = next((f for f in raised.frames if not f.module_path.startswith("torch/")), None)
    found = _ASCEND.match(own.module_path) if own else None
    if own is None or found is None:
        return None
    wraps = raised.type == "RuntimeError" and _INIT_FAILED.search(raised.message) is not None
    if raised.type not in _UNSUPPORTED and not wraps:
        return None
    if wraps and _CALL_OF_CANN.search(raised.message):
        return None  # the block of CANN below it names the operator and why it failed
    if raised.type in ("KeyError", "IndexError") and "patch/" in found[1]:
        return None
    calls = " ".join(frame.function for frame in raised.frames) if wraps else own.function
    features = name_features(f"{found[1]} {calls} {raised.message}", raised.process)
    names = " with ".join(name for name, _ in features) or f"what `{own.module_path}` does"
    off = [remedy for _, remedy in features if remedy]
    said = raised.type
    if raised.message or raised.code:
        said = shorten(f"{raised.type}: {raised.message or raised.code}", 200)
    switch = f"Switch one off ({'; or '.join(off)}), or use" if off else "Use"
    return Reading(
        reason=reason(
            "ascend-unsupported",
            f"This release of vllm-ascend does not support {names} for this model and these "
            f"flags: {own.module_path} ({own.function or 'module'}) raised {said}.",
            f"{switch} a newer release or image of vllm-ascend; its issue list can be searched "
            f"for `{shorten(raised.message or raised.code or own.function, 80)}`.",
            "exception by place",
            "deterministic",
        ),
        line=raised.line,
        # Anything else may also come from a vLLM of another release, or from one odd request.
        certain=bool(raised.message) and raised.type == "NotImplementedError",
    )


def name_features(text: str, process: str) -> list[tuple[str, str]]:
    """Return the features of vllm-ascend that a text is about, each with how to switch it off.

    Args:
        text: Paths, functions and message of a traceback.
        process: Prefix of the line, which names the parallel ranks.
    """
    lower = text.lower()
    found = [(name, remedy) for pattern, name, remedy in _FEATURES if re.search(pattern, lower)]
    # vLLM names the parallel ranks in the process: `Worker_DP1_TP3_DCP3_EP7`.
    if re.search(r"_D?PCP\d|_DCP\d", process) and not any("context" in name for name, _ in found):
        found.insert(0, next((name, fix) for pattern, name, fix in _FEATURES if "DCP/PCP" in name))
    return found[:2]


def _refused_configuration(raised: Raised) -> Reading | None:
    """Read a ValueError or AssertionError that a configuration check raised with a message."""
    if (
        raised.type not in ("ValueError", "AssertionError", "NotImplementedError")
        or not raised.message
    ):
        return None
    frame = raised.innermost
    if frame is None or frame.package not in ("vllm", "vllm_ascend"):
        return None
    if _NOT_SET_UP.search(raised.message):
        return None
    in_config = _CONFIG_PLACE.search(frame.module_path) is not None
    at_start = not _REQUEST.match(frame.module_path) and bool(name_flags(raised.message))
    if not in_config and not at_start:
        return None
    return _deterministic(
        raised,
        "config-refused",
        f"{frame.package.replace('_', '-')} refused the configuration: {shorten(raised.message)}",
        f"{_correct(raised.message, frame.module_path)}; the check is in {frame.module_path}.",
    )


def _correct(message: str, place: str) -> str:
    options = name_options(message)
    if not options and place.endswith("ascend_config.py"):
        return "Correct `args.additional-config`"
    if options:
        return f"Correct {' or '.join(options)}, or use a release that knows this value"
    return "Correct the option that the message names, under `args`, `env` or `parallel`"


_NOT_SET_UP = re.compile(r"not (?:initiali[sz]ed|set)\. |called outside of")
_CONFIG_PLACE = re.compile(
    r"^vllm(?:_ascend)?/(?:config(?:/\w+)?|\w*config|engine/arg_utils|platform|platforms/\w+|"
    r"ascend_config|entrypoints/cli/\w+|quantization/\w*config)\.py$"
)


def _deterministic(raised: Raised, id_: str, cause: str, remedy: str) -> Reading:
    return Reading(
        reason=reason(id_, cause, remedy, "exception by type and place", "deterministic"),
        line=raised.line,
        rank=Rank.CAUSE,
    )


_RULES: tuple[Rule, ...] = (
    _no_such_user,
    _quant_description,
    _quant_tensor,
    _unknown_weight,
    *PLACES,
    _missing_name,
    _wrong_call,
    read_plugin_name,
    _refused_configuration,
    _missing_attribute,
    _ascend_feature,
)
