"""The operators of multi-head latent attention (MLA), as a DeepSeek shape needs them.

The key of a token is a latent vector, shared by all heads, and a rotated part; both are cached. In
a decode step attention works on the latent vectors themselves. Callers: attention/mla_v1.py of
vllm-ascend 0.23.0.post1, without quantisation and speculative decoding.
"""

import torch

from torch_npu import kernels


def interleave_rope(hidden, cos, sin):
    """Rotate pairs of neighbours; the result has their first members before their second."""
    left, right = hidden[..., 0::2], hidden[..., 1::2]
    halves = torch.cat([left, right], -1)
    turned = torch.cat([-right, left], -1)
    return (halves * cos + turned * sin).to(hidden.dtype)


def kv_rmsnorm_rope_cache(
    kv,
    weight,
    cos,
    sin,
    slots,
    rope_cache,
    latent_cache,
    *,
    epsilon,
    cache_mode="PA",
    is_output_kv=False,
    **kwargs,
):
    """Norm the latent part, rotate the rest, and write both into their slots.

    Returns the caches, and the new tokens' parts with `is_output_kv`.
    """
    if cache_mode != "PA":
        kernels.refuse(f"torch_npu.npu_kv_rmsnorm_rope_cache of {cache_mode}")()
    size = weight.shape[0]
    latent = kernels.rms_norm(kv[..., :size], weight, epsilon)[0]
    rope = interleave_rope(kv[..., size:], cos, sin)
    real = slots >= 0
    for new, cache in ((latent, latent_cache), (rope, rope_cache)):
        rows = cache.view(-1, cache.shape[-1])
        rows[slots[real]] = new.reshape(-1, cache.shape[-1])[real].to(cache.dtype)
    outputs = (rope, latent) if is_output_kv else (None, None)
    return rope_cache, latent_cache, *outputs


def fused_attention(query, key, value, *, query_rope=None, key_rope=None, **kwargs):
    """Attention of a prefill; the rotated parts of query and key come on their own."""
    if query_rope is None:
        return kernels.fused_attention(query, key, value, **kwargs)
    if kwargs.get("atten_mask") is None:
        # The part of a prompt that is in the cache already: chunked and prefix prefills.
        kernels.refuse("torch_npu.npu_fused_infer_attention_score without a mask")()
    query = torch.cat([query, query_rope], -1)
    key = torch.cat([key, key_rope], -1)
    return kernels.fused_attention(query, key, value, **kwargs)


def decode_attention(
    query,
    key,
    value,
    *,
    query_rope,
    key_rope,
    input_layout,
    block_table,
    block_size,
    softmax_scale,
    actual_seq_kvlen,
    **kwargs,
):
    """Attention of one new token per request over the cached latent vectors.

    The query is (request, head, 1, size), the result (head, request, 1, size).
    """
    if input_layout != "BNSD_NBSD":
        kernels.refuse(f"torch_npu.npu_fused_infer_attention_score_v2 of {input_layout}")()
    requests, heads = query.shape[:2]
    out = query.new_zeros(heads, requests, 1, query.shape[-1])
    for request in range(requests):
        length = int(actual_seq_kvlen[request])
        blocks = block_table[request][: -(-length // block_size)].long()
        latent, rope = (
            cache[blocks].reshape(-1, cache.shape[-1])[:length].float() for cache in (key, key_rope)
        )
        scores = (
            query[request, :, 0].float() @ latent.T + query_rope[request, :, 0].float() @ rope.T
        )
        out[:, request, 0] = ((scores * softmax_scale).softmax(-1) @ latent).to(out.dtype)
    return out, None


def transpose_batchmatmul(hidden, weight, *, perm_y=(0, 1, 2), **kwargs):
    """Multiply batch by batch, then permute the axes of the result."""
    return torch.bmm(hidden, weight).permute(perm_y)


OPERATORS = {
    "npu_interleave_rope": interleave_rope,
    "npu_kv_rmsnorm_rope_cache": kv_rmsnorm_rope_cache,
    "npu_fused_infer_attention_score": fused_attention,
    "npu_fused_infer_attention_score_v2": decode_attention,
    "npu_transpose_batchmatmul": transpose_batchmatmul,
}
