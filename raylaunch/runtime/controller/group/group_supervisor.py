"""One group of a deployment with all that belongs to it, its loop under a watchdog.

Groups share nothing but the order in which they choose ports and the numbers of their events: a
group's failure touches no other group.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from raylaunch.errors import BusyError, RaylaunchError
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.agent.agent_handle import AgentHandle
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.cluster.task_owner import TaskFailure, TaskOwner
from raylaunch.runtime.controller.group.evidence import Case, EvidenceCollector
from raylaunch.runtime.controller.group.group_backend import GroupSettings
from raylaunch.runtime.controller.group.group_loop import GroupLoop
from raylaunch.runtime.controller.group.group_report import build_group_status
from raylaunch.runtime.controller.group.journal import EventNumbers, Journal
from raylaunch.runtime.controller.group.planning import flatten
from raylaunch.runtime.controller.group.ray_group import RayGroup
from raylaunch.runtime.controller.launch_request import GroupRequest
from raylaunch.runtime.controller.port_turns import Turns
from raylaunch.supervise.deployment_status import Event, GroupStatus
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import Phase, ServerSeen

log = logging.getLogger(__name__)

STOP_TRIES = 3
"""After so many errors in a row a stop is reported as failed."""
WATCHDOG_PERIOD_S = 10.0
STUCK_S = 180.0
"""A loop that supervises steps once a heartbeat; with a failure, evidence, and a diagnosis at its
deadline, after about a minute. Reserving and restarting may wait for hours."""
LOOP = "group loop"


class GroupSupervisor:
    """One group: its reservation and agents, its loop, its evidence.

    Args:
        request: The group, and what was asked of it.
        turns: Orders the groups that choose their ports at the same moment.
        clock: Of this process.
        numbers: Numbers the events of the deployment.
        home: Where bundles are kept.
        on_change: Called after each change.
    """

    def __init__(
        self,
        request: GroupRequest,
        turns: Turns,
        clock: Clock,
        numbers: EventNumbers,
        home: Path,
        on_change: Callable[[], None],
    ) -> None:
        settings = _settings_of(request)
        self.request = request
        self.backend = RayGroup(request, settings.health, turns, self._report_task)
        self._evidence = EvidenceCollector(self.backend, clock, home, request.key)
        self.loop = GroupLoop(
            settings,
            self.backend,
            self._evidence,
            clock,
            jitter=random.random,
            on_change=on_change,
            numbers=numbers,
        )
        self.is_on_trial = False
        """Other groups are started if this one fails: requests wait for those."""
        self._clock = clock
        self._tasks = TaskOwner(self._report_task)
        self._loop_task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The group's name within its deployment."""
        return self.request.spec.name

    @property
    def journal(self) -> Journal:
        """The group's memory."""
        return self.loop.record.journal

    @property
    def plan(self) -> LaunchPlan | None:
        """The newest plan, for others that choose their ports; None if nothing runs."""
        if self.journal.phase in (Phase.FAILED, Phase.STOPPED):
            return None
        if self.journal.waiting_since is not None and self.request.spec.loaded.fallbacks:
            # Nothing of it runs, and its fallback shall have the same ports.
            return None
        return self.backend.chosen or self.journal.plan

    def copy(self) -> tuple[int, bytes]:
        """Return the number of the group's journal and a copy of it."""
        return self.journal.number, self.journal.dump(self._clock)

    def apply(self, loaded: LoadedRecipe) -> None:
        """Take over settings that no server reads (`health`, `timeouts`) from another recipe.

        The periods of the probes beside a server are those of its launch until the next one.
        """
        self.request = replace(self.request, spec=replace(self.request.spec, loaded=loaded))
        settings = _settings_of(self.request)
        self.loop.settings = settings
        self.loop.recovery.settings = settings
        self.loop.adoption.settings = settings
        self.backend.apply(self.request, settings.health)

    def adopt(self, journal: Journal | None, secrets: Mapping[str, str]) -> None:
        """Continue what a controller that died has left; see `RayGroup.find`.

        Args:
            journal: The newest copy; None if there is none.
            secrets: Those of the deployment.
        """
        settled = (Phase.FAILED, Phase.STOPPING, Phase.STOPPED)
        if journal is None or (journal.plan is None and journal.phase not in settled):
            # It had launched nothing yet.
            self.loop.begin(secrets)
            return
        seen = {}
        if journal.plan is not None:
            seen = last_known(journal.plan, journal.attempt, self._owned(journal))
        self.loop.resume(journal, secrets, seen)

    def _owned(self, journal: Journal) -> Collection[int]:
        """Return the servers that an agent owns.

        The last controller may have died when it had created an agent that was to adopt a server.
        """
        alive = self.backend.servers
        if self.loop.settings.health.orphan_grace_s <= 0 or journal.phase is not Phase.READY:
            return alive
        return [index for index in alive if self.backend.running.get(index) == journal.attempt]

    # -- questions -----------------------------------------------------------------------------

    def status(self) -> GroupStatus:
        """Return where the group is now."""
        return build_group_status(
            self.request,
            self.loop.record,
            self.backend.log_roots,
            self._clock,
            self.loop.recovery.back_off_until,
        )

    async def diagnosis(self) -> Diagnosis | None:
        """Return the diagnosis of the last failure; if there was none, of the current logs."""
        if self.journal.diagnosis is not None or self.journal.plan is None:
            return self.journal.diagnosis
        found = (await self._evidence.examine(self.journal, self.loop.record.seen)).diagnosis
        return None if found is None or found.id == "no-evidence" else found

    async def keep_evidence(self, why: str) -> Case:
        """Keep the evidence of a group that serves and is refused, as that of a failed one."""
        self.loop.record.note("failure", why)
        case = await self._evidence.examine(self.journal, self.loop.record.seen)
        await self._evidence.keep(case, self.journal, self.loop.record.seen)
        return case

    def node_ids(self) -> dict[int, str]:
        """Return Ray's id of each server's node."""
        plan = self.journal.plan
        return {server.index: server.node.node_id for server in plan.servers} if plan else {}

    def agents_by_node(self) -> dict[str, AgentHandle]:
        """Return a living agent for each node of the plan, by Ray's id of the node."""
        agents = self.backend.gang.alive
        nodes = self.node_ids()
        return {nodes[index]: agent for index, agent in agents.items() if index in nodes}

    async def leftovers(self) -> list[str]:
        """Return the living processes of earlier attempts, as the agents find them."""
        attempt = self.journal.attempt
        gang = self.backend.gang
        answers = await gang.ask_all(lambda agent: agent.find_orphans(attempt=attempt))
        return flatten(answers)

    async def inject(self, fault: str, server: int) -> Event:
        """Inject a drill's fault; the event has its time on this process's clock.

        Raises:
            BusyError: the group is not ready, so another command or failure is under way.
        """
        plan = self.journal.plan
        if not self.loop.can_be_drilled or plan is None or server not in self.backend.servers:
            name = self.request.key.deployment
            raise BusyError(
                f"{name} is {self.journal.phase}, and a drill needs it ready",
                why="another command, or the last fault, is still under way",
                todo=f"`raylaunch status {name}` shows it; try again when it is ready",
            )
        self.loop.record.expect_drill()
        done = await self.backend.inject(server, fault, plan.primary.ports.rpc)
        age_s = self._clock.monotonic() - done.at
        return self.loop.record.note("drill", done.what, server, at=self._clock.wall() - age_s)

    # -- tasks ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Run the loop in a task that is restarted when it raises, and under a watchdog."""
        if self._loop_task is None:
            self._loop_task = self._tasks.keep_running(LOOP, self.loop.run)
            self._tasks.keep_running("watchdog", self._watch_loop)

    async def _watch_loop(self) -> None:
        """Restart a loop that no longer steps, and report an event loop that was blocked."""
        while not self.loop.is_stopped:
            slept_at = time.monotonic()
            await asyncio.sleep(WATCHDOG_PERIOD_S)
            late_s = time.monotonic() - slept_at - WATCHDOG_PERIOD_S
            if late_s > 1.0:
                log.warning("the controller's event loop was blocked for %.1f s", late_s)
            stuck_s = self._clock.monotonic() - self.loop.last_step_at
            if self.loop.must_step and stuck_s - max(late_s, 0.0) > STUCK_S:
                self._replace_stuck_loop(stuck_s)

    def _replace_stuck_loop(self, stuck_s: float) -> None:
        self.loop.record.note(
            "internal", f"the controller made no step for {stuck_s:.0f} s; restarted"
        )
        assert self._loop_task is not None
        self._loop_task.cancel()
        self._loop_task = self._tasks.keep_running(LOOP, self.loop.run)

    def _report_task(self, failure: TaskFailure) -> None:
        """Make the exception of a task visible: the task owner has logged and restarted it."""
        self.loop.record.note("internal", str(failure))
        if (
            failure.name == LOOP
            and self.loop.orders.stop_requested
            and failure.failures >= STOP_TRIES
        ):
            error = failure.error
            if not isinstance(error, RaylaunchError):
                error = RaylaunchError("the deployment could not be stopped", why=repr(error))
            self.loop.fail_stop(error)


def _settings_of(request: GroupRequest) -> GroupSettings:
    recipe = request.spec.loaded.recipe
    return GroupSettings(
        name=request.spec.name,
        health=HealthConfig(**recipe.health.model_dump(), start_s=recipe.timeouts.start),
        stop_grace_s=recipe.timeouts.stop,
        waived=request.skipped,
    )


def last_known(plan: LaunchPlan, attempt: int, alive: Collection[int]) -> dict[int, ServerSeen]:
    """Return what is known of the servers of a running attempt; `alive` are those with an agent."""
    nodes = {node["NodeID"] for node in alive_nodes()}
    found = {}
    for server in plan.servers:
        lost = None
        if server.index not in alive:
            lost = "agent died" if server.node.node_id in nodes else "node died"
        found[server.index] = ServerSeen(server.index, attempt=attempt, agent_lost=lost)
    return found
