"""What the diagnosis reads of one server: its log, its exit, its node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raylaunch.plan.launch_plan import Role
from raylaunch.supervise.diagnosis.inputs.cann_table import CannEntry
from raylaunch.supervise.state import Exit


@dataclass(frozen=True)
class LogPart:
    """A file among those that make up a log: rotated ones are read as one."""

    file: str
    first: int
    """Index of its first line among the lines of the log."""


@dataclass(frozen=True)
class ServerEvidence:
    """Evidence of one server, frozen at the time of the failure.

    Clocks: `exit.at` and `lost_at` are in seconds since the epoch on the controller's wall clock,
    because they are compared with time stamps of log lines. The caller converts them from the
    monotonic clock with one offset, read once for all servers. `clock_offset_s` is the node's wall
    clock minus the controller's, `utc_offset_s` the node's time zone (seconds east of UTC): vLLM
    stamps in local time.

    `log_lines` is the log or its tail, beginning with line `first_line` of the file.
    """

    index: int
    role: Role = "primary"
    ranks: tuple[int, ...] = ()
    node_ip: str = ""
    log_lines: Sequence[str] = ()
    exit: Exit | None = None
    agent_lost: str | None = None
    lost_at: float | None = None
    clock_offset_s: float = 0.0
    utc_offset_s: float = 0.0
    first_line: int = 1
    line_numbers: Sequence[int] = ()
    """Number in the file of each of `log_lines`, when some were left out."""
    parts: tuple[LogPart, ...] = ()
    """Files that `log_lines` come from, in order."""
    cann_codes: Mapping[str, CannEntry] = field(default_factory=dict)
    """What the CANN of the node says about its error codes."""

    def place(self, line: int) -> tuple[str, int]:
        """Return the file (when it is known) and the number of a line of the log."""
        number = self.line_numbers[line] if self.line_numbers else self.first_line + line
        part = next((part for part in reversed(self.parts) if part.first <= line), None)
        return (part.file if part else ""), number
