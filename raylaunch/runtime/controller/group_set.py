"""The groups of one deployment, in the order in which they are shown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence

from raylaunch.home import home
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.recipe.groups import GroupSpec
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.controller.group.group_backend import GroupStopped
from raylaunch.runtime.controller.group.group_supervisor import GroupSupervisor
from raylaunch.runtime.controller.group.journal import EventNumbers
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.runtime.controller.port_turns import Turns
from raylaunch.supervise.deployment_status import Event, StopReport
from raylaunch.supervise.deployment_summary import unknown_group


class Changes:
    """Counts the changes of a deployment, and lets others wait for the next one."""

    def __init__(self, clock: Clock) -> None:
        self.version = 0
        self._clock = clock
        self._changed = asyncio.Event()

    def note(self) -> None:
        """Wake everyone who waits."""
        self.version += 1
        changed = self._changed
        self._changed = asyncio.Event()
        changed.set()

    async def wait(self, version: int, timeout_s: float) -> None:
        """Return when there is a change after `version`, at the latest after `timeout_s`."""
        if self.version <= version:
            await self._clock.wait(self._changed, timeout_s)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds; it is evaluated after each change."""
        while not condition():
            await self._changed.wait()


class GroupSet:
    """Makes, finds and runs the supervisors of a deployment's groups.

    Args:
        request: What `raylaunch start` asked for.
        clock: Of this process.
        numbers: Numbers the events of all groups.
        on_change: Called after each change of any group.
    """

    def __init__(
        self,
        request: Request,
        clock: Clock,
        numbers: EventNumbers,
        on_change: Callable[[], None],
    ) -> None:
        self.by_name: dict[str, GroupSupervisor] = {}
        self.turns = Turns(request.deployment, self.plans)
        self._request = request
        self._clock = clock
        self._numbers = numbers
        self._on_change = on_change
        self._takeover_key = ""

    def __iter__(self) -> Iterator[GroupSupervisor]:
        return iter(self.by_name.values())

    def __len__(self) -> int:
        return len(self.by_name)

    def add(self, spec: GroupSpec) -> GroupSupervisor:
        """Add a group that does not run yet."""
        group = GroupSupervisor(
            self._request.of_group(spec),
            self.turns,
            self._clock,
            self._numbers,
            home(),
            on_change=self._on_change,
        )
        group.backend.takeover_key = self._takeover_key
        self.by_name[spec.name] = group
        return group

    def use_key(self, takeover_key: str) -> None:
        """Have the agents of all groups hand out the secrets for this key."""
        self._takeover_key = takeover_key
        for group in self:
            group.backend.takeover_key = takeover_key

    def lack_any(self, secrets: Mapping[str, str]) -> bool:
        """Return whether a secret that one of the groups needs is missing."""
        return any(group.backend.lacks_any(secrets) for group in self)

    @property
    def have_served(self) -> bool:
        """Whether any group was ready at any time."""
        return any(group.journal.served for group in self)

    def held_npus(self) -> dict[str, int]:
        """Return the NPUs that the groups have, by Ray's id of the node."""
        held: dict[str, int] = {}
        for group in self:
            npus = group.request.spec.loaded.recipe.npus_per_server
            # A group that failed or waits has released its own.
            if group.plan is None or group.journal.waiting_since is not None:
                continue
            for node in group.node_ids().values():
                held[node] = held.get(node, 0) + npus
        return held

    def begin(self, secrets: Mapping[str, str]) -> None:
        """Hand the secrets over to every group."""
        for group in self:
            group.loop.begin(secrets)

    def run(self) -> None:
        """Run the loop of every group that does not run yet."""
        for group in self:
            group.run()

    def find(self, name: str | None) -> GroupSupervisor:
        """Return a group by name; without one, the first.

        Raises:
            UnknownDeploymentError: there is none of that name.
        """
        if name is None:
            return next(iter(self))
        if name not in self.by_name:
            raise unknown_group(self._request.deployment, name, list(self.by_name))
        return self.by_name[name]

    def plans(self) -> list[LaunchPlan]:
        """Return the plans of the groups that run."""
        return [group.plan for group in self if group.plan is not None]

    def events(self) -> list[Event]:
        """Return the events of all groups, group by group."""
        return [event for group in self for event in group.journal.events]

    def report_stop(
        self,
        groups: Sequence[GroupSupervisor],
        stopped: Sequence[GroupStopped],
        began: float,
    ) -> StopReport:
        """Return what a stop left, each survivor with its group if there are several.

        Args:
            groups: Those that were stopped.
            stopped: Of each of them.
            began: When the stop began, by the monotonic clock.
        """
        left: list[str] = []
        for group, one in zip(groups, stopped, strict=True):
            prefix = f"{group.name} " if len(groups) > 1 else ""
            left += [f"{prefix}{survivor}" for survivor in one.left]
        processes = sum(one.processes for one in stopped)
        seconds = self._clock.monotonic() - began
        return StopReport(self._request.deployment, processes, seconds, tuple(left))
