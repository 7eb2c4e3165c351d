"""Reasons of an exit that no log line explains: signals, exit codes, lost agents and nodes."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace

from raylaunch.supervise.diagnosis.signatures import Kind
from raylaunch.supervise.state import Exit

_SENT_FROM_OUTSIDE = (signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
_BY_CODE = {0: "exited-zero", 2: "bad-usage", 126: "not-executable", 127: "not-executable"}


@dataclass(frozen=True)
class ExitReason:
    """Cause and remedy of a failure, by a signature or by an exit status."""

    id: str
    kind: Kind
    cause: str
    remedy: str
    source: str


def name_exit(exit_status: Exit) -> tuple[str, str]:
    """Return the id of the exit reason, and the signal, code or process it came with."""
    number = exit_status.signal
    code = exit_status.code or 0
    if number is None and exit_status.code is None and exit_status.process:
        return "member-ended", exit_status.process
    # Python's Popen reports signal n as -n, a shell as 128 + n.
    if number is None and code < 0:
        number = -code
    elif number is None and code > 128:
        number = code - 128
    if number is not None:
        name = "killed" if number in _SENT_FROM_OUTSIDE else "crashed"
        return name, str(number)
    return _BY_CODE.get(code, "unknown"), f"exit code {code}"


def describe_exit(name: str, argument: str) -> ExitReason:
    """Return the exit reason called `name`.

    Args:
        name: A key of the table below.
        argument: Signal number, exit code, exception line or reason, inserted into the text.
    """
    reason = _REASONS[name]
    shown = _signal_name(argument) if name in ("killed", "crashed") else argument
    return replace(reason, cause=reason.cause.replace("{0}", shown))


def exit_reasons() -> tuple[ExitReason, ...]:
    """Return all exit reasons; `{0}` in a cause stands for what `describe_exit` inserts."""
    return _ALL


def _signal_name(number: str) -> str:
    try:
        return f"signal {number} ({signal.Signals(int(number)).name})"
    except ValueError:
        return f"signal {number}"


_ALL = (
    ExitReason(
        id="killed",
        kind="transient",
        cause="The server was killed from outside by {0}: by the kernel's OOM killer, an "
        "operator, or the container runtime.",
        remedy="On that node run `dmesg -T | grep -iE 'oom|killed process'`; if memory was "
        "short, give the container more.",
        source="signal(7)",
    ),
    ExitReason(
        id="crashed",
        kind="transient",
        cause="The server crashed in native code ({0}), and no known cause is in its log.",
        remedy="Look for a core file and in `dmesg -T`; on Ascend read the newest file under"
        " ~/ascend/log/debug/plog.",
        source="signal(7)",
    ),
    ExitReason(
        id="exited-zero",
        kind="transient",
        cause="The server exited with code 0 although no stop was requested: vLLM does so "
        "when an engine of its group is gone.",
        remedy="Inspect the server that exited first; the group restarts as a whole.",
        source="measured with vLLM 0.32.0",
    ),
    ExitReason(
        id="member-ended",
        kind="transient",
        cause="A child process of the server exited (exit status unknown): {0}.",
        remedy="Read the end of that server's log, and run `dmesg -T | grep -iE 'oom|killed "
        "process'` on its node.",
        source="raylaunch",
    ),
    ExitReason(
        id="bad-usage",
        kind="deterministic",
        cause="The server refused its command line ({0}).",
        remedy="Correct `args`; `vllm serve --help=all` on the node lists the flags of this "
        "release.",
        source="argparse",
    ),
    ExitReason(
        id="not-executable",
        kind="deterministic",
        cause="The command of the server could not be executed ({0}).",
        remedy="Check that `vllm` is on PATH in the environment from which Ray was started "
        "on that node.",
        source="sh(1)",
    ),
    ExitReason(
        id="agent-lost",
        kind="transient",
        cause="The agent of the server died, and the server with it.",
        remedy="If it was not stopped on purpose, read Ray's logs on that node "
        "(/tmp/ray/session_latest/logs).",
        source="measured with Ray 2.60.0",
    ),
    ExitReason(
        id="node-lost",
        kind="transient",
        cause="The cluster lost the node of the server ({0}): it was switched off, its "
        "raylet died, or its network was cut.",
        remedy="Check the node and `ray status`; join it again with `ray start --address`.",
        source="measured with Ray 2.60.0",
    ),
    ExitReason(
        id="unknown",
        kind="transient",
        cause="No known failure signature matched. Last error in the log: {0}",
        remedy="Read the log around that line; if the error is permanent, correct the recipe.",
        source="raylaunch",
    ),
    ExitReason(
        id="no-evidence",
        kind="transient",
        cause="The servers' logs and exit statuses show no failure.",
        remedy="`raylaunch events NAME` shows the observations at the time of the failure.",
        source="raylaunch",
    ),
)
_REASONS = {reason.id: reason for reason in _ALL}
