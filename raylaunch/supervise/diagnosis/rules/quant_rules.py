"""Quantised checkpoints that the loader of the model does not take: tensors and descriptions."""

from __future__ import annotations

import re
from dataclasses import replace

from raylaunch.supervise.diagnosis.readings import Reading, exception_reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.tables.quant_tensors import find_quant_family
from raylaunch.supervise.diagnosis.tracebacks import Raised

_QUANT_TENSOR = re.compile(
    r"(?i)(?<![\w.])([\w.]{0,160}?(?:_scales?|_scale_inv|_offset|zero_point|_zeros|_bias_quant|"
    r"quant_bias|absmax|quant_map|quant_state|"
    r"weight\.bitmask|weight\.compressed|row_offsets|"
    r"qweight|qzeros|g_idx|weight_packed|_scale_bias|scale_second))\b"
)
_NO_PARAMETER = re.compile(r"no module or parameter named '([\w.]{1,200})' in (\w{1,80})")


def read_quant_tensor(raised: Raised) -> Reading | None:
    """Read that the loader does not know a tensor that a quantisation adds."""
    unknown = _NO_PARAMETER.search(raised.message)
    if raised.type != "KeyError" and unknown is None:
        return None
    found = _QUANT_TENSOR.search(unknown[1] if unknown else raised.message)
    if found is None:
        return None
    owner = f" of {unknown[2]}" if unknown else ""
    if family := find_quant_family(found[1]):
        return exception_reading(
            raised.line,
            "quant-tensor-unknown",
            f"The weights are quantised in the form of {family.form} (tensor `{found[1]}`), and "
            f"the model's loader{owner} has no such parameter: quantisation is not switched on, "
            "or this release does not support this form for this model.",
            family.remedy,
        )
    return exception_reading(
        raised.line,
        "quant-tensor-unknown",
        f"The weights are quantised (tensor `{found[1]}`), and the model's loader{owner} has no "
        "such parameter: quantisation is not switched on, this release of vLLM (or vllm-ascend) "
        "does not support this quantisation for this model, or the checkpoint is for another one.",
        "With `quantization_config` in config.json (FP8, compressed-tensors) use a newer release "
        "of vLLM, whose class of the model hands it to its layers. "
        "For a w8a8 or w4a8 checkpoint of ModelSlim set `args.quantization: ascend` and use a "
        "vllm-ascend release that lists the model as quantised (0.7.3 needs MindIE-Turbo); check "
        "quant_model_description.json under `model.path`; or serve unquantised weights.",
    )


def read_quant_description(raised: Raised) -> Reading | None:
    """Read that quant_model_description.json lacks a layer of the model."""
    if raised.type != "KeyError" or not raised.message:
        return None
    if not raised.frames and (named := _NAMED_OTHERWISE.match(raised.message)):
        return _named_otherwise(raised, named[1])
    if first := _FIRST_LAYER.match(raised.message):
        return _no_description(raised, first[1])
    if not raised.code and _OF_THE_DRAFT.search(raised.message):
        return _unread_draft(raised)
    if "quant_description" not in raised.code and "quant_description" not in raised.message:
        return None
    return exception_reading(
        raised.line,
        "quant-description",
        f"The description of the quantisation has no entry for {shorten(raised.message, 160)}: "
        "quant_model_description.json is of other weights, or this release of vllm-ascend does "
        "not know how this model names its layers.",
        f"{_of_the_draft(raised.message)}"
        "Use a newer release of vllm-ascend that lists this model as quantised (and the vLLM that "
        f"belongs to it), or the one that the model card names{_made_of_several(raised.message)}. "
        "If quant_model_description.json under `model.path` has the layer under no name, quantise "
        "or download the model again. Leave out `args.quantization: ascend` only if ModelSlim did "
        "not quantise these weights; AWQ, GPTQ and FP8 checkpoints need a newer vllm-ascend that "
        "reads them, or other weights.",
    )


_NAMED_OTHERWISE = re.compile(r"^'?(language_model\.embed_tokens\.weight|lm_head\.weight)'?$")


def _named_otherwise(raised: Raised, name: str) -> Reading:
    """Read a layer of a log without a traceback, so that who looks it up is not known."""
    why = (
        "a model whose output layer is its embeddings (tie_word_embeddings) has none in this "
        "release, and a quantising tool wrote one"
        if name == "lm_head.weight"
        else "the checkpoint names its tensors as another release of transformers does"
    )
    return replace(
        exception_reading(
            raised.line,
            "weights-mismatch",
            f"`{name}` is in the checkpoint (or in the model class of this release), and the other "
            f"of the two does not have it: {why}. With ModelSlim, quant_model_description.json "
            "does not list it.",
            "Use a newer vLLM (and vllm-ascend) with the transformers that it names, or quantise "
            "or save the model again with that transformers; check that `args.quantization` is "
            "that of the weights.",
        ),
        certain=False,
    )


_FIRST_LAYER = re.compile(r"^'?((?:\w{1,40}\.){0,4}embed_tokens\.weight)'?$")
"""What vllm-ascend looks up first: every model has it, and a loader never misses it."""


