"""The controller: the detached Ray actor of one deployment. Its methods are commands and questions.

What it supervises is a `GroupLoop`. Ray restarts a dead controller, which then takes over
(`takeover`): it finds its agents by name, adopts the journal they kept, and touches no server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Mapping
from enum import StrEnum

from raylaunch.errors import BusyError, LaunchError, NodeError, RaylaunchError
from raylaunch.home import home
from raylaunch.node.process.log_files import Chunk, Cursor, tail
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.cluster import takeover_key
from raylaunch.runtime.cluster.actor_log import actor_log_path, open_actor_log
from raylaunch.runtime.cluster.clock import SystemClock
from raylaunch.runtime.cluster.task_owner import TaskFailure, TaskOwner
from raylaunch.runtime.controller import takeover
from raylaunch.runtime.controller.evidence import EvidenceCollector
from raylaunch.runtime.controller.group_backend import GroupSettings
from raylaunch.runtime.controller.group_loop import GroupLoop
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.runtime.controller.planning import flatten
from raylaunch.runtime.controller.port_turns import Ticket, Turns
from raylaunch.runtime.controller.ray_group import RayGroup
from raylaunch.runtime.controller.reporting import build_status
from raylaunch.supervise.deployment_status import Event, Status, StopReport
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import Phase

log = logging.getLogger(__name__)

BEGIN_PATIENCE_S = 10.0
"""How long a controller that Ray restarted, and that finds no journal, waits for `begin`."""
ORPHAN_S = 90.0
"""How long a new controller waits for `begin`: longer than `raylaunch start` tries to call it."""
STOP_TRIES = 3
"""After so many errors in a row a stop is reported as failed."""
WATCHDOG_PERIOD_S = 10.0
STUCK_S = 180.0
"""A loop that supervises steps once a heartbeat; after a failure, within about a minute."""
LOOP = "group loop"


class ControllerState(StrEnum):
    """Where a controller is. The phase of its group is another matter."""

    WAITING_FOR_BEGIN = "waiting for begin"
    """Created, but `raylaunch start` has not handed over the secrets yet."""
    TAKING_OVER = "taking over"
    """Ray restarted it: it looks for the agents of its predecessor."""
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


_TRANSITIONS = {
    ControllerState.WAITING_FOR_BEGIN: {ControllerState.RUNNING, ControllerState.STOPPING},
    ControllerState.TAKING_OVER: {
        ControllerState.WAITING_FOR_BEGIN,  # nothing was found: Ray restarted it before `begin`
        ControllerState.RUNNING,
        ControllerState.STOPPING,
    },
    ControllerState.RUNNING: {ControllerState.STOPPING},
    ControllerState.STOPPING: {ControllerState.STOPPED},
    ControllerState.STOPPED: set[ControllerState](),
}


class StateMachine:
    """Holds the state, refuses illegal transitions, and lets others wait for the next one."""

    def __init__(self, first: ControllerState) -> None:
        self._state = first
        self._changed = asyncio.Event()

    @property
    def now(self) -> ControllerState:
        """The current state."""
        return self._state

    def enter(self, state: ControllerState) -> None:
        """Move to `state`.

        Raises:
            AssertionError: an illegal transition, which is a bug.
        """
        if state not in _TRANSITIONS[self._state]:
            raise AssertionError(f"illegal transition of a controller: {self._state} -> {state}")
        log.info("controller: %s -> %s", self._state, state)
        self._state = state
        changed = self._changed
        self._changed = asyncio.Event()
        changed.set()

    async def leave(self, *states: ControllerState, timeout_s: float | None = None) -> bool:
        """Wait until the state is none of `states`; return False when `timeout_s` passes first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._state in states:
                    await self._changed.wait()
        return self._state not in states

    async def know(self) -> None:
        """Wait until the controller knows what it controls: it can then answer questions."""
        await self.leave(ControllerState.WAITING_FOR_BEGIN, ControllerState.TAKING_OVER)


