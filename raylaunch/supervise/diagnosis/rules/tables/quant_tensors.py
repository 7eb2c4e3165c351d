"""Which tool wrote a quantised checkpoint, by the names of its extra tensors, and what reads it."""

from __future__ import annotations

import re
from typing import NamedTuple


class QuantFamily(NamedTuple):
    """Names of tensors, the form of the weights, and what the loader needs."""

    names: str
    form: str
    remedy: str


_NEWER = (
    "use a newer release of vLLM (or the one that the model card names): the class of this model "
    "in this release does not hand that quantisation to its layers"
)
# Ordered. Names as the tools write them: bitsandbytes, AutoGPTQ, AutoAWQ, compressed-tensors,
# ModelOpt, DeepSeek's block FP8, ModelSlim.
_FAMILIES: tuple[QuantFamily, ...] = (
    QuantFamily(
        r"\.bitmask|\.compressed|row_offsets",
        "a sparse compressed checkpoint (sparse-bitmask of llm-compressor)",
        "Write the checkpoint again without compression of the sparsity (llm-compressor: "
        "`save_pretrained(..., disable_sparse_compression=True)`), or serve other weights "
        "(`model.path`); a newer release of vLLM may read it.",
    ),
    QuantFamily(
        r"absmax|quant_map|quant_state|nested_|bitsandbytes",
        "bitsandbytes",
        "Set `args.quantization: bitsandbytes` and `args.load-format: bitsandbytes`; if they are "
        "set, use a newer release of vLLM that loads such a checkpoint for this model, "
        "`parallel.tensor: 1`, or weights of another form (`model.path`).",
    ),
    QuantFamily(
        r"qweight|qzeros|g_idx",
        "GPTQ or AWQ",
        "Check `quantization_config` in config.json under `model.path` (quant_method, "
        f"modules_to_not_convert), leave out `args.quantization`, or {_NEWER}.",
    ),
    QuantFamily(
        r"(?:^|\.)(?:[kvq]|kv)_scale\b|\b[kvq]_proj\.[kv]_scale|k_scale|v_scale",
        "a quantised KV cache (its scales are in the checkpoint)",
        f"First {_NEWER}. Until then serve a checkpoint without scales of the KV cache "
        "(`model.path`), or remove them from it; check `args.quantization`.",
    ),
    QuantFamily(
        r"weight_packed|weight_shape|weight_global_scale|input_global_scale|weight_zero_point",
        "compressed-tensors",
        f"Leave out `args.quantization` (config.json tells it), and {_NEWER}.",
    ),
)


def find_quant_family(tensor: str) -> QuantFamily | None:
    """Return the form of quantisation that a tensor's name tells; None for one of many."""
    return next((each for each in _FAMILIES if re.search(each.names, tensor)), None)
