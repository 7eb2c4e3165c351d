"""The names that this node's own vLLM knows (flags, variables, keys), asked once per version."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypedDict, cast

from raylaunch.errors import NodeError
from raylaunch.node.probe.vllm_question import UNREADABLE, Vllm, find, put_question, store
from raylaunch.plan.facts import Facts, ProbeFailure
from raylaunch.plan.known_flags import KnownFlags, Option

log = logging.getLogger(__name__)

FOLDER = "vllm-flags"
"""Below the node's state folder; one file per vLLM."""
KEPT = 8
PROBE = "vLLM's flags"
ASK_TIMEOUT_S = 120.0
"""For a question in the foreground: ten times what it takes on two cores."""


class _OptionAnswer(TypedDict):
    takes: str
    choices: list[str]


class _Answer(TypedDict):
    """The JSON that `ask_vllm.py` prints, and that is cached."""

    flags: dict[str, _OptionAnswer]
    tool_parsers: list[str]
    reasoning_parsers: list[str]
    variables: list[str]
    config_keys: list[str]
    config_keys_below: dict[str, list[str]]
    vllm_versions: list[str]
    sources: dict[str, int]


def recall(vllm: Vllm) -> KnownFlags | None:
    """Return the cached answer of this vLLM, in about a millisecond.

    None when it was never asked, or has changed since.
    """
    try:
        known = _known_flags(json.loads(_cache_file(vllm).read_text(encoding="utf-8")))
        for file, time_ns in known.sources.items():
            # An editable installation keeps its version when its files change.
            if os.stat(file).st_mtime_ns != time_ns:  # noqa: PTH116
                return None
    except (OSError, *UNREADABLE):
        return None
    return known


def ask(
    vllm: Vllm,
    env: Mapping[str, str],
    timeout_s: float,
    niceness: int = 0,
) -> KnownFlags:
    """Read the names from vLLM itself, and cache them. Arguments as for `put_question`.

    Raises:
        NodeError: No Python is known for this vLLM, or it gave no answer.
    """
    raw = put_question(vllm, env, names=True, argvs={}, timeout_s=timeout_s, niceness=niceness)
    known = read_answer(vllm, raw.names)
    if known is None:
        raise NodeError(raw.failure or "vLLM's answer about its flags cannot be read")
    return known


def read_answer(vllm: Vllm, names: object) -> KnownFlags | None:
    """Read an answer about names, and cache it; None when there is none that can be read."""
    try:
        known = _known_flags(names)
    except UNREADABLE:
        return None
    try:
        store(_cache_file(vllm), asdict(known), KEPT)
    except OSError as error:
        # The answer is good without the cache: the next launch asks again.
        log.warning("cannot cache the flags of %s: %s", vllm.executable, error)
    return known


def answer(
    vllm: Vllm,
    env: Mapping[str, str],
    timeout_s: float,
    niceness: int = 0,
) -> KnownFlags | ProbeFailure:
    """Read the names as `ask` does, but return a failure instead of raising it."""
    try:
        return ask(vllm, env, timeout_s, niceness)
    except NodeError as error:
        reasons = [part for part in (error.what, error.why) if part]
        return ProbeFailure(PROBE, ": ".join(reasons))


def add_known_flags(
    facts: Facts,
    env: Mapping[str, str],
    *,
    ask: bool,
) -> Facts:
    """Put the names that this machine's vLLM knows into its facts.

    They come from the cache. With `ask`, vLLM is asked where the cache has no answer.
    """
    vllm = find(env, Path(facts.state_dir))
    if vllm is None:
        return facts
    known = recall(vllm)
    if known is None and ask:
        return merge_answer(facts, answer(vllm, env, ASK_TIMEOUT_S))
    return merge_answer(facts, known)


def merge_answer(facts: Facts, given: KnownFlags | ProbeFailure | None) -> Facts:
    """Put an answer about names into the facts of its node; None changes nothing."""
    if isinstance(given, ProbeFailure):
        return replace(facts, failures=(*facts.failures, given))
    return replace(facts, known_flags=given or facts.known_flags)


def _known_flags(content: object) -> KnownFlags:
    """Build the names from JSON; content of another shape raises one of `UNREADABLE`."""
    values = cast("_Answer", content)
    flags = {}
    for name, option in values["flags"].items():
        flags[name] = Option(option["takes"], tuple(option["choices"]))
    below = {key: tuple(names) for key, names in values["config_keys_below"].items()}
    return KnownFlags(
        flags,
        tool_parsers=tuple(values["tool_parsers"]),
        reasoning_parsers=tuple(values["reasoning_parsers"]),
        variables=tuple(values["variables"]),
        config_keys=tuple(values["config_keys"]),
        config_keys_below=below,
        vllm_versions=tuple(values["vllm_versions"]),
        sources={file: int(time_ns) for file, time_ns in values["sources"].items()},
    )


def _cache_file(vllm: Vllm) -> Path:
    return vllm.state_dir / FOLDER / f"{vllm.key}.json"
