"""Reads the words of `vllm serve` as flags: every spelling, `--a=b`, JSON, dotted names."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raylaunch.plan.known_flags import read_flags
from raylaunch.recipe.reserved import normalise_flag

_BARE = frozenset(
    {
        "headless",
        "grpc",
        "disable-log-stats",
        "aggregate-engine-logging",
        "data-parallel-multi-port-external-lb",
    }
)
"""Bare flags without a `--no-` twin (vLLM 0.32 make_arg_parser)."""

_SHORT = {
    "q": "quantization",
    "ac": "attention-config",
    "dc": "diffusion-config",
    "O": "optimization-level",
}
"""Short options of vLLM 0.32 that `normalise_flag` leaves alone."""

_LISTS = frozenset(
    """
    lora-modules allowed-media-domains served-model-name sleep-preserve-parameter-names
    logits-processors
    ignore-patterns numa-bind-nodes numa-bind-cpus kv-cache-dtype-skip-layers
    cpu-offload-params offload-params
    lora-target-modules collect-detailed-traces cudagraph-capture-sizes api-key
    """.split()  # noqa: SIM905 - shorter to read
)
"""Flags that take several values (vLLM 0.32 make_arg_parser)."""


@dataclass(frozen=True)
class Given:
    """One flag as it was given.

    `value` None: a bare flag. `words`: what stands in the script. `extra`: more values.
    """

    name: str
    value: str | None
    words: tuple[str, ...]
    extra: tuple[str, ...] = ()


def read_words(words: Sequence[str]) -> tuple[list[str], list[Given]]:
    """Split the words behind `vllm serve` into positional ones and flags."""
    positional: list[str] = []
    flags: list[Given] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not is_flag(word):
            positional.append(word)
            continue
        name, equals, value = (
            ("-O", "=", word[2:]) if re.fullmatch(r"-O\d", word) else word.partition("=")
        )
        canonical = long_name(name)
        taken: list[str] = []
        while not equals and rest and not is_flag(rest[0]) and len(taken) < _most_values(canonical):
            taken.append(rest.pop(0))
        first = value if equals else taken[0] if taken else None
        flags.append(Given(canonical, first, (word, *taken), tuple(taken[1:])))
    return positional, flags


def is_flag(word: str) -> bool:
    """Whether a word names a flag: `-1` and `-0.5` are values."""
    return re.match(r"--?[A-Za-z]", word) is not None


def long_name(word: str) -> str:
    """The canonical name of a flag as written (`-tp`, `--mm_processor_cache_type`)."""
    name = normalise_flag(word)
    return name if word.startswith("--") else _SHORT.get(name, name)


def is_bare(name: str) -> bool:
    """Whether vLLM's flag takes no value."""
    known = read_flags()
    return name in _BARE or f"no-{name}" in known or (name.startswith("no-") and name in known)


def _most_values(name: str) -> int:
    return 0 if is_bare(name) else 10**6 if name in _LISTS else 1


def value_of(given: Given) -> Any:  # noqa: ANN401 - YAML holds anything
    """Return a flag's value for a recipe: numbers and JSON only if they come back unchanged."""
    return True if given.value is None else plain(given.value)


def plain(text: str) -> Any:  # noqa: ANN401 - YAML holds anything
    """A number, or JSON, when writing it again gives the same; text otherwise."""
    if re.fullmatch(r"-?(?:0|[1-9]\d{0,17})", text) and text != "-0":
        return int(text)
    if re.fullmatch(r"-?\d+\.\d+", text) and repr(float(text)) == text:
        return float(text)
    return _json(text) if text.lstrip()[:1] in ("{", "[") else text


def _json(text: str) -> Any:  # noqa: ANN401 - YAML holds anything
    """Return JSON as a value; text that Python would change (NaN, a key twice) stays text."""
    try:
        value = json.loads(
            text, object_pairs_hook=_once, parse_constant=_refuse, parse_float=_float
        )
        return value if isinstance(value, dict | list) else text
    except (ValueError, RecursionError):
        return text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _refuse(text: str) -> None:
    raise ValueError(text)


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(text)
    return value
