"""Gives servers that lost their agent another one, while they serve.

A guard outlives its agent by `health.orphan_grace_s`. So the death of an agent, or of Ray's
daemons on its node, is a failure of the group only once another agent could not adopt the guard.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from raylaunch.errors import RaylaunchError
from raylaunch.node.process.guard_socket import GuardSilentError
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.cluster.placement import Slot
from raylaunch.runtime.cluster.remote_call import ActorError, explained_ray_errors
from raylaunch.runtime.controller.group.group_backend import Adopted, GroupBackend, GroupSettings
from raylaunch.runtime.controller.group.journal import GroupRecord
from raylaunch.supervise.state import ServerSeen

log = logging.getLogger(__name__)

NODE_WAIT_S = 60.0
"""How long the daemons of a node may take to come back where a spare node could replace it.

Without one they may take as long as the guards wait: a restart would stop servers that serve, and
then wait for the same node.
"""
RETRY_S = 1.0
TRY_AGAIN = (ActorError, GuardSilentError)
HOST_LIVES = ("agent died", "node died")
"""Reasons of a loss after which the host, and so the guard, may live: Ray's processes died."""


class Adoption:
    """The servers of the current attempt that lost their agent.

    Args:
        settings: Of the group.
        record: Of the group; adopted servers are observed there again.
        backend: The cluster.
        clock: Of this process.
    """

    def __init__(
        self, settings: GroupSettings, record: GroupRecord, backend: GroupBackend, clock: Clock
    ) -> None:
        self.settings = settings
        self._record = record
        self._backend = backend
        self._clock = clock
        self._attempt = 0
        self._lost_at: dict[int, float] = {}
        self._refused: set[int] = set()
        self._retry_at = 0.0

    @property
    def orphans(self) -> tuple[int, ...]:
        """The servers that wait for another agent."""
        if self.settings.health.orphan_grace_s <= 0:
            return ()
        seen = self._record.seen.values()
        if any(one.exit is not None for one in seen):
            return ()  # the group is broken: its restart replaces the agent too
        known = self._refused if self._attempt == self._record.journal.attempt else set()
        lost = [one for one in seen if one.agent_lost in HOST_LIVES]
        return tuple(one.index for one in lost if one.index not in known)

    def judged(self) -> list[ServerSeen]:
        """Return what the policy judges: an orphan serves, and is not silent for its own fault."""
        orphans = self.orphans
        return [
            replace(one, agent_lost=None, agent_at=None) if one.index in orphans else one
            for one in self._record.seen.values()
        ]

    async def step(self) -> bool:
        """Try to give each orphan another agent, if a try is due; return whether one has it."""
        orphans = self.orphans
        now = self._clock.monotonic()
        if not orphans:
            self._lost_at = {}
            return False
        self._begin(orphans, now)
        if now < self._retry_at:
            return False
        plan = self._record.journal.plan
        assert plan is not None, "only a server of a plan has an agent"
        try:
            addresses = self._record.journal.ray_addresses
            result = await self._backend.adopt(plan, self._attempt, orphans, addresses)
        except RaylaunchError as error:
            log.warning("cannot adopt: %s", error)
            result = Adopted(plan)
        self._apply(result, orphans, await self._limit_s(plan, orphans))
        self._retry_at = self._clock.monotonic() + RETRY_S
        return bool(result.servers)

    def _begin(self, orphans: Sequence[int], now: float) -> None:
        if self._attempt != self._record.journal.attempt:
            self._attempt = self._record.journal.attempt
            self._refused = set()
            self._lost_at = {}
        for index in orphans:
            if index not in self._lost_at:
                self._lost_at[index] = now
                self._retry_at = now
                why = self._record.seen[index].agent_lost
                self._record.note("orphaned", f"{why}; the server waits for another agent", index)

    async def _limit_s(self, plan: LaunchPlan, orphans: Sequence[int]) -> float:
        """Return how long a server may wait for its node, in seconds."""
        grace_s = self.settings.health.orphan_grace_s
        waited_s = self._clock.monotonic() - min(self._lost_at[index] for index in orphans)
        if waited_s < min(NODE_WAIT_S, grace_s):
            return grace_s
        journal = self._record.journal
        faulty = journal.history.excluded_nodes
        excluded = [journal.ray_addresses.get(node, node) for node in faulty]
        try:
            with explained_ray_errors("a spare node"):
                has_spare = await self._backend.has_spare(plan, excluded, len(orphans))
        except RaylaunchError as error:
            log.warning("cannot look for a spare node: %s", error)
            has_spare = False
        return min(NODE_WAIT_S, grace_s) if has_spare else grace_s

    def _apply(self, result: Adopted, orphans: Sequence[int], limit_s: float) -> None:
        journal = self._record.journal
        now = self._clock.monotonic()
        if result.servers:
            journal.plan = result.plan
        for index in orphans:
            why = result.refused.get(index, "")
            waited_s = now - self._lost_at[index]
            if index in result.servers:
                seen = self._record.seen[index]
                self._record.seen[index] = replace(seen, agent_lost=None, agent_at=None)
                del self._lost_at[index]
                self._record.note("adopted", "another agent has adopted the server", index)
            elif why or waited_s >= limit_s:
                self._refused.add(index)
                why = why or f"its node has not come back within {limit_s:.0f} s"
                self._record.note("not-adopted", why, index)
        if result.servers:
            self._backend.watch(result.plan, self._record.observe, servers=result.servers)


def find_slots(plan: LaunchPlan, slots: Sequence[Slot], addresses: Mapping[str, str]) -> list[Slot]:
    """Return the slot of each server where its guard is, by server; the slot's `ip` is "" for none.

    Args:
        plan: The plan of the running attempt.
        slots: Where the reservation is now; a slot on a dead node has no address.
        addresses: Address of a node in the plan -> its address in Ray.
    """
    free = [slot for slot in slots if slot.ip]
    found: dict[int, Slot] = {}
    for server in plan.servers:
        same = next((slot for slot in free if slot.node_id == server.node.node_id), None)
        if same is not None:
            found[server.index] = same
            free.remove(same)
    for server in plan.servers:
        if server.index in found:
            continue
        ip = addresses.get(server.node.ip, server.node.ip)
        back = next((slot for slot in free if slot.ip == ip), None)
        if back is not None:
            free.remove(back)
        found[server.index] = back or Slot(-1, "", "")
    return [found[server.index] for server in plan.servers]


def sort_answers(
    answers: Mapping[int, int | RaylaunchError],
) -> tuple[tuple[int, ...], dict[int, str]]:
    """Return the servers whose agents adopted them, and by server why one cannot.

    A server is in neither part when its agent or its guard died or did not answer: the next try
    replaces the agent.
    """
    adopted = tuple(index for index, answer in answers.items() if isinstance(answer, int))
    refused = {}
    for index, answer in answers.items():
        if isinstance(answer, RaylaunchError) and not isinstance(answer, TRY_AGAIN):
            refused[index] = f"{answer.what}: {answer.why}"
    return adopted, refused


def move_nodes(plan: LaunchPlan, slots: Sequence[Slot]) -> LaunchPlan:
    """Return the plan with Ray's present id of each node; a server without a slot keeps its own."""
    servers = tuple(
        replace(server, node=replace(server.node, node_id=slot.node_id or server.node.node_id))
        for server, slot in zip(plan.servers, slots, strict=True)
    )
    return replace(plan, servers=servers)
