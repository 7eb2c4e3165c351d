"""Asks npu-smi and hccn_tool about this machine's NPUs, with a deadline: a sick card may make either hang.

The tools are found through the environment that is passed in, so a recorded stand-in that comes first on
PATH answers in their place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from raylaunch.checks.ping_checks import Ping, PingResult
from raylaunch.errors import NodeError
from raylaunch.node.probe import npu_parsers
from raylaunch.plan.facts import Npu, NpuLink, NpuProcess, ProbeFailure

TOOL_TIMEOUT_S = 20.0
HCCN_TOOL = "/usr/local/Ascend/driver/tools/hccn_tool"
_DEATH_GRACE_S = 1.0
_LINK_WORKERS = 8
_PING_WORKERS = 16


class ToolHangsError(NodeError):
    """A tool that was there and did not come back in time."""


@dataclass(frozen=True)
class NpuAnswer:
    """What the tools said, and which of them said nothing. `driver` and `firmware` come from the first board."""

    npus: tuple[Npu, ...] = ()
    processes: tuple[NpuProcess, ...] = ()
    links: tuple[NpuLink, ...] = ()
    driver: str | None = None
    firmware: str | None = None
    failures: tuple[ProbeFailure, ...] = ()


def read_npus(
    env: Mapping[str, str], timeout_s: float = TOOL_TIMEOUT_S, *, hccn_default: str = HCCN_TOOL
) -> NpuAnswer:
    """Devices, their processes and the state of their network ports.

    Never raises for a tool that is missing, fails, hangs or prints nonsense: that becomes a ProbeFailure and
    the rest of the answer stays. Takes at most about `timeout_s` seconds (plus one to end a hung tool).
    """
    deadline = time.monotonic() + timeout_s

    def left() -> float:
        return min(TOOL_TIMEOUT_S, deadline - time.monotonic())

    failures: list[ProbeFailure] = []
    smi = find_npu_smi(env)
    if smi is None:
        return NpuAnswer(failures=(ProbeFailure("npu-smi", "not found on PATH"),))
    try:
        npus, processes = npu_parsers.parse_npu_smi_info(
            run_tool([smi, "info"], env=env, timeout_s=left())
        )
    except (NodeError, ValueError) as error:
        hung = isinstance(error, ToolHangsError)
        return NpuAnswer(failures=(ProbeFailure("npu-smi", _reason(error), hung),))
    npus, processes = _number_as_cann_does(npus, processes, smi, env, left(), failures)
    board = _read_board(npus, smi, env, left(), failures)
    links = _read_links(npus, env, left(), hccn_default, failures)
    return NpuAnswer(
        tuple(npus), tuple(processes), links, board.driver, board.firmware, tuple(failures)
    )


def ping_npu(
    npu: int,
    address: str,
    *,
    env: Mapping[str, str],
    timeout_s: float = TOOL_TIMEOUT_S,
    hccn_default: str = HCCN_TOOL,
) -> npu_parsers.NpuPing:
    """Ping another NPU's `address` from the network port of `npu` (takes 2-3 s when the answer is good).

    Raises:
        NodeError: hccn_tool is missing, or gave no answer in time.
    """
    tool = find_hccn_tool(env, hccn_default)
    if tool is None:
        raise NodeError("hccn_tool not found", why=f"neither {hccn_default} nor on PATH")
    argv = [tool, "-i", str(npu), "-ping", "-g", "address", address]
    return npu_parsers.parse_hccn_ping(run_tool(argv, env=env, timeout_s=timeout_s, check=False))


def ping_npus(
    pings: Sequence[Ping],
    env: Mapping[str, str],
    timeout_s: float,
    *,
    hccn_default: str = HCCN_TOOL,
) -> list[PingResult]:
    """Carry out pings: the NPUs side by side, those of one NPU one after the other.

    Takes at most about `timeout_s` seconds; a ping that was not done by then, or that the tool refused, has no result.
    """
    deadline = time.monotonic() + timeout_s
    by_npu: dict[int, list[Ping]] = {}
    for ping in pings:
        by_npu.setdefault(ping.npu, []).append(ping)

    def ask(ping: Ping) -> PingResult:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return PingResult(ping, None, f"not done within {timeout_s:g} s")
        try:
            answer = ping_npu(
                ping.npu, ping.target_address, env=env, timeout_s=left_s, hccn_default=hccn_default
            )
        except NodeError as error:
            return PingResult(ping, None, error.what)
        return PingResult(ping, answer.reached if answer.counted else None, answer.complaint)

    with ThreadPoolExecutor(_PING_WORKERS) as pool:
        answers = pool.map(lambda some: [ask(ping) for ping in some], by_npu.values())
        return [one for some in answers for one in some]


def find_npu_smi(env: Mapping[str, str]) -> str | None:
    """The npu-smi that the PATH of `env` leads to."""
    return shutil.which("npu-smi", path=env.get("PATH", ""))


def find_hccn_tool(env: Mapping[str, str], default: str = HCCN_TOOL) -> str | None:
    """The driver's own hccn_tool, else the one on the PATH of `env` (the driver does not put it there)."""
    return shutil.which(default) or shutil.which("hccn_tool", path=env.get("PATH", ""))