def _no_description(raised: Raised, layer: str) -> Reading | None:
    """Read that ModelSlim's description does not even have the model's first layer."""
    way = " ".join(frame.function for frame in raised.frames)
    if "load_weights" in way or "weight_loader" in way:
        return None
    return replace(
        exception_reading(
            raised.line,
            "quant-description",
            f"vllm-ascend looks for the model's first layer (`{layer}`) in a description of the "
            "quantisation and does not find it: the weights have none of ModelSlim "
            "(quant_model_description.json), since another tool quantised them (FP8, AWQ, GPTQ, "
            "compressed-tensors) or none did; or it names the layers otherwise than this release "
            "does.",
            "Leave out `args.quantization: ascend` if ModelSlim did not make these weights. AWQ, "
            "GPTQ and FP8 checkpoints need a newer vllm-ascend (or weights of ModelSlim or "
            "unquantised ones, `model.path`). For weights of ModelSlim use the vllm-ascend release "
            "that lists this model as quantised, and look into quant_model_description.json under "
            "`model.path`.",
        ),
        certain="quant_description" in raised.code,
    )


def _unread_draft(raised: Raised) -> Reading | None:
    """Read a layer of the draft that is missing, of a traceback that shows no statement."""
    if any("load_weights" in frame.function for frame in raised.frames):
        return None
    return replace(
        exception_reading(
            raised.line,
            "quant-description",
            f"The layer {shorten(raised.message, 120)} of the draft (speculative decoding) is "
            "looked up and not found: the checkpoint, or its description of the quantisation, has "
            "its drafting layers in another form than this release reads.",
            f"{_of_the_draft(raised.message)}Use a newer release of vllm-ascend and vLLM, the one "
            "that the model card names.",
        ),
        certain=False,
    )


_FUSED = re.compile(
    r"(?:experts|qkv_proj|qkv|gate_up_proj|fused_qkv_a_proj|in_proj_\w{1,8}|kv_a_proj_with_mqa|"
    r"wqkv_a|w13|w2)\.weight'?$"
)
"""Layers that vLLM makes of several tensors of a checkpoint, or of all experts."""


_OF_THE_DRAFT = re.compile(r"^'?(?:model\.)?(?:mtp|draft|eagle|dspark|dflash)\w{0,12}\.")


def _of_the_draft(key: str) -> str:
    """Return what to do about a layer of the draft of speculative decoding; "" for any other."""
    if not _OF_THE_DRAFT.search(key):
        return ""
    return (
        "The layer is of the draft of speculative decoding: give `features.speculative` the "
        "method that these weights were made for (mtp, eagle3, dspark ...; the model card names "
        "it), or leave it out. Otherwise: "
    )


def _made_of_several(key: str) -> str:
    """Return a clause about a layer that vLLM makes of several tensors, by a table of its own."""
    if not _FUSED.search(key):
        return ""
    return " (its table packed_modules_mapping must say of which tensors this layer is made)"


_DRAFT = re.compile(r"spec_decode|proposer|drafter|eagle|medusa|speculat")


def read_draft_tensor(raised: Raised) -> Reading | None:
    """Read that a tensor of the draft model is unknown: the target's own weights are loaded."""
    unknown = _NO_PARAMETER.search(raised.message)
    way = " ".join(f"{frame.module_path} {frame.function}" for frame in raised.frames)
    if unknown is None or not _DRAFT.search(way):
        return None
    return exception_reading(
        raised.line,
        "weights-mismatch",
        f"The weights of the draft model have a tensor `{unknown[1]}` that the class `{unknown[2]}`"
        " does not know: its config.json names the architecture of an ordinary model, or this "
        "release does not know this kind of draft model.",
        "Give the method in `features.speculative` (`method: eagle`, `eagle3`, `mtp`), and a draft "
        "checkpoint whose config.json names its own architecture (converted for vLLM, as its card "
        "says); or use the vLLM release that the draft model's card names. Until then start "
        "without `features.speculative`.",
    )


# Fields of `quantization_config` as compressed-tensors describes them (quant_args.py, config).
_OF_A_CHECKPOINT = re.compile(
    r"(?:^|\.)(?:block_structure|group_size|actorder|observer(?:_kwargs)?|num_bits|config_groups|"
    r"kv_cache_scheme|sparsity_config|sparsity_structure|global_sparsity_ratio|transform_config|"
    r"quantization_status|scale_dtype|zp_dtype|input_activations|output_activations)\b"
)


def is_quant_field(field: str) -> bool:
    """Whether a field that pydantic refused is one of a checkpoint's quantisation."""
    return _OF_A_CHECKPOINT.search(field) is not None


def read_quant_field(line: int, field: str, said: str) -> Reading:
    """Read that the description of a checkpoint's quantisation is of another release."""
    return Reading(
        reason(
            "bad-config-value",
            f"The checkpoint's `quantization_config` has a value of `{field}` that the installed "
            f"compressed-tensors does not take: {shorten(said, 200)}. The checkpoint was written "
            "by a newer (or much older) llm-compressor.",
            "Use a newer release of vLLM with the compressed-tensors that it names (`pip show "
            "vllm`, `pip check`), or the release that the model card names; or write the "
            "checkpoint again with the llm-compressor of this vLLM's time.",
            "pydantic; compressed-tensors quant_args.py",
            "deterministic",
        ),
        line,
        certain=False,
    )
