"""Long-polls one agent. A missed reply counts as silence; times become the controller's.

An agent answers the moment something changes, or after a heartbeat as a sign of life.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from raylaunch.runtime.agent.agent import Observation
from raylaunch.runtime.agent.agent_handle import AgentHandle
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.cluster.remote_call import (
    ActorLostError,
    ActorTimeoutError,
    ActorUnavailableError,
)
from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import ServerSeen

log = logging.getLogger(__name__)

UNAVAILABLE_PAUSE_S = 0.2
"""Ray refuses calls immediately while it has no connection to an actor; the actor may come back."""
CONNECT_TIMEOUT_S = 2.0
LATE_S = 1.0
"""A report this late makes us probe the node's raylet; a report is at most `heartbeat_s` old
otherwise."""

RayletState = Literal["alive", "refused", "silent"]
LOST_BECAUSE: dict[RayletState, str] = {"refused": "node died", "silent": "node unreachable"}


class AgentWatch:
    """Watches one agent and passes each observation on; returns when the agent is lost.

    Args:
        index: The server.
        agent: Its agent.
        node: Ray's record of the agent's node.
        health: Heartbeat and the silence that counts as loss.
        update: Receives each observation, with times on this process's monotonic clock.
    """

    def __init__(
        self,
        index: int,
        agent: AgentHandle,
        node: dict[str, Any],
        health: HealthConfig,
        update: Callable[[ServerSeen], None],
    ) -> None:
        self._agent = agent
        self._node = node
        self._health = health
        self._update = update
        self._seen = ServerSeen(index)
        self.clock_offset_s: float | None = None
        """The agent's monotonic clock minus the controller's."""
        self.wall_offset_s = 0.0
        """The wall clock of the agent's node minus the controller's, to compare log lines."""

    async def run(self) -> None:
        """Watch until the agent is lost or the task is cancelled."""
        version = -1
        while True:
            sent = time.monotonic()
            try:
                observation = await self._agent.next_observation(
                    after=version, wait_s=self._health.heartbeat_s
                )
            except ActorUnavailableError:
                await asyncio.sleep(UNAVAILABLE_PAUSE_S)
            except ActorLostError:
                await self._report_death()
                return
            except ActorTimeoutError:
                log.debug("%s is silent", self._agent.peer)  # `agent_at` stays: the policy counts
            else:
                version = observation.version
                self._accept(observation, sent, time.monotonic())
            await self._check_silence()

    def _accept(self, observation: Observation, sent: float, received: float) -> None:
        # The answer left the agent between `sent` and `received`: only a short trip tells its
        # clock closely. A long one is a poll that had to wait.
        if self.clock_offset_s is None or received - sent < self._health.heartbeat_s:
            self.clock_offset_s = observation.now - received
            self.wall_offset_s = observation.wall_now - time.time()
        seen = shift_times(observation.seen, -self.clock_offset_s)
        self._seen = replace(seen, agent_at=received)
        self._update(self._seen)

    async def _check_silence(self) -> None:
        """When a report is late, find out who is silent: the agent, its raylet, or its node."""
        heard = self._seen.agent_at
        if heard is None or self._seen.agent_lost:
            return
        if time.monotonic() - heard < LATE_S + self._health.heartbeat_s:
            return
        raylet = await asyncio.to_thread(probe_raylet, self._node)
        too_long = time.monotonic() - heard >= self._health.agent_silent_s
        # A refused connection proves that the raylet is dead; silence may be a lost packet.
        if raylet == "refused" or (raylet == "silent" and too_long):
            self._lose(LOST_BECAUSE[raylet])

    async def _report_death(self) -> None:
        node_is_alive = await asyncio.to_thread(_is_alive, self._node["NodeID"])
        # Ray calls a node dead when its raylet has exited, and when its whole host is lost.
        raylet = await asyncio.to_thread(probe_raylet, self._node)
        if raylet == "alive":  # perhaps the next one, on the same port
            self._lose("agent died" if node_is_alive else "node died")
        else:
            self._lose(LOST_BECAUSE[raylet])

    def _lose(self, reason: str) -> None:
        log.warning("%s is lost: %s", self._agent.peer, reason)
        self._seen = replace(self._seen, agent_lost=reason)
        self._update(self._seen)


def probe_raylet(node: dict[str, Any]) -> RayletState:
    """Try to connect to the node's raylet; "refused" means that its host lives."""
    address = (node["NodeManagerAddress"], node["NodeManagerPort"])
    try:
        socket.create_connection(address, timeout=CONNECT_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "silent"
    return "alive"


def _is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id for node in alive_nodes())


def shift_times(seen: ServerSeen, by_s: float) -> ServerSeen:
    """Move every time in an observation by `by_s` seconds, to convert it to another clock."""

    def shift(at: float | None) -> float | None:
        return None if at is None else at + by_s

    http = replace(seen.http, at=shift(seen.http.at), failing_since=shift(seen.http.failing_since))
    ranks = tuple(
        replace(
            rank,
            still_since=shift(rank.still_since),
            moved_at=shift(rank.moved_at),
            at=shift(rank.at),
            canary_failing_since=shift(rank.canary_failing_since),
        )
        for rank in seen.ranks
    )
    canary = seen.canary
    if canary is not None:
        canary = replace(canary, at=canary.at + by_s, failing_since=shift(canary.failing_since))
    exited = seen.exit
    if exited is not None:
        exited = replace(exited, at=exited.at + by_s)
    return replace(
        seen,
        agent_at=shift(seen.agent_at),
        http=http,
        ranks=ranks,
        canary=canary,
        exit=exited,
    )
