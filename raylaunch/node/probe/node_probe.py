"""Fills Facts for this machine: every question in a thread of its own, one bound over all, no answer is fatal."""

from __future__ import annotations

import os
import platform
import queue
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from raylaunch.errors import NodeError
from raylaunch.node.model import weight_files
from raylaunch.node.probe import network, npu_tools as npu, software, tuning
from raylaunch.plan.environment import PROXIES
from raylaunch.plan.facts import Facts, ProbeFailure

DEFAULT_TIMEOUT_S = 30.0
_HOSTNAME_S = 5.0

_Fields = dict[str, Any]


@dataclass(frozen=True)
class _Question:
    """One sub-probe: `ask` returns fields of Facts and may block; after `limit_s` its answer is not waited for."""

    name: str
    ask: Callable[[], _Fields]
    limit_s: float


def probe(
    ip: str,
    *,
    env: Mapping[str, str],
    model_path: str | None = None,
    drafter_path: str | None = None,
    ports: Collection[int] = (),
    npu: bool = True,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    root: Path = Path("/"),
) -> Facts:
    """Everything a plan and its checks need to know about this machine.

    Returns after at most `timeout_s` seconds (0.04 s measured without NPU tools). A question that fails or does not
    come back in time becomes a ProbeFailure in `failures`; the other facts stay. `node_id`, `interface` and `devices`
    are the caller's to fill in.

    Args:
        ip: The address this node is known by.
        env: The environment in which a server would be started: its PATH, proxies, CANN paths.
        model_path: Where the weights should be; None: do not look.
        drafter_path: Where those of a drafter should be; None: do not look.
        ports: Ports whose owners' names are wanted; all listeners are listed in any case.
        npu: Ask npu-smi and hccn_tool.
        timeout_s: The bound over everything.
        root: Where /proc, /sys, /usr and /etc lie.
    """
    folders = {"weights": model_path, "drafter": drafter_path}
    questions = _questions(env, folders, ports, npu, timeout_s, root)
    facts = Facts(
        ip,
        hostname=socket.gethostname(),
        niceness=os.getpriority(os.PRIO_PROCESS, 0),
        clock=time.time(),
    )
    for answer in _ask_all(questions):
        facts = _merge(facts, answer)
    return facts


def _questions(
    env: Mapping[str, str],
    folders: Mapping[str, str | None],
    ports: Collection[int],
    npus: bool,
    timeout_s: float,
    root: Path,
) -> list[_Question]:
    asks: dict[str, Callable[[], _Fields]] = {
        "host": partial(_ask_host, env, root),
        "hostname": _ask_hostname,
        "interfaces": partial(_ask_interfaces, root),
        "listeners": partial(_ask_listeners, ports),
        "memory": partial(_ask_memory, root),
        "versions": partial(_ask_versions, env, root),
        "conflicts": _ask_conflicts,
        "tuning": partial(_ask_tuning, root),
        "marked": _ask_marked,
    }
    asks |= {
        name: partial(_ask_weights, name, path)
        for name, path in folders.items()
        if path is not None
    }
    if npus:  # a little less time, so that the tool's own "no answer" arrives before ours
        asks["npu"] = partial(_ask_npus, env, 0.9 * timeout_s, root)
    limits = {"hostname": min(_HOSTNAME_S, timeout_s)}
    return [_Question(name, ask, limits.get(name, timeout_s)) for name, ask in asks.items()]


def _ask_all(questions: list[_Question]) -> list[_Fields]:
    """Ask all at once and collect the answers in the order asked.

    The threads are daemons: one that hangs in a dead mount must not keep the process from ending.
    """
    started = time.monotonic()
    boxes = [_ask_aside(question) for question in questions]
    return [
        _await_answer(question, box, started)
        for question, box in zip(questions, boxes, strict=True)
    ]


def _ask_aside(question: _Question) -> queue.SimpleQueue[_Fields]:
    box: queue.SimpleQueue[_Fields] = queue.SimpleQueue()

    def answer() -> None:
        fields = _failure(question.name, "ended without an answer, see the log")
        try:
            fields = question.ask()
        except NodeError as error:
            fields = _failure(question.name, error.what)
        except (OSError, ValueError, RuntimeError, LookupError, ImportError, psutil.Error) as error:
            fields = _failure(question.name, f"{type(error).__name__}: {error}")
        finally:
            box.put(fields)

    threading.Thread(target=answer, name=f"probe {question.name}", daemon=True).start()
    return box


def _await_answer(question: _Question, box: queue.SimpleQueue[_Fields], started: float) -> _Fields:
    try:
        return box.get(timeout=max(0.0, started + question.limit_s - time.monotonic()))
    except queue.Empty:
        return _failure(
            question.name, f"no answer in {question.limit_s:g} s", hung=question.name == "npu"
        )


def _failure(name: str, reason: str, *, hung: bool = False) -> _Fields:
    return {"failures": (ProbeFailure(name, reason, hung),)}


def _merge(facts: Facts, fields: _Fields) -> Facts:
    """Later answers win; versions and failures add up."""
    added = {
        "failures": (*facts.failures, *fields.get("failures", ())),
        "versions": fields.get("versions", {}) | facts.versions,
    }
    return replace(facts, **(fields | added))


def _ask_host(env: Mapping[str, str], root: Path) -> _Fields:
    return {
        "arch": platform.machine(),
        "is_root": os.geteuid() == 0,
        "python": platform.python_version(),
        "open_files_limit": _open_files_limit(),
        "reserved_ports": tuning.read_sysctl("net.ipv4.ip_local_reserved_ports", root=root),
        "proxies": tuple(sorted(name for name in PROXIES if env.get(name))),
        "vllm_executable": software.find_vllm(env, sys.executable),
    }


def _open_files_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _ask_hostname() -> _Fields:
    return {"resolves_to": network.resolve_hostname()}


def _ask_interfaces(root: Path) -> _Fields:
    return {"interfaces": network.read_interfaces(root)}


def _ask_listeners(ports: Collection[int]) -> _Fields:
    return {"listeners": network.read_listeners(ports)}


def _ask_memory(root: Path) -> _Fields:
    memory, shm = psutil.virtual_memory(), os.statvfs(root / "dev/shm")
    return {
        "memory_total": memory.total,
        "memory_available": memory.available,
        "shm_total": shm.f_blocks * shm.f_frsize,
        "shm_free": shm.f_bavail * shm.f_frsize,
    }


def _ask_versions(env: Mapping[str, str], root: Path) -> _Fields:
    return {"versions": software.read_versions(env, root)}


def _ask_conflicts() -> _Fields:
    return {"conflicts": software.find_conflicts()}


def _ask_tuning(root: Path) -> _Fields:
    return {"tuning": tuning.read_tuning(root=root)}


def _ask_marked() -> _Fields:
    from raylaunch.node.process.process_markers import find_marked

    return {"marked": tuple(find_marked())}


def _ask_weights(name: str, path: str) -> _Fields:
    return {name: weight_files.inspect_weights(path)}


def _ask_npus(env: Mapping[str, str], timeout_s: float, root: Path) -> _Fields:
    answer = npu.read_npus(env, timeout_s, hccn_default=str(root / npu.HCCN_TOOL.lstrip("/")))
    versions = {"driver": answer.driver, "firmware": answer.firmware}
    return {
        "npus": answer.npus,
        "npu_processes": answer.processes,
        "npu_links": answer.links,
        "versions": {name: version for name, version in versions.items() if version},
        "failures": answer.failures,
    }
