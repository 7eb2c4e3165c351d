"""One fault into a peer that serves: who notices, when, and when every rank answers again."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import contenders
import outlook
from benchmark_hosts import Command, PeerError, TwoHosts
from contenders import NAME, OURS, Peer

FLOW_S = 60.0
HANG_S = 240.0
"""So long at least to wait after a hang: Ray Serve gives a replica up after three checks of 30 s.
"""
QUIET_S = 3.0
"""Requests flow for so long before the fault."""
LOOK_S, LINGER_S = 0.5, 15.0
"""How often to check whether it is back, and how long to watch for other symptoms when nothing can
bring it back."""
PRIMARY = 0
"""Number of the command with the API."""


class Watch:
    """Lines of JSON from a program on the head, collected while it runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self.flows = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                self.lines.append(json.loads(line))
                if self.lines[-1].get("ok"):
                    self.flows.set()

    def end(self) -> list[dict[str, Any]]:
        """End the program; what it had said."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self._thread.join(10)
        return self.lines


def harm(peer: Peer, pair: TwoHosts, fault: str, patience_s: float) -> dict[str, Any]:
    """Inject `fault` and wait at most `patience_s` for the recovery.

    Raises:
        PeerError: the peer has no such process, or did not answer before the fault.
    """
    if fault not in peer.prey:
        return {"fault": fault, "skipped": "it has no such process"}
    if peer.name in OURS:
        return _drill(pair, fault)
    return _strike(peer, pair, fault, patience_s)


def _drill(pair: TwoHosts, fault: str) -> dict[str, Any]:
    words = ["raylaunch", "drill", NAME, "--yes", "-o", "json", "--fault", fault]
    done = pair.head.run(words, env=pair.ray_env, check=False, timeout=600)
    if done.returncode not in (0, 7):
        raise PeerError(f"{done.stdout}{done.stderr}"[-800:])
    (outcome,) = json.loads(done.stdout)
    kept = (
        "fault",
        "what",
        "detected_by",
        "detection_s",
        "recovery_s",
        "start_s",
        "requests",
        "failed",
        "problem",
    )
    return {name: outcome[name] for name in kept}


def _strike(peer: Peer, pair: TwoHosts, fault: str, patience_s: float) -> dict[str, Any]:
    host, pid, line = contenders.find_prey(pair, peer.prey, fault)
    hang = fault == "stop-headless"
    if hang:
        patience_s = max(patience_s, HANG_S)
    pids = [str(one) for one in (contenders.below(host, pid) if hang else [pid])]
    what = f"SIGSTOP to {line} and what is below it" if hang else f"SIGKILL to {line}"
    watch = Watch(pair.ask("watch.py", pair.head.ip, str(peer.port), peer.health))
    told = _watch_serve(peer, pair)
    ended: dict[int, float] = {}
    try:
        if not watch.flows.wait(FLOW_S):
            raise PeerError("no request was answered before the fault")
        _await_whole(peer, told)
        time.sleep(QUIET_S)
        host.run(["kill", "-STOP" if hang else "-KILL", *pids])
        at = (
            time.time()
        )  # after it: on a busy machine the command that kills may take seconds to begin
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline and not _over(peer, watch, told(), at, ended):
            _note_ends(pair, ended, LOOK_S)
    finally:
        seen = watch.end()
    return _sum_up(
        peer,
        pair,
        fault,
        f"{what} (pid {', '.join(pids)})",
        sorted([*seen, *told()], key=_at),
        at,
        ended,
    )


def _at(line: dict[str, Any]) -> float:
    return float(line["at"])


def _watch_serve(peer: Peer, pair: TwoHosts) -> Callable[[], list[dict[str, Any]]]:
    """What Serve told about its status so far; its driver begins to tell when it is asked."""
    if not peer.name.startswith("serve"):
        return list
    command = pair.commands[0]
    assert command.process.stdin is not None
    command.process.stdin.write("\n")
    command.process.stdin.flush()

    def told() -> list[dict[str, Any]]:
        lines = command.log.read_text(errors="replace").splitlines()
        return [
            json.loads(line) for line in lines if line.startswith('{"at"') and line.endswith("}")
        ]

    return told


def _await_whole(peer: Peer, told: Callable[[], list[dict[str, Any]]]) -> None:
    """Wait until Serve shows everything healthy: its second proxy comes late."""
    deadline = time.monotonic() + FLOW_S
    while peer.name.startswith("serve"):
        if (lines := told()) and not outlook.serve_ails(lines[-1]):
            return
        if time.monotonic() > deadline:
            raise PeerError(f"Serve was not healthy before the fault: {lines[-1:]}")
        time.sleep(LOOK_S)


def _over(
    peer: Peer, watch: Watch, told: list[dict[str, Any]], at: float, ended: dict[int, float]
) -> bool:
    """Whether nothing more is to come: it is back, or nothing is left that could bring it back."""
    seen = sorted([*watch.lines, *told], key=_at)
    if peer.name.startswith("serve"):
        return outlook.serve_back_at(seen, at) is not None
    if outlook.ranks_back_at(seen, at) is not None:
        return True
    return not peer.acts and PRIMARY in ended and time.time() > ended[PRIMARY] + LINGER_S


def _note_ends(pair: TwoHosts, ended: dict[int, float], during_s: float) -> None:
    """Look often which commands have ended: several are awaited at once."""
    until = time.monotonic() + during_s
    while time.monotonic() < until:
        for number, command in enumerate(pair.commands):
            if command.process.poll() is not None:
                ended.setdefault(number, time.time())
        time.sleep(0.05)


def _sum_up(
    peer: Peer,
    pair: TwoHosts,
    fault: str,
    what: str,
    seen: list[dict[str, Any]],
    at: float,
    ended: dict[int, float],
) -> dict[str, Any]:
    notices = [(when, _end_of(pair.commands[number], number)) for number, when in ended.items()]
    if (bad := outlook.unhealthy_at(seen, at)) is not None:
        notices.append((bad, f"{peer.health} is no longer 200"))
    if (serve := outlook.serve_noticed(seen, at)) is not None:
        notices.append(serve)
    notices.sort()
    serves = peer.name.startswith("serve")
    back = outlook.serve_back_at(seen, at) if serves else outlook.ranks_back_at(seen, at)
    sent, failed = outlook.requests(seen, at)
    return {
        "fault": fault,
        "what": what,
        "detected_by": notices[0][1] if notices else "",
        "detection_s": notices[0][0] - at if notices else None,
        "recovery_s": back - at if back else None,
        "waited_s": max(_at(one) for one in seen) - at,
        "served_on": back is not None and not failed and not peer.acts,
        "gone": PRIMARY in ended and not peer.acts,
        "requests": sent,
        "failed": failed,
        "notices": [[when - at, by] for when, by in notices],
    }


def _end_of(command: Command, number: int) -> str:
    return f"command {number + 1} exited with {command.process.returncode} on its terminal"
