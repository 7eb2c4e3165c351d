"""Workers that `ray up` was to bring and that have not joined: which, and what Ray's autoscaler wrote about them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from raylaunch.checks.findings import Finding
from raylaunch.recipe.cluster_yaml import ClusterFile

LINES = 3
"""Lines of evidence from each of the autoscaler's files."""
TODO = (
    "if `ray up` has only just returned, wait: a worker takes 15 s or more; else look on the head at {logs}/monitor.* "
    "and try `ssh {user}@{worker}` from there with the cluster's key; the head must have been started with "
    "RAY_enable_autoscaler_v2=0, or Ray never starts workers of provider local"
)

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+\s+\S+ [\w.]+:\d+ -- ")
_TROUBLE = re.compile(
    r"fail|error|exception|refused|denied|timed? ?out|not available|no route|lacks", re.IGNORECASE
)
_CHATTER = re.compile(
    r"Full command is|Running `|^\(\d+/\d+\) |StandardAutoscaler: \{"
    r"|Recent failures|\(no failures\)|detect NPU type|named 'acl'|network_util|^\s*raise |Exception in thread"
)
"""Commands and settings that hold such words, and what Ray says of a good host without NPUs or Internet."""


@dataclass(frozen=True)
class Absent:
    """Workers that have not joined."""

    workers: tuple[str, ...]
    expected: int
    evidence: tuple[str, ...]
    """Lines of the autoscaler's logs."""
    todo: str

    @property
    def what(self) -> str:
        """One sentence."""
        count = f"{len(self.workers)} of {self.expected} worker(s)"
        return f"{count} that `ray up` was to start have not joined the cluster: {', '.join(self.workers)}"


def find_absent(
    told: ClusterFile, alive: Iterable[str], logs: Mapping[str, str], folder: str
) -> Absent | None:
    """Compare what `ray up` was told with the addresses that are there; None when enough workers are.

    Args:
        told: The file for `ray up`.
        alive: Ray addresses of the cluster's nodes.
        logs: The autoscaler's files (monitor.log, monitor.out, monitor.err), or their ends, by name.
        folder: Where these are.
    """
    here = set(alive)
    absent = tuple(worker for worker in told.workers if worker not in here)
    if told.head_ip not in here or len(told.workers) - len(absent) >= told.min_workers:
        return None
    todo = TODO.format(logs=folder, user=told.user, worker=absent[0])
    return Absent(absent, told.min_workers, tuple(_evidence(absent, logs)), todo)


def check_joined(absent: Absent | None) -> Iterator[Finding]:
    """Ray's autoscaler tries a worker that does not join again and again, and says so in its own log only."""
    if absent is not None:
        yield Finding(
            "worker-absent",
            "warning",
            f"{absent.what} (the others suffice for this recipe)",
            todo=absent.todo,
            seen="; ".join(absent.evidence),
        )


def _evidence(absent: tuple[str, ...], logs: Mapping[str, str]) -> Iterator[str]:
    """The autoscaler's last word on the missing workers, and the last different lines about trouble of each file."""
    lines = {name: _COLOUR.sub("", text).splitlines() for name, text in logs.items()}
    status = [
        line.strip() for line in lines.get("monitor.log", ()) if line.strip().startswith(absent)
    ]
    yield from (f"monitor.log: {line}" for line in status[-1:])
    for name, each in lines.items():
        told = [
            _STAMP.sub("", line).strip()
            for line in each
            if _TROUBLE.search(line) and not _CHATTER.search(line)
        ]
        last = list(dict.fromkeys(reversed(told)))[:LINES]
        yield from (f"{name}: {line}" for line in reversed(last))
