"""Fills the Facts of this machine: each question runs in a thread, and no failure is fatal."""

from __future__ import annotations

import logging
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
from raylaunch.home import home
from raylaunch.node.model import weight_files
from raylaunch.node.probe import network, npu_tools, software, tool_text, tuning
from raylaunch.plan.environment import PROXIES
from raylaunch.plan.facts import Facts, ProbeFailure

log = logging.getLogger(__name__)

DEFAULT_TIMEOUT_S = 30.0
_HOSTNAME_TIMEOUT_S = 5.0
_NPU_SHARE = 0.9
"""The NPU tools get a little less time, so that their own "no answer" arrives before ours."""

_Fields = dict[str, Any]
"""Some fields of Facts."""


@dataclass(frozen=True)
class _Question:
    """One sub-probe. `ask` returns fields of Facts and may block, but for `limit_s` at most."""

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
    """Read everything that a plan and its checks need to know about this machine.

    Returns after at most `timeout_s` seconds (0.04 s measured without NPU tools). A question that
    fails or gives no answer in time becomes a ProbeFailure in `failures`; the other facts stay.
    `node_id`, `interface` and `devices` are left to the caller.

    Args:
        ip: The address this node is known by.
        env: The environment in which a server would be started: its PATH, proxies, CANN paths.
        model_path: The folder of the weights; None: do not read it.
        drafter_path: The folder of a drafter's weights; None: do not read it.
        ports: Ports whose owners' names are wanted; all listeners are listed in any case.
        npu: Whether to run npu-smi and hccn_tool.
        timeout_s: The limit for all questions together.
        root: The folder that holds /proc, /sys, /usr and /etc.
    """
    folders = {"weights": model_path, "drafter": drafter_path}
    questions = _questions(
        env,
        folders,
        ports,
        npu,
        timeout_s,
        root,
    )
    facts = Facts(
        ip,
        hostname=socket.gethostname(),
        niceness=os.getpriority(os.PRIO_PROCESS, 0),
        # Wall clock on purpose: the checks compare the clocks of the nodes.
        clock=time.time(),
    )
    for fields in _ask_all(questions):
        facts = _merge(facts, fields)
    for failure in facts.failures:
        log.info("probe of %s: %s: %s", ip, failure.probe, failure.reason)
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
    for name, path in folders.items():
        # A question of its own for each folder: one of them may be in a dead mount.
        if path is not None:
            asks[name] = partial(_ask_weights, name, path)
    if npus:
        asks["npu"] = partial(_ask_npus, env, _NPU_SHARE * timeout_s, root)
    limits = {"hostname": min(_HOSTNAME_TIMEOUT_S, timeout_s)}
    questions = []
    for name, ask in asks.items():
        limit_s = limits.get(name, timeout_s)
        questions.append(_Question(name, ask, limit_s))
    return questions


def _ask_all(questions: list[_Question]) -> list[_Fields]:
    """Ask all questions in parallel and collect the answers in the order asked.

    The threads are daemons: one that hangs in a dead mount must not keep the process from exiting.
    """
    started = time.monotonic()
    boxes = [_ask_in_thread(question) for question in questions]
    answers = []
    for question, box in zip(questions, boxes, strict=True):
        deadline = started + question.limit_s
        answers.append(_await_answer(question, box, deadline))
    return answers


def _ask_in_thread(question: _Question) -> queue.SimpleQueue[_Fields]:
    box: queue.SimpleQueue[_Fields] = queue.SimpleQueue()

    def answer() -> None:
        # This answer stays when `ask` raises what no question should raise: a mistake in raylaunch.
        # The exception itself goes to threading.excepthook.
        fields = _failure(question.name, "no answer because of an internal error, see the log")
        try:
            fields = question.ask()
        except NodeError as error:
            fields = _failure(question.name, error.what)
        except (OSError, ValueError, RuntimeError, LookupError, ImportError, psutil.Error) as error:
            fields = _failure(question.name, f"{type(error).__name__}: {error}")
        finally:
            box.put(fields)

    threading.Thread(
        target=answer,
        name=f"probe {question.name}",
        daemon=True,
    ).start()
    return box


def _await_answer(
    question: _Question,
    box: queue.SimpleQueue[_Fields],
    deadline: float,
) -> _Fields:
    left_s = max(0.0, deadline - time.monotonic())
    try:
        return box.get(timeout=left_s)
    except queue.Empty:
        reason = f"no answer in {question.limit_s:g} s"
        return _failure(question.name, reason, hung=question.name == "npu")


def _failure(name: str, reason: str, *, hung: bool = False) -> _Fields:
    return {"failures": (ProbeFailure(name, tool_text.one_line(reason), hung),)}


def _merge(facts: Facts, fields: _Fields) -> Facts:
    """Put an answer into the facts.

    A later value wins, but a version that is known already stays. Failures add up.
    """
    failures = (*facts.failures, *fields.get("failures", ()))
    versions = fields.get("versions", {}) | facts.versions
    added = fields | {"failures": failures, "versions": versions}
    return replace(facts, **added)


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
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return soft


def _ask_hostname() -> _Fields:
    return {"resolves_to": network.resolve_hostname()}


def _ask_interfaces(root: Path) -> _Fields:
    return {"interfaces": network.read_interfaces(root)}


def _ask_listeners(ports: Collection[int]) -> _Fields:
    return {"listeners": network.read_listeners(ports)}


def _ask_memory(root: Path) -> _Fields:
    memory = psutil.virtual_memory()
    shm = os.statvfs(root / "dev/shm")
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
    from raylaunch.node.process.guard_socket import find_guards
    from raylaunch.node.process.process_markers import find_marked

    # None for a guard that has an agent.
    waits = {guard.instance: guard.owner_wait_s for guard in find_guards(home())}
    marked = (
        replace(process, owner_wait_s=waits.get(process.instance)) for process in find_marked()
    )
    return {"marked": tuple(marked)}


def _ask_weights(name: str, path: str) -> _Fields:
    return {name: weight_files.inspect_weights(path)}


def _ask_npus(
    env: Mapping[str, str],
    timeout_s: float,
    root: Path,
) -> _Fields:
    hccn_tool = root / npu_tools.HCCN_TOOL.lstrip("/")
    answer = npu_tools.read_npus(env, timeout_s, hccn_default=str(hccn_tool))
    versions = {"driver": answer.driver, "firmware": answer.firmware}
    return {
        "npus": answer.npus,
        "npu_processes": answer.processes,
        "npu_links": answer.links,
        "versions": {name: version for name, version in versions.items() if version},
        "failures": answer.failures,
    }
