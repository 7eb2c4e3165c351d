"""The part of an agent that only looks: at its node, and at the ways to the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from raylaunch.checks.ping_checks import Ping, PingResult
from raylaunch.checks.reach_checks import FailedConnection, ProbeListener
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
class Recalled:
    """What is remembered of the flags of a node's vLLM. `key` names that vLLM, "" when there is none."""

    host: str
    key: str
    known: KnownFlags | None


class Scout:
    """Holds the NPUs of a server and looks. Times in seconds."""

    def __init__(self, deployment: str, index: int) -> None:
        self._deployment = deployment
        self._index = index
        self._doors: list[asyncio.Server] = []
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

    async def survey(
        self,
        tiny: Literal["qwen3", "minimax_m2"] | None,
        path: str,
        drafter: str | None,
        ports: tuple[int, ...],
        npu: bool,
        timeout_s: float,
    ) -> Facts:
        """Make the tiny model if the recipe wants one, and look at this node."""
        from raylaunch.node.probe.node_probe import probe

        if tiny is not None:
            path = str(state_dir() / "models" / f"tiny-{tiny}")
            await asyncio.to_thread(_make_tiny, tiny, Path(path))
        hello = await self.hello()
        facts = await asyncio.to_thread(
            probe,
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

    async def recall_flags(self) -> Recalled:
        """Say what this node's vLLM answered when it was last asked for its flags."""
        host = (await self.hello()).ip
        return await asyncio.to_thread(_recall, host)

    async def ask_flags(
        self, askers: tuple[int, ...], timeout_s: float, niceness: int
    ) -> KnownFlags | ProbeFailure | None:
        """Ask this node's vLLM for its flags, when this server is one of the askers."""
        return await asyncio.to_thread(_ask, timeout_s, niceness) if self._index in askers else None

    async def open_doors(
        self, wanted: Mapping[int, tuple[str, Mapping[str, int]]]
    ) -> tuple[ProbeListener, ...]:
        """Listen where `wanted` says for this server: address and ports. Until `close_doors`."""
        if self._index not in wanted:
            return ()
        self._doors, doors = await reachability.open_listeners(*wanted[self._index])
        return doors

    async def knock(
        self, sources: Mapping[int, str], doors: tuple[ProbeListener, ...], timeout_s: float
    ) -> list[FailedConnection]:
        """Connect from this node to the doors of the others."""
        source = sources.get(self._index)
        return await reachability.connect_to_all(source, doors, timeout_s) if source else []

    async def ping_npus(
        self, wanted: Mapping[int, tuple[Ping, ...]], timeout_s: float
    ) -> list[PingResult]:
        """Have the NPUs of this node ping those of others, as `wanted` says for this server."""
        pings = wanted.get(self._index, ())
        return (
            await asyncio.to_thread(npu.ping_npus, pings, {**os.environ}, timeout_s)
            if pings
            else []
        )

    async def close_doors(self) -> None:
        """Give the ports back: the servers want them."""
        for door in self._doors:
            door.close()
        for door in self._doors:
            await door.wait_closed()
        self._doors = []


def state_dir() -> Path:
    """Folder on this node for logs, generated models and evidence: $RAYLAUNCH_HOME, or ~/.raylaunch."""
    return log_files.state_root(os.environ)


def _recall(host: str) -> Recalled:
    vllm = vllm_flags.find(os.environ, state_dir())
    return Recalled(host, vllm.key, vllm_flags.recall(vllm)) if vllm else Recalled(host, "", None)


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
