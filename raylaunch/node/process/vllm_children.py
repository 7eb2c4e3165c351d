"""The processes below a server that must all live: its engines, workers and coordinator.

vLLM itself notices a dead engine only later: a headless server exits 16 s after its engine core was
killed, and the primary of a dense model never does (measured, vLLM 0.32). A pidfd becomes readable
the moment its process exits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from raylaunch.node.process.guard import descendants

NAMES = ("VLLM::EngineCore", "VLLM::Worker", "VLLM::DPCoordinator", "VLLM::ApiServer")
"""Titles vLLM gives its lasting processes; other children come and go."""


@dataclass(frozen=True)
class VllmChild:
    """A lasting process of a server. `handle` is a pidfd, to be closed by the owner."""

    pid: int
    name: str
    handle: int


def find_vllm_children(server_pid: int, known: set[int]) -> list[VllmChild]:
    """Find lasting processes below the server whose pids are not in `known`.

    A child with its parent's title is a fork that has not run its own program or not taken its own
    title yet: a worker of vLLM 0.23 forks helpers that exit with code 0 (seen with vllm-ascend).
    """
    found = []
    for process in descendants(server_pid):
        name = _title(process.pid)
        if process.pid in known or not name.startswith(NAMES) or name == _title(process.ppid):
            continue
        try:
            handle = os.pidfd_open(process.pid)
        except OSError:  # gone already, or a kernel before 5.3: vLLM's own detection must do
            continue
        found.append(VllmChild(process.pid, name, handle))
    return found


def read_exit_status(child: VllmChild) -> tuple[int | None, int | None]:
    """Return exit code and signal of a child; both None once its parent has reaped it."""
    status = _wait_status(child.pid)
    if status is None:
        return None, None
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return None, -code
    return code, None


def _title(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    first, _, _ = command.partition(b"\0")
    return first.decode(errors="replace").strip()


def _wait_status(pid: int) -> int | None:
    """Read a zombie's exit status from the last field of its stat line (proc(5): exit_code)."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The command, in parentheses, may itself hold blanks and parentheses.
    _, _, rest = line.rpartition(b")")
    fields = rest.split()
    if fields[0] != b"Z":
        return None
    return int(fields[-1])