def run_tool(
    argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float, check: bool = True
) -> str:
    """Run a tool in its own process group and return what it printed, errors included.

    Raises:
        ToolHangsError: It did not end in time; its group is killed.
        NodeError: It could not be started, or, with `check`, ended with another exit code than 0.
    """
    name = " ".join([os.path.basename(argv[0]), *argv[1:]])  # noqa: PTH119 (argv[0] is text, not a path to walk)
    try:
        process = _spawn(argv, env)
    except OSError as error:
        raise NodeError(f"{name}: {error.strerror or error}") from error
    try:
        output, _ = process.communicate(timeout=max(timeout_s, 0.0))
    except subprocess.TimeoutExpired:
        _end_group(process)
        raise ToolHangsError(
            f"no answer in {timeout_s:.0f} s: {name}", todo=f"run it by hand: {name}"
        ) from None
    if check and process.returncode != 0:
        raise NodeError(
            f"{name} ended with exit code {process.returncode}: {npu_parsers.first_line(output)}"
        )
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


def _end_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL the tool's group. One that sits in the driver (state D) outlives even that: do not wait for it long."""
    with contextlib.suppress(
        ProcessLookupError, PermissionError
    ):  # over already, or run by a setuid wrapper
        os.killpg(
            process.pid, signal.SIGKILL
        )  # not reaped yet, so the number cannot belong to anybody else
    try:
        process.communicate(timeout=_DEATH_GRACE_S)
    except subprocess.TimeoutExpired:
        if process.stdout:
            process.stdout.close()


def _number_as_cann_does(
    npus: list[Npu],
    processes: list[NpuProcess],
    smi: str,
    env: Mapping[str, str],
    timeout_s: float,
    failures: list[ProbeFailure],
) -> tuple[list[Npu], list[NpuProcess]]:
    """Ask for the logic ids only where the table does not count 0, 1, 2 ... by itself: it saves a call."""
    if sorted(npu.id for npu in npus) == list(range(len(npus))):
        return npus, processes
    try:
        mapping = npu_parsers.parse_mapping(
            run_tool([smi, "info", "-m"], env=env, timeout_s=timeout_s)
        )
    except (NodeError, ValueError) as error:
        failures.append(ProbeFailure("npu-smi info -m", _reason(error)))
        return npus, processes
    return npu_parsers.renumber(npus, processes, mapping)


def _read_board(
    npus: list[Npu],
    smi: str,
    env: Mapping[str, str],
    timeout_s: float,
    failures: list[ProbeFailure],
) -> npu_parsers.Board:
    if not npus:
        return npu_parsers.Board()
    argv = [smi, "info", "-t", "board", "-i", str(npus[0].card)]
    try:
        return npu_parsers.parse_board(run_tool(argv, env=env, timeout_s=timeout_s))
    except NodeError as error:
        failures.append(ProbeFailure("npu-smi info -t board", _reason(error)))
        return npu_parsers.Board()


def _read_links(
    npus: list[Npu],
    env: Mapping[str, str],
    timeout_s: float,
    hccn_default: str,
    failures: list[ProbeFailure],
) -> tuple[NpuLink, ...]:
    """All devices side by side, the questions to one device one after the other."""
    tool = find_hccn_tool(env, hccn_default)
    if not npus or tool is None:
        failures += (
            [ProbeFailure("hccn_tool", f"neither {hccn_default} nor on PATH")] if npus else []
        )
        return ()
    deadline = time.monotonic() + timeout_s

    def ask(npu: Npu) -> tuple[NpuLink, str]:
        return _read_link(npu.id, tool, env, deadline)

    with ThreadPoolExecutor(_LINK_WORKERS) as pool:
        answers = list(pool.map(ask, npus))
    complaints = [f"NPU {link.npu}: {complaint}" for link, complaint in answers if complaint]
    if complaints:
        more = f" (and {len(complaints) - 1} more)" if complaints[1:] else ""
        failures.append(ProbeFailure("hccn_tool", complaints[0] + more))
    return tuple(link for link, _ in answers)


def _read_link(npu: int, tool: str, env: Mapping[str, str], deadline: float) -> tuple[NpuLink, str]:
    """Ask one device everything. After a question without an answer the rest is not asked: it would hang as well."""
    seen: dict[str, object] = {}
    said = ""
    for flag, (name, parse) in _LINK_QUESTIONS.items():
        argv = [tool, "-i", str(npu), flag, "-g"]
        try:
            said = run_tool(argv, env=env, timeout_s=deadline - time.monotonic(), check=False)
        except NodeError as error:
            return _link(npu, seen), _reason(error)
        seen[name] = parse(said)
    mute = all(value is None for value in seen.values())
    return _link(npu, seen), npu_parsers.first_line(said) if mute else ""


def _link(npu: int, seen: dict[str, object]) -> NpuLink:
    return NpuLink(npu, **seen)  # type: ignore[arg-type]  # each parser gives its field's type


_LINK_QUESTIONS: dict[str, tuple[str, Callable[[str], object]]] = {
    "-link": ("link", npu_parsers.parse_hccn_link),
    "-ip": ("ip", npu_parsers.parse_hccn_ip),
    "-net_health": ("net_health", npu_parsers.parse_hccn_net_health),
    "-netdetect": ("netdetect", npu_parsers.parse_hccn_netdetect),
    "-gateway": ("gateway", npu_parsers.parse_hccn_gateway),
    "-tls": ("tls", npu_parsers.parse_hccn_tls),
    "-mtu": ("mtu", npu_parsers.parse_hccn_mtu),
    "-lldp": ("lldp_port", npu_parsers.parse_hccn_lldp),
}


def _reason(error: NodeError | ValueError) -> str:
    return error.what if isinstance(error, NodeError) else str(error)