class Controller:
    """One deployment. Every public method is a command or a question; none blocks another."""

    def __init__(self, request: Request) -> None:
        import ray

        self._request = request
        recipe = request.loaded.recipe
        self._log = actor_log_path(os.environ, request.deployment, "controller")
        open_actor_log(self._log)
        self._key_file = takeover_key.file_of(home(), request.deployment, request.instance)
        health = HealthConfig(**recipe.health.model_dump(), start_s=recipe.timeouts.start)
        self._clock = SystemClock()
        self._turns = Turns(request.deployment)
        self._tasks = TaskOwner(self._report_task)
        self._group = RayGroup(request, health, self._turns, self._report_task)
        self._evidence = EvidenceCollector(self._group, self._clock, home(), request.deployment)
        # One group for now. A deployment with several has one loop for each.
        self._loop = GroupLoop(
            GroupSettings(
                name=request.deployment,
                health=health,
                stop_grace_s=recipe.timeouts.stop,
                waived=request.skipped or {},
            ),
            self._group,
            self._evidence,
            self._clock,
            jitter=random.random,
            on_change=self._notify,
        )
        self._loop_task: asyncio.Task[None] | None = None
        self._version = 0
        self._changed = asyncio.Event()
        self._stop_began = 0.0
        # Ray starts workers at niceness 15. Only root may lower it.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        # The event loop does not run yet: the first work comes as a call of this actor to itself.
        context = ray.get_runtime_context()
        me = context.current_actor
        if context.was_current_actor_reconstructed:
            log.warning("Ray restarted the controller of %s", request.deployment)
            self._state = StateMachine(ControllerState.TAKING_OVER)
            self._takeover_call = takeover.RepeatedCall(me.take_over.remote)
            self._takeover_call.start()
        else:
            log.info("controller of %s, pid %d", request.deployment, os.getpid())
            self._state = StateMachine(ControllerState.WAITING_FOR_BEGIN)
            me.expect_begin.remote()

    # -- start ---------------------------------------------------------------------------------

    async def expect_begin(self) -> None:
        """Reserve meanwhile; fail if `raylaunch start` exits before it has called `begin`."""
        self._run_loop()
        await self._await_begin(
            ORPHAN_S, "`raylaunch start` exited before the controller took over"
        )

    async def begin(self, secrets: Mapping[str, str]) -> None:
        """Start the deployment; returns before it is ready."""
        await self._state.leave(ControllerState.TAKING_OVER)
        if self._state.now is ControllerState.WAITING_FOR_BEGIN:
            if secrets:
                await asyncio.to_thread(self._create_takeover_key)
            self._loop.begin(secrets)
            self._state.enter(ControllerState.RUNNING)
            self._run_loop()

    def _create_takeover_key(self) -> None:
        try:
            self._group.takeover_key = takeover_key.create_key(self._key_file)
        except (OSError, NodeError) as error:
            # The service matters more. After the controller's death it cannot be relaunched.
            self._loop.record.note("internal", f"cannot keep the takeover key: {error}")

    async def take_over(self) -> None:
        """Continue after the death of the last controller."""
        if self._takeover_call.arrive():
            self._tasks.keep_running("takeover", self._take_over)

    async def _take_over(self) -> None:
        if self._state.now is not ControllerState.TAKING_OVER:
            return  # this task was restarted after it had done its work
        self._group.takeover_key = await asyncio.to_thread(takeover_key.read_key, self._key_file)
        adopted = await takeover.adopt(self._group, self._clock)
        if adopted is None:  # Ray also restarts a controller that `begin` has not reached yet
            self._state.enter(ControllerState.WAITING_FOR_BEGIN)
            await self._await_begin(
                BEGIN_PATIENCE_S,
                "the controller died before anything was launched, and Ray restarted it",
            )
            return
        self._loop.resume(adopted.journal, adopted.secrets, adopted.seen)
        self._state.enter(ControllerState.RUNNING)
        if adopted.journal.phase is Phase.STOPPING:
            self._begin_stop()
        self._run_loop()

    async def _await_begin(self, patience_s: float, otherwise: str) -> None:
        """Fail the deployment if `begin` does not come in time."""
        # It has no secrets: starting all the same could serve without an API key.
        if await self._state.leave(ControllerState.WAITING_FOR_BEGIN, timeout_s=patience_s):
            return
        name = self._request.deployment
        todo = f"`raylaunch stop {name}`, then start it again"
        self._loop.abandon(LaunchError(otherwise, todo=todo))
        self._state.enter(ControllerState.RUNNING)
        self._run_loop()

    # -- questions -----------------------------------------------------------------------------

    async def status(self) -> Status:
        """Return where the deployment is now."""
        await self._state.know()
        return self._status()

    async def wait_change(self, version: int, timeout_s: float) -> tuple[int, Status]:
        """Return the status as soon as it is newer than `version`, or after `timeout_s`."""
        await self._state.know()
        if self._version <= version:
            await self._clock.wait(self._changed, timeout_s)
        return self._version, self._status()

    async def show_plan(self, ticket: Ticket) -> LaunchPlan | None:
        """Return the plan, for another deployment that chooses its ports now; None if none runs."""
        await self._state.know()
        await self._turns.wait(ticket)
        if self._loop.record.journal.phase in (Phase.FAILED, Phase.STOPPED):
            return None
        return self._loop.record.journal.plan

    async def events(self, after: int) -> list[Event]:
        """Return the events newer than number `after`."""
        await self._state.know()
        return [event for event in self._loop.record.journal.events if event.number > after]

    async def read_log(
        self, server: int, cursor: Cursor | None, lines: int | None, timeout_s: float
    ) -> Chunk | None:
        """Return a piece of a server's log; see `Agent.read_log`. None when its agent is lost."""
        agent = self._group.agent_of(server)
        if agent is None:
            return None
        return await agent.read_log(cursor=cursor, lines=lines, wait_s=timeout_s)

    async def read_controller_log(self, lines: int) -> str:
        """Return the last lines of this controller's log."""
        return "\n".join(await asyncio.to_thread(tail, self._log, lines))

    async def describe(self) -> tuple[LoadedRecipe, LaunchPlan | None, dict[int, dict[str, str]]]:
        """Return the recipe, its plan, and the versions installed on each server's node."""
        await self._state.know()
        journal = self._loop.record.journal
        return self._request.loaded, journal.plan, journal.versions

    async def diagnosis(self) -> Diagnosis | None:
        """Return the diagnosis of the last failure; if there was none, of the current logs."""
        await self._state.know()
        journal = self._loop.record.journal
        if journal.diagnosis is not None or journal.plan is None:
            return journal.diagnosis
        found = (await self._evidence.examine(journal, self._loop.record.seen)).diagnosis
        return None if found is None or found.id == "no-evidence" else found

    async def node_ids(self) -> dict[int, str]:
        """Return Ray's id of each server's node."""
        plan = self._loop.record.journal.plan
        return {server.index: server.node.node_id for server in plan.servers} if plan else {}

    async def has_spare(self) -> bool:
        """Return whether another node could take a server's place."""
        return await self._loop.recovery.has_spare()

    async def leftovers(self) -> list[str]:
        """Return the living processes of earlier attempts, as the agents find them."""
        attempt = self._loop.record.journal.attempt
        answers = await self._group.gang.ask_all(lambda agent: agent.find_orphans(attempt=attempt))
        return flatten(answers)

    # -- drills --------------------------------------------------------------------------------

    async def inject(self, fault: str, server: int) -> Event:
        """Inject a drill's fault; the event has its time on this controller's clock.

        Raises:
            BusyError: the deployment is not ready, so another command or failure is under way.
        """
        await self._state.know()
        plan = self._loop.record.journal.plan
        if not self._loop.can_be_drilled or plan is None or server not in self._group.servers:
            name = self._request.deployment
            raise BusyError(
                f"{name} is {self._loop.record.journal.phase}, and a drill needs it ready",
                why="another command, or the last fault, is still under way",
                todo=f"`raylaunch status {name}` shows it; try again when it is ready",
            )
        self._loop.record.expect_drill()
        done = await self._group.inject(server, fault, plan.primary.ports.rpc)
        age_s = self._clock.monotonic() - done.at
        return self._loop.record.note("drill", done.what, server, at=self._clock.wall() - age_s)

    async def may_cut(self, server: int) -> str:
        """Return the interface that a drill may take down on the server's node; "" for none."""
        return await self._group.gang.alive[server].cuttable_interface()

    # -- stop ----------------------------------------------------------------------------------

    async def stop(self) -> StopReport:
        """Stop everything and verify it. A second caller waits for the same stop."""
        await self._state.leave(ControllerState.TAKING_OVER)
        if self._state.now in (ControllerState.WAITING_FOR_BEGIN, ControllerState.RUNNING):
            self._loop.record.note("command", "stop")
            self._begin_stop()
            self._run_loop()
        stopped = await self._loop.stopped()
        if self._state.now is ControllerState.STOPPING:
            self._state.enter(ControllerState.STOPPED)
            await asyncio.to_thread(takeover_key.remove_key, self._key_file)
        seconds = self._clock.monotonic() - self._stop_began
        name = self._request.deployment
        return StopReport(name, stopped.processes, seconds, stopped.left)

    def _begin_stop(self) -> None:
        self._state.enter(ControllerState.STOPPING)
        self._stop_began = self._clock.monotonic()
        self._loop.request_stop()

    # -- tasks ---------------------------------------------------------------------------------

    def _run_loop(self) -> None:
        """Run the loop in a task that is restarted when it raises, and under a watchdog."""
        if self._loop_task is None:
            self._loop_task = self._tasks.keep_running(LOOP, self._loop.run)
            self._tasks.keep_running("watchdog", self._watch_loop)

    async def _watch_loop(self) -> None:
        """Restart a loop that no longer steps, and report an event loop that was blocked."""
        while not self._loop.is_stopped:
            slept_at = time.monotonic()
            await asyncio.sleep(WATCHDOG_PERIOD_S)
            late_s = time.monotonic() - slept_at - WATCHDOG_PERIOD_S
            if late_s > 1.0:
                log.warning("the controller's event loop was blocked for %.1f s", late_s)
            stuck_s = self._clock.monotonic() - self._loop.last_step_at
            if self._loop.must_step and stuck_s - max(late_s, 0.0) > STUCK_S:
                self._replace_stuck_loop(stuck_s)

    def _replace_stuck_loop(self, stuck_s: float) -> None:
        self._loop.record.note(
            "internal", f"the controller made no step for {stuck_s:.0f} s; restarted"
        )
        assert self._loop_task is not None
        self._loop_task.cancel()
        self._loop_task = self._tasks.keep_running(LOOP, self._loop.run)

    def _report_task(self, failure: TaskFailure) -> None:
        """Make the exception of a task visible: the task owner has logged and restarted it."""
        self._loop.record.note("internal", str(failure))
        stopping = self._state.now is ControllerState.STOPPING
        if failure.name == LOOP and stopping and failure.failures >= STOP_TRIES:
            error = failure.error
            if not isinstance(error, RaylaunchError):
                error = RaylaunchError("the deployment could not be stopped", why=repr(error))
            self._loop.fail_stop(error)

    def _notify(self) -> None:
        self._version += 1
        changed = self._changed
        self._changed = asyncio.Event()
        changed.set()

    def _status(self) -> Status:
        record = self._loop.record
        roots = self._group.log_roots
        return build_status(
            self._request, record.journal, record.seen, roots, record.shape, self._clock
        )
