"""The `health:` section of a recipe, and the smaller recipes that serve while a node is lost."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from raylaunch.recipe.field_types import Factor, Pause, Restarts, Seconds

MAX_FALLBACKS = 8
"""Entries of `fallback`. Each is read and validated as a whole recipe."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Health(_Part):
    """Liveness, failure detection and restart back-off. Times in seconds."""

    heartbeat_s: Seconds = 1
    """Period of an agent's reports while nothing changes."""
    agent_silent_s: Seconds = 6
    """Silence of an agent after which its node counts as unreachable."""
    http_period_s: Seconds = 2
    http_timeout_s: Seconds = 15
    """Time-out of one `/health` request: under load it took 3 to 8 s (measured)."""
    http_fail_s: Seconds = 30
    """`/health` failing for this long counts as a failure, if no rank makes tokens either."""
    progress_period_s: Seconds = 2
    stall_s: Seconds = 20
    """A rank with requests whose counters stand still this long hangs. Raise for long prefills."""
    canary_idle_s: Seconds = 5
    """A rank that was idle for this long gets a canary: a request for one token."""
    canary_timeout_s: Seconds = 15
    """Time-out of the canary. A rank that has requests is judged by `stall_s` alone."""
    max_restarts: Restarts = 3
    """Restarts allowed within `restart_window_s`."""
    restart_window_s: Seconds = 3600
    backoff_first_s: Pause = 1
    backoff_factor: Factor = 4
    backoff_max_s: Seconds = 120
    device_pause_s: Pause = 10
    """Minimum pause before NPUs are used again after an unclean exit (HCCP needs about 10 s)."""
    orphan_grace_s: Pause = 600
    """How long a server runs on without its agent, for another to adopt it. 0: not at all."""
    degrade_after_s: Seconds = 120
    """A lost node without a spare one is awaited for this long before a `fallback` is started."""
    grow_back_after_s: Seconds = 60
    """The nodes of the full recipe are there again for this long before it takes over."""


class Fallback(_Part):
    """A smaller recipe: another one, or this one with changes. A text is the name of a recipe."""

    recipe: str = ""
    """Name of a shipped recipe, or path of a file beside this one; by default this recipe."""
    set: dict[str, Any] = {}
    """Changes to it by dotted path, as `--set` has them: `parallel.data: 1`."""

    @property
    def title(self) -> str:
        """Name and changes, for people."""
        shown = [
            # The values of variables and flags are not shown where they are not masked.
            path if path.startswith(("args.", "env.", "container.")) else f"{path}={value}"
            for path, value in self.set.items()
        ]
        name = self.recipe or "the recipe itself"
        return f"{name} with {', '.join(shown)}" if shown else name


def _from_name(entry: object) -> object:
    return {"recipe": entry} if isinstance(entry, str) else entry


FallbackEntry = Annotated[
    Fallback, BeforeValidator(_from_name, json_schema_input_type=str | Fallback)
]
Fallbacks = Annotated[tuple[FallbackEntry, ...], Field(max_length=MAX_FALLBACKS)]
