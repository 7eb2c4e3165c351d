"""What a `GroupLoop` is given: the cluster, the evidence, and the settings of its group.

`RayGroup` implements `GroupBackend` on Ray; a test implements it in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from raylaunch.checks.findings import Finding
from raylaunch.errors import LaunchError
from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.runtime.controller.group.evidence import Case
from raylaunch.runtime.controller.group.journal import Journal
from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import ServerSeen


class SecretsLostError(LaunchError):
    """Nothing can be launched any more: no agent handed the secrets to a restarted controller."""


def refuse_missing_secrets(names: Sequence[str], secrets: Mapping[str, str]) -> None:
    """Refuse a launch without a secret that the recipe names: it could serve without an API key.

    Raises:
        SecretsLostError: one is missing.
    """
    missing = [name for name in names if name not in secrets]
    if missing:
        raise SecretsLostError(
            f"the secrets of this deployment are lost: {', '.join(missing)}",
            why="Ray restarted the controller, and no agent that had them was left",
            todo="stop it and start it again, from an environment that has them",
        )


@dataclass(frozen=True)
class Adopted:
    """What came of one try to adopt; a server that is in neither part waits for its node."""

    plan: LaunchPlan
    """The plan on the nodes as Ray knows them now: a raylet that came back has another id."""
    servers: tuple[int, ...] = ()
    refused: Mapping[int, str] = field(default_factory=dict)
    """By server, why it cannot be adopted."""


class GroupBackend(Protocol):
    """What the loop does to the cluster. Every method may raise RaylaunchError."""

    @property
    def servers(self) -> Sequence[int]:
        """The servers whose agents are not lost."""

    async def reserve(self, excluded: Sequence[str], timeout_s: float | None) -> None:
        """Have NPUs and a living agent for each server; keep those that are there.

        Nodes in `excluded` (addresses or ids) are not used. Waits up to `timeout_s`, by default the
        recipe's `timeouts.reserve`.
        """

    async def probe(self) -> dict[int, Facts]:
        """Probe the node of every server."""

    async def plan(self, facts: Mapping[int, Facts]) -> tuple[LaunchPlan, list[Finding]]:
        """Plan on these nodes, and check the plan."""

    async def launch(
        self,
        plan: LaunchPlan,
        attempt: int,
        facts: Mapping[int, Facts],
        secrets: Mapping[str, str],
    ) -> None:
        """Launch every server at the same moment."""

    def watch(
        self,
        plan: LaunchPlan,
        update: Callable[[ServerSeen], None],
        *,
        servers: Sequence[int] | None = None,
    ) -> None:
        """Start to observe the servers, by default all; observations go to `update`."""

    async def adopt(
        self,
        plan: LaunchPlan,
        attempt: int,
        servers: Sequence[int],
        addresses: Mapping[str, str],
    ) -> Adopted:
        """Create an agent for each of these servers, which adopts the server as it runs.

        `addresses` has Ray's address of each node in the plan.
        """

    async def stop_servers(self, grace_s: float) -> list[str]:
        """Stop to observe, and stop every server; return what still lives."""

    async def clean_up(self) -> None:
        """Kill orphans of earlier attempts, and wait until fixed ports are free."""

    async def has_spare(self, plan: LaunchPlan, excluded: Sequence[str], servers: int) -> bool:
        """Return whether other nodes have the NPUs of so many servers."""

    async def read_secrets(self) -> Mapping[str, str]:
        """Return the secrets that the agents keep."""

    def give_up(self, server: int) -> None:
        """Drop the agent of a server, which is lost."""

    def release(self) -> None:
        """Kill the agents and release the NPUs."""

    def keep_journal(self, number: int, journal: bytes) -> None:
        """Give every agent a copy of the journal; does not wait."""

    def dry_run(
        self, plan: LaunchPlan, facts: Mapping[int, Facts], report: Callable[[list[Finding]], None]
    ) -> None:
        """Start to have the nodes' vLLM build the engine configuration, if the request wants it."""

    def remember_flags(self) -> None:
        """Start to ask the nodes' vLLM for its flags, for the next launch; does not wait."""


class Evidence(Protocol):
    """What the loop asks to have the evidence of a failed attempt examined and kept."""

    async def examine(self, journal: Journal, seen: Mapping[int, ServerSeen]) -> Case:
        """Freeze the evidence and name the root cause."""

    async def keep(self, case: Case, journal: Journal, seen: Mapping[int, ServerSeen]) -> None:
        """Write a bundle."""


@dataclass(frozen=True)
class GroupSettings:
    """What a loop knows of its group."""

    name: str
    """The group's name within its deployment."""
    health: HealthConfig
    stop_grace_s: float
    """SIGTERM to SIGKILL at `stop`."""
    waived: Mapping[str, str]
    """Ids of checks whose errors do not count, with the reason given."""


@dataclass(frozen=True)
class GroupStopped:
    """How many processes a stop had to stop, and what of them still lives."""

    processes: int
    left: tuple[str, ...]
