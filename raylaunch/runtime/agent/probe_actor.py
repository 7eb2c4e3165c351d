"""The part of an agent that only probes: its own node, and the network to the other nodes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from raylaunch.checks.ping_checks import Ping, PingResult
from raylaunch.checks.reach_checks import FailedConnection, ProbeListener
from raylaunch.home import home
from raylaunch.node.probe import engine_dry_run, npu_tools, reachability, vllm_flags, vllm_question
from raylaunch.node.process import log_files
from raylaunch.plan.engine_answer import EngineReport
from raylaunch.plan.facts import Facts, ProbeFailure
from raylaunch.plan.known_flags import KnownFlags
from raylaunch.plan.launch_plan import LaunchPlan

FREE_POLL_S = 0.1
"""Between two checks whether a port is free."""

TinyModel = Literal["qwen3", "minimax_m2"]


@dataclass(frozen=True)
class Hello:
    """Where an agent is and what it runs: enough for a restarted controller to adopt it."""

    ip: str
    """The node's address as Ray knows it."""
    node_id: str
    """Ray's id of the node."""
    devices: tuple[int, ...]
    """The NPUs that Ray assigned to this agent."""
    pid: int
    instance: str
    """Random id of the start of the deployment that this agent belongs to."""
    log_root: str
    """Folder of the server logs on this node."""
    attempt: int | None = None
    """The attempt whose server runs; None when none does."""
    journal: bytes | None = None
    """The newest journal that the controller left with this agent."""


@dataclass(frozen=True)
class RecalledFlags:
    """The flags of a node's vLLM as they were listed the last time."""

    host: str
    key: str
    """Names this build of vLLM; "" when the node has no vLLM."""
    known: KnownFlags | None
    """None when this vLLM was never asked."""


