"""vLLM's routes, as far as the gateway treats them differently."""

from __future__ import annotations

INFERENCE = frozenset(
    {
        *("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"),
        *("/v1/embeddings", "/v1/score", "/v1/rerank", "/v2/rerank", "/score", "/rerank"),
        *("/pooling", "/classify", "/tokenize", "/detokenize", "/generate", "/invocations"),
        *("/v1/audio/transcriptions", "/v1/audio/translations", "/inference/v1/generate"),
    }
)
"""POST routes of vLLM that change nothing on the server: a repeated request is the same request."""
