"""The controller: the detached Ray actor that observes, decides and acts for one deployment.

The decisions are `raylaunch.supervise.policy`'s; this module only carries them out. Ray starts a dead controller
again; it then finds its agents by name, takes the journal they kept, and goes on without touching a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
import traceback
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raylaunch.checks.findings import forgive
from raylaunch.errors import BusyError, LaunchError, RaylaunchError
from raylaunch.node.process.log_files import Chunk, Cursor, tail
from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.agent.gang import Gang
from raylaunch.runtime.agent.probe_actor import Hello, state_dir
from raylaunch.runtime.agent.snapshot import Snapshot
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.cluster.actor_log import actor_log_path, open_actor_log
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.controller import bundle_writer
from raylaunch.runtime.controller.agent_watch import AgentWatch
from raylaunch.runtime.controller.flag_lookup import remember_for_next
from raylaunch.runtime.controller.journal import Journal
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.runtime.controller.planning import (
    await_launch,
    clean_ground,
    flatten,
    look,
    plan_and_check,
    put_primary_first,
    read_ahead_folder,
    refuse_errors,
)
from raylaunch.runtime.controller.port_turns import Ticket, Turns, ask_plans
from raylaunch.runtime.controller.recovery import find_again, lost_nodes
from raylaunch.runtime.controller.reporting import build_status, explain_failure
from raylaunch.supervise import policy
from raylaunch.supervise.deployment_status import Event, Status, StopReport
from raylaunch.supervise.diagnosis.root_cause import Diagnosis, diagnose
from raylaunch.supervise.state import Failure, History, Phase, ServerSeen

TAKE_OVER_RETRY_S = 0.5
BEGIN_PATIENCE_S = 10.0
"""How long a controller that Ray started again, and that finds no agents, waits to be told to begin."""
ORPHAN_S = 90.0
"""How long a new controller waits to be told to begin: longer than whoever made it tries to tell it."""
PORTS_PATIENCE_S = 15.0
"""How long a restart waits for its ports to become free: long enough for a socket that closes late."""
FAILED_GRACE_S = 1.0
"""SIGTERM to SIGKILL when a failed gang is ended: its members wait for a peer that will not come back."""


class Controller:
    """One deployment. Every public method is a command or a question of an operator; none blocks another."""

    def __init__(self, request: Request) -> None:
        import ray

        self._request = request
        self._recipe = request.loaded.recipe
        health = self._recipe.health.model_dump()
        self._health = policy.HealthConfig(**health, start_s=self._recipe.timeouts.start)
        self._journal = Journal(created_at=time.time(), phase_since=time.time())
        self._gang = Gang(request.deployment)
        self._shape = policy.GroupShape((), ())
        self._facts: dict[int, Facts] = {}
        self._seen: dict[int, ServerSeen] = {}
        self._log_roots: dict[int, str] = {}
        self._out_of_reach: dict[int, str] = {}
        """Servers of this attempt on nodes that cannot be reached, with the node: nothing can be proven there."""
        self._remains: dict[int, Snapshot] = {}
        self._bundle: Path | None = None
        self._decision: policy.Restart | None = None
        self._watches: dict[int, AgentWatch] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._secrets: Mapping[str, str] | None = None
        self._turns = Turns(request.deployment)
        self._changed = asyncio.Condition()
        self._version = 0
        self._wake = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._stopped: asyncio.Future[StopReport] | None = None
        self._known = asyncio.Event()
        """Set once this controller knows what it controls: at once, or after it has found its agents."""
        self._drilled = 0
        """The attempt that a drill is about to break: its failure does not count against the restart budget."""
        self._background: set[asyncio.Task[Any]] = set()
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        self._log = actor_log_path(os.environ, request.deployment, "controller")
        open_actor_log(self._log)
        context = ray.get_runtime_context()
        self._taking_over = threading.Event()
        self._looked = asyncio.Event()
        """Set once it is clear whether there is something to take over."""
        if not context.was_current_actor_reconstructed:
            self._looked.set()
            context.current_actor.expect_begin.remote()
        else:
            threading.Thread(
                target=self._call_take_over, args=(context.current_actor,), daemon=True
            ).start()

    # -- commands and questions ---------------------------------------------------------------------------------

    async def begin(self, secrets: Mapping[str, str], gang: Gang) -> None:
        """Start the deployment, with the agents that are there already; returns at once."""
        await self._looked.wait()
        if not self._known.is_set():
            self._secrets, self._gang = secrets, gang
            self._known.set()
            self._go()

    async def expect_begin(self) -> None:
        """Fail, and let the NPUs go, if whoever made this controller and its agents dies before it says `begin`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ORPHAN_S):
                await self._known.wait()
                return
        self._gang.find(self._recipe.parallel.servers)
        self._known.set()
        await self._give_up(
            "the command that started this deployment ended before it had handed it over"
        )
        self._go()

    def _call_take_over(self, me: Any) -> None:  # noqa: ANN401
        """Call `take_over` until the call arrives.

        Ray 2.60 may drop what a restarted actor asks of itself before the rest of the cluster knows that it lives (seen
        with real vLLM; the controller then answered nobody, for ever).
        """
        while not self._taking_over.is_set():
            me.take_over.remote()
            self._taking_over.wait(TAKE_OVER_RETRY_S)

    async def take_over(self) -> None:
        """Go on after the death of the last controller."""
        if self._taking_over.is_set():
            return
        self._taking_over.set()
        adopted = await self._adopt()
        self._looked.set()
        if not adopted:  # Ray also starts one again that had not been told to begin
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEGIN_PATIENCE_S):
                    await self._known.wait()
                return
            await self._give_up(
                "the controller died when nothing of the deployment was running; Ray started it again"
            )
        self._known.set()
        self._go()

    async def status(self) -> Status:
        """Where the deployment is now."""
        await self._known.wait()
        return self._status()

    async def wait_change(self, version: int, timeout_s: float) -> tuple[int, Status]:
        """Return the status as soon as it is newer than `version`, or after `timeout_s`."""
        await self._known.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._version > version)
        return self._version, self._status()

    async def show_plan(self, ticket: Ticket) -> LaunchPlan | None:
        """The plan, for another deployment that chooses its ports now; None where nothing is to be run."""
        await self._known.wait()
        await self._turns.wait(ticket)
        return None if self._journal.phase in (Phase.FAILED, Phase.STOPPED) else self._journal.plan

    async def events(self, after: int) -> list[Event]:
        """The events newer than number `after`."""
        await self._known.wait()
        return [event for event in self._journal.events if event.number > after]

    async def read_log(
        self, server: int, cursor: Cursor | None, lines: int | None, timeout_s: float
    ) -> Chunk | None:
        """A piece of a server's log; see `Agent.read_log`. None when its agent is gone."""
        agent = self._gang.alive.get(server)
        if agent is None:
            return None
        return await agent.read_log(cursor=cursor, lines=lines, wait_s=timeout_s)

    async def read_controller_log(self, lines: int) -> str:
        """Return the last lines of this controller's log."""
        return "\n".join(await asyncio.to_thread(tail, self._log, lines))

    async def describe(self) -> tuple[LoadedRecipe, LaunchPlan | None, dict[int, dict[str, str]]]:
        """The recipe, the plan that it became, and the versions on each server's node."""
        await self._known.wait()
        return self._request.loaded, self._journal.plan, self._journal.versions

    async def diagnosis(self) -> Diagnosis | None:
        """What the last failure was; of a deployment that never failed, what its logs show now, if anything."""
        await self._known.wait()
        if self._journal.diagnosis is not None or self._journal.plan is None:
            return self._journal.diagnosis
        found = await self._ask_evidence()
        return None if found.id == "no-evidence" else found

    async def inject(self, fault: str, server: int) -> Event:
        """Do harm for a drill; the event tells when, on this controller's clock.

        Raises:
            BusyError: the deployment is not ready, so another command or failure is under way.
        """
        await self._known.wait()
        agent = self._gang.alive.get(server)
        if self._journal.phase is not Phase.READY or self._stop_asked.is_set() or agent is None:
            raise BusyError(
                f"{self._request.deployment} is {self._journal.phase}, and a drill needs it ready",
                why="another command, or the last fault, is still under way",
                todo=f"`raylaunch status {self._request.deployment}` shows it; try again when it is ready",
            )
        self._drilled = self._journal.attempt
        assert self._journal.plan is not None
        done = await agent.inject(fault=fault, port=self._journal.plan.primary.ports.rpc)
        at = done.at - self._watches[server].clock_offset_s
        return self._note("drill", done.what, server, at=at)

    async def may_cut(self, server: int) -> str:
        """The interface a drill may take down on the node of `server`; "" when none."""
        return await self._gang.alive[server].cuttable_interface()

    async def node_ids(self) -> dict[int, str]:
        """Ray's id of each server's node."""
        plan = self._journal.plan
        return {server.index: server.node.node_id for server in plan.servers} if plan else {}

    async def has_spare(self) -> bool:
        """Whether another node could take a server's place."""
        return await asyncio.to_thread(self._has_spare)

    async def leftovers(self) -> list[str]:
        """Living processes of earlier attempts, as the agents find them."""
        return flatten(
            await self._gang.ask_all(
                lambda agent: agent.find_orphans(attempt=self._journal.attempt)
            )
        )

    async def stop(self) -> StopReport:
        """End everything and prove it. A second caller waits for the same end."""
        if self._stopped is None:
            self._stopped = asyncio.get_running_loop().create_future()
            self._note("command", "stop")
            self._stop_asked.set()
            self._wake.set()
            if (
                self._looked.is_set()
                and not self._taking_over.is_set()
                and not self._known.is_set()
            ):
                self._gang.find(
                    self._recipe.parallel.servers
                )  # whoever made all this died before it said `begin`
                self._known.set()
                self._go()
        return await asyncio.shield(self._stopped)

    # -- the loop ----------------------------------------------------------------------------------------------

    def _go(self) -> None:
        self._spawn(self._run()).add_done_callback(self._ran)

    def _ran(self, loop: asyncio.Task[Any]) -> None:
        """A bug ends the loop, but not in silence: the deployment fails, says so, and can still be stopped."""
        error = None if loop.cancelled() else loop.exception()
        if error is None:
            return
        if self._stopped is not None and self._journal.phase in (Phase.STOPPING, Phase.STOPPED):
            self._stopped.set_exception(error)
            return
        trace = "".join(traceback.format_exception(error))
        self._spawn(
            self._fail_by_bug(RaylaunchError(f"a bug in the controller: {error!r}", evidence=trace))
        )

    async def _fail_by_bug(self, error: RaylaunchError) -> None:
        if self._journal.phase is not Phase.FAILED:
            await self._fail(error)
        self._go()

    async def _run(self) -> None:
        steps = {
            Phase.PENDING: self._reserve,
            Phase.CHECKING: self._check,
            Phase.STARTING: self._step,
            Phase.READY: self._step,
            Phase.RESTARTING: self._rebuild,
            Phase.FAILED: self._stop_asked.wait,
        }
        while True:
            try:
                if not self._stop_asked.is_set():
                    await self._or_stop(steps[self._journal.phase]())
            except RaylaunchError as error:
                await self._fail(error)
            if self._stop_asked.is_set():
                await self._finish()
                return

    async def _or_stop(self, step: Awaitable[Any]) -> None:
        """Do one step, but drop it when somebody wants to stop."""
        doing = asyncio.ensure_future(step)
        stopping = asyncio.ensure_future(self._stop_asked.wait())
        await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not doing.done():
            doing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await doing

    async def _reserve(self) -> None:
        await self._acquire(None)
        self._enter(Phase.CHECKING)

    async def _acquire(self, timeout_s: float | None, avoided: tuple[str, ...] = ()) -> None:
        """Reserve NPUs where there is no reservation, not on the `avoided` nodes, and put an agent on each."""
        excluded = (*self._ray_addresses(self._journal.history.excluded_nodes), *avoided)
        if self._gang.group is None:
            self._gang.group = await asyncio.to_thread(
                placement.reserve, self._request.deployment, self._recipe, excluded, timeout_s
            )
        slots = put_primary_first(
            await asyncio.to_thread(placement.slots, self._gang.group), self._request.primary
        )
        self._gang.create(slots)
        hellos = await self._gang.demand_all(lambda agent: agent.hello())
        for index, hello in hellos.items():
            self._log_roots[index] = hello.log_root
            self._saw(ServerSeen(index))

    async def _check(self) -> None:
        self._facts = await look(self._gang, self._recipe)
        self._journal.versions = {index: facts.versions for index, facts in self._facts.items()}
        for index in self._facts:
            self._saw(replace(self._seen.get(index, ServerSeen(index)), stage="probed"))
        nodes = list(self._facts.values())
        with self._turns.take() as ticket:
            neighbours = await ask_plans(self._request.deployment, ticket)
            asked = (self._gang, self._request.loaded, self._request.deployment, nodes, neighbours)
            self._journal.plan, findings = await plan_and_check(*asked)
        plan = self._journal.plan
        self._journal.findings = tuple(forgive(findings, self._request.skipped or {}))
        self._journal.ray_addresses.update(
            {one.node.ip: node.ip for one, node in zip(plan.servers, nodes, strict=True)}
        )
        self._shape = policy.GroupShape.of(plan)
        refuse_errors(self._journal.findings)
        self._enter(Phase.STARTING)
        await self._launch()

    async def _launch(self) -> None:
        """Start every server at the same moment: vLLM's engines wait 5 minutes for their primary, no longer."""
        assert self._journal.plan is not None
        self._journal.attempt += 1
        self._out_of_reach = {}
        now = time.time()
        self._journal.history = replace(self._journal.history, started_at=now, ready_at=None)
        self._seen = {
            index: ServerSeen(index, attempt=self._journal.attempt) for index in self._gang.alive
        }
        read_ahead = read_ahead_folder(self._recipe)
        calls = [
            asyncio.ensure_future(
                self._gang.alive[index].launch(
                    plan=self._journal.plan,
                    attempt=self._journal.attempt,
                    vllm=facts.vllm_executable or "vllm",
                    health=self._health,
                    secrets=self._secrets or {},
                    read_ahead=read_ahead,
                )
            )
            for index, facts in self._facts.items()
        ]
        self._watch_all()
        self._note("command", f"launched attempt {self._journal.attempt}")
        await await_launch(calls)

    async def _step(self) -> None:
        """Observe, decide, act: once."""
        now = time.time()
        seen = list(self._seen.values())
        arguments = (self._journal.phase, seen, self._judged_history(), self._health, now)
        trouble = policy.find_trouble(*arguments, gang=self._shape)
        diagnosis = None
        if trouble is not None:
            self._note("failure", trouble.reason, trouble.root)
            diagnosis = await self._examine(trouble)
            self._shape = replace(self._shape, spare=await asyncio.to_thread(self._has_spare))
        decision = policy.decide(
            *arguments,
            gang=self._shape,
            diagnosis=diagnosis,
            jitter=random.random(),  # noqa: S311
        )
        match decision:
            case policy.Wait(until):
                await self._sleep_until(until)
            case policy.BecomeReady():
                self._journal.became_ready(now)
                self._enter(Phase.READY)
                self._spawn(remember_for_next(self._gang))
            case policy.Restart():
                self._restart(decision, now)
            case policy.GiveUp():
                raise explain_failure(
                    decision, diagnosis, self._shape.nodes, self._remains, self._bundle
                )
            case policy.Stop():
                return

    def _judged_history(self) -> History:
        """What a drill breaks on purpose is restarted whatever happened before."""
        history = self._journal.history
        if self._drilled != self._journal.attempt:
            return history
        return replace(
            history, failures=tuple(old for old in history.failures if old.kind == "device")
        )

    def _has_spare(self, servers: int = 1) -> bool:
        assert self._journal.plan is not None
        used = tuple(server.node.node_id for server in self._journal.plan.servers)
        excluded = self._ray_addresses(self._journal.history.excluded_nodes)
        return placement.has_spare(self._recipe, used, excluded, servers)

    def _ray_addresses(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        """A node's address in the plan is that of its chosen interface; Ray may know it by another."""
        return tuple(dict.fromkeys(self._journal.ray_addresses.get(one, one) for one in addresses))

    async def _sleep_until(self, until: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - time.time())):
                await self._wake.wait()
        self._wake.clear()

    async def _examine(self, trouble: policy.Trouble) -> Diagnosis:
        """Freeze the evidence on every node, then name the root."""
        found = await self._ask_evidence()
        self._journal.diagnosis = found
        self._note(
            "diagnosis",
            f"{found.id}: {found.cause}",
            found.root if found.root is not None else trouble.root,
        )
        self._bundle = await asyncio.to_thread(
            bundle_writer.write_bundle,
            state_dir(),
            self._request.deployment,
            self._journal,
            self._seen,
            self._remains,
            found,
        )
        return found

    async def _ask_evidence(self) -> Diagnosis:
        answers = await self._gang.ask_all(
            lambda agent: agent.read_snapshot(lines=bundle_writer.TAIL_LINES)
        )
        self._remains = {
            index: left for index, left in answers.items() if isinstance(left, Snapshot)
        }
        offsets = {index: watch.wall_offset_s for index, watch in self._watches.items()}
        return diagnose(
            bundle_writer.as_evidence(self._journal, self._seen, self._remains, offsets),
            at=time.time(),
        )

    def _restart(self, decision: policy.Restart, now: float) -> None:
        failure = Failure(
            self._journal.attempt,
            now,
            decision.cause,
            decision.kind,
            decision.root,
            was_ready=self._journal.history.ready_at is not None,
            node=self._shape.nodes[decision.root] if decision.root is not None else "",
        )
        if self._drilled != self._journal.attempt:
            self._journal.history = self._journal.history.remember(failure)
        self._journal.restarts += 1
        self._decision = decision
        self._note("restart", f"{decision.cause}: {decision.reason}", decision.root)
        self._enter(Phase.RESTARTING)

    async def _rebuild(self) -> None:
        """End every member, prove that the ground is clean, wait as long as the policy says, and start over."""
        decision = self._decision
        lost = lost_nodes(self._journal.plan, self._seen, decision)
        for index, seen in self._seen.items():
            if seen.agent_lost or index in lost:
                self._gang.give_up(index)
        await self._end_servers(FAILED_GRACE_S)
        if lost or (decision and decision.kind == "device"):
            self._release()
        self._seen = {}
        if decision is not None:
            await asyncio.sleep(max(0.0, decision.not_before - time.time()))
        await self._acquire(self._health.restart_window_s, await self._avoid(lost))
        await clean_ground(self._gang, self._request.loaded)
        self._decision = None
        self._enter(Phase.CHECKING)

    async def _avoid(self, lost: Mapping[int, str]) -> tuple[str, ...]:
        """The lost nodes when others can take their places; without others there is only their return to wait for."""
        if not lost or await asyncio.to_thread(self._has_spare, len(lost)):
            return tuple(lost.values())
        nodes = ", ".join(self._shape.nodes[index] for index in lost)
        why = "no other node has the NPUs; if Ray has given it up, `ray start` there brings it back"
        self._note("waiting", f"waits for {nodes} to come back: {why}", min(lost))
        return ()

    # -- the end ------------------------------------------------------------------------------------------------

    async def _fail(self, error: RaylaunchError) -> None:
        """Give up: end everything, keep only this actor, so that `status` can say why."""
        self._journal.error = error.as_dict()
        self._note("failure", error.what)
        await self._end_servers(FAILED_GRACE_S)
        self._release()
        self._enter(Phase.FAILED)

    async def _finish(self) -> None:
        started = time.time()
        self._enter(Phase.STOPPING)
        processes = sum(seen.pid is not None and seen.exit is None for seen in self._seen.values())
        left = await self._end_servers(self._recipe.timeouts.stop)
        left += [
            f"server {index}: {node} is out of reach" for index, node in self._out_of_reach.items()
        ]
        self._release()
        self._enter(Phase.STOPPED)
        assert self._stopped is not None
        self._stopped.set_result(
            StopReport(self._request.deployment, processes, time.time() - started, tuple(left))
        )

    async def _end_servers(self, grace_s: float) -> list[str]:
        """End every server whose agent can be asked; a lost agent's guard, or its node, has ended the others."""
        for index, seen in self._seen.items():
            if seen.agent_lost:
                self._gang.give_up(index)
        for task in self._tasks.values():
            task.cancel()
        self._tasks = {}
        answers = await self._gang.ask_all(lambda agent: agent.stop(term_timeout_s=grace_s))
        return flatten(answers)

    def _release(self) -> None:
        """Let agents and NPUs go, also those of a reservation that was still being waited for."""
        self._gang.kill()
        group = self._gang.group or placement.find_group(self._request.deployment)
        if group is not None:
            placement.release(group)
            self._gang.group = None

    # -- taking over ----------------------------------------------------------------------------------------------

    async def _adopt(self) -> bool:
        """Find the agents and the newest journal among them, False when there is none; running servers live on."""
        self._gang.group = await asyncio.to_thread(placement.find_group, self._request.deployment)
        self._gang.find(self._recipe.parallel.servers)
        hellos = await self._gang.ask_all(lambda agent: agent.hello())
        answered = {index: hello for index, hello in hellos.items() if isinstance(hello, Hello)}
        self._log_roots = {index: hello.log_root for index, hello in answered.items()}
        known = [hello.journal for hello in answered.values() if hello.journal]
        journals = sorted(
            (Journal.load(data) for data in known), key=lambda journal: journal.number
        )
        if not journals or journals[-1].plan is None:
            return False
        self._journal = journals[-1]
        self._journal.skip_lost()
        assert self._journal.plan is not None
        self._shape = policy.GroupShape.of(self._journal.plan)
        secrets = await self._gang.ask_all(lambda agent: agent.read_secrets())
        self._secrets = next(
            (found for found in secrets.values() if isinstance(found, Mapping)), {}
        )
        self._note("adopted", f"a restarted controller found {len(self._gang.alive)} agents")
        if self._journal.phase in (Phase.STARTING, Phase.READY):
            self._seen = find_again(self._journal.plan, self._journal.attempt, self._gang.alive)
            self._watch_all()
        elif self._journal.phase in (Phase.CHECKING, Phase.STOPPING):
            self._resume_unfinished()
        return True

    async def _give_up(self, what: str) -> None:
        """Nobody remembers the plan or the secrets: starting by guess could serve without its API key."""
        await self._fail(
            LaunchError(
                what, todo=f"`raylaunch stop {self._request.deployment}`, then start it again"
            )
        )

    def _resume_unfinished(self) -> None:
        """A check is simply done again; a stop that was under way is finished."""
        if self._journal.phase is Phase.STOPPING:
            self._journal.phase = Phase.FAILED
            self._spawn(self.stop())

    # -- seeing and telling ---------------------------------------------------------------------------------------

    def _watch_all(self) -> None:
        nodes = {node["NodeID"]: node for node in alive_nodes()}
        assert self._journal.plan is not None
        for server in self._journal.plan.servers:
            agent = self._gang.alive.get(server.index)
            node = nodes.get(server.node.node_id)
            if agent is None or node is None:
                continue
            watch = AgentWatch(server.index, agent, node, self._health, self._saw)
            self._watches[server.index] = watch
            self._tasks[server.index] = self._spawn(watch.run())

    def _saw(self, seen: ServerSeen) -> None:
        before = self._seen.get(seen.index)
        if before is not None and seen.attempt < before.attempt:
            return
        self._seen[seen.index] = seen
        if seen.agent_lost == "node unreachable":
            self._out_of_reach[seen.index] = self._shape.nodes[seen.index]
        told = before is not None and (before.stage, before.stage_detail) == (
            seen.stage,
            seen.stage_detail,
        )
        if not told:
            self._note("stage", f"{seen.stage} {seen.stage_detail}".rstrip(), seen.index)
        if seen.read_ahead and not self._journal.has("read-ahead", seen.index):
            self._note("read-ahead", seen.read_ahead, seen.index)
        if seen.exit is not None and (before is None or before.exit is None):
            self._note("exit", f"ended with {seen.exit}", seen.index)
        self._tell()

    def _enter(self, phase: Phase) -> None:
        self._journal.enter(phase, time.time())
        self._save()
        self._tell()

    def _note(
        self, kind: str, text: str, server: int | None = None, at: float | None = None
    ) -> Event:
        event = self._journal.note(time.time() if at is None else at, kind, text, server)
        if kind != "stage":  # a controller that takes over knows the stages again from its agents
            self._save()
        self._tell()
        return event

    def _save(self) -> None:
        """Give the journal to the agents. Nobody waits for it; a lost copy is one of several."""
        data = self._journal.dump()
        for agent in self._gang.alive.values():
            agent.keep_journal(number=self._journal.number, journal=data)

    def _tell(self) -> None:
        self._version += 1
        self._wake.set()
        self._spawn(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _spawn(self, work: Any) -> asyncio.Task[Any]:  # noqa: ANN401
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _status(self) -> Status:
        return build_status(self._request, self._journal, self._seen, self._log_roots, self._shape)
