"""A tiny model with random weights, generated on this machine: no hub, only the standard library.

It has the shape of the real architecture (two layers, hidden size 128), so vLLM runs the same code
for it. Every run writes the same bytes: nodes that generate it for themselves hold equal files. The
formats are written by hand, because the libraries' own writers differ from release to release
(safetensors 0.8 takes pointers, others bytes) or break ties at random (the BPE trainer of
tokenizers).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from random import Random
from typing import Literal

from raylaunch.errors import NodeError

Kind = Literal["qwen3", "minimax_m2"]
Json = dict[str, object]

HIDDEN = 128
INTERMEDIATE = 256
LAYERS = 2
EXPERTS = 8
HEADS = 4
KV_HEADS = 2
HEAD_DIM = 32
VOCABULARY = 512
MAX_LENGTH = 4096  # tokens
SPECIAL = ("<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MINIMAX_SPECIAL = ("<minimax:tool_call>", "</minimax:tool_call>", "<think>", "</think>")
"""vLLM's parsers for MiniMax-M2 refuse a chat when the tokenizer lacks these (0.23 and 0.32)."""
SENTENCE = (
    "the quick brown fox jumps over a lazy dog and says hello to every node on its way home "
    "while two small servers launch together share one cluster answer with random words then stop"
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
    """Generate the model in `directory` unless it exists already; returns `directory`.

    Safe when several servers of one node do it at the same moment: each writes to a folder beside,
    and the first rename wins. The model answers with words of `WORDS` and practically never ends an
    answer by itself: requests need `max_tokens`.

    Raises:
        NodeError: The folder cannot be written, or `directory` holds something else.
    """
    if is_complete(directory):
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{directory.name}-",
            dir=directory.parent,
        ) as scratch:
            # Not the scratch folder itself: only its owner may enter that.
            generated = Path(scratch) / directory.name
            generated.mkdir()
            _write_model(kind, generated)
            _publish(generated, directory)
    except OSError as error:
        raise NodeError(
            f"the tiny model could not be written to {directory}",
            why=str(error),
            todo="make room or fix the permissions there, then start again",
        ) from error
    return directory


def is_complete(directory: Path) -> bool:
    """Return whether `directory` holds a model. A half-written one never has this name."""
    return all((directory / name).is_file() for name in _FILES)


def _publish(generated: Path, directory: Path) -> None:
    """Put the generated model in place.

    Raises:
        NodeError: `directory` exists and holds something else.
        OSError: The rename failed for another reason.
    """
    try:
        # A rename replaces an empty folder, never a filled one.
        generated.rename(directory)
    except OSError:
        if is_complete(directory):  # another server was faster
            return
        if not directory.exists():
            raise
        raise NodeError(
            f"{directory} exists and holds no complete model",
            todo=f"check what it is, then remove it: rm -r {directory}",
        ) from None


def _write_model(kind: Kind, folder: Path) -> None:
    merges = _merges()
    merged = ["".join(merge) for merge in merges]
    more_special = MINIMAX_SPECIAL if kind == "minimax_m2" else ()
    tokens = [*SPECIAL, *_alphabet(), *merged, *more_special]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    special = (*SPECIAL, *more_special)
    _write_json(folder / "tokenizer.json", _tokenizer(vocabulary, merges, special))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    _write_json(folder / "generation_config.json", SPECIAL_IDS)
    _write_json(folder / "config.json", _config(kind))
    word_ids = [vocabulary[_as_token(word)] for word in WORDS]
    tensors = list(_tensors(kind, word_ids))
    _write_safetensors(folder / "model.safetensors", tensors)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


# --- configuration: the names are those of the architecture's Hugging Face config ---


def _config(kind: Kind) -> Json:
    common: Json = {
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
    if kind == "minimax_m2":
        return common | _minimax_config()
    return common | _qwen3_config()


def _qwen3_config() -> Json:
    return {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
    }


def _minimax_config() -> Json:
    """Return what is particular to MiniMax-M2.

    The scoring is softmax where the real model has sigmoid: vLLM's CPU router accepts nothing else
    (0.32, measured).
    """
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
    """Return a merge for every beginning of every word: (" h", "e"), (" he", "l"), ..."""
    merges: dict[tuple[str, str], None] = {}  # a dict keeps the order, a set does not
    for word in WORDS:
        token = _as_token(word)
        for end in range(1, len(token)):
            merges[token[:end], token[end]] = None
    return list(merges)


def _as_token(word: str) -> str:
    # How byte-level BPE writes " word".
    return f"Ġ{word}"


def _alphabet() -> list[str]:
    """Return the 256 characters that stand for bytes in byte-level BPE (GPT-2's table).

    Printable ones stand for themselves.
    """
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    alphabet = []
    next_substitute = 256
    for byte in range(256):
        if byte in printable:
            alphabet.append(chr(byte))
        else:
            alphabet.append(chr(next_substitute))
            next_substitute += 1
    return alphabet


def _tokenizer(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], special: Sequence[str]
) -> Json:
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
    added_tokens = [{"id": vocabulary[token], "content": token, **plain} for token in special]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
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


