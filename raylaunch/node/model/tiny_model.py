"""A tiny model with random weights, made on this machine: no hub access, nothing but the standard library.

It has the shape of the real architecture (two layers, hidden size 128), so vLLM takes the same way through its code.
Every run writes the same bytes: nodes that make it for themselves hold equal files. The formats are written by hand,
because the libraries' own writers differ from release to release (safetensors 0.8 takes pointers, others bytes) or
break ties at random (the BPE trainer of tokenizers).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from random import Random
from typing import Any, Literal

from raylaunch.errors import NodeError

Kind = Literal["qwen3", "minimax_m2"]

HIDDEN, INTERMEDIATE, LAYERS, EXPERTS = 128, 256, 2, 8
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32
VOCABULARY = 512
MAX_LENGTH = 4096  # tokens
SPECIAL = ("<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SENTENCE = (
    "the quick brown fox jumps over a lazy dog and says hello to every node on its way home while two small servers "
    "launch together share one cluster answer with random words then stop"
)
WORDS = tuple(SENTENCE.split())
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def ensure_tiny_model(kind: Kind, directory: Path) -> Path:
    """Make the model in `directory` unless it is there already; returns `directory`.

    Safe when several servers of one node do it at the same moment: each writes beside, the first to rename wins.
    The model says words of `WORDS` and practically never ends by itself: requests need `max_tokens`.

    Raises:
        NodeError: The disk refuses, or `directory` holds something else.
    """
    if is_complete(directory):
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{directory.name}-", dir=directory.parent
        ) as scratch:
            made = (
                Path(scratch) / directory.name
            )  # not the scratch folder itself: only its owner may enter that
            made.mkdir()
            _write_model(kind, made)
            _publish(made, directory)
    except OSError as error:
        raise NodeError(
            f"the tiny model could not be written to {directory}",
            why=str(error),
            todo="make room or mend the permissions there, then start again",
        ) from error
    return directory


def is_complete(directory: Path) -> bool:
    """Whether `directory` holds a model. A half-written one never has this name."""
    return all((directory / name).is_file() for name in _FILES)


def _publish(made: Path, directory: Path) -> None:
    try:
        made.rename(directory)  # takes the place of an empty folder, never of a filled one
    except OSError:
        if is_complete(directory):  # another server was faster
            return
        if not directory.exists():
            raise
        raise NodeError(
            f"{directory} is there and holds no complete model",
            todo=f"look what it is, then remove it: rm -r {directory}",
        ) from None


def _write_model(kind: Kind, folder: Path) -> None:
    merges = _merges()
    vocabulary = {
        token: number
        for number, token in enumerate([*SPECIAL, *_alphabet(), *map("".join, merges)])
    }
    _write_json(folder / "tokenizer.json", _tokenizer(vocabulary, merges))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    _write_json(folder / "generation_config.json", SPECIAL_IDS)
    _write_json(folder / "config.json", _config(kind))
    spoken = [vocabulary[_as_token(word)] for word in WORDS]
    _write_safetensors(folder / "model.safetensors", list(_tensors(kind, spoken)))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


# --- configuration: the names are those of the architecture's Hugging Face config ---


def _config(kind: Kind) -> dict[str, Any]:
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_LENGTH,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "initializer_range": 0.02,
        **SPECIAL_IDS,
    }
    return common | (_minimax_config() if kind == "minimax_m2" else _qwen3_config())


def _qwen3_config() -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
    }


def _minimax_config() -> dict[str, Any]:
    """Softmax scoring where the real model has sigmoid: vLLM's CPU router takes nothing else (0.32, measured)."""
    return {
        "model_type": "minimax_m2",
        "architectures": ["MiniMaxM2ForCausalLM"],
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "scoring_func": "softmax",
        "use_routing_bias": True,
        "rotary_dim": HEAD_DIM // 2,
        "qk_norm_type": "per_layer",
        "use_qk_norm": True,
        "use_mtp": False,
        "num_mtp_modules": 0,
        "attn_type_list": [1] * LAYERS,
    }


# --- tokenizer: byte-level BPE that knows each of WORDS, after a space, as one token ---


def _merges() -> list[tuple[str, str]]:
    """A merge for every beginning of every word: (" h", "e"), (" he", "l"), ..."""
    tokens = map(_as_token, WORDS)
    return list(
        dict.fromkeys((token[:end], token[end]) for token in tokens for end in range(1, len(token)))
    )


def _as_token(word: str) -> str:
    return f"Ġ{word}"  # how byte-level BPE writes " word"


def _alphabet() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE: printable ones for themselves (GPT-2's table)."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = [byte for byte in range(256) if byte not in printable]
    return [
        chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)
    ]


