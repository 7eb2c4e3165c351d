"""The part of an agent that only looks: at its node, and at the ways to the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from raylaunch.checks.ping_checks import Ping, Pinged
from raylaunch.checks.reach_checks import Door, Unreached
from raylaunch.node.probe import npu_tools as npu, reachability, vllm_flags
from raylaunch.node.process import log_files
from raylaunch.plan.facts import Facts, ProbeFailure
from raylaunch.plan.known_flags import KnownFlags


@dataclass(frozen=True)
class Hello:
    """Where an agent is and what it runs; enough for a restarted controller to adopt it."""

    ip: str
    node_id: str
    devices: tuple[int, ...]
    pid: int
    log_root: str
    attempt: int | None = None
    journal: bytes | None = None


@dataclass(frozen=True)
class RecalledFlags:
    """What is remembered of the flags of a node's vLLM. `key` names that vLLM, "" when there is none."""

    host: str
    key: str
    known: KnownFlags | None


class ProbeActor:
    """Holds the NPUs of a server and looks. Times in seconds."""

    def __init__(self, deployment: str, index: int) -> None:
        self._deployment = deployment
        self._index = index
        self._listeners: list[asyncio.Server] = []
        with contextlib.suppress(
            PermissionError
        ):  # only root may; Ray starts workers at niceness 15
            os.setpriority(os.PRIO_PROCESS, 0, 0)

    async def hello(self) -> Hello:
        """Say where this agent is."""
        import ray

        context = ray.get_runtime_context()
        devices = tuple(
            sorted(int(device) for device in context.get_accelerator_ids().get("NPU", []))
        )
        address, log_root = str(ray.util.get_node_ip_address()), str(log_files.log_root(os.environ))
        return Hello(address, context.get_node_id(), devices, os.getpid(), log_root)

    async def probe(
        self,
        tiny: Literal["qwen3", "minimax_m2"] | None,
        path: str,
        drafter: str | None,
        ports: tuple[int, ...],
        npu: bool,
        timeout_s: float,
    ) -> Facts:
        """Make the tiny model if the recipe wants one, and look at this node."""
        from raylaunch.node.probe import node_probe

        if tiny is not None:
            path = str(state_dir() / "models" / f"tiny-{tiny}")
            await asyncio.to_thread(_make_tiny, tiny, Path(path))
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
        return replace(
            facts,
            node_id=hello.node_id,
            devices=hello.devices,
            state_dir=str(state_dir()),
            vllm_executable=os.environ.get("RAYLAUNCH_VLLM") or facts.vllm_executable,
            known_flags=(await self.recall_flags()).known,
        )

    async def recall_flags(self) -> RecalledFlags:
        """Say what this node's vLLM answered when it was last asked for its flags."""
        host = (await self.hello()).ip
        return await asyncio.to_thread(_recall, host)

    async def ask_flags(self, timeout_s: float, niceness: int) -> KnownFlags | ProbeFailure | None:
        """Run this node's vLLM to list its flags.

        Returns:
            None when the node has no vLLM, or is too busy for a question at a low priority.
        """
        return await asyncio.to_thread(_ask, timeout_s, niceness)

    async def open_listeners(self, ip: str, ports: Mapping[str, int]) -> tuple[Door, ...]:
        """Listen on the named ports of `ip` until `close_listeners`."""
        self._listeners, doors = await reachability.open_doors(ip, ports)
        return doors

    async def try_connections(
        self, source: str, listeners: Sequence[Door], connect_s: float
    ) -> list[Unreached]:
        """Connect from the address `source` of this node to the listeners of the others."""
        return await reachability.knock(source, listeners, connect_s)

    async def ping_npus(self, pings: Sequence[Ping], ping_s: float) -> list[Pinged]:
        """Have the NPUs of this node ping those of others."""
        return await asyncio.to_thread(npu.ping_npus, pings, {**os.environ}, ping_s)

    async def close_listeners(self) -> None:
        """Give the ports back: the servers want them."""
        for listener in self._listeners:
            listener.close()
        for listener in self._listeners:
            await listener.wait_closed()
        self._listeners = []


def state_dir() -> Path:
    """Folder on this node for logs, generated models and evidence: $RAYLAUNCH_HOME, or ~/.raylaunch."""
    return log_files.state_root(os.environ)


def _recall(host: str) -> RecalledFlags:
    vllm = vllm_flags.find(os.environ, state_dir())
    return (
        RecalledFlags(host, vllm.key, vllm_flags.recall(vllm))
        if vllm
        else RecalledFlags(host, "", None)
    )


def _ask(timeout_s: float, niceness: int) -> KnownFlags | ProbeFailure | None:
    if niceness and _is_busy():
        return None
    vllm = vllm_flags.find(os.environ, state_dir())
    return vllm_flags.answer(vllm, os.environ, timeout_s, niceness) if vllm else None


def _is_busy() -> bool:
    """Whether this host has no core to spare for what nobody waits for.

    Also at the lowest priority an import of vLLM takes seconds of CPU and caches from a service on few cores.
    """
    return os.getloadavg()[0] > (os.cpu_count() or 1) / 2


def _make_tiny(kind: Literal["qwen3", "minimax_m2"], folder: Path) -> None:
    from raylaunch.node.model.tiny_model import ensure_tiny_model

    ensure_tiny_model(kind, folder)
