"""The Ray actor on the primary's node that runs `vllm bench serve`, one at a time.

It holds no NPU and is not detached: Ray kills it when the command that created it exits, and the
guard of the benchmark then terminates the benchmark. Its marker has a server index beyond the last
server, so that nothing that terminates a server terminates it, nor the other way round.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylaunch.bench.bench_output import STARTING, BenchProgress, read_progress
from raylaunch.errors import NodeError
from raylaunch.home import home
from raylaunch.node.probe.software import find_vllm
from raylaunch.node.process import log_files
from raylaunch.node.process.process_markers import new_instance
from raylaunch.node.process.server_env import child_env
from raylaunch.node.process.server_process import ProcessState, ServerProcess, ServerSpec
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.vllm_api.vllm_client import VllmClient

log = logging.getLogger(__name__)

TAIL_BYTES = 8192
TAIL_LINES = 25
TERM_S = 3.0
"""From SIGTERM to SIGKILL. Short: a terminated benchmark has nothing that must be saved."""
OOM_SCORE = 500
"""The kernel kills the benchmark before the servers (0) and after Ray's workers (1000)."""


@dataclass(frozen=True)
class BenchLaunch:
    """A benchmark that was launched: its command line, its seed, and its log on the node."""

    command: tuple[str, ...]
    seed: int
    log: str


@dataclass(frozen=True)
class BenchExit:
    """The outcome of a benchmark that has exited.

    Args:
        result: vLLM's result file; None if there is none.
        problem: Why it measured nothing; "" when it succeeded.
        tail: Last lines of its output.
        niceness: Of its process.
        prefix_hit_rate: Of the servers' prefix cache during the benchmark, 0 to 1.
    """

    result: dict[str, Any] | None
    problem: str
    tail: str
    niceness: int | None
    prefix_hit_rate: float | None


@dataclass(frozen=True)
class CacheCounters:
    """Tokens of the prefix caches of all ranks, counted since the servers' start."""

    queries: int
    hits: int


