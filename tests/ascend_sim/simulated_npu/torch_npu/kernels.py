"""The operators of torch_npu and vllm-ascend that the tiny models need, as plain mathematics.

Shapes and meanings are those of the callers in vllm-ascend 0.23.0.post1. The speed is that of a
Python loop; the numbers are those of float32 on a CPU, not those of an NPU.
"""

import torch
from torch.nn import functional


def refuse(name: str):
    """Return an operator that says that it has no kernel here."""

    def operator(*args, **kwargs):
        raise NotImplementedError(f"the simulated NPU has no kernel for {name}")

    return operator


def rms_norm(hidden, weight, epsilon=1e-6, *args, **kwargs):
    wide = hidden.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (wide * scale * weight.float()).to(hidden.dtype), scale


def add_rms_norm(hidden, residual, weight, epsilon=1e-6, *args, **kwargs):
    total = hidden + residual
    return rms_norm(total, weight, epsilon)[0], None, total


def swiglu(hidden, dim=-1):
    gate, value = hidden.chunk(2, dim)
    return functional.silu(gate) * value


def init_routing(hidden, experts, *, expert_num, active_expert_range, **kwargs):
    """Sort the (token, choice) pairs by expert; those of the active range come first.

    Returns the rows in that order, for each pair its place in it, the rows per expert of the
    active range, and scales of one.
    """
    first, last = active_expert_range
    choices = experts.shape[1]
    flat = experts.reshape(-1).long()
    # An expert of another rank has no weights here: grouped_matmul begins with the first active.
    elsewhere = (flat < first) | (flat >= last)
    order = torch.argsort(flat + expert_num * elsewhere, stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(order.numel())
    counts = torch.bincount(flat, minlength=expert_num)[first:last]
    rows = hidden[order // choices]
    return rows, places.to(torch.int32), counts.to(torch.int64), torch.ones(order.numel())


def unpermute(permuted_tokens, sorted_indices, probs=None, **kwargs):
    """Undo the sort, and add up each token's rows by the weights of its experts."""
    tokens, choices = probs.shape
    rows = permuted_tokens[sorted_indices.long()].view(tokens, choices, -1)
    return (rows * probs.unsqueeze(-1).to(rows.dtype)).sum(1)


def grouped_matmul(x, weight, group_list=None, group_list_type=1, **kwargs):
    """Multiply each expert's rows by its weights. `group_list_type` 1: counts, else end positions."""
    rows, weights = x[0], weight[0]
    counts = group_list
    if group_list_type != 1:
        counts = torch.diff(group_list, prepend=group_list.new_zeros(1))
    out = rows.new_zeros(rows.shape[0], weights.shape[-1])
    start = 0
    for expert, count in enumerate(counts.tolist()):
        out[start : start + count] = rows[start : start + count] @ weights[expert]
        start += count
    return [out]


def gating_top_k(
    logits,
    k=2,
    bias=None,
    norm_type=0,
    k_group=1,
    group_count=1,
    routed_scaling_factor=1.0,
    eps=1e-20,
    **kwargs,
):
    """Choose each token's experts. `norm_type` 1: sigmoid, else softmax; `bias` counts only there.

    With several groups only experts of the best `k_group` are eligible; a group is ranked by the
    sum of its two best experts.
    """
    scores = logits.float().sigmoid() if norm_type == 1 else logits.float().softmax(-1)
    ranking = scores if bias is None else scores + bias
    if group_count > 1:
        by_group = ranking.unflatten(-1, (group_count, -1))
        best = by_group.topk(2, -1)[0].sum(-1).topk(k_group, -1)[1]
        eligible = torch.zeros_like(by_group[..., 0]).scatter(-1, best, 1.0).bool()
        ranking = by_group.masked_fill(~eligible.unsqueeze(-1), float("-inf")).flatten(-2)
    experts = ranking.topk(k, -1)[1]
    weights = scores.gather(-1, experts)
    if norm_type == 1:
        weights = weights / (weights.sum(-1, keepdim=True) + eps)
    return weights * routed_scaling_factor, experts.to(torch.int32), scores


def reshape_and_cache(key, value, key_cache, value_cache, slot_indices):
    """Write the keys and values of the new tokens into their slots; a slot below 0 is padding."""
    slots = slot_indices.long()
    real = slots >= 0
    for new, cache in ((key, key_cache), (value, value_cache)):
        cache.view(-1, *cache.shape[2:])[slots[real]] = new[: real.numel()][real]


def fused_attention(
    query,
    key,
    value,
    *,
    num_heads,
    num_key_value_heads,
    scale,
    actual_seq_lengths,
    actual_seq_lengths_kv,
    block_table=None,
    block_size=None,
    **kwargs,
):
    """Causal attention of each request over its keys, from the paged cache or as given.

    `actual_seq_lengths` are end positions in `query`; those of the keys are lengths with a block
    table and end positions without.
    """
    size = query.shape[-1] if block_table is not None else value.shape[-1]
    out = query.new_zeros(*query.shape[:2], size)
    start = key_start = 0
    ends = [int(end) for end in actual_seq_lengths]
    key_ends = [int(end) for end in actual_seq_lengths_kv]
    for request, end in enumerate(ends):
        if block_table is not None:
            length = key_ends[request]
            blocks = block_table[request][: -(-length // block_size)].long()
            paged = (block_size, num_key_value_heads, -1)
            keys, values = (
                cache.reshape(cache.shape[0], *paged)[blocks].flatten(0, 1)[:length]
                for cache in (key, value)
            )
        else:
            keys, values = (given[key_start : key_ends[request]] for given in (key, value))
            key_start = key_ends[request]
        repeat = num_heads // num_key_value_heads
        keys, values = (given.repeat_interleave(repeat, 1) for given in (keys, values))
        out[start:end] = _attend(query[start:end], keys, values, scale).to(query.dtype)
        start = end
    return out, None


def _attend(query, keys, values, scale):
    """Attention of consecutive tokens that end where the keys end."""
    tokens, length = query.shape[0], keys.shape[0]
    scores = torch.einsum("qhd,khd->hqk", query.float(), keys.float()) * scale
    position = torch.arange(tokens)[:, None] + length - tokens
    hidden = torch.arange(length)[None, :] > position
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values.float())


def split_qkv_norm_rope(
    input,  # noqa: A002 - named as by the caller
    q_weight,
    k_weight,
    q_hidden_size,
    kv_hidden_size,
    head_dim,
    rotary_dim,
    eps,
    tp_world,
    cos,
    sin,
):
    """Split the projection, norm query and key over all tensor-parallel ranks, and rotate them."""
    from vllm.distributed import tensor_model_parallel_all_reduce

    tokens = input.shape[0]
    half = rotary_dim // 2
    sizes = [q_hidden_size, kv_hidden_size, kv_hidden_size]
    query, key, value = input.view(tokens, -1).split(sizes, -1)
    cosine, sine = (given.view(tokens, -1)[:, None, :half].float() for given in (cos, sin))

    def norm_and_rotate(part, weight):
        wide = part.float()
        variance = wide.pow(2).mean(-1, keepdim=True)
        if tp_world > 1:
            variance = tensor_model_parallel_all_reduce(variance) / tp_world
        wide = (wide * torch.rsqrt(variance + eps) * weight.float()).view(tokens, -1, head_dim)
        left, right, rest = wide.split([half, half, head_dim - rotary_dim], -1)
        rotated = (left * cosine - right * sine, right * cosine + left * sine, rest)
        return torch.cat(rotated, -1).reshape(tokens, -1).to(input.dtype)

    return norm_and_rotate(query, q_weight), norm_and_rotate(key, k_weight), value.contiguous()


class SlotMapping:
    """Stands for a Triton kernel: called as `kernel[grid](...)`."""

    def __getitem__(self, grid):
        return self._run

    @staticmethod
    def _run(
        num_tokens,
        max_tokens,
        starts,
        positions,
        table,
        stride,
        block,
        slots,
        PAD_ID=-1,  # noqa: N803
        **kwargs,
    ):
        """Find the slot of each token's position in the block table of its request."""
        requests = starts.numel() - 1
        counts = (starts[1:] - starts[:-1]).long()
        request = torch.repeat_interleave(torch.arange(requests), counts)
        position = positions[: request.numel()].long()
        slots.fill_(PAD_ID)
        found = table[request, position // block] * block + position % block
        slots[: request.numel()] = found.to(slots.dtype)


class AscendOperators:
    """Stands for `torch.ops._C_ascend`, vllm-ascend's C++ operators."""

    npu_moe_init_routing_custom = staticmethod(init_routing)

    @staticmethod
    def moe_gating_top_k(logits, k, *, bias_opt=None, **kwargs):
        return gating_top_k(logits, k=k, bias=bias_opt, **kwargs)

    def __getattr__(self, name: str):
        return refuse(f"_C_ascend.{name}")


def keep_likely(logits, p=None, k=None):
    """Sampling: all but the `k` largest logits, and all beyond probability `p`, become -inf.

    `logits` is [requests, vocabulary], `p` and `k` are [requests] or None.
    """
    ordered, places = logits.sort(dim=-1, descending=True)
    if k is not None:
        rank = torch.arange(logits.shape[-1], device=logits.device)
        ordered = ordered.masked_fill(rank >= k.unsqueeze(1), -torch.inf)
    if p is not None:
        chances = ordered.softmax(dim=-1)
        before = chances.cumsum(dim=-1) - chances
        # The first token has nothing before it: one is always left.
        ordered = ordered.masked_fill(before >= p.unsqueeze(1), -torch.inf)
    return torch.empty_like(logits).scatter_(-1, places, ordered)


OPERATORS = {
    "npu_format_cast": lambda weight, *args, **kwargs: weight,
    "npu_rms_norm": rms_norm,
    "npu_add_rms_norm": add_rms_norm,
    "npu_swiglu": swiglu,
    "npu_moe_init_routing_v2": init_routing,
    "npu_moe_token_unpermute": unpermute,
    "npu_grouped_matmul": grouped_matmul,
    "npu_moe_gating_top_k": gating_top_k,
    "npu_top_k_top_p": keep_likely,
    "npu_fused_infer_attention_score": fused_attention,
    "_npu_reshape_and_cache": reshape_and_cache,
    "_npu_matmul_add_fp32": lambda *args: None,
}
"""Name in torch_npu -> kernel. The last one accumulates gradients, of which there are none."""
