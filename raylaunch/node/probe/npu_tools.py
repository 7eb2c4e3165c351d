"""Runs npu-smi and hccn_tool on this machine, with a deadline: a sick card may hang either.

The tools are found through the environment that is passed in, so a recorded stand-in that comes
first on PATH answers in their place.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from raylaunch.checks.ping_checks import Ping, PingResult
from raylaunch.errors import NodeError
from raylaunch.node.probe import hccn_parsers, npu_parsers, tool_text
from raylaunch.plan.facts import Npu, NpuLink, NpuProcess, ProbeFailure

log = logging.getLogger(__name__)

TOOL_TIMEOUT_S = 20.0
HCCN_TOOL = "/usr/local/Ascend/driver/tools/hccn_tool"
SLOW_CALL_S = 5.0
"""A call that takes longer is logged. A ping of an NPU that is reached takes 2 to 3 s."""
_KILL_GRACE_S = 1.0
_LINK_WORKERS = 8
_PING_WORKERS = 16


class ToolHangsError(NodeError):
    """A tool was started and did not exit in time."""


@dataclass(frozen=True)
class NpuAnswer:
    """What the tools reported, and which of them gave no answer.

    `driver` and `firmware` come from the first board.
    """

    npus: tuple[Npu, ...] = ()
    processes: tuple[NpuProcess, ...] = ()
    links: tuple[NpuLink, ...] = ()
    driver: str | None = None
    firmware: str | None = None
    failures: tuple[ProbeFailure, ...] = ()


def read_npus(
    env: Mapping[str, str],
    timeout_s: float = TOOL_TIMEOUT_S,
    *,
    hccn_default: str = HCCN_TOOL,
) -> NpuAnswer:
    """Read the devices, their processes and the state of their network ports.

    Never raises for a tool that is missing, fails, hangs or prints something unreadable: that
    becomes a ProbeFailure of this question, and the other answers stay. Takes at most about
    `timeout_s` seconds, plus one to kill a tool that hangs.
    """
    smi = find_npu_smi(env)
    if smi is None:
        return NpuAnswer(failures=(ProbeFailure("npu-smi", "not found on PATH"),))
    calls = _Calls(env, time.monotonic() + timeout_s)
    # Without the device table there is nothing that the other questions could be about.
    try:
        table = calls.run([smi, "info"])
        npus, processes = npu_parsers.parse_npu_smi_info(table)
    except (NodeError, npu_parsers.UnreadableOutputError) as error:
        hung = isinstance(error, ToolHangsError)
        failure = ProbeFailure("npu-smi", _reason(error), hung)
        return NpuAnswer(failures=(failure,))
    npus, processes = _with_logic_ids(npus, processes, smi, calls)
    board = _read_board(npus, smi, calls)
    links = _read_links(npus, calls, hccn_default)
    return NpuAnswer(
        npus=tuple(npus),
        processes=tuple(processes),
        links=links,
        driver=board.driver,
        firmware=board.firmware,
        failures=tuple(calls.failures),
    )


def ping_npu(
    npu: int,
    address: str,
    *,
    env: Mapping[str, str],
    timeout_s: float = TOOL_TIMEOUT_S,
    hccn_default: str = HCCN_TOOL,
) -> hccn_parsers.NpuPing:
    """Ping another NPU's `address` from the network port of `npu`; 2 to 3 s when it is reached.

    Raises:
        NodeError: hccn_tool is missing, or gave no answer in `timeout_s` seconds.
    """
    tool = find_hccn_tool(env, hccn_default)
    if tool is None:
        raise NodeError("hccn_tool not found", why=f"neither {hccn_default} nor on PATH")
    argv = [tool, "-i", str(npu), "-ping", "-g", "address", address]
    output = run_tool(
        argv,
        env=env,
        timeout_s=timeout_s,
        check=False,
    )
    return hccn_parsers.parse_hccn_ping(output)


def ping_npus(
    pings: Sequence[Ping],
    env: Mapping[str, str],
    timeout_s: float,
    *,
    hccn_default: str = HCCN_TOOL,
) -> list[PingResult]:
    """Carry out pings: those of different NPUs in parallel, those of one NPU in sequence.

    Takes at most about `timeout_s` seconds. A ping that was not done by then, that the tool refused
    or whose answer is unreadable has no result.
    """
    deadline = time.monotonic() + timeout_s
    by_npu: dict[int, list[Ping]] = {}
    for ping in pings:
        by_npu.setdefault(ping.npu, []).append(ping)

    def ping_one(ping: Ping) -> PingResult:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return PingResult(ping, None, f"not done within {timeout_s:g} s")
        try:
            answer = ping_npu(
                ping.npu,
                ping.target_address,
                env=env,
                timeout_s=left_s,
                hccn_default=hccn_default,
            )
        except NodeError as error:
            return PingResult(ping, None, error.what)
        reached = answer.reached if answer.counted else None
        return PingResult(ping, reached, answer.complaint)

    def ping_in_sequence(pings_of_one: list[Ping]) -> list[PingResult]:
        return [ping_one(ping) for ping in pings_of_one]

    done: list[PingResult] = []
    with ThreadPoolExecutor(_PING_WORKERS) as pool:
        for answers in pool.map(ping_in_sequence, by_npu.values()):
            done += answers
    return done


def find_npu_smi(env: Mapping[str, str]) -> str | None:
    """Find npu-smi on the PATH of `env`."""
    return shutil.which("npu-smi", path=env.get("PATH", ""))


def find_hccn_tool(env: Mapping[str, str], default: str = HCCN_TOOL) -> str | None:
    """Find the driver's own hccn_tool, else one on the PATH of `env`.

    The driver's installer does not put it on PATH.
    """
    return shutil.which(default) or shutil.which("hccn_tool", path=env.get("PATH", ""))


def run_tool(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout_s: float,
    check: bool = True,
) -> str:
    """Run a tool in a process group of its own and return its stdout and stderr as clean text.

    Control characters are removed (`tool_text.clean`).

    Raises:
        ToolHangsError: It did not exit within `timeout_s` seconds; its group is killed.
        NodeError: It could not be started, or, with `check`, its exit status was not 0.
    """
    program = os.path.basename(argv[0])  # noqa: PTH119 (argv[0] is text, not a path to walk)
    name = " ".join([program, *argv[1:]])
    began = time.monotonic()
    try:
        process = _spawn(argv, env)
    except OSError as error:
        raise NodeError(f"{name}: {error.strerror or error}") from error
    try:
        printed, _ = process.communicate(timeout=max(timeout_s, 0.0))
    except subprocess.TimeoutExpired:
        _kill_group(process)
        log.warning("%s gave no answer in %.0f s and was killed", name, timeout_s)
        raise ToolHangsError(
            f"no answer in {timeout_s:.0f} s: {name}", todo=f"run it by hand: {name}"
        ) from None
    took_s = time.monotonic() - began
    if took_s > SLOW_CALL_S:
        log.info("%s took %.1f s", name, took_s)
    output = tool_text.clean(printed)
    if check and process.returncode != 0:
        quoted = tool_text.first_line(output)
        raise NodeError(f"{name} failed with exit code {process.returncode}: {quoted}")
    return output


def _spawn(argv: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**env, "LC_ALL": "C", "LANG": "C"},
        start_new_session=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


def _kill_group(process: subprocess.Popen[str]) -> None:
    """Send SIGKILL to the tool's group and wait for a short time only.

    A process that waits in the driver (state D) outlives even SIGKILL.
    """
    # The group may be gone already, or belong to another user (a setuid wrapper).
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # The process is not reaped yet, so its number cannot belong to another process.
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.communicate(timeout=_KILL_GRACE_S)
    except subprocess.TimeoutExpired:
        if process.stdout:
            process.stdout.close()


@dataclass
class _Calls:
    """The calls of one probe: their environment, their common deadline, and what failed so far."""

    env: Mapping[str, str]
    deadline: float
    """On the monotonic clock."""
    failures: list[ProbeFailure] = field(default_factory=list)

    def run(self, argv: Sequence[str], *, check: bool = True) -> str:
        """Run one tool within what is left of the time, at most TOOL_TIMEOUT_S seconds."""
        left_s = self.deadline - time.monotonic()
        timeout_s = min(TOOL_TIMEOUT_S, left_s)
        return run_tool(
            argv,
            env=self.env,
            timeout_s=timeout_s,
            check=check,
        )

    def fail(self, probe: str, reason: str) -> None:
        """Record that one question has no answer."""
        self.failures.append(ProbeFailure(probe, reason))


def _with_logic_ids(
    npus: list[Npu],
    processes: list[NpuProcess],
    smi: str,
    calls: _Calls,
) -> tuple[list[Npu], list[NpuProcess]]:
    """Number the devices as CANN and Ray do.

    The mapping is read only where the table does not count 0, 1, 2 ... by itself: it saves a call.
    """
    ids = sorted(npu.id for npu in npus)
    if ids == list(range(len(npus))):
        return npus, processes
    try:
        mapping = npu_parsers.parse_mapping(calls.run([smi, "info", "-m"]))
    except (NodeError, npu_parsers.UnreadableOutputError) as error:
        calls.fail("npu-smi info -m", _reason(error))
        return npus, processes
    return npu_parsers.renumber(npus, processes, mapping)


def _read_board(
    npus: list[Npu],
    smi: str,
    calls: _Calls,
) -> npu_parsers.Board:
    if not npus:
        return npu_parsers.Board()
    argv = [smi, "info", "-t", "board", "-i", str(npus[0].card)]
    try:
        output = calls.run(argv)
    except NodeError as error:
        calls.fail("npu-smi info -t board", _reason(error))
        return npu_parsers.Board()
    return npu_parsers.parse_board(output)


def _read_links(
    npus: list[Npu],
    calls: _Calls,
    hccn_default: str,
) -> tuple[NpuLink, ...]:
    """Read all ports: the devices in parallel, the questions to one device in sequence."""
    if not npus:
        return ()
    tool = find_hccn_tool(calls.env, hccn_default)
    if tool is None:
        calls.fail("hccn_tool", f"neither {hccn_default} nor on PATH")
        return ()

    def read_one(npu: Npu) -> tuple[NpuLink, str]:
        return _read_link(npu.id, tool, calls)

    links: list[NpuLink] = []
    complaints: list[str] = []
    with ThreadPoolExecutor(_LINK_WORKERS) as pool:
        for link, complaint in pool.map(read_one, npus):
            links.append(link)
            if complaint:
                complaints.append(f"NPU {link.npu}: {complaint}")
    if complaints:
        others = len(complaints) - 1
        more = f" (and {others} more)" if others else ""
        calls.fail("hccn_tool", complaints[0] + more)
    return tuple(links)


def _read_link(npu: int, tool: str, calls: _Calls) -> tuple[NpuLink, str]:
    """Ask one device every question; returns the answers and what went wrong.

    After a question without an answer the rest is not asked: it would hang as well.
    """
    values: dict[str, object] = {}
    output = ""
    for flag, (name, parse) in _LINK_QUESTIONS.items():
        argv = [tool, "-i", str(npu), flag, "-g"]
        try:
            output = calls.run(argv, check=False)
        except NodeError as error:
            return _link(npu, values), _reason(error)
        values[name] = parse(output)
    # A single value may be absent (no LLDP, no gateway inside one subnet). All of them are not.
    if all(value is None for value in values.values()):
        return _link(npu, values), tool_text.first_line(output)
    return _link(npu, values), ""


def _link(npu: int, values: dict[str, object]) -> NpuLink:
    return NpuLink(npu, **values)  # type: ignore[arg-type]  # each parser gives its field's type


_LINK_QUESTIONS: dict[str, tuple[str, Callable[[str], object]]] = {
    "-link": ("link", hccn_parsers.parse_hccn_link),
    "-ip": ("ip", hccn_parsers.parse_hccn_ip),
    "-net_health": ("net_health", hccn_parsers.parse_hccn_net_health),
    "-netdetect": ("netdetect", hccn_parsers.parse_hccn_netdetect),
    "-gateway": ("gateway", hccn_parsers.parse_hccn_gateway),
    "-tls": ("tls", hccn_parsers.parse_hccn_tls),
    "-mtu": ("mtu", hccn_parsers.parse_hccn_mtu),
    "-lldp": ("lldp_port", hccn_parsers.parse_hccn_lldp),
}


def _reason(error: NodeError | ValueError) -> str:
    return error.what if isinstance(error, NodeError) else str(error)
