"""The controller's eyes: one long poll per agent, answered the moment something changes there.

An answer that does not come is a sign too. What is seen is moved to the controller's clock.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from raylaunch.runtime.agent.agent import Observation
from raylaunch.runtime.agent.agent_handle import AgentHandle
from raylaunch.runtime.cluster.remote_call import (
    ActorLostError,
    ActorTimeoutError,
    ActorUnavailableError,
)
from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import ServerSeen

UNAVAILABLE_PAUSE_S = 0.2
"""Ray answers at once while it has no connection to an actor; the actor may come back."""
VERDICT_TIMEOUT_S = 2.0
LATE_S = 1.0
"""A report this late makes us ask the node's raylet; a report is at most `heartbeat_s` old otherwise."""


class AgentWatch:
    """Watches one agent and hands each observation to `update`; ends when the agent is known to be lost."""

    def __init__(
        self,
        index: int,
        agent: AgentHandle,
        node: dict[str, Any],
        health: HealthConfig,
        update: Callable[[ServerSeen], None],
    ) -> None:
        self._index = index
        self._agent = agent
        self._node = node
        self._health = health
        self._update = update
        self._seen = ServerSeen(index)
        self.clock_offset_s = 0.0
        """The agent's monotonic clock minus the controller's clock."""
        self.wall_offset_s = 0.0
        """The wall clock of the agent's node minus the controller's clock."""

    async def run(self) -> None:
        """Watch until the agent is lost or the task is cancelled."""
        version = -1
        while True:
            sent = time.time()
            try:
                report = await self._agent.next_observation(
                    after=version, wait_s=self._health.heartbeat_s
                )
            except ActorUnavailableError:
                await asyncio.sleep(UNAVAILABLE_PAUSE_S)
            except ActorLostError:
                await self._lose()
                return
            except ActorTimeoutError:
                pass  # silence: `agent_at` stays, and the policy counts from there
            else:
                version = report.version
                self._take(report, sent, time.time())
            await self._judge_silence()

    def _take(self, report: Observation, sent: float, received: float) -> None:
        """The answer left the agent between `sent` and `received`; a short trip fixes its clock closely."""
        if received - sent < self._health.heartbeat_s or self.clock_offset_s == 0.0:
            self.clock_offset_s = report.now - received
            self.wall_offset_s = report.wall_now - received
        seen = shift_clock(report.seen, -self.clock_offset_s)
        self._seen = replace(seen, agent_at=received)
        self._update(self._seen)

    async def _judge_silence(self) -> None:
        """When a report is late find out who is silent: the agent, its raylet, or the whole node."""
        heard = self._seen.agent_at
        if (
            heard is None
            or time.time() - heard < LATE_S + self._health.heartbeat_s
            or self._seen.agent_lost
        ):
            return
        reachable = await asyncio.to_thread(_answers, self._node)
        too_long = time.time() - heard >= self._health.agent_silent_s
        if reachable == "refused" or (reachable == "silent" and too_long):
            self._seen = replace(self._seen, agent_lost=_REASONS[reachable])
            self._update(self._seen)

    async def _lose(self) -> None:
        alive = await asyncio.to_thread(_node_is_alive, self._node["NodeID"])
        reason = "node died"
        if alive:  # as far as Ray has noticed
            reason = _REASONS.get(await asyncio.to_thread(_answers, self._node), "agent died")
        self._seen = replace(self._seen, agent_lost=reason)
        self._update(self._seen)


_REASONS = {"refused": "node died", "silent": "node unreachable"}


def _answers(node: dict[str, Any]) -> str:
    """Whether the node's raylet takes a connection: "yes", "refused" (the host lives), or "silent"."""
    try:
        address = (node["NodeManagerAddress"], node["NodeManagerPort"])
        socket.create_connection(address, timeout=VERDICT_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "silent"
    return "yes"


def _node_is_alive(node_id: str) -> bool:
    from raylaunch.runtime.cluster.connection import alive_nodes

    return any(node["NodeID"] == node_id for node in alive_nodes())


def shift_clock(seen: ServerSeen, by_s: float) -> ServerSeen:
    """Move every time in an observation by `by_s` seconds."""

    def moved(at: float | None) -> float | None:
        return None if at is None else at + by_s

    http = replace(seen.http, at=moved(seen.http.at), failing_since=moved(seen.http.failing_since))
    ranks = tuple(
        replace(
            rank,
            still_since=moved(rank.still_since),
            moved_at=moved(rank.moved_at),
            at=moved(rank.at),
            mute_since=moved(rank.mute_since),
        )
        for rank in seen.ranks
    )
    canary = seen.canary
    if canary is not None:
        canary = replace(canary, at=canary.at + by_s, failing_since=moved(canary.failing_since))
    exited = replace(seen.exit, at=seen.exit.at + by_s) if seen.exit else None
    return replace(seen, http=http, ranks=ranks, canary=canary, exit=exited)
