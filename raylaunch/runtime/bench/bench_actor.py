"""The bencher: the Ray actor on the primary's node that owns one `vllm bench serve` at a time.

It holds no NPU and lives no longer than the command that made it: Ray ends it with its driver, and then the guard ends
the benchmark. Its marker has a server number beyond the last, so that nothing which ends a server ends it, or the other
way round.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylaunch.bench.bench_output import STARTING, BenchProgress, read_progress
from raylaunch.errors import NodeError
from raylaunch.node.probe.software import find_vllm
from raylaunch.node.process import log_files
from raylaunch.node.process.process_markers import new_instance
from raylaunch.node.process.server_process import ProcessState, ServerProcess, ServerSpec, child_env
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.plan.plan_json import plan_from_dict
from raylaunch.runtime.agent.agent_handle import find_agent
from raylaunch.runtime.agent.probe_actor import state_dir
from raylaunch.vllm_api.vllm_client import VllmClient

TAIL_BYTES = 8192
TAIL_LINES = 25
TERM_S = 3.0
"""From SIGTERM to SIGKILL: nothing of an ended benchmark is wanted."""
OOM_SCORE = 500
"""When memory runs out the benchmark goes before the servers (0), after Ray's workers (1000)."""


@dataclass(frozen=True)
class Begun:
    """A benchmark that was started: its command line, its seed, and its log on the node."""

    command: tuple[str, ...]
    seed: int
    log: str


@dataclass(frozen=True)
class Ended:
    """How it ended. `result` None: it wrote none. The hit rate is of the servers' prefix cache, 0 to 1."""

    result: dict[str, Any] | None
    problem: str
    tail: str
    niceness: int | None
    prefix_hit_rate: float | None