def _tokenizer_config() -> Json:
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
    """Write the safetensors format.

    The length of the header (8 bytes), the header (JSON, padded), the data one after another.
    """
    header: Json = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start = end
        end = start + len(tensor.data)
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    # The data begins at a multiple of 8 bytes.
    padding = -len(text) % 8
    text += b" " * padding
    length = len(text).to_bytes(8, "little")
    data = [tensor.data for tensor in tensors]
    path.write_bytes(b"".join([length, text, *data]))


def _tensors(kind: Kind, word_ids: list[int]) -> Iterator[_Tensor]:
    random = Random(0)  # noqa: S311 (no secret: the same weights everywhere)
    yield _random(random, "model.embed_tokens.weight", VOCABULARY, HIDDEN)
    yield _output_head(random, word_ids)
    yield _ones("model.norm.weight", HIDDEN)
    for layer in range(LAYERS):
        yield from _layer(kind, random, f"model.layers.{layer}")


def _output_head(random: Random, word_ids: list[int]) -> _Tensor:
    """Return a head whose rows of words are 16 times as large.

    So answers are words and not control characters.
    """
    head = _random(random, "lm_head.weight", VOCABULARY, HIDDEN)
    row_bytes = HIDDEN * 2
    data = bytearray(head.data)
    for word_id in word_ids:
        start = word_id * row_bytes
        high_bytes = slice(start + 1, start + row_bytes, 2)
        # Two steps in the high byte of a bfloat16 add 4 to its exponent.
        data[high_bytes] = bytes(byte + 2 for byte in data[high_bytes])
    return _Tensor(head.name, head.shape, bytes(data))


def _layer(kind: Kind, random: Random, prefix: str) -> Iterator[_Tensor]:
    queries = HEADS * HEAD_DIM
    keys = KV_HEADS * HEAD_DIM
    yield _ones(f"{prefix}.input_layernorm.weight", HIDDEN)
    yield _ones(f"{prefix}.post_attention_layernorm.weight", HIDDEN)
    yield _random(random, f"{prefix}.self_attn.q_proj.weight", queries, HIDDEN)
    yield _random(random, f"{prefix}.self_attn.k_proj.weight", keys, HIDDEN)
    yield _random(random, f"{prefix}.self_attn.v_proj.weight", keys, HIDDEN)
    yield _random(random, f"{prefix}.self_attn.o_proj.weight", HIDDEN, queries)
    if kind == "minimax_m2":
        # MiniMax-M2 normalises over all heads at once.
        yield _ones(f"{prefix}.self_attn.q_norm.weight", queries)
        yield _ones(f"{prefix}.self_attn.k_norm.weight", keys)
        yield from _experts(random, f"{prefix}.block_sparse_moe")
    else:
        # Qwen3 normalises each head by itself.
        yield _ones(f"{prefix}.self_attn.q_norm.weight", HEAD_DIM)
        yield _ones(f"{prefix}.self_attn.k_norm.weight", HEAD_DIM)
        yield from _dense(random, f"{prefix}.mlp")


def _dense(random: Random, prefix: str) -> Iterator[_Tensor]:
    yield _random(random, f"{prefix}.gate_proj.weight", INTERMEDIATE, HIDDEN)
    yield _random(random, f"{prefix}.up_proj.weight", INTERMEDIATE, HIDDEN)
    yield _random(random, f"{prefix}.down_proj.weight", HIDDEN, INTERMEDIATE)


def _experts(random: Random, prefix: str) -> Iterator[_Tensor]:
    yield _random(random, f"{prefix}.gate.weight", EXPERTS, HIDDEN)
    float32_zeros = bytes(4 * EXPERTS)
    yield _Tensor(f"{prefix}.e_score_correction_bias", (EXPERTS,), float32_zeros, "F32")
    for expert in range(EXPERTS):
        name = f"{prefix}.experts.{expert}"
        yield _random(random, f"{name}.w1.weight", INTERMEDIATE, HIDDEN)
        yield _random(random, f"{name}.w3.weight", INTERMEDIATE, HIDDEN)
        yield _random(random, f"{name}.w2.weight", HIDDEN, INTERMEDIATE)


def _ones(name: str, size: int) -> _Tensor:
    # 1.0 as bfloat16, low byte first.
    return _Tensor(name, (size,), b"\x80\x3f" * size)


def _random(random: Random, name: str, *shape: int) -> _Tensor:
    """Return values of either sign between 2**-7 and 2**-5, as models are initialised.

    Their spread is about 0.02. In bfloat16 such a value is a random low byte (end of the exponent,
    mantissa) below a high byte of 0x3c or 0xbc.
    """
    data = bytearray(random.randbytes(2 * prod(shape)))
    data[1::2] = data[1::2].translate(_HIGH_BYTES)
    return _Tensor(name, shape, bytes(data))


_HIGH_BYTES = bytes(0x3C | (byte & 0x80) for byte in range(256))
"""Keeps the sign of a byte and sets the rest."""