class ProbeActor:
    """Holds the NPUs of a server and probes its node. Times in seconds."""

    def __init__(self, deployment: str, index: int, instance: str) -> None:
        self._deployment = deployment
        self._index = index
        self._instance = instance
        """Random id of this start of the deployment: only its processes may be terminated."""
        self._listeners: list[asyncio.Server] = []
        # Ray starts workers at niceness 15, which servers would inherit; only root may lower it.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 0)

    async def hello(self) -> Hello:
        """Report where this agent is."""
        import ray

        context = ray.get_runtime_context()
        assigned = context.get_accelerator_ids().get("NPU", [])
        return Hello(
            ip=str(ray.util.get_node_ip_address()),
            node_id=context.get_node_id(),
            devices=tuple(sorted(int(device) for device in assigned)),
            pid=os.getpid(),
            instance=self._instance,
            log_root=str(log_files.log_root(os.environ)),
        )

    async def probe(
        self,
        tiny: TinyModel | None,
        path: str,
        drafter: str | None,
        ports: tuple[int, ...],
        npu: bool,
        timeout_s: float,
    ) -> Facts:
        """Probe this node, and first generate the tiny model if the recipe wants one.

        Args:
            tiny: The tiny model to generate; its path then replaces `path`.
            path: The model's path on this node.
            drafter: Path of the draft model for speculative decoding.
            ports: Ports that the deployment would use.
            npu: Whether to probe NPUs.
            timeout_s: Limits each tool that a probe runs.
        """
        # Imported late: a ProbeActor answers `hello` before it needs the probes.
        from raylaunch.node.probe import node_probe

        if tiny is not None:
            path = str(home() / "models" / f"tiny-{tiny}")
            await asyncio.to_thread(_generate_tiny_model, tiny, Path(path))
        hello = await self.hello()
        facts = await asyncio.to_thread(
            node_probe.probe,
            hello.ip,
            env={**os.environ},
            model_path=path,
            drafter_path=drafter,
            ports=ports,
            npu=npu,
            timeout_s=timeout_s,
        )
        recalled = await asyncio.to_thread(_recall_flags, hello.ip)
        return replace(
            facts,
            node_id=hello.node_id,
            devices=hello.devices,
            state_dir=str(home()),
            vllm_executable=os.environ.get("RAYLAUNCH_VLLM") or facts.vllm_executable,
            known_flags=recalled.known,
        )

    async def recall_flags(self) -> RecalledFlags:
        """Return the stored flags of this node's vLLM, without running it."""
        hello = await self.hello()
        return await asyncio.to_thread(_recall_flags, hello.ip)

    async def ask_flags(self, timeout_s: float, niceness: int) -> KnownFlags | ProbeFailure | None:
        """Run this node's vLLM to list its flags, and store them.

        Returns:
            None when the node has no vLLM, or is too busy for a question at a low priority.
        """
        return await asyncio.to_thread(_ask_flags, timeout_s, niceness)

    async def dry_run_engine(
        self, plan: LaunchPlan, servers: tuple[int, ...], timeout_s: float, niceness: int
    ) -> EngineReport:
        """Have this node's vLLM build the configuration of servers that the plan puts here."""
        return await asyncio.to_thread(
            engine_dry_run.dry_run,
            plan,
            servers,
            {**os.environ},
            home(),
            timeout_s=timeout_s,
            niceness=niceness,
        )

    async def open_listeners(self, ip: str, ports: Mapping[str, int]) -> tuple[ProbeListener, ...]:
        """Listen on the named ports of `ip` until `close_listeners`. Port 0: the kernel chooses.

        Returns:
            The listeners that could be opened; a port in use is left out.
        """
        self._listeners, opened = await reachability.open_listeners(ip, ports)
        return opened

    async def try_connections(
        self, source: str, listeners: Sequence[ProbeListener], connect_s: float
    ) -> list[FailedConnection]:
        """Connect from the address `source` of this node to the listeners on other nodes.

        Returns:
            The listeners that could not be reached within `connect_s`.
        """
        return await reachability.connect_to_all(source, listeners, connect_s)

    async def ping_npus(self, pings: Sequence[Ping], ping_s: float) -> list[PingResult]:
        """Have the NPUs of this node ping NPUs of other nodes, within `ping_s` for all."""
        return await asyncio.to_thread(npu_tools.ping_npus, pings, {**os.environ}, ping_s)

    async def close_listeners(self) -> None:
        """Release the ports: the servers want them."""
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener.close()
        for listener in listeners:
            await listener.wait_closed()

    async def await_free_ports(self, ports: Sequence[int], wait_s: float) -> list[str]:
        """Wait until no process listens on the ports; return those that still do after `wait_s`."""
        deadline = time.monotonic() + wait_s
        while True:
            holders = await asyncio.to_thread(_find_listeners, ports)
            if not holders or time.monotonic() >= deadline:
                return holders
            await asyncio.sleep(FREE_POLL_S)  # the kernel does not report a closed listener


def _recall_flags(host: str) -> RecalledFlags:
    vllm = vllm_question.find(os.environ, home())
    if vllm is None:
        return RecalledFlags(host, key="", known=None)
    return RecalledFlags(host, vllm.key, vllm_flags.recall(vllm))


def _ask_flags(timeout_s: float, niceness: int) -> KnownFlags | ProbeFailure | None:
    if niceness > 0 and _is_busy():
        return None
    vllm = vllm_question.find(os.environ, home())
    if vllm is None:
        return None
    return vllm_flags.answer(vllm, os.environ, timeout_s, niceness)


def _is_busy() -> bool:
    """Return whether this node has no core to spare for background work.

    Even at the lowest priority an import of vLLM takes seconds of CPU time and evicts caches of a
    service on few cores.
    """
    cores = os.cpu_count() or 1
    return os.getloadavg()[0] > cores / 2


def _find_listeners(ports: Sequence[int]) -> list[str]:
    from raylaunch.node.probe.network import read_listeners

    described = []
    for listener in read_listeners(ports):
        if listener.port in ports:
            process = listener.process or "an unknown process"
            pid = listener.pid or "unknown"
            described.append(f"port {listener.port} is held by {process} (pid {pid})")
    return described


def _generate_tiny_model(kind: TinyModel, folder: Path) -> None:
    from raylaunch.node.model.tiny_model import ensure_tiny_model

    ensure_tiny_model(kind, folder)
