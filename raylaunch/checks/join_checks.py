"""Workers of `ray up` that have not joined, and what Ray's autoscaler logged about them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from raylaunch.checks.findings import Finding
from raylaunch.recipe.cluster_yaml import ClusterFile

LINES = 3
"""Lines of evidence from each of the autoscaler's files."""
TODO = (
    "if `ray up` has only just returned, wait: a worker takes 15 s or more; else read "
    "{logs}/monitor.* on the head and try `ssh {user}@{worker}` from there with the cluster's key; "
    "the head must have been started with RAY_enable_autoscaler_v2=0, or Ray never starts workers "
    "of provider local"
)

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d [\d:,]+\s+\S+ [\w.]+:\d+ -- ")
_FAILURE = re.compile(
    r"fail|error|exception|refused|denied|timed? ?out|not available|no route|lacks", re.IGNORECASE
)
# Commands and settings that contain such words, and what Ray logs on a healthy host without NPUs
# or Internet.
_HARMLESS = re.compile(
    r"Full command is|Running `|^\(\d+/\d+\) |StandardAutoscaler: \{"
    r"|Recent failures|\(no failures\)|detect NPU type|named 'acl'|network_util|^\s*raise "
    r"|Exception in thread"
)


@dataclass(frozen=True)
class MissingWorkers:
    """Workers that have not joined the cluster."""

    workers: tuple[str, ...]
    expected: int
    evidence: tuple[str, ...]
    """Lines of the autoscaler's logs."""
    todo: str

    @property
    def what(self) -> str:
        """One sentence for people."""
        count = f"{len(self.workers)} of {self.expected} worker(s)"
        names = ", ".join(self.workers)
        return f"{count} that `ray up` was to start have not joined the cluster: {names}"


def find_missing_workers(
    ray_file: ClusterFile, alive: Iterable[str], logs: Mapping[str, str], folder: str
) -> MissingWorkers | None:
    """Compare the file for `ray up` with the nodes that are there; None when enough have joined.

    Args:
        ray_file: The file for `ray up`.
        alive: Ray addresses of the cluster's nodes.
        logs: The autoscaler's files (monitor.log, monitor.out, monitor.err), or their tails, by
            name.
        folder: Folder of these files.
    """
    joined = set(alive)
    missing = tuple(worker for worker in ray_file.workers if worker not in joined)
    is_this_cluster = ray_file.head_ip in joined
    if not is_this_cluster or len(ray_file.workers) - len(missing) >= ray_file.min_workers:
        return None
    todo = TODO.format(logs=folder, user=ray_file.user, worker=missing[0])
    return MissingWorkers(missing, ray_file.min_workers, tuple(_evidence(missing, logs)), todo)


def check_joined(missing: MissingWorkers | None) -> Iterator[Finding]:
    """Report workers that have not joined where the others suffice for the recipe.

    Ray's autoscaler retries such a worker for ever and reports it in its own log only.
    """
    if missing is not None:
        yield Finding(
            id="worker-absent",
            level="warning",
            what=f"{missing.what} (the others suffice for this recipe)",
            todo=missing.todo,
            seen="; ".join(missing.evidence),
        )


def _evidence(missing: tuple[str, ...], logs: Mapping[str, str]) -> Iterator[str]:
    """Yield the autoscaler's last status of the missing workers, and each file's last failures."""
    lines_by_file = {name: _COLOUR.sub("", text).splitlines() for name, text in logs.items()}
    stripped = [line.strip() for line in lines_by_file.get("monitor.log", ())]
    status_lines = [line for line in stripped if line.startswith(missing)]
    yield from (f"monitor.log: {line}" for line in status_lines[-1:])
    for name, lines in lines_by_file.items():
        failures = [
            _STAMP.sub("", line).strip()
            for line in lines
            if _FAILURE.search(line) and not _HARMLESS.search(line)
        ]
        # The same failure is retried and logged again and again: the last different ones count.
        newest_first = list(dict.fromkeys(reversed(failures)))[:LINES]
        yield from (f"{name}: {line}" for line in reversed(newest_first))
