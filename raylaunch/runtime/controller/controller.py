"""The controller: the detached Ray actor of one deployment. Its methods are commands and questions.

It supervises groups, each with a loop of its own (`group/`). Ray restarts a dead controller, which
then takes over (`takeover`): it finds its agents by name, adopts the journals they kept, and
touches no server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping

from raylaunch.errors import BusyError, LaunchError
from raylaunch.home import home
from raylaunch.node.process.log_files import Chunk, Cursor, tail
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.plan.node_usage import NodeUsage
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.agent.fault_injection import DrillLimits
from raylaunch.runtime.cluster import takeover_key
from raylaunch.runtime.cluster.actor_log import actor_log_path, open_actor_log
from raylaunch.runtime.cluster.clock import SystemClock
from raylaunch.runtime.cluster.task_owner import TaskFailure, TaskOwner
from raylaunch.runtime.controller import takeover
from raylaunch.runtime.controller.changes.fallback_loop import FallbackLoop
from raylaunch.runtime.controller.changes.group_changes import GroupChanges
from raylaunch.runtime.controller.changes.operations import Operations
from raylaunch.runtime.controller.controller_state import ControllerState, StateMachine
from raylaunch.runtime.controller.deployment_record import DeploymentJournal, DeploymentRecord
from raylaunch.runtime.controller.gateway.gateway_link import make_gateway
from raylaunch.runtime.controller.group.group_report import as_raylaunch_error
from raylaunch.runtime.controller.group.journal import EventNumbers
from raylaunch.runtime.controller.group_set import Changes, GroupSet
from raylaunch.runtime.controller.journal_copies import JournalCopies
from raylaunch.runtime.controller.journal_store import JournalStore
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.runtime.controller.monitoring.monitor import Monitor
from raylaunch.runtime.controller.port_turns import Ticket
from raylaunch.runtime.controller.whole_status import all_events, whole_status
from raylaunch.supervise.deployment_status import Event, Status, StopReport
from raylaunch.supervise.diagnosis.root_cause import Diagnosis

log = logging.getLogger(__name__)

BEGIN_PATIENCE_S = 10.0
"""How long a controller that Ray restarted, and that finds no journal, waits for `begin`."""
GATEWAY = "gateway"
ORPHAN_S = 90.0
"""How long a new controller waits for `begin`: longer than `raylaunch start` tries to call it."""


class Controller:
    """One deployment. Every public method is a command or a question; none blocks another.

    Where a method takes a group, None means the first one.
    """

    def __init__(self, request: Request) -> None:
        import ray

        self._request = request
        self._log = actor_log_path(os.environ, request.deployment, "controller")
        open_actor_log(self._log)
        self._key_file = takeover_key.file_of(home(), request.deployment, request.instance)
        self._clock = SystemClock()
        self._numbers = EventNumbers()
        self._changes = Changes(self._clock)
        self._groups = GroupSet(request, self._clock, self._numbers, self._notify)
        self._copies = JournalCopies(self._groups)
        self._record = DeploymentRecord(
            DeploymentJournal(request.loaded, expand_groups(request.loaded)),
            self._clock,
            self._numbers,
            self._copies.spread_deployment,
            self._notify,
        )
        self._key = (self._key_file, self._record.note)
        self._tasks = TaskOwner(self._report_task)
        self._work = GroupChanges(request.deployment, self._groups, self._record, self._changes)
        parts = (self._groups, self._record, self._work)
        self._operations = Operations(request.deployment, *parts, self._tasks)
        self._fallbacks = FallbackLoop(request, *parts, self._operations, self._clock)
        self._store = JournalStore(request, self._groups, self._record, self._changes, self._clock)
        self._stop_began = 0.0
        self._offered: Mapping[str, str] = {}
        self._begun = asyncio.Event()
        for spec in self._record.journal.specs:
            self._groups.add(spec)
        self._gateway = make_gateway(request, self._groups, self._clock, self._notify)
        # Ray starts workers at niceness 15. Only root may lower it.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        # The event loop does not run yet: the first work comes as a call of this actor to itself.
        context = ray.get_runtime_context()
        self._monitor = Monitor(
            request.deployment, self._groups, self._record, self._changes, self._status, self._clock
        )
        if context.was_current_actor_reconstructed or request.adopts:
            log.warning("the controller of %s takes over, pid %d", request.deployment, os.getpid())
            self._state = StateMachine(ControllerState.TAKING_OVER)
            self._takeover_call = takeover.RepeatedCall(context.current_actor.take_over.remote)
            self._takeover_call.start()
        else:
            log.info("controller of %s, pid %d", request.deployment, os.getpid())
            self._state = StateMachine(ControllerState.WAITING_FOR_BEGIN)
            context.current_actor.expect_begin.remote()

    # -- start ---------------------------------------------------------------------------------

    async def expect_begin(self) -> None:
        """Reserve meanwhile; fail if `raylaunch start` exits before it has called `begin`."""
        self._groups.run()
        why = "`raylaunch start` exited before the controller took over"
        await self._await_begin(ORPHAN_S, why)

    async def begin(self, secrets: Mapping[str, str]) -> None:
        """Start the deployment, or adopt what runs of it; returns before it is ready."""
        self._offered = secrets
        self._begun.set()
        await self._state.leave(ControllerState.TAKING_OVER)
        if self._state.now is ControllerState.WAITING_FOR_BEGIN:
            if secrets:
                self._groups.use_key(await asyncio.to_thread(takeover.new_key, *self._key))
            if self._gateway is not None:
                await self._gateway.check(secrets)
            if await self._state.leave(ControllerState.WAITING_FOR_BEGIN, timeout_s=0):
                return  # it was stopped meanwhile
            self._groups.begin(secrets)
            self._run_gateway(secrets, was_up=False)
            self._state.enter(ControllerState.RUNNING)
            self._groups.run()

    async def note_wait(self, text: str) -> None:
        """Note what `raylaunch start` has waited for."""
        self._record.note("waiting", text)

    async def take_over(self) -> None:
        """Continue after the death of the last controller."""
        if self._takeover_call.arrive():
            self._tasks.keep_running("takeover", self._take_over)

    async def _take_over(self) -> None:
        if self._state.now is not ControllerState.TAKING_OVER:
            return  # this task was restarted after it had done its work
        key = await asyncio.to_thread(takeover.known_key, self._request.adopts, *self._key)
        self._groups.use_key(key)
        found = await takeover.search_patiently(self._request, self._clock, self._begun.is_set)
        if found.deployment is not None:
            self._record.journal = found.deployment
            self._groups.by_name.clear()
            for spec in found.deployment.specs:
                self._groups.add(spec)
        await asyncio.gather(*(group.backend.find() for group in self._groups))
        secrets = {**self._offered, **await takeover.read_secrets(self._groups)}
        if not found.may_be_adopted(self._groups.lack_any(secrets)):
            self._state.enter(ControllerState.WAITING_FOR_BEGIN)
            await self._await_begin(BEGIN_PATIENCE_S, takeover.explain_nothing(found))
            return
        if self._gateway is not None:
            self._gateway.adopt(self._record.journal)
        self._numbers.skip_lost(found.newest_number)
        for group in self._groups:
            group.adopt(found.groups.get(group.name), secrets)
        self._fallbacks.avoid_lost_nodes()
        self._run_gateway(secrets, was_up=self._groups.have_served)
        self._state.enter(ControllerState.RUNNING)
        if self._record.journal.stopping:
            await self._begin_stop()
        self._groups.run()
        if not self._record.journal.stopping:
            self._operations.resume()

    async def _await_begin(self, patience_s: float, otherwise: str) -> None:
        """Fail the deployment if `begin` does not come in time."""
        # It has no secrets: starting all the same could serve without an API key.
        if await self._state.leave(ControllerState.WAITING_FOR_BEGIN, timeout_s=patience_s):
            return
        todo = f"`raylaunch stop {self._request.deployment}`, then start it again"
        for group in self._groups:
            group.loop.abandon(LaunchError(otherwise, todo=todo))
        self._state.enter(ControllerState.RUNNING)
        self._groups.run()

    # -- questions -----------------------------------------------------------------------------

    async def status(self) -> Status:
        """Return where the deployment is now."""
        await self._state.know()
        if self._gateway is not None:
            await self._gateway.refresh()
        return self._status()

    async def usage(self) -> Mapping[tuple[str, int], NodeUsage]:
        """Return what servers and nodes use; see `Monitor.usage`."""
        await self._state.know()
        return await self._monitor.usage()

    async def wait_change(self, version: int, timeout_s: float) -> tuple[int, Status]:
        """Return the status as soon as it is newer than `version`, or after `timeout_s`."""
        await self._state.know()
        await self._changes.wait(version, timeout_s)
        return self._changes.version, self._status()

    async def show_plans(self, ticket: Ticket) -> list[LaunchPlan]:
        """Return the plans of what runs, for another deployment that chooses its ports now."""
        await self._state.know()
        await self._groups.turns.wait(ticket)
        return self._groups.plans()

    async def events(self, after: int) -> list[Event]:
        """Return the events newer than number `after`, in the order they happened."""
        await self._state.know()
        return [one for one in all_events(self._groups, self._record) if one.number > after]

    async def read_log(
        self,
        server: int,
        cursor: Cursor | None,
        lines: int | None,
        timeout_s: float,
        group: str | None = None,
    ) -> Chunk | None:
        """Return a piece of a server's log; see `Agent.read_log`. None when its agent is lost."""
        agent = self._groups.find(group).backend.agent_of(server)
        if agent is None:
            return None
        return await agent.read_log(cursor=cursor, lines=lines, wait_s=timeout_s)

    async def read_controller_log(self, lines: int) -> str:
        """Return the last lines of this controller's log."""
        return "\n".join(await asyncio.to_thread(tail, self._log, lines))

    async def describe(
        self, group: str | None = None
    ) -> tuple[LoadedRecipe, LaunchPlan | None, dict[int, dict[str, str]]]:
        """Return a group's recipe, its plan, and the versions installed on each server's node."""
        await self._state.know()
        found = self._groups.find(group)
        return found.request.spec.loaded, found.journal.plan, found.journal.versions

    async def diagnosis(self, group: str | None = None) -> Diagnosis | None:
        """Return the diagnosis of the last failure; if there was none, of the current logs.

        Without a group, the first that was diagnosed counts.
        """
        await self._state.know()
        if group is not None:
            return await self._groups.find(group).diagnosis()
        for one in self._groups:
            if one.journal.diagnosis is not None:
                return one.journal.diagnosis
        answers = [await one.diagnosis() for one in self._groups]
        return next((answer for answer in answers if answer is not None), None)

    async def node_ids(self, group: str | None = None) -> dict[int, str]:
        """Return Ray's id of each server's node."""
        return self._groups.find(group).node_ids()

    async def has_spare(self, group: str | None = None) -> bool:
        """Return whether another node could take a server's place."""
        return await self._groups.find(group).loop.recovery.has_spare()

    async def leftovers(self, group: str | None = None) -> list[str]:
        """Return the living processes of earlier attempts, as the agents find them."""
        return await self._groups.find(group).leftovers()

    async def inject(self, fault: str, server: int, group: str | None = None) -> Event:
        """Inject a drill's fault; the event has its time on this controller's clock.

        Raises:
            BusyError: the group is not ready, so another command or failure is under way.
        """
        await self._state.know()
        return await self._groups.find(group).inject(fault, server)

    async def drill_limits(self, server: int, group: str | None = None) -> DrillLimits:
        """Return what a drill may do to the server's node."""
        return await self._groups.find(group).backend.gang.alive[server].drill_limits()

    # -- changes -------------------------------------------------------------------------------

    async def restart(self, group: str | None) -> None:
        """Begin to restart a group, or all of them one after the other; see `Status.operation`.

        Raises:
            BusyError: another operation is under way, or the deployment is being stopped.
        """
        await self._require_running()
        self._operations.restart(group)

    async def scale(self, replicas: int) -> None:
        """Begin to add or remove replicas; see `Status.operation`.

        Raises:
            BusyError: another operation is under way, or the deployment is being stopped.
            RecipeError: the groups differ.
        """
        await self._require_running()
        self._operations.scale(replicas)

    async def upgrade(self, loaded: LoadedRecipe, secrets: Mapping[str, str]) -> None:
        """Begin to replace what differs from another recipe; see `Status.operation`.

        Raises:
            BusyError: another operation is under way, or the deployment is being stopped.
            RecipeError: the recipes differ in what an upgrade cannot change.
        """
        await self._require_running()
        self._operations.upgrade(loaded, secrets)
        self._monitor.take_secrets(self._work.secrets)

    async def confirm(self, problem: str) -> None:
        """Take the verdict on the groups in `Status.awaits`; "" if nothing is wrong with them."""
        self._operations.confirm(problem)

    async def rotate_keys(self, key_hashes: Mapping[str, str]) -> None:
        """Replace API keys of the gateway: SHA-256 -> name of the secret.

        Raises:
            RaylaunchError: there is no gateway, or it does not take them; the old ones stay.
        """
        await self._require_running()
        await self._operations.rotate_keys(key_hashes)

    async def recipe(self) -> LoadedRecipe:
        """Return the recipe of the whole deployment."""
        await self._state.know()
        return self._record.journal.loaded

    async def _require_running(self) -> None:
        await self._state.know()
        if self._state.now is not ControllerState.RUNNING:
            raise BusyError(f"{self._request.deployment} is {self._state.now}")

    # -- stop ----------------------------------------------------------------------------------

    async def stop(self) -> StopReport:
        """Stop everything and verify it. A second caller waits for the same stop."""
        await self._state.leave(ControllerState.TAKING_OVER)
        if self._state.now in (ControllerState.WAITING_FOR_BEGIN, ControllerState.RUNNING):
            self._record.journal.stopping = True
            self._record.note("command", "stop")
            await self._begin_stop()
        groups = list(self._groups)
        stopped = await asyncio.gather(*(group.loop.stopped() for group in groups))
        if self._state.now is ControllerState.STOPPING:
            self._state.enter(ControllerState.STOPPED)
            await asyncio.to_thread(takeover_key.remove_key, self._key_file)
            await self._tasks.run_once("end of the journals", self._store.remove)
        await self._tasks.run_once("end of monitoring", self._monitor.stop)
        return self._groups.report_stop(groups, stopped, self._stop_began)

    async def _begin_stop(self) -> None:
        self._state.enter(ControllerState.STOPPING)
        self._stop_began = self._clock.monotonic()
        self._operations.cancel()
        self._groups.run()
        if self._gateway is not None:
            await self._gateway.stop()
        for group in self._groups:
            group.loop.request_stop()

    def _run_gateway(self, secrets: Mapping[str, str], *, was_up: bool) -> None:
        self._work.secrets = secrets
        self._work.gateway = self._gateway
        if self._gateway is not None:
            self._gateway.begin(secrets, was_up=was_up)
            self._tasks.keep_running(GATEWAY, self._gateway.run)
        self._monitor.begin(self._record.journal.loaded, secrets, self._gateway, self._tasks)
        self._tasks.keep_running("fallbacks", self._fallbacks.run)
        self._tasks.keep_running("journal store", self._store.run)
        if self._groups.lack_any(secrets):
            parts = (self._groups, self._changes, self._work, self._monitor)
            self._tasks.run_once("late secrets", lambda: takeover.hand_out_late(*parts))

    def _report_task(self, failure: TaskFailure) -> None:
        """Make the exception of a task visible: the task owner has logged and restarted it."""
        self._record.note("internal", str(failure))
        if failure.name == GATEWAY and self._gateway is not None and not self._gateway.was_up:
            error = as_raylaunch_error(failure.error)
            for group in self._groups:
                group.loop.abandon(error)

    def _notify(self) -> None:
        self._copies.spread_groups(self._record)
        if self._gateway is not None:
            self._gateway.mark_changed()
            self._record.remember_endpoint(self._gateway.report().endpoint)
        self._changes.note()

    def _status(self) -> Status:
        parts = (self._groups, self._record, self._operations, self._gateway, self._clock)
        return whole_status(self._request.deployment, *parts, self._monitor.findings)