class BenchActor:
    """Runs the benchmarks of one deployment, one after the other."""

    def __init__(self, deployment: str, plan: LaunchPlan, attempt: int) -> None:
        self._deployment = deployment
        self._plan = plan
        self._attempt = attempt
        self._process: ServerProcess | None = None
        self._result_file = Path()
        self._log_file = Path()
        self._prompts = 0
        self._changed = asyncio.Event()
        self._exited = False
        self._api_key = ""
        self._cache_before: CacheCounters | None = None
        # Ray starts workers at niceness 15, which the benchmark inherits. Only root may lower it.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)

    async def launch(
        self, *, argv: tuple[str, ...], seed: int, prompts: int, api_key: str
    ) -> BenchLaunch:
        """Launch one benchmark.

        Args:
            argv: Its command line, without seed and result file.
            seed: Of the first benchmark on these servers. Each later one adds 1: the servers would
                find repeated prompts in their prefix cache.
            prompts: How many requests it sends.
            api_key: Of the service; "" if it requires none.

        Raises:
            NodeError: the benchmark cannot be started.
        """
        number = await asyncio.to_thread(self._next_number)
        self._api_key = api_key
        self._cache_before = await self._read_cache()
        result_name = f"{self._deployment}-{os.getpid()}-{number}.json"
        self._result_file = home() / "bench-run" / result_name
        used_seed = seed + number - 1
        command = (*argv, "--seed", str(used_seed), *self._result_words())
        self._prompts = prompts
        self._exited = False
        self._changed.clear()
        await self._spawn(command)
        log.info("benchmark %d of %s launched, log %s", number, self._deployment, self._log_file)
        return BenchLaunch(command, used_seed, str(self._log_file))

    async def watch(self, *, wait_s: float) -> tuple[BenchProgress, bool]:
        """Return the progress, and whether the benchmark has exited.

        A long poll: returns when there is new output, at the latest after `wait_s`.
        """
        if not self._exited:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
        self._changed.clear()
        text = await asyncio.to_thread(_read_end, self._log_file)
        progress = BenchProgress(STARTING, 0, self._prompts)
        if text:
            progress = read_progress(text, self._prompts)
        return progress, self._exited

    async def read_exit(self) -> BenchExit:
        """Return the outcome of the benchmark that has exited, and remove its result file."""
        assert self._process is not None
        state = self._process.state
        result = await asyncio.to_thread(_take_result, self._result_file)
        lines = await asyncio.to_thread(log_files.tail, self._log_file, TAIL_LINES)
        problem = _exit_problem(state)
        if not problem and not result:
            problem = "it wrote no result"
        cache_after = await self._read_cache()
        if problem:
            log.warning("the benchmark of %s failed: %s", self._deployment, problem)
        return BenchExit(
            result=result,
            problem=problem,
            tail="\n".join(lines),
            niceness=state.niceness,
            prefix_hit_rate=_hit_rate(self._cache_before, cache_after),
        )

    async def stop(self) -> None:
        """Terminate the benchmark if one runs."""
        if self._process is not None:
            await asyncio.to_thread(self._process.terminate, TERM_S)
        await asyncio.to_thread(_take_result, self._result_file)

    def _result_words(self) -> tuple[str, ...]:
        return (
            "--save-result",
            "--result-dir",
            str(self._result_file.parent),
            "--result-filename",
            self._result_file.name,
        )

    async def _spawn(self, command: tuple[str, ...]) -> None:
        spec = ServerSpec(
            command,
            self._env(),
            str(self._log_file),
            cwd=str(home()),
            term_timeout_s=TERM_S,
        )
        loop = asyncio.get_running_loop()

        def on_event(event: dict[str, Any]) -> None:
            # Events arrive in the thread that reads from the guard.
            loop.call_soon_threadsafe(self._on_event, event)

        self._process = ServerProcess(spec, on_event)
        try:
            self._result_file.parent.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(self._process.start)
        except OSError as error:
            raise NodeError("the benchmark cannot be started", why=str(error)) from error

    def _on_event(self, event: Mapping[str, Any]) -> None:
        match event:
            case {"event": "spawned", "pid": pid}:
                # It may have exited already.
                with contextlib.suppress(OSError):
                    Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE))
            case {"event": "clean"}:
                self._exited = True
        self._changed.set()

    def _next_number(self) -> int:
        """Return 1 for the first benchmark of this attempt, and choose the log file.

        The log is in the folder of the servers' logs, so it is pruned with them.
        """
        root = log_files.log_root(os.environ)
        log = log_files.planned_log(root, self._plan.primary.log, self._attempt)
        folder = log.parent
        number = 1
        for path in folder.glob("bench-*.log"):
            match = re.fullmatch(r"bench-(\d+)\.log", path.name)
            if match:
                number = max(number, int(match[1]) + 1)
        self._log_file = folder / f"bench-{number}.log"
        return number

    def _env(self) -> dict[str, str]:
        """Return the primary's environment, with the API key as vLLM's client expects it.

        The primary's, so that the benchmark finds the same Python and the same libraries.
        """
        primary = self._plan.primary
        vllm = os.environ.get("RAYLAUNCH_VLLM") or find_vllm(os.environ) or "vllm"
        secrets = {"OPENAI_API_KEY": self._api_key} if self._api_key else {}
        env = child_env(
            os.environ,
            primary.environ,
            primary.unset,
            deployment=self._deployment,
            group=self._plan.group,
            instance=new_instance(),
            attempt=self._attempt,
            server=len(self._plan.servers),
            secrets=secrets,
        )
        search_path = env.get("PATH", os.defpath)
        env["PATH"] = f"{Path(vllm).parent}{os.pathsep}{search_path}"
        env["PYTHONUNBUFFERED"] = "1"
        return env

    async def _read_cache(self) -> CacheCounters | None:
        """Return the prefix cache counters of all ranks; None if the servers do not answer."""
        async with VllmClient(self._plan.endpoint, self._api_key or None) as client:
            answer = await client.metrics()
        if not answer.ok:
            return None
        ranks = answer.ranks.values()
        queries = sum(rank.prefix_queries for rank in ranks)
        hits = sum(rank.prefix_hits for rank in ranks)
        return CacheCounters(queries, hits)


def _exit_problem(state: ProcessState) -> str:
    """Return why the process cannot have measured anything; "" when it exited with 0."""
    if state.error or state.exit_code == 0:
        return state.error
    if state.exit_code is not None:
        return f"exit code {state.exit_code}"
    if state.exit_signal is not None:
        return f"signal {state.exit_signal}"
    return "its guard died"


def _hit_rate(before: CacheCounters | None, after: CacheCounters | None) -> float | None:
    """Return the share of hits between two readings; None if it is not known."""
    if before is None or after is None:
        return None
    queries = after.queries - before.queries
    # Not positive without requests, and after a restart of the servers, which resets the counters.
    if queries <= 0:
        return None
    return (after.hits - before.hits) / queries


def _read_end(log_file: Path) -> str:
    """Return the end of the output so far, with its unfinished line and redrawn progress bars."""
    try:
        with log_file.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _take_result(path: Path) -> dict[str, Any] | None:
    """Read vLLM's result file and remove it: the stored run contains it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if path.name:
        path.unlink(missing_ok=True)
    return found if isinstance(found, dict) else None
