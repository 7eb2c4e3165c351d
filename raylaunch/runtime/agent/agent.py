"""The agent: the Ray actor that holds a server's NPUs and owns its process.

Its death, for whatever reason, ends the server: the guard sees its pipe close. Nothing here polls for the server's
end; it is pushed, and `watch` hands it on at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raylaunch.errors import NodeError
from raylaunch.node.model import page_cache
from raylaunch.node.process import log_files
from raylaunch.node.process.process_markers import end_marked, find_marked
from raylaunch.node.process.server_process import ServerProcess, ServerSpec, child_env
from raylaunch.node.process.vllm_children import Member, find_members, read_ending
from raylaunch.plan.launch_plan import LaunchPlan, ServerPlan
from raylaunch.plan.layout import bracket
from raylaunch.runtime.agent import fault_injection
from raylaunch.runtime.agent.api_probe import ApiObserver
from raylaunch.runtime.agent.probe_actor import Hello, ProbeActor, state_dir
from raylaunch.runtime.agent.snapshot import Snapshot, read_snapshot
from raylaunch.runtime.cluster.actor_log import actor_log_path, open_actor_log
from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import Exit, ServerSeen
from raylaunch.vllm_api.startup_log import STAGES, StartupProgress, advance, hang_lines
from raylaunch.vllm_api.vllm_client import VllmClient

KEPT_ATTEMPTS = 5
MEMBER_SCAN_S = 5.0
"""Between two looks for lasting processes that no log line announced."""
SAME_END_S = 0.03
OWNER_LOST_GRACE_S = 1.0
"""SIGTERM to SIGKILL of a server whose agent died: its group is broken anyway, and the restart waits for it."""
STEAL_S = 5.0
"""How long a drill holds a stolen port: shorter than a restart waits for it."""
CUT_S = 40.0
FREE_POLL_S = 0.1
EVENT_DELAY_S = 5.0
"""The oldest event that the guard sends: it first copies to the log what the server had printed."""


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

    def __init__(self, deployment: str, index: int) -> None:
        super().__init__(deployment, index)
        open_actor_log(actor_log_path(os.environ, deployment, f"agent-{index}"))
        self._seen = ServerSeen(index)
        self._version = 0
        self._changed = asyncio.Condition()
        self._process: ServerProcess | None = None
        self._plan: ServerPlan | None = None
        self._attempt: int | None = None
        self._log: Path | None = None
        self._ending = False
        self._members: dict[int, Member] = {}
        self._endings: list[Exit] = []
        """Of members, in the moment before one of them is blamed."""
        self._tasks: list[asyncio.Task[None]] = []
        self._observer: ApiObserver | None = None
        self._journal: tuple[int, bytes] | None = None
        self._secrets: Mapping[str, str] = {}
        self._notifying: set[asyncio.Future[None]] = set()
        self._log_grew = asyncio.Event()
        self._scan = asyncio.Event()
        self._loads = threading.Event()
        """Set once vLLM reads the weights itself, or this attempt ends."""

    async def hello(self) -> Hello:
        """Say where this agent is and what it runs."""
        journal = self._journal[1] if self._journal else None
        running = self._attempt if self._process is not None else None
        return replace(await super().hello(), attempt=running, journal=journal)

    async def launch(
        self,
        plan: LaunchPlan,
        attempt: int,
        vllm: str,
        health: HealthConfig,
        secrets: Mapping[str, str],
        read_ahead: str = "",
    ) -> int:
        """Start this agent's server of the plan and return its pid.

        `read_ahead` is a folder of weights to be read ahead on this host, "" for none.

        Raises:
            NodeError: it could not be started.
        """
        server = plan.servers[self._index]
        self._secrets = secrets
        self._reset(server, attempt)
        assert self._log is not None
        await asyncio.to_thread(_prepare_launch, plan, server, self._deployment, attempt)
        spec = ServerSpec(
            argv=server.argv,
            env=self._child_env(server, attempt, vllm, secrets),
            log=str(self._log),
            cwd=str(state_dir()),
            term_timeout_s=OWNER_LOST_GRACE_S,
        )
        loop = asyncio.get_running_loop()
        started: asyncio.Future[int] = loop.create_future()

        def on_event(event: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(self._on_event, event, attempt, started)

        self._process = ServerProcess(spec, on_event)
        await asyncio.to_thread(self._process.start)
        pid = await started
        self._observe(plan, server, health)
        if read_ahead and not any(
            other.node.ip == server.node.ip for other in plan.servers[: self._index]
        ):
            self._tasks.append(asyncio.create_task(self._read_ahead(Path(read_ahead))))
        return pid

    async def next_observation(self, after: int, wait_s: float) -> Observation:
        """Return the observation once its version is newer than `after`, or after `wait_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: self._version > after)
        return Observation(self._version, time.monotonic(), time.time(), self._seen)

    async def read_snapshot(self, lines: int) -> Snapshot:
        """Read the end of the log and the process table of this deployment."""
        return await asyncio.to_thread(read_snapshot, self._deployment, self._log, lines)

    async def stop(self, term_timeout_s: float) -> list[str]:
        """End the server and everything of this deployment's servers on this index; returns what resisted."""
        self._ending = True
        self._cancel_tasks()
        process, self._process = self._process, None
        if process is not None:
            await asyncio.to_thread(process.end, term_timeout_s)
        left = await asyncio.to_thread(end_marked, self._deployment, None, self._index, grace_s=0.0)
        return [f"pid {found.pid} {found.command}" for found in left]

    async def kill_orphans(self) -> list[str]:
        """End what this deployment's dead agents left on this node; the servers of living agents go too."""
        left = await asyncio.to_thread(end_marked, self._deployment, grace_s=0.0)
        return [f"pid {found.pid} {found.command}" for found in left]

    async def await_free_ports(self, ports: Sequence[int], wait_s: float) -> list[str]:
        """Wait until no process listens on the ports; return those that still do after `wait_s`."""
        deadline = time.monotonic() + wait_s
        while True:
            holders = await asyncio.to_thread(_find_holders, ports)
            if not holders or time.monotonic() >= deadline:
                return holders
            await asyncio.sleep(FREE_POLL_S)  # a listening socket announces its end to nobody

    async def find_orphans(self, attempt: int) -> list[str]:
        """Living processes of other attempts of this deployment on this node."""
        found = await asyncio.to_thread(find_marked, self._deployment)
        return [f"pid {one.pid} {one.command}" for one in found if one.attempt != attempt]

    async def inject(self, fault: str, port: int) -> fault_injection.Injected:
        """Do harm for a drill, to this server alone.

        Raises:
            NodeError: there is nothing to hit.
        """
        pid = self._seen.pid
        if pid is None or self._process is None:
            raise NodeError(f"server {self._index} does not run")
        later = asyncio.get_running_loop().call_later
        match fault:
            case "kill-engine":
                return fault_injection.kill_process(*self._engine())
            case "kill-server":
                return fault_injection.kill_process(pid, "the server's main process")
            case "stop-server":
                return fault_injection.stop_tree(pid)
            case "kill-guard":
                return fault_injection.kill_process(self._process.guard_pid or 0, "the guard")
            case "kill-agent":
                return fault_injection.kill_later(os.getpid(), "the agent", later)
            case "kill-raylet":
                return fault_injection.kill_later(os.getppid(), "the raylet", later)
            case "steal-port":
                threading.Thread(
                    target=fault_injection.steal_port, args=(port, STEAL_S), daemon=True
                ).start()
                done = fault_injection.kill_process(*self._engine())
                return replace(done, what=f"{done.what}, port {port} held for {STEAL_S:g} s")
            case "cut-node":
                return fault_injection.cut_node(CUT_S)
        raise NodeError(f"no such fault: {fault}")

    async def cuttable_interface(self) -> str:
        """Return the interface that a drill may take down on this node; "" when none."""
        return fault_injection.cuttable_interface()

    async def keep_journal(self, number: int, journal: bytes) -> None:
        """Keep the controller's journal for the one that may have to take over; an older one never replaces a newer."""
        if self._journal is None or number > self._journal[0]:
            self._journal = (number, journal)

    async def read_secrets(self) -> Mapping[str, str]:
        """The secrets of the running attempt, for a restarted controller."""
        return self._secrets

    async def read_log(
        self,
        cursor: log_files.Cursor | None,
        lines: int | None,
        wait_s: float,
    ) -> log_files.Chunk:
        """Read the log after `cursor`, or its last `lines` lines; wait up to `wait_s` for new text."""
        if self._log is None:
            return log_files.Chunk("", None)
        if cursor is None and lines is not None:
            cursor = await asyncio.to_thread(log_files.tail_cursor, self._log, lines)
        chunk = await asyncio.to_thread(log_files.read_from, self._log, cursor)
        if not chunk.text and wait_s > 0:
            await self._await_growth(wait_s)
            chunk = await asyncio.to_thread(log_files.read_from, self._log, cursor)
        return chunk

    def _reset(self, server: ServerPlan, attempt: int) -> None:
        self._plan, self._attempt, self._ending = server, attempt, False
        self._log = log_files.planned_log(log_files.log_root(os.environ), server.log, attempt)
        self._cancel_tasks()
        self._loads = threading.Event()
        self._update(lambda seen: ServerSeen(seen.index, attempt=attempt, stage="launching"))

    def _child_env(
        self, server: ServerPlan, attempt: int, vllm: str, secrets: Mapping[str, str]
    ) -> dict[str, str]:
        env = child_env(
            os.environ,
            server.environ,
            server.unset,
            deployment=self._deployment,
            attempt=attempt,
            server=self._index,
            secrets=secrets,
        )
        env["PATH"] = f"{Path(vllm).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
        return env

    def _on_event(self, event: dict[str, Any], attempt: int, started: asyncio.Future[int]) -> None:
        if attempt != self._attempt:
            return
        match event:
            case {"event": "spawned", "pid": pid}:
                self._update(lambda seen: replace(seen, pid=pid, stage="spawned"))
                _settle(started, pid)
            case {"event": "failed", "error": error}:
                _settle(started, NodeError("the server could not be started", why=str(error)))
            case {"event": "log"}:
                self._log_grew.set()
            case {"event": "exit", "code": code, "signal": number, "at": at}:
                self._ended(Exit(_on_monotonic_clock(at), code, number))
            case {"event": "log_failed", "error": error}:
                self._update(lambda seen: replace(seen, log_error=str(error)))
            case {"event": "log_recovered"}:
                self._update(lambda seen: replace(seen, log_error=""))
            case {"event": "guard_lost", "at": at}:
                self._ended(Exit(_on_monotonic_clock(at), process="its guard"))
                _settle(started, NodeError("the guard of the server died before the server was up"))

    def _ended(self, how: Exit) -> None:
        if not self._ending and self._seen.exit is None:
            self._update(lambda seen: replace(seen, exit=how))

    def _observe(self, plan: LaunchPlan, server: ServerPlan, health: HealthConfig) -> None:
        self._log_grew.set()
        self._tasks = [
            asyncio.create_task(self._follow_log()),
            asyncio.create_task(self._watch_members()),
        ]
        if server.role == "primary":
            host = server.flag("--host") or server.node.ip
            address = server.node.ip if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound
            client = VllmClient(
                f"http://{bracket(address)}:{server.ports.http}",
                api_key=self._secrets.get("VLLM_API_KEY"),
            )
            self._observer = ApiObserver(
                client, plan.served_name, health, lambda: self._seen, self._update
            )
            self._tasks.append(asyncio.create_task(self._observer.run()))

    async def _read_ahead(self, folder: Path) -> None:
        """Until the weights are in the page cache, or vLLM loads them itself: it may need only a part of each file."""
        warmed = await asyncio.to_thread(page_cache.warm, folder, self._loads)
        if warmed.total:
            self._update(lambda seen: replace(seen, read_ahead=str(warmed)))

    async def _follow_log(self) -> None:
        """Read what the guard wrote, whenever it says that it wrote."""
        assert self._log is not None
        progress, cursor = StartupProgress(), None
        while True:
            await self._log_grew.wait()
            self._log_grew.clear()
            more = True
            while more:
                chunk = await asyncio.to_thread(log_files.read_from, self._log, cursor)
                cursor, more = chunk.cursor, chunk.more
                progress = self._take_lines(progress, chunk.text)
            async with self._changed:
                self._changed.notify_all()

    def _take_lines(self, progress: StartupProgress, text: str) -> StartupProgress:
        hangs = 0
        before = progress
        for line in text.splitlines():
            if not progress.done:
                progress = advance(progress, line)
            hangs += hang_lines(line)
        if progress.stage != before.stage:
            self._scan.set()  # its processes have just come to be
            if STAGES.index(progress.stage) >= STAGES.index("weights"):
                self._loads.set()
        if hangs or (progress.stage, progress.detail) != (before.stage, before.detail):
            stage, detail = progress.stage, progress.detail
            self._update(
                lambda seen: replace(
                    seen, stage=stage, stage_detail=detail, hang_lines=seen.hang_lines + hangs
                )
            )
        if progress.stage == "API up" and before.stage != "API up" and self._observer is not None:
            self._observer.api_is_up()
        return progress

    async def _watch_members(self) -> None:
        """Hold a pidfd on every lasting process below the server; look at each stage of the start, and now and then."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MEMBER_SCAN_S):
                    await self._scan.wait()
            self._scan.clear()
            pid = self._seen.pid
            if pid is None or self._seen.exit is not None:
                continue
            look = asyncio.ensure_future(asyncio.to_thread(find_members, pid, set(self._members)))
            try:
                found = await asyncio.shield(look)
            except asyncio.CancelledError:
                look.add_done_callback(_close_members)
                raise
            for member in found:
                self._members[member.pid] = member
                loop.add_reader(member.handle, self._member_ended, member)

    def _member_ended(self, member: Member) -> None:
        """A dying engine takes its workers with it within milliseconds: let them all end before one is blamed."""
        code, number = read_ending(member)
        self._drop_member(member)
        self._endings.append(
            Exit(time.monotonic(), code, number, f"{member.name} (pid {member.pid})")
        )
        if len(self._endings) == 1:
            asyncio.get_running_loop().call_later(SAME_END_S, self._blame_member, self._attempt)

    def _blame_member(self, attempt: int | None) -> None:
        endings, self._endings = self._endings, []
        if endings and attempt == self._attempt:
            self._ended(min(endings, key=_innocence))

    def _engine(self) -> tuple[int, str]:
        engines = [
            member
            for member in self._members.values()
            if member.name.startswith("VLLM::EngineCore")
        ]
        if not engines:
            raise NodeError(f"server {self._index} has no engine core")
        return engines[0].pid, engines[0].name

    def _drop_member(self, member: Member) -> None:
        self._members.pop(member.pid, None)
        asyncio.get_running_loop().remove_reader(member.handle)
        os.close(member.handle)

    def _cancel_tasks(self) -> None:
        self._loads.set()
        for task in self._tasks:
            task.cancel()
        self._tasks, self._observer = [], None
        for member in list(self._members.values()):
            self._drop_member(member)

    def _update(self, change: Callable[[ServerSeen], ServerSeen]) -> None:
        after = change(self._seen)
        if after != self._seen:
            self._seen = after
            self._version += 1
            task = asyncio.ensure_future(self._notify())
            self._notifying.add(task)
            task.add_done_callback(self._notifying.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _await_growth(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait()


def _prepare_launch(plan: LaunchPlan, server: ServerPlan, deployment: str, attempt: int) -> None:
    state_dir().mkdir(parents=True, exist_ok=True)
    log_files.prune_attempts(log_files.log_root(os.environ), deployment, KEPT_ATTEMPTS, attempt)
    if plan.platform == "cpu" and "PYTHONPATH" in server.env:
        from raylaunch.node.probe.vllm_cpu_metadata import ensure_vllm_metadata

        ensure_vllm_metadata(Path(server.env["PYTHONPATH"].value))


def _on_monotonic_clock(wall_at: float) -> float:
    """Convert the wall-clock time of an event that the guard has just sent.

    The age is bounded: if the wall clock was stepped between the event and now, the difference of
    the two times is no age.
    """
    age_s = min(max(0.0, time.time() - wall_at), EVENT_DELAY_S)
    return time.monotonic() - age_s


def _innocence(ended: Exit) -> tuple[bool, bool, bool, float]:
    """Orders ends: killed by a signal, failed, an engine before its workers, the earliest."""
    return ended.signal is None, ended.code == 0, "EngineCore" not in ended.process, ended.at


def _close_members(look: asyncio.Future[list[Member]]) -> None:
    for member in look.result():
        os.close(member.handle)


def _find_holders(ports: Sequence[int]) -> list[str]:
    from raylaunch.node.probe.network import read_listeners

    return [
        f"port {found.port} is held by {found.process or 'an unknown process'} (pid {found.pid or 'unknown'})"
        for found in read_listeners(ports)
        if found.port in ports
    ]


def _settle(future: asyncio.Future[int], result: int | Exception) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
