"""Starts a smaller recipe while a node is lost, and the recipe itself again when it is back.

`supervise.degradation` decides; this module carries the decisions out. A switch adds and removes
groups as an upgrade does, and is an operation like the commands of a person: one at a time. Where
it stands is in the deployment's journal, so that a controller that takes over continues it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from raylaunch.errors import NodeError, RaylaunchError, from_dict
from raylaunch.recipe.groups import GroupSpec, expand_groups
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.controller.changes.full_check import Room, find_problem, has_room
from raylaunch.runtime.controller.changes.group_changes import GroupChanges
from raylaunch.runtime.controller.changes.operations import Operations
from raylaunch.runtime.controller.deployment_record import DeploymentJournal, DeploymentRecord
from raylaunch.runtime.controller.group.group_supervisor import GroupSupervisor
from raylaunch.runtime.controller.group.orphan_stop import stop_instances
from raylaunch.runtime.controller.group_set import GroupSet
from raylaunch.runtime.controller.launch_request import Request, group_instance
from raylaunch.supervise import degradation
from raylaunch.supervise.degradation import (
    Degradation,
    Degrade,
    GroupState,
    GrowBack,
    Stage,
    Surroundings,
)
from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import Failure, Phase
from raylaunch.supervise.upgrade_plan import name_generation

log = logging.getLogger(__name__)

PERIOD_S = 1.0
KEPT_NAMES = 100
"""Of groups that were removed. Nothing of an older one runs any more."""


class FallbackLoop:
    """Switches a deployment between its recipe and the fallbacks.

    Args:
        request: What `raylaunch start` asked for.
        groups: Its groups.
        record: Its journal.
        work: Adds and removes groups.
        operations: Runs a switch, and no command beside it.
        clock: Of this process.
    """

    def __init__(
        self,
        request: Request,
        groups: GroupSet,
        record: DeploymentRecord,
        work: GroupChanges,
        operations: Operations,
        clock: Clock,
    ) -> None:
        self._deployment = request.deployment
        self._instance = request.instance
        self._groups = groups
        self._record = record
        self._work = work
        self._operations = operations
        self._clock = clock
        self._full_fits_since: float | None = None
        self._failed_at: float | None = None
        self._faults: tuple[Failure, ...] = ()
        """Device faults of all groups so far: their nodes are not used by the next ones either."""
        self._ray_addresses: dict[str, str] = {}

    @property
    def _journal(self) -> DeploymentJournal:
        return self._record.journal

    @property
    def _state(self) -> Degradation:
        return self._record.journal.degradation

    @property
    def _health(self) -> HealthConfig:
        recipe = self._journal.loaded.recipe
        return HealthConfig(**recipe.health.model_dump(), start_s=recipe.timeouts.start)

    def avoid_lost_nodes(self) -> None:
        """Let the groups of a fallback do without the lost nodes, also after a takeover."""
        for group in self._groups:
            if self._state.is_of_fallback(group.name):
                group.loop.recovery.avoided = self._journal.lost_nodes

    async def run(self) -> None:
        """Step until the deployment is stopped."""
        if self._state.failures:
            # The last controller knew when the last switch failed.
            self._failed_at = self._clock.monotonic()
        while not self._journal.stopping:
            await self.step()
            await self._clock.sleep(PERIOD_S)

    async def step(self) -> None:
        """Switch if it is time."""
        if self._operations.current or not self._is_concerned():
            return
        if not self._state.is_switching:
            await self._decide()
        # A command may have come while nodes were probed.
        may_switch = not (self._operations.current or self._journal.stopping)
        if self._state.is_switching and may_switch:
            await self._operations.run_alone(self._name_switch(), self._switch)

    def _is_concerned(self) -> bool:
        return bool(self._journal.loaded.fallbacks) or self._state.stage is not Stage.FULL

    # -- decide --------------------------------------------------------------------------------

    async def _decide(self) -> None:
        now = self._clock.monotonic()
        states = [_state_of(group) for group in self._groups]
        serves = any(one.phase is Phase.READY for one in states)
        if serves and self._state.stage is Stage.FULL and self._state != Degradation():
            # The node came back before any fallback could be started.
            self._enter(Degradation())
        if serves and self._state.stage is Stage.FULL:
            self._journal.lost_nodes = ()
        self._remember_faults()
        fitting: tuple[int, ...] = ()
        if degradation.is_stuck(states, self._health, now):
            fitting = await self._fitting()
        await self._watch_room()
        seen = Surroundings(fitting, self._full_fits_since, self._failed_at)
        match degradation.decide(self._state, states, seen, self._health, now):
            case Degrade(index):
                target = self._next_groups(self._journal.loaded.fallbacks[index])
                self._enter(self._state.degrade(index, target))
            case GrowBack():
                await self._grow_back()

    async def _fitting(self) -> tuple[int, ...]:
        """Return the fallbacks for which there are enough free NPUs."""
        found = []
        for index, loaded in enumerate(self._journal.loaded.fallbacks):
            room = Room({}, self._excluded())
            if await has_room(expand_groups(loaded), room, self._journal.lost_nodes):
                found.append(index)
        return tuple(found)

    async def _watch_room(self) -> None:
        """Note since when there is room for the recipe itself in the place of the fallback."""
        if self._state.stage is not Stage.DEGRADED:
            self._full_fits_since = None
            return
        room = Room(self._groups.held_npus(), self._excluded())
        if not await has_room(expand_groups(self._journal.loaded), room):
            self._full_fits_since = None
        elif self._full_fits_since is None:
            self._full_fits_since = self._clock.monotonic()
            wait_s = self._health.grow_back_after_s
            text = f"there are NPUs for {self._journal.loaded.name} again"
            self._record.note("waiting", f"{text}: it is started when they stay for {wait_s:g} s")
            await self._stop_survivors()

    def _excluded(self) -> tuple[str, ...]:
        """Return Ray's addresses of the nodes with a device fault."""
        known = self._ray_addresses
        faulty = [failure.node for failure in self._faults if failure.node]
        return tuple(known.get(node, node) for node in faulty)

    async def _grow_back(self) -> None:
        """Plan and check the recipe itself; only what passes costs the fallback its place."""
        loaded = self._journal.loaded
        await self._stop_survivors()
        target = self._next_groups(loaded)
        waived = next(iter(self._groups)).loop.settings.waived
        room = Room(self._groups.held_npus(), self._excluded())
        problem = await find_problem(target, self._deployment, room, waived)
        if not problem:
            self._enter(self._state.grow_back(target))
            return
        self._failed_at = self._clock.monotonic()
        self._journal.degradation = replace(self._state, failures=self._state.failures + 1)
        pause_s = degradation.pause_s(self._state, self._health)
        text = f"{loaded.name} is not started, next try in {pause_s:g} s"
        self._record.note("failure", f"{text}: {problem}")

    async def _stop_survivors(self) -> None:
        """Stop the servers of removed groups whose node was out of reach: it may be back.

        Their guards would keep them for `health.orphan_grace_s`, and the recipe's checks would
        fail. A removed group's name is not used again, so no other server can be hit.
        """
        names = [name for name in self._journal.removed if name not in self._groups.by_name]
        instances = [group_instance(self._instance, name) for name in names]
        grace_s = self._journal.loaded.recipe.timeouts.stop
        stopped = await stop_instances(self._deployment, instances, grace_s)
        for ip, groups in stopped.found.items():
            self._record.note("command", f"stopped what had survived of {groups} on {ip}")
        for line in stopped.left:
            self._record.note("failure", f"a removed group still runs: {line}")

    def _next_groups(self, loaded: LoadedRecipe) -> tuple[GroupSpec, ...]:
        """Return the groups of a recipe under the names of the next generation."""
        self._journal.generation += 1
        return name_generation(expand_groups(loaded), self._journal.generation)

    # -- switch --------------------------------------------------------------------------------

    async def _switch(self) -> None:
        """Bring the groups of the target to serve in the place of the others.

        Raises:
            RaylaunchError: they could not be started; what follows is in the journal.
        """
        state = self._state
        names = [spec.name for spec in state.target]
        try:
            if not state.keeps_others:
                await self._remove([group for group in self._groups if group.name not in names])
            self._start(state.target)
            await self._await_target(names)
        except Exception:
            await self._back_out(state)
            raise
        await self._remove([group for group in self._groups if group.name not in names])
        for group in self._groups:
            group.is_on_trial = False
        self._full_fits_since = None
        if state.wanted is None:
            self._failed_at = None
        self._enter(state.succeed())
        self._report()

    def _start(self, specs: Sequence[GroupSpec]) -> None:
        """Start those of the groups that do not run: a controller that takes over has some."""
        missing = [spec for spec in specs if spec.name not in self._groups.by_name]
        for group in self._work.start(missing):
            journal = group.journal
            journal.history = replace(journal.history, failures=self._faults)
            journal.ray_addresses |= self._ray_addresses
        self.avoid_lost_nodes()
        for spec in specs:
            self._groups.find(spec.name).is_on_trial = self._state.stage is Stage.GROWING

    async def _await_target(self, names: Sequence[str]) -> None:
        """Wait until all these groups serve.

        Raises:
            RaylaunchError: one of them failed, or does not serve soon.
        """
        groups = [self._groups.find(name) for name in names]
        # While the recipe itself restarts, nothing serves: the fallback is faster.
        is_growing = self._state.stage is Stage.GROWING

        def is_given_up(group: GroupSupervisor) -> bool:
            journal = group.journal
            waits = journal.waiting_since is not None
            restarts = is_growing and journal.restarts > 0
            return waits or restarts or journal.phase in (Phase.FAILED, Phase.STOPPED)

        def is_over() -> bool:
            serving = all(group.journal.phase is Phase.READY for group in groups)
            return serving or any(is_given_up(group) for group in groups)

        await self._work.changes.until(is_over)
        for group in groups:
            if group.journal.error:
                raise from_dict(group.journal.error)
            if is_given_up(group):
                raise RaylaunchError(
                    f"group {group.name} did not become ready",
                    why="it waits for a lost node"
                    if group.journal.waiting_since is not None
                    else "its first attempt failed",
                    todo=f"`raylaunch events {self._deployment}` shows what happened",
                )

    async def _back_out(self, state: Degradation) -> None:
        """Take back what failed, and note what follows."""
        self._failed_at = self._clock.monotonic()
        self._full_fits_since = None
        if state.stage is Stage.GROWING:
            assert state.serving is not None, "it grows back from a fallback"
            fallback = self._journal.loaded.fallbacks[state.serving]
            self._enter(state.give_back(self._next_groups(fallback)))
            return
        if state.stage is Stage.DEGRADING:
            names = [spec.name for spec in state.target]
            await self._remove([group for group in self._groups if group.name in names])
        # Groups that were to return stay, so that `status` and `diagnose` show why they failed.
        self._enter(state.fail())

    async def _remove(self, groups: Sequence[GroupSupervisor]) -> None:
        names = dict.fromkeys((*self._journal.removed, *(group.name for group in groups)))
        self._journal.removed = tuple(names)[-KEPT_NAMES:]
        try:
            await self._work.remove(groups)
        except NodeError as error:
            # What is left on a node out of reach must not keep another one from serving.
            self._record.note("failure", f"{error.what}: {error.evidence}")

    def _remember_faults(self) -> None:
        known = dict.fromkeys(self._faults)
        lost = dict.fromkeys(self._journal.lost_nodes)
        for group in self._groups:
            failures = group.journal.history.failures
            known |= dict.fromkeys(one for one in failures if one.kind == "device")
            self._ray_addresses |= group.journal.ray_addresses
            lost |= dict.fromkeys(group.loop.recovery.lost_nodes)
        self._faults = tuple(known)
        if tuple(lost) != self._journal.lost_nodes:
            self._journal.lost_nodes = tuple(lost)
            self._record.changed()

    # -- words ----------------------------------------------------------------------------------

    def _enter(self, state: Degradation) -> None:
        self._journal.degradation = state
        self._record.changed()

    def _report(self) -> None:
        """Note which recipe serves after a switch."""
        state = self._state
        if state.serving is None:
            self._record.note("degraded", f"no longer: {self._journal.loaded.name} serves")
        else:
            title = self._title(state.serving)
            self._record.note("degraded", f"{title} serves until the lost node is back")

    def _name_switch(self) -> str:
        state = self._state
        if state.stage is Stage.GROWING:
            return f"start {self._journal.loaded.name} in the place of its fallback"
        return f"start the fallback {self._title(state.wanted)}"

    def _title(self, index: int | None) -> str:
        return "" if index is None else self._journal.loaded.recipe.fallback[index].title


def _state_of(group: GroupSupervisor) -> GroupState:
    journal = group.journal
    # An order that is not carried out yet changes the phase.
    waiting = journal.waiting_since if journal.phase is Phase.RESTARTING else None
    return GroupState(journal.phase, waiting)
