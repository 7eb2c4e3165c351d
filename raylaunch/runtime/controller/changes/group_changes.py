"""The steps of which changes are made: groups are added, drained and removed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from raylaunch.errors import NodeError, RaylaunchError, from_dict
from raylaunch.recipe.groups import GroupSpec
from raylaunch.runtime.controller.deployment_record import DeploymentRecord
from raylaunch.runtime.controller.gateway.gateway_link import GatewayLink
from raylaunch.runtime.controller.group.group_supervisor import GroupSupervisor
from raylaunch.runtime.controller.group_set import Changes, GroupSet
from raylaunch.supervise.state import Phase

log = logging.getLogger(__name__)

SETTLED = (Phase.READY, Phase.FAILED, Phase.STOPPED)


class GroupChanges:
    """Adds groups to a deployment, and takes others out.

    Args:
        deployment: Its name.
        groups: Its groups.
        record: Its journal.
        changes: Wakes it after each change.
    """

    def __init__(
        self, deployment: str, groups: GroupSet, record: DeploymentRecord, changes: Changes
    ) -> None:
        self.gateway: GatewayLink | None = None
        self.secrets: Mapping[str, str] = {}
        self.changes = changes
        self._deployment = deployment
        self._groups = groups
        self._record = record

    async def add(self, specs: Sequence[GroupSpec]) -> None:
        """Start groups and wait until all of them serve.

        Raises:
            RaylaunchError: one of them failed.
        """
        for group in self.start(specs):
            await self.await_settled(group, after=0)

    def start(self, specs: Sequence[GroupSpec]) -> list[GroupSupervisor]:
        """Start groups; does not wait."""
        groups = [self._groups.add(spec) for spec in specs]
        self.save_specs()
        for group in groups:
            group.loop.begin(self.secrets)
            group.run()
        return groups

    async def remove(self, groups: Sequence[GroupSupervisor]) -> None:
        """Drain, stop and forget groups.

        Raises:
            NodeError: a process of one of them is left.
        """
        for group in groups:
            await self.drain(group)
            group.loop.orders.stop()
            group.run()
        left = []
        for group in groups:
            stopped = await group.loop.stopped()
            left += [f"{group.name} {survivor}" for survivor in stopped.left]
            self._groups.by_name.pop(group.name)
            if self.gateway is not None:
                self.gateway.undrain(group.name)
        self.save_specs()
        if left:
            raise NodeError(
                "processes of a removed group are left",
                evidence="\n".join(left),
                todo=f"`raylaunch clean --deployment {self._deployment}` names them",
            )

    async def drain(self, group: GroupSupervisor) -> None:
        """Send a group no new request, and wait for those that run, for `gateway.drain_s`."""
        if self.gateway is not None and group.journal.phase is Phase.READY:
            finished = await self.gateway.drain(group.name)
            if not finished:
                log.warning("requests of %s were still running after gateway.drain_s", group.name)

    async def await_settled(self, group: GroupSupervisor, after: int) -> None:
        """Wait until a group serves in an attempt later than `after`.

        Raises:
            RaylaunchError: it failed for good.
        """

        def is_settled() -> bool:
            journal = group.journal
            if group.loop.orders.are_pending:
                return False
            launched = journal.attempt > after or journal.phase is not Phase.READY
            return launched and journal.phase in SETTLED

        await self.changes.until(is_settled)
        if group.journal.error:
            raise from_dict(group.journal.error)
        if group.journal.phase is not Phase.READY:
            raise RaylaunchError(f"group {group.name} is {group.journal.phase}")

    def sort(self, specs: Sequence[GroupSpec]) -> None:
        """Put these groups first, in this order."""
        first = {spec.name: self._groups.find(spec.name) for spec in specs}
        self._groups.by_name = first | self._groups.by_name

    def save_specs(self) -> None:
        """Note in the journal which groups there are."""
        self._record.journal.specs = tuple(group.request.spec for group in self._groups)
        self._record.changed()