class Bencher:
    """Runs benchmarks of one deployment, one after the other."""

    def __init__(self, deployment: str, plan: dict[str, Any], attempt: int) -> None:
        self._deployment = deployment
        self._plan: LaunchPlan = plan_from_dict(plan)
        self._attempt = attempt
        self._process: ServerProcess | None = None
        self._result = Path()
        self._log = Path()
        self._prompts = 0
        self._changed = asyncio.Event()
        self._over = False
        self._key = ""
        self._cached: tuple[int, int] | None = None
        with contextlib.suppress(
            PermissionError
        ):  # only root may; Ray starts workers at niceness 15
            os.setpriority(os.PRIO_PROCESS, 0, 0)

    async def launch(self, argv: tuple[str, ...], seed: int, prompts: int) -> Begun:
        """Start one; `seed` is that of the first on these servers, it is counted up by those that there were.

        Raises:
            NodeError: it could not be started.
        """
        number = await asyncio.to_thread(self._next_number)
        self._key = await self._api_key()
        self._cached = await self._read_cache()
        self._result = state_dir() / "bench-run" / f"{self._deployment}-{os.getpid()}-{number}.json"
        result = (
            "--save-result",
            "--result-dir",
            str(self._result.parent),
            "--result-filename",
            self._result.name,
        )
        words = (*argv, "--seed", str(seed + number - 1), *result)
        spec = ServerSpec(
            words, self._env(), str(self._log), cwd=str(state_dir()), term_timeout_s=TERM_S
        )
        self._prompts, self._over = prompts, False
        self._changed.clear()
        loop = asyncio.get_running_loop()

        def on_event(event: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(self._on_event, event)

        self._process = ServerProcess(spec, on_event)
        try:
            self._result.parent.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(self._process.start)
        except OSError as error:
            raise NodeError("the benchmark could not be started", why=str(error)) from error
        return Begun(spec.argv, seed + number - 1, str(self._log))

    async def watch(self, timeout_s: float) -> tuple[BenchProgress, bool]:
        """How far it is, and whether it has ended; answers when it has printed something, or after `timeout_s`."""
        if not self._over:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
        self._changed.clear()
        text = await asyncio.to_thread(_read_end, self._log)
        return (
            read_progress(text, self._prompts)
            if text
            else BenchProgress(STARTING, 0, self._prompts)
        ), self._over

    async def ended(self) -> Ended:
        """What came out of the one that has ended."""
        assert self._process is not None
        state = self._process.state
        result = await asyncio.to_thread(_take_result, self._result)
        tail = "\n".join(await asyncio.to_thread(log_files.tail, self._log, TAIL_LINES))
        problem = _problem(state) or ("" if result else "it left no result")
        rate = _hit_rate(self._cached, await self._read_cache())
        return Ended(result, problem, tail, state.niceness, rate)

    async def end(self) -> None:
        """End the benchmark if one runs."""
        if self._process is not None:
            await asyncio.to_thread(self._process.terminate, TERM_S)
        await asyncio.to_thread(_take_result, self._result)

    def _on_event(self, event: dict[str, Any]) -> None:
        match event:
            case {"event": "spawned", "pid": pid}:
                with contextlib.suppress(OSError):
                    Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE))
            case {"event": "clean"}:
                self._over = True
        self._changed.set()

    def _next_number(self) -> int:
        """1 for the first benchmark of this attempt. Its log stays beside the servers' and is pruned with them."""
        folder = log_files.attempt_dir(
            log_files.log_root(os.environ), self._deployment, self._attempt
        )
        found = [
            re.fullmatch(r"bench-(\d+)\.log", path.name) for path in folder.glob("bench-*.log")
        ]
        number = 1 + max((int(match[1]) for match in found if match), default=0)
        self._log = folder / f"bench-{number}.log"
        return number

    async def _api_key(self) -> str:
        """The key of the servers, from the agent that holds it: it crosses neither the driver nor a command line."""
        agent = await asyncio.to_thread(find_agent, self._deployment, 0)
        if agent is None:
            raise NodeError("the agent of server 0 is gone", todo="`raylaunch status` shows why")
        secrets = await agent.read_secrets()
        return secrets.get("VLLM_API_KEY", "")

    def _env(self) -> dict[str, str]:
        """The primary's environment, for the same Python and libraries; and the key, where the client looks for it."""
        primary = self._plan.primary
        vllm = os.environ.get("RAYLAUNCH_VLLM") or find_vllm(os.environ) or "vllm"
        env = child_env(
            os.environ,
            primary.environ,
            primary.unset,
            deployment=self._deployment,
            instance=new_instance(),
            attempt=self._attempt,
            server=len(self._plan.servers),
            secrets={"OPENAI_API_KEY": self._key} if self._key else {},
        )
        path = f"{Path(vllm).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
        return {**env, "PATH": path, "PYTHONUNBUFFERED": "1"}

    async def _read_cache(self) -> tuple[int, int] | None:
        """Tokens looked up in the prefix caches of all ranks, and those found there, since the servers' start."""
        async with VllmClient(self._plan.endpoint, self._key or None) as client:
            answer = await client.metrics()
        ranks = answer.ranks.values()
        if not answer.ok:
            return None
        return sum(rank.prefix_queries for rank in ranks), sum(rank.prefix_hits for rank in ranks)


def _problem(state: ProcessState) -> str:
    """Why it cannot have measured anything; "" when it ended well."""
    if state.error or state.exit_code == 0:
        return state.error
    if state.exit_code is not None:
        return f"exit code {state.exit_code}"
    return "its guard died" if state.exit_signal is None else f"signal {state.exit_signal}"


def _hit_rate(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    if before is None or after is None or after[0] <= before[0]:
        return None
    return (after[1] - before[1]) / (after[0] - before[0])


def _read_end(log: Path) -> str:
    """The end of the output so far, unfinished line and redrawn bars included."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _take_result(path: Path) -> dict[str, Any] | None:
    """Read vLLM's result file and remove it; it lives on in the kept run."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if path.name:
        path.unlink(missing_ok=True)
    return found if isinstance(found, dict) else None
