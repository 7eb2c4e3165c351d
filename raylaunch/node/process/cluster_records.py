"""Records of the embedded Ray clusters of one home: `$RAYLAUNCH_HOME/clusters/NAME.json`.

A record is written before the first process of its cluster exists. It names the process that starts
the cluster, so that a start that was killed half-way is recognized and cleaned up by its marker.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from raylaunch.errors import ClusterError
from raylaunch.node.process.guard import read_process
from raylaunch.node.process.process_markers import find_marked
from raylaunch.plan.facts import MarkedProcess


@dataclass(frozen=True)
class Starter:
    """The process that starts a cluster.

    `started` (clock ticks since boot) exposes a pid that was given to another process since.
    """

    pid: int
    started: int
    machine: str
    """Boot and pid namespace: a pid means nothing in another one."""
    host: str

    def is_gone(self) -> bool:
        """Return whether it has exited. On another host it counts as alive: nothing is known."""
        if self.host != socket.gethostname():
            return False
        if self.machine != pid_space():
            return True
        process = read_process(self.pid)
        return process is None or process.started != self.started


@dataclass(frozen=True)
class ClusterRecord:
    """One embedded cluster, from before its first process until after its last one."""

    deployment: str
    marker: str
    """Value of the marker variable in each of the cluster's processes."""
    folder: str
    """Ray's session is below it."""
    token_file: str
    address: str = ""
    """The GCS; empty while Ray starts."""
    starter: Starter | None = None

    def is_abandoned(self) -> bool:
        """Return whether it was never completed and never will be: its starter has exited."""
        return not self.address and (self.starter is None or self.starter.is_gone())

    def is_starting(self) -> bool:
        """Return whether Ray is being started by a process that is alive."""
        return not self.address and not self.is_abandoned()

    def is_dead(self, processes: Collection[MarkedProcess] | None = None) -> bool:
        """Return whether a completed cluster has no process left, for example after a reboot.

        Args:
            processes: Those with its marker, where they are known already.
        """
        if not self.address:
            return False
        if self.starter is not None and self.starter.host != socket.gethostname():
            return False
        return not (find_marked(self.marker) if processes is None else processes)


@dataclass(frozen=True)
class RecordProblem:
    """A record that cannot be read, and why."""

    path: Path
    why: str

    @property
    def deployment(self) -> str:
        """The deployment that the file is named after."""
        return self.path.stem


def this_process() -> Starter:
    """Identify the calling process."""
    process = read_process(os.getpid())
    started = process.started if process is not None else 0
    return Starter(os.getpid(), started, pid_space(), socket.gethostname())


def pid_space() -> str:
    """Identify what two processes must share so that a pid means the same to both."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 - the link leads to no path
    return f"{boot} {namespace}"


def record_path(home: Path, deployment: str) -> Path:
    """Return where the record of a deployment is."""
    return home / "clusters" / f"{deployment}.json"


def read_record(home: Path, deployment: str) -> ClusterRecord | None:
    """Read the record of a deployment; None when there is none.

    Raises:
        ClusterError: there is one, and it cannot be read or is damaged.
    """
    path = record_path(home, deployment)
    try:
        return _parse(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise damaged(RecordProblem(path, _reason(error))) from error


def read_records(home: Path) -> tuple[list[ClusterRecord], list[RecordProblem]]:
    """Read all records of a home; those that cannot be read are returned as problems."""
    records: list[ClusterRecord] = []
    problems: list[RecordProblem] = []
    for path in sorted((home / "clusters").glob("*.json")):
        try:
            records.append(_parse(path))
        except FileNotFoundError:
            continue  # its cluster was stopped between the listing and the reading
        except (OSError, ValueError) as error:
            problems.append(RecordProblem(path, _reason(error)))
    return records, problems


def encode(record: ClusterRecord) -> str:
    """Return the text of a record's file."""
    return json.dumps(asdict(record), indent=1)


def damaged(problem: RecordProblem) -> ClusterError:
    """Return the error for a record that cannot be read."""
    return ClusterError(
        f"the record {problem.path} of an embedded Ray cluster cannot be read",
        why=problem.why,
        todo=f"`raylaunch clean --yes --deployment {problem.deployment}` kills what is left of "
        "that cluster and removes the record",
    )


def _parse(path: Path) -> ClusterRecord:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    texts = {}
    for name in ("deployment", "marker", "folder"):
        texts[name] = _text(values, name)
    folder = texts["folder"]
    token_file = values.get("token_file") or str(Path(folder) / "token")
    address = values.get("address") or ""
    return ClusterRecord(
        **texts,
        token_file=str(token_file),
        address=str(address),
        starter=_parse_starter(values.get("starter")),
    )


def _parse_starter(values: object) -> Starter | None:
    if values is None:
        return None  # written by raylaunch 0.1, which did not name the starter
    if not isinstance(values, dict):
        raise ValueError("starter is not a JSON object")
    pid = values.get("pid")
    started = values.get("started")
    if not isinstance(pid, int) or not isinstance(started, int):
        raise ValueError("starter names no process")
    return Starter(pid, started, _text(values, "machine"), _text(values, "host"))


def _text(values: dict[str, object], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"it has no {name}")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return f"it is not JSON: {error}"
    return str(error)
