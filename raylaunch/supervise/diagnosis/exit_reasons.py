"""Ends of a server that no log line explains, in words: signals, exit codes, lost agents and nodes."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from raylaunch.supervise.diagnosis.signatures import Kind


@dataclass(frozen=True)
class Ending:
    """What is said about a failure: by a signature, or by the way the process ended."""

    id: str
    kind: Kind
    cause: str
    remedy: str
    source: str


def describe_ending(name: str, argument: str) -> Ending:
    """Say what an ending means. `argument` is the signal number, the exit code, the exception line or the reason."""
    kind, cause, remedy, source = _ENDINGS[name]
    shown = _signal_name(argument) if name in ("killed", "crashed") else argument
    return Ending(name, kind, cause.replace("{0}", shown), remedy, source)


def _signal_name(number: str) -> str:
    try:
        return f"signal {number} ({signal.Signals(int(number)).name})"
    except ValueError:
        return f"signal {number}"


_ENDINGS: dict[str, tuple[Kind, str, str, str]] = {
    "killed": (
        "transient",
        "The server was killed from outside by {0}: the kernel's OOM killer, an operator, or the container runtime.",
        "On that node run `dmesg -T | grep -iE 'oom|killed process'`; if memory was short, give the container more.",
        "signal(7)",
    ),
    "crashed": (
        "transient",
        "The server crashed in native code ({0}) without a word in its log.",
        "Look for a core file and in `dmesg -T`; on Ascend read the newest file under ~/ascend/log/debug/plog.",
        "signal(7)",
    ),
    "exited-zero": (
        "transient",
        "The server ended with code 0 although nobody asked it to: vLLM does so when an engine of its group is gone.",
        "The server that ended first is the one to look at; the group restarts as a whole.",
        "measured with vLLM 0.32.0",
    ),
    "member-ended": (
        "transient",
        "A process of the server is gone, and nobody saw how: {0}.",
        "Read the end of that server's log, and `dmesg -T | grep -iE 'oom|killed process'` on its node.",
        "raylaunch",
    ),
    "bad-usage": (
        "deterministic",
        "The server refused its command line ({0}).",
        "Correct `args`; `vllm serve --help=all` on the node lists what this release takes.",
        "argparse",
    ),
    "not-executable": (
        "deterministic",
        "The command of the server could not be run ({0}).",
        "Check that `vllm` is on PATH in the environment from which Ray was started on that node.",
        "sh(1)",
    ),
    "agent-lost": (
        "transient",
        "The agent that owned the server is gone, and its server with it.",
        "If it was not stopped on purpose, look into Ray's log folder of that node (/tmp/ray/session_latest/logs).",
        "measured with Ray 2.60.0",
    ),
    "node-lost": (
        "transient",
        "The node of the server is lost to the cluster ({0}): switched off, its raylet dead, or its network cut.",
        "Check the node and `ray status`; join it again with `ray start --address`.",
        "measured with Ray 2.60.0",
    ),
    "unknown": (
        "transient",
        "No known failure fits. What the server said last: {0}",
        "Read the log around that line; if it is a lasting error, correct the recipe.",
        "raylaunch",
    ),
    "no-evidence": (
        "transient",
        "The servers' logs and exit codes show no failure.",
        "Look at what was seen when the failure was noticed (`raylaunch events NAME`).",
        "raylaunch",
    ),
}
