"""What a node's own vLLM makes of the command line of a server: its configuration, or a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raylaunch.plan.facts import ProbeFailure
from raylaunch.plan.known_flags import KnownFlags


@dataclass(frozen=True)
class Message:
    """A line that vLLM or a plug-in logged while it built the configuration."""

    level: str
    """info, warning, error or critical."""
    text: str


@dataclass(frozen=True)
class Refusal:
    """Why vLLM does not start with these settings."""

    stage: str
    """parse, validate, config or executor."""
    kind: str
    """Class of the exception."""
    words: str
    """vLLM's own message."""
    fields: tuple[str, ...] = ()
    """Class and fields of vLLM's configuration that pydantic names."""
    conditions: tuple[str, ...] = ()
    """Names in the conditions around the line that raised: the settings that it judged."""
    files: tuple[str, ...] = ()
    """Files of the traceback in vLLM and its plug-ins, the innermost last."""
    choices: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """Flag with a JSON value -> its keys -> their values; () where any value is valid."""


@dataclass(frozen=True)
class EngineAnswer:
    """The answer for one server."""

    became: Mapping[str, str] = field(default_factory=dict)
    """Setting -> value of the engine's configuration; empty when it was refused."""
    refusal: Refusal | None = None
    messages: tuple[Message, ...] = ()


EngineAnswers = Mapping[int, EngineAnswer | ProbeFailure]
"""By server. A server is missing when its vLLM was not asked."""


@dataclass(frozen=True)
class EngineReport:
    """The answers of one node: for its servers, and the names that its vLLM knows."""

    answers: EngineAnswers = field(default_factory=dict)
    known_flags: KnownFlags | ProbeFailure | None = None
    """None: this node has no vLLM, or what kept it from answering is in `answers`."""
