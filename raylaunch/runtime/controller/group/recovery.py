"""From the decision to restart a group to the places for its next attempt.

Stops all servers, verifies that nothing is left, backs off, and replaces what was lost.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.controller.group.group_backend import GroupBackend, GroupSettings
from raylaunch.runtime.controller.group.journal import GroupRecord
from raylaunch.supervise.policy import Restart
from raylaunch.supervise.state import ServerSeen

log = logging.getLogger(__name__)

COMMAND = "command"
"""Cause of a restart that an operator ordered."""
FAILED_GRACE_S = 1.0
"""SIGTERM to SIGKILL when a failed group is stopped: its servers wait for a peer that is gone."""


class Recovery:
    """Keeps, over several tries, what a restart has to replace."""

    def __init__(
        self,
        settings: GroupSettings,
        record: GroupRecord,
        backend: GroupBackend,
        clock: Clock,
    ) -> None:
        self.settings = settings
        self._record = record
        self._backend = backend
        self._clock = clock
        self._decision: Restart | None = None
        self._lost_nodes: dict[int, str] = {}
        """Servers whose nodes are lost, with Ray's id of the node."""
        self._lost_since: float | None = None
        """When the first of them was last heard of (monotonic); None for unknown."""
        self._reservation_is_suspect = False
        self.avoided: tuple[str, ...] = ()
        """Ray's ids of nodes that are not used either: a fallback does without the lost ones."""

    @property
    def lost_nodes(self) -> tuple[str, ...]:
        """Ray's ids of the nodes that are lost, until they are replaced."""
        return tuple(self._lost_nodes.values())

    def begin(self, decision: Restart, *, reservation_is_suspect: bool) -> None:
        """Take the decision that the next try carries out.

        Args:
            decision: Why, and when.
            reservation_is_suspect: Replace agents and reservation as well: a try without failed.
        """
        self._decision = decision
        self._reservation_is_suspect = reservation_is_suspect

    def hurry(self, decision: Restart) -> None:
        """Take a decision that only shortens the back-off of the restart under way."""
        self._decision = decision

    @property
    def back_off_until(self) -> float | None:
        """When the back-off of the restart under way is over (monotonic); None without one."""
        return None if self._decision is None else self._decision.not_before

    async def reserve(self) -> None:
        """Reserve for the first attempt.

        Raises:
            PlacementError: the cluster does not have the NPUs, or not in time.
        """
        await self._back_off()
        await self._backend.reserve(self._excluded_nodes(), None)
        self._record.show_reserved(self._backend.servers)
        self._decision = None

    async def rebuild(self) -> None:
        """Stop all servers, back off, and reserve for the next attempt.

        Raises:
            RaylaunchError: an agent does not answer, a process cannot be killed, a port is taken,
                or the nodes did not come back within `health.restart_window_s`.
        """
        decision = self._decision
        plan = self._record.journal.plan
        self._lost_nodes |= find_lost_nodes(plan, self._record.seen, decision)
        if self._lost_since is None:
            heard = [one.agent_at for one in self._record.seen.values() if one.is_node_lost]
            self._lost_since = min((at for at in heard if at is not None), default=None)
        self.drop_lost_agents()
        ordered = decision is not None and decision.cause == COMMAND
        grace_s = self.settings.stop_grace_s if ordered else FAILED_GRACE_S
        await self._backend.stop_servers(grace_s)
        device_fault = decision is not None and decision.kind == "device"
        if self._lost_nodes or device_fault or self._reservation_is_suspect:
            self._backend.release()
        self._record.seen = {}
        await self._back_off()
        excluded = (*self._excluded_nodes(), *await self._avoided_nodes())
        # What an operator orders does not wait for nodes that are not there.
        fails_early = ordered and not self._lost_nodes
        timeout_s = None if fails_early else self.settings.health.restart_window_s
        await self._backend.reserve(excluded, timeout_s)
        self._record.journal.waiting_since = None
        self._record.show_reserved(self._backend.servers)
        await self._backend.clean_up()
        self.forget()

    def drop_lost_agents(self) -> None:
        """Drop the agents that are known to be lost: no call of them would be answered."""
        for index, seen in self._record.seen.items():
            if seen.agent_lost or index in self._lost_nodes:
                self._backend.give_up(index)

    def forget(self) -> None:
        """Forget what was lost: it is replaced, or the group is given up."""
        self._decision = None
        self._lost_nodes = {}
        self._lost_since = None
        self._reservation_is_suspect = False
        self._record.journal.waiting_since = None

    async def has_spare(self, servers: int = 1) -> bool:
        """Return whether other nodes have the NPUs of so many servers."""
        plan = self._record.journal.plan
        if plan is None:
            return False
        return await self._backend.has_spare(plan, self._excluded_nodes(), servers)

    async def _back_off(self) -> None:
        if self._decision is not None:
            await self._clock.sleep(self._decision.not_before - self._clock.monotonic())

    async def _avoided_nodes(self) -> tuple[str, ...]:
        """Return the lost nodes if others can replace them; else only their return helps."""
        lost = self._lost_nodes
        if not lost or await self.has_spare(len(lost)):
            return tuple(lost.values())
        journal = self._record.journal
        if journal.waiting_since is None:
            now = self._clock.monotonic()
            journal.waiting_since = now if self._lost_since is None else self._lost_since
        nodes = ", ".join(self._record.shape.nodes[index] for index in lost)
        text = (
            f"waiting for {nodes}: no spare node has enough NPUs. "
            "If Ray has marked it dead, run `ray start` on it again"
        )
        self._record.note("waiting", text, min(lost))
        return ()

    def _excluded_nodes(self) -> tuple[str, ...]:
        """Return Ray's addresses of the nodes with a device fault, and the avoided ones."""
        # A node's address in the plan is that of its chosen interface; Ray may know another one.
        known = self._record.journal.ray_addresses
        faulty = self._record.journal.history.excluded_nodes
        return tuple(dict.fromkeys((*(known.get(node, node) for node in faulty), *self.avoided)))


def find_lost_nodes(
    plan: LaunchPlan | None, seen: Mapping[int, ServerSeen], decision: Restart | None
) -> dict[int, str]:
    """Return the servers whose nodes are lost, with Ray's id of the node.

    A node that Ray has marked dead comes back under another id.
    """
    lost = {index for index, one in seen.items() if one.is_node_lost}
    # Silence alone: no watch has found out more.
    if decision is not None and decision.cause == "node-lost" and decision.root is not None:
        lost.add(decision.root)
    servers = plan.servers if plan else ()
    return {server.index: server.node.node_id for server in servers if server.index in lost}