def _tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, Any]:
    plain = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[token], "content": token, **plain} for token in SPECIAL],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": [" ".join(merge) for merge in merges],
        },
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


# --- weights ---


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    data: bytes
    dtype: str = "BF16"


def _write_safetensors(path: Path, tensors: list[_Tensor]) -> None:
    """The safetensors format: length of the header (8 bytes), the header (JSON, padded), the data one after another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + len(tensor.data)
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(
        b"".join([len(text).to_bytes(8, "little"), text, *(tensor.data for tensor in tensors)])
    )


def _tensors(kind: Kind, spoken: list[int]) -> Iterator[_Tensor]:
    random = Random(0)  # noqa: S311 (no secret: the same weights everywhere)
    yield _random(random, "model.embed_tokens.weight", VOCABULARY, HIDDEN)
    yield _output_head(random, spoken)
    yield _ones("model.norm.weight", HIDDEN)
    for layer in range(LAYERS):
        yield from _layer(kind, random, f"model.layers.{layer}")


def _output_head(random: Random, spoken: list[int]) -> _Tensor:
    """The rows of the words are 16 times as large, so that answers are words and not control characters."""
    head = _random(random, "lm_head.weight", VOCABULARY, HIDDEN)
    data = bytearray(head.data)
    for token in spoken:
        high_bytes = slice(token * HIDDEN * 2 + 1, (token + 1) * HIDDEN * 2, 2)
        data[high_bytes] = bytes(
            byte + 2 for byte in data[high_bytes]
        )  # two steps in the high byte: exponent + 4
    return _Tensor(head.name, head.shape, bytes(data))


def _layer(kind: Kind, random: Random, prefix: str) -> Iterator[_Tensor]:
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    moe = kind == "minimax_m2"
    yield _ones(f"{prefix}.input_layernorm.weight", HIDDEN)
    yield _ones(f"{prefix}.post_attention_layernorm.weight", HIDDEN)
    yield _random(random, f"{prefix}.self_attn.q_proj.weight", queries, HIDDEN)
    yield _random(random, f"{prefix}.self_attn.k_proj.weight", keys, HIDDEN)
    yield _random(random, f"{prefix}.self_attn.v_proj.weight", keys, HIDDEN)
    yield _random(random, f"{prefix}.self_attn.o_proj.weight", HIDDEN, queries)
    # MiniMax-M2 normalises over all heads at once, Qwen3 each head by itself.
    yield _ones(f"{prefix}.self_attn.q_norm.weight", queries if moe else HEAD_DIM)
    yield _ones(f"{prefix}.self_attn.k_norm.weight", keys if moe else HEAD_DIM)
    yield from (
        _experts(random, f"{prefix}.block_sparse_moe") if moe else _dense(random, f"{prefix}.mlp")
    )


def _dense(random: Random, prefix: str) -> Iterator[_Tensor]:
    yield _random(random, f"{prefix}.gate_proj.weight", INTERMEDIATE, HIDDEN)
    yield _random(random, f"{prefix}.up_proj.weight", INTERMEDIATE, HIDDEN)
    yield _random(random, f"{prefix}.down_proj.weight", HIDDEN, INTERMEDIATE)


def _experts(random: Random, prefix: str) -> Iterator[_Tensor]:
    yield _random(random, f"{prefix}.gate.weight", EXPERTS, HIDDEN)
    yield _Tensor(f"{prefix}.e_score_correction_bias", (EXPERTS,), bytes(4 * EXPERTS), "F32")
    for expert in range(EXPERTS):
        yield _random(random, f"{prefix}.experts.{expert}.w1.weight", INTERMEDIATE, HIDDEN)
        yield _random(random, f"{prefix}.experts.{expert}.w3.weight", INTERMEDIATE, HIDDEN)
        yield _random(random, f"{prefix}.experts.{expert}.w2.weight", HIDDEN, INTERMEDIATE)


def _ones(name: str, size: int) -> _Tensor:
    return _Tensor(name, (size,), b"\x80\x3f" * size)  # 1.0 as bfloat16, low byte first


def _random(random: Random, name: str, *shape: int) -> _Tensor:
    """Values of either sign between 2**-7 and 2**-5 (a spread of about 0.02, as models are initialised).

    In bfloat16 that is a random low byte (end of the exponent, mantissa) below a high byte of 0x3c or 0xbc.
    """
    data = bytearray(random.randbytes(2 * prod(shape)))
    data[1::2] = data[1::2].translate(_HIGH_BYTES)
    return _Tensor(name, shape, bytes(data))


_HIGH_BYTES = bytes(0x3C | (byte & 0x80) for byte in range(256))
