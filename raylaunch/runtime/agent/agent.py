"""The agent: the Ray actor that holds a server's NPUs and owns its process.

When it dies, for whatever reason, the guard sees its pipe close. It stops the server, or waits
`health.orphan_grace_s` for another agent to adopt it. Nothing here polls for the exit of the
server; the guard and pidfds report it, and `next_observation` passes it to the controller without
delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylaunch.errors import NodeError
from raylaunch.home import home
from raylaunch.node.model import page_cache
from raylaunch.node.process import guard_socket, log_files
from raylaunch.node.process.process_markers import find_marked, terminate_marked
from raylaunch.node.process.ray_daemons import session_daemons
from raylaunch.node.process.server_process import ServerProcess, ServerSpec
from raylaunch.plan.facts import MarkedProcess
from raylaunch.plan.launch_plan import LaunchPlan, ServerPlan
from raylaunch.plan.node_usage import NodeUsage
from raylaunch.runtime.agent import fault_injection, server_launch
from raylaunch.runtime.agent.api_probe import LAST_STAGE, ApiProbe
from raylaunch.runtime.agent.child_watch import ChildWatch
from raylaunch.runtime.agent.guards.guard_adoption import take_guard
from raylaunch.runtime.agent.guards.guard_events import on_monotonic_clock, settle_launch
from raylaunch.runtime.agent.guards.journal_notes import JournalNotes
from raylaunch.runtime.agent.log_follower import LogFollower, LogNews
from raylaunch.runtime.agent.probe_actor import Hello, ProbeActor
from raylaunch.runtime.agent.secret_keeper import SecretKeeper
from raylaunch.runtime.agent.snapshot import Snapshot, read_snapshot
from raylaunch.runtime.agent.usage_reader import UsageReader
from raylaunch.runtime.cluster.actor_log import actor_log_path, open_actor_log
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.cluster.task_owner import TaskFailure, TaskOwner
from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import Exit, ServerSeen
from raylaunch.vllm_api.startup_log import STAGES, Stage
from raylaunch.vllm_api.vllm_client import VllmClient

if TYPE_CHECKING:
    from raylaunch.gateway.gateway_messages import GatewayStatus
    from raylaunch.runtime.agent.gateway_host import GatewayOrder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Observation:
    """What an agent knows of its server when it answers.

    All times in `seen` are seconds on the agent's monotonic clock, which a step of the wall clock
    does not move. `now` is that clock at the moment of sending: `now - seen.http.at` is an age, and
    the receiver converts a time to its own clock with `now`. `wall_now` is the wall clock of the
    node (seconds since the epoch) at the same moment, for the time stamps in log lines.
    """

    version: int
    now: float
    wall_now: float
    seen: ServerSeen


class Agent(ProbeActor):
    """Owns one server on this node. Times in seconds."""

    def __init__(self, key: GroupKey, index: int, instance: str) -> None:
        super().__init__(key, index, instance)
        open_actor_log(actor_log_path(os.environ, key.deployment, f"agent-{key.group}-{index}"))
        self._seen = ServerSeen(index)
        self._version = 0
        self._changed = asyncio.Event()
        """Set with the next version."""
        self._process: ServerProcess | None = None
        self._attempt: int | None = None
        self._stopping = False
        """The server is being terminated on purpose: its exit is no failure."""
        self._starting = asyncio.Lock()
        self._tasks = TaskOwner(self._on_task_failure)
        self._usage = UsageReader(TaskOwner(self._on_task_failure))
        self._follower: LogFollower | None = None
        self._children: ChildWatch | None = None
        self._api: ApiProbe | None = None
        self._secrets = SecretKeeper()
        self._notes = JournalNotes()
        self._end_read_ahead = threading.Event()
        """Set once vLLM reads the weights itself, or this attempt is over."""

    # -- what the controller asks --------------------------------------------------------------

    async def hello(self) -> Hello:
        """Report where this agent is and what it runs."""
        running = self._attempt if self._process is not None else None
        return replace(await super().hello(), attempt=running, journals=self._notes.journals)

    async def next_observation(self, after: int, wait_s: float) -> Observation:
        """Return the observation once its version is newer than `after`, or after `wait_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while self._version <= after:
                    await self._changed.wait()
        return Observation(
            version=self._version,
            now=time.monotonic(),
            wall_now=time.time(),
            seen=self._seen,
        )

    async def read_snapshot(self, lines: int) -> Snapshot:
        """Read the end of the log and the process table of this group."""
        path = self._follower.log if self._follower else None
        name = self._key.deployment
        return await asyncio.to_thread(read_snapshot, name, self._instance, path, lines)

    async def read_usage(self, weights: str) -> NodeUsage:
        """Read what the server and its node use; `weights` is the folder of the model."""
        pid = self._seen.pid if self._process is not None else None
        folder = self._follower.log.parent if self._follower else None
        return await self._usage.read(pid, folder, Path(weights))

    async def read_log(
        self, cursor: log_files.Cursor | None, lines: int | None, wait_s: float
    ) -> log_files.Chunk:
        """Read the log after `cursor`, or its last `lines` lines.

        Waits up to `wait_s` for new text.
        """
        if self._follower is None:
            return log_files.Chunk("", None)
        return await self._follower.read(cursor, lines, wait_s)

    async def find_orphans(self, attempt: int) -> list[str]:
        """List live processes of other attempts of this group on this node."""
        name = self._key.deployment
        found = await asyncio.to_thread(find_marked, name, instance=self._instance)
        return _describe([process for process in found if process.attempt != attempt])

    async def keep_journal(self, owner: str, number: int, journal: bytes) -> None:
        """Keep a journal of the controller for the one that may have to take over.

        Calls may overtake each other: an older journal never replaces a newer one.

        Args:
            owner: The group whose journal it is; "" for the deployment's own.
            number: Grows with every change.
            journal: The copy.
        """
        self._notes.keep(owner, number, journal)

    async def read_secrets(self, takeover_key: str) -> Mapping[str, str]:
        """Return the secrets of the running attempt, for a restarted controller.

        Raises:
            NodeError: The key is not the one that came with the secrets.
        """
        return self._secrets.hand_out(takeover_key)

    # -- the gateway of this node (`gateway.nodes: all`) -----------------------------------------

    async def run_gateway(self, order: GatewayOrder) -> GatewayStatus:
        """Start or update the gateway of this node; return its status.

        Raises:
            RaylaunchError: It could not be started.
        """
        # Imported late, here and below: few agents have a gateway to run.
        from raylaunch.runtime.agent import gateway_host

        address = (await super().hello()).ip
        client = await asyncio.to_thread(gateway_host.start_here, order, home(), address)
        return await asyncio.to_thread(client.status)

    async def drain_gateway(self, order: GatewayOrder, ids: Sequence[str], drain_s: float) -> bool:
        """Wait until these members have nothing in flight at this node's gateway."""
        from raylaunch.runtime.agent import gateway_host

        return await asyncio.to_thread(gateway_host.drain_here, order, home(), ids, drain_s)

    async def stop_gateway(self, order: GatewayOrder, drain_s: float) -> bool:
        """Stop the gateway of this node; return whether all requests finished."""
        from raylaunch.runtime.agent import gateway_host

        return await asyncio.to_thread(gateway_host.stop_here, order, home(), drain_s)

    # -- what the controller orders ------------------------------------------------------------

    async def launch(
        self,
        plan: LaunchPlan,
        attempt: int,
        vllm: str,
        health: HealthConfig,
        secrets: SecretKeeper,
        read_ahead: str = "",
    ) -> int:
        """Start this agent's server of the plan and return its pid.

        Args:
            plan: The whole plan.
            attempt: Number of this launch.
            vllm: Path of the `vllm` executable; its folder comes first in the server's PATH.
            health: Periods and time-outs of the probes.
            secrets: Environment variables that only the server gets, and their takeover key.
            read_ahead: A folder of weights to be read into the page cache; "" for none.

        Raises:
            NodeError: The server could not be started.
        """
        server = plan.servers[self._index]
        log.info("launching attempt %d of server %d", attempt, server.index)
        log_root = log_files.log_root(os.environ)
        path = log_files.planned_log(log_root, server.log, attempt)
        self._begin_attempt(attempt, path, secrets)
        spec = server_launch.build_spec(
            self._key,
            server,
            attempt,
            instance=self._instance,
            vllm=vllm,
            secrets=secrets,
            log=path,
            cwd=home(),
            orphan_grace_s=health.orphan_grace_s,
        )
        try:
            pid = await self._spawn(plan, spec, attempt)
        except OSError as error:  # a full or read-only disk
            raise NodeError(
                f"server {server.index} could not be started",
                why=str(error),
                todo=f"free space, or make writable: {path.parent} and {home()}",
            ) from error
        self._refuse_if_stopped(attempt)
        self._watch(plan, server, pid, health)
        if read_ahead and server_launch.is_first_on_its_node(plan, server):
            self._tasks.run_once("read-ahead", lambda: self._read_ahead(Path(read_ahead)))
        return pid

    async def adopt(self, plan: LaunchPlan, attempt: int, health: HealthConfig) -> int:
        """Adopt the guard of this agent's server, which runs on without its agent.

        Args:
            plan: The whole plan.
            attempt: The launch that the server must be of.
            health: Periods and time-outs of the probes.

        Returns:
            The server's pid.

        Raises:
            NodeError: There is no such guard, or its server is of another attempt.
            BusyError: Another agent owns it, and keeps it.
        """
        server = plan.servers[self._index]
        loop = asyncio.get_running_loop()
        spawned: asyncio.Future[int] = loop.create_future()

        def on_event(event: dict[str, Any]) -> None:  # on a thread of ServerProcess
            loop.call_soon_threadsafe(self._on_guard_event, event, attempt, spawned)

        path = guard_socket.socket_path(home(), self._instance, self._key.group, server.index)
        async with self._starting:
            process, report = await take_guard(path, attempt, on_event)
            log.info("adopted guard pid %d with server pid %s", report.pid, report.server_pid)
            self._begin_attempt(attempt, Path(report.log), SecretKeeper.recall(report.memo))
            self._notes.recall(report.notes)
            self._process = process
            process.follow_adopted()
        pid = await spawned
        self._refuse_if_stopped(attempt)
        self._watch(plan, server, pid, health)
        return pid

    async def stop(self, term_timeout_s: float) -> list[str]:
        """Terminate the server and every process of this group with this server's index.

        Returns:
            The processes that survived SIGKILL.
        """
        log.info("stopping server %d", self._index)
        self._stopping = True
        self._end_watching()
        async with self._starting:
            process, self._process = self._process, None
        if process is not None:
            await asyncio.to_thread(process.terminate, term_timeout_s)
        left = await asyncio.to_thread(
            terminate_marked,
            self._key.deployment,
            None,  # of every attempt
            self._index,
            instance=self._instance,
            grace_s=0.0,
        )
        return _describe(left)

    async def kill_orphans(self) -> list[str]:
        """Kill every process of this group on this node, also servers of live agents.

        Returns:
            The processes that survived SIGKILL.
        """
        left = await asyncio.to_thread(
            terminate_marked,
            self._key.deployment,
            instance=self._instance,
            grace_s=0.0,
        )
        return _describe(left)

    async def inject(self, fault: str, port: int) -> fault_injection.Injected:
        """Inject a fault for a drill, into this server alone.

        Raises:
            NodeError: There is no process to hit.
        """
        pid = self._seen.pid
        if pid is None or self._process is None or self._children is None:
            raise NodeError(f"server {self._index} does not run")
        log.warning("drill: injecting %s into server %d", fault, self._index)
        targets = fault_injection.Targets(
            server=pid,
            guard=self._process.guard_pid,
            find_engine=self._children.find_engine,
            agent=os.getpid(),
            raylet=os.getppid(),
            find_ray=lambda: session_daemons(os.getppid()),
        )
        loop = asyncio.get_running_loop()
        return fault_injection.inject_fault(fault, port, targets, loop.call_later)

    async def drill_limits(self) -> fault_injection.DrillLimits:
        """Return what a drill may do to this node."""
        return fault_injection.drill_limits()

    # -- the life of one attempt ---------------------------------------------------------------

    def _begin_attempt(self, attempt: int, path: Path, secrets: SecretKeeper) -> None:
        self._end_watching()
        self._attempt = attempt
        self._stopping = False
        self._secrets = secrets
        self._end_read_ahead = threading.Event()
        self._follower = LogFollower(path, self._on_log_news)
        self._publish(ServerSeen(self._index, attempt=attempt, stage="launching"))

    async def _spawn(self, plan: LaunchPlan, spec: ServerSpec, attempt: int) -> int:
        loop = asyncio.get_running_loop()
        spawned: asyncio.Future[int] = loop.create_future()

        def on_event(event: dict[str, Any]) -> None:  # on a thread of ServerProcess
            loop.call_soon_threadsafe(self._on_guard_event, event, attempt, spawned)

        # `stop` waits for this lock: it finds either no process, or one that it can terminate.
        async with self._starting:
            await asyncio.to_thread(
                server_launch.prepare_node,
                plan,
                plan.servers[self._index],
                attempt,
                state_dir=home(),
            )
            self._refuse_if_stopped(attempt)
            self._process = ServerProcess(spec, on_event)
            await asyncio.to_thread(self._process.start)
        return await spawned

    def _refuse_if_stopped(self, attempt: int) -> None:
        if self._stopping or attempt != self._attempt:
            raise NodeError("the server was stopped during its launch")

    def _on_guard_event(
        self, event: dict[str, Any], attempt: int, spawned: asyncio.Future[int]
    ) -> None:
        settle_launch(spawned, event)
        if attempt != self._attempt:  # of a guard that outlived its attempt
            return
        match event:
            case {"event": "spawned", "pid": pid}:
                self._publish(replace(self._seen, pid=pid, stage="spawned"))
            case {"event": "socket_failed", "error": error}:
                problem = f"no other agent can adopt the server: {error}"
                self._publish(replace(self._seen, agent_error=problem))
            case {"event": "log"}:
                if self._follower is not None:
                    self._follower.grew()
            case {"event": "log_failed", "error": error}:
                log.warning("server %d: its log cannot be written: %s", self._index, error)
                self._publish(replace(self._seen, log_error=str(error)))
            case {"event": "log_recovered"}:
                self._publish(replace(self._seen, log_error=""))
            case {"event": "exit", "code": code, "signal": number, "at": at}:
                exited_at = on_monotonic_clock(at)
                self._on_exit(Exit(exited_at, code, number))
            case {"event": "guard_lost", "at": at}:
                exited_at = on_monotonic_clock(at)
                self._on_exit(Exit(exited_at, process="the guard"))

    def _watch(self, plan: LaunchPlan, server: ServerPlan, pid: int, health: HealthConfig) -> None:
        assert self._follower is not None
        self._tasks.keep_running("log follower", self._follower.run)
        self._children = ChildWatch(pid, self._on_exit)
        self._tasks.keep_running("child watch", self._children.run)
        if health.orphan_grace_s > 0:
            path = guard_socket.socket_path(home(), self._instance, self._key.group, server.index)
            self._tasks.keep_running("journals", lambda: self._notes.save(path))
        if server.role == "primary":
            url = server_launch.api_url(server)
            key = self._secrets.secrets.get("VLLM_API_KEY")
            self._api = ApiProbe(
                lambda: VllmClient(url, api_key=key),
                plan.served_name,
                health,
                lambda: self._seen,
                self._publish,
            )
            self._tasks.keep_running("API probe", self._api.run)

    def _end_watching(self) -> None:
        self._end_read_ahead.set()
        self._tasks.cancel()
        self._api = None
        if self._children is not None:
            self._children.close()
            self._children = None

    async def _read_ahead(self, folder: Path) -> None:
        """Read the weights into the page cache, until vLLM loads them itself.

        vLLM may need only a part of each file, so reading on would compete with it.
        """
        warmed = await asyncio.to_thread(page_cache.warm, folder, self._end_read_ahead)
        if warmed.total:
            self._publish(replace(self._seen, read_ahead=str(warmed)))

    # -- the observation -----------------------------------------------------------------------

    def _on_exit(self, how: Exit) -> None:
        """Record the first exit of the attempt; later ones are its consequences."""
        if self._stopping or self._seen.exit is not None:
            return
        log.warning("server %d: %s", self._index, how)
        self._publish(replace(self._seen, exit=how))
        if self._children is not None:
            # The pid may be reused: nothing below it is this server's any more.
            self._children.close()

    def _on_log_news(self, news: LogNews) -> None:
        before, after = news.before, news.after
        if after.stage != before.stage:
            self._on_new_stage(after.stage)
        hang_lines = self._seen.hang_lines + news.hang_lines
        seen = replace(self._seen, hang_lines=hang_lines)
        changed = after.stage != before.stage or after.detail != before.detail
        # The API probe needs no log line and may be ahead of the log. A stage never goes back.
        if changed and seen.stage != LAST_STAGE:
            seen = replace(seen, stage=after.stage, stage_detail=after.detail)
        self._publish(seen)

    def _on_new_stage(self, stage: Stage) -> None:
        if self._children is not None:
            self._children.scan_soon()  # the processes of this stage have just been started
        if STAGES.index(stage) >= STAGES.index("weights"):
            self._end_read_ahead.set()
        if stage == "API up" and self._api is not None:
            self._api.announce()

    def _on_task_failure(self, failure: TaskFailure) -> None:
        self._publish(replace(self._seen, agent_error=str(failure)))

    def _publish(self, seen: ServerSeen) -> None:
        if seen == self._seen:
            return
        self._seen = seen
        self._version += 1
        # Each version has an event of its own, so no waiter has to reset it for the others.
        self._changed.set()
        self._changed = asyncio.Event()


def _describe(processes: Sequence[MarkedProcess]) -> list[str]:
    return [f"pid {process.pid} {process.command}" for process in processes]
