"""Records of the deployments that this machine has started on named Ray clusters.

When such a cluster has died nothing answers any more. The record still says what was started there.
One file per deployment: $RAYLAUNCH_HOME/deployments/NAME.json, mode 0600, written at start and
removed at stop. Deployments on embedded clusters have a record of their own (clusters/NAME.json).
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from raylaunch.deployment.names import is_name
from raylaunch.supervise.deployment_status import Status

log = logging.getLogger(__name__)

MAX_BYTES = 64 * 1024
"""A record has some 200 bytes; a larger file is something else."""


@dataclass(frozen=True)
class Record:
    """A deployment that was started from this machine. `started_at`: seconds since the epoch."""

    deployment: str
    recipe: str
    address: str
    """GCS of its Ray cluster, host:port."""
    started_at: float

    @property
    def origin(self) -> str:
        """Where and when it was started, for a message."""
        at = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.started_at))
        return (
            f"started from this machine on the Ray cluster at {self.address} "
            f"(recipe {self.recipe}, {at})"
        )

    @property
    def todo(self) -> str:
        """What to do when its cluster does not answer."""
        return (
            f"if that Ray still runs, --address {self.address} reaches it; if not, start Ray there "
            f"again (`ray up FILE`, or `ray start --head`) and then the deployment, which adopts "
            f"servers that still run; `raylaunch clean --deployment {self.deployment}` on each of "
            f"its nodes finds what is left, and with --yes kills it"
        )


@dataclass(frozen=True)
class Silent:
    """A deployment that was started from this machine and does not answer."""

    deployment: str
    what: str
    why: str
    todo: str


@dataclass(frozen=True)
class Overview:
    """The deployments that answer, and those of this machine's records that do not."""

    running: tuple[Status, ...] = ()
    silent: tuple[Silent, ...] = ()


def write_record(home: Path, record: Record) -> None:
    """Write the record of a deployment that was started. A failure is logged, not raised.

    The record serves a later message; a start must not fail for it.
    """
    path = _file(home, record.deployment)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(asdict(record), stream, indent=1)
        draft.replace(path)
    except OSError as error:
        log.warning("cannot write the record %s: %s", path, error)


def remove_record(home: Path, deployment: str) -> None:
    """Remove the record of a deployment that is stopped; does nothing when there is none."""
    path = _file(home, deployment)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove the record %s: %s", path, error)


def read_record(home: Path, deployment: str) -> Record | None:
    """Return the record of a deployment; None when there is none that can be read."""
    path = _file(home, deployment)
    try:
        # Opened only if it is a regular file of a record's size: a FIFO would block.
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        started_at = float(values["started_at"])
        time.localtime(started_at)  # refuses what is no time
        return Record(
            deployment=deployment,
            recipe=str(values["recipe"]),
            address=str(values["address"]),
            started_at=started_at,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        log.warning("skipped the record %s: %s", path, error)
        return None


def read_records(home: Path) -> list[Record]:
    """Return all records that can be read, by name."""
    try:
        names = sorted(path.stem for path in (home / "deployments").glob("*.json"))
    except OSError as error:
        log.warning("cannot read %s: %s", home / "deployments", error)
        return []
    records = [read_record(home, name) for name in names if is_name(name)]
    return [record for record in records if record is not None]


def _file(home: Path, deployment: str) -> Path:
    return home / "deployments" / f"{deployment}.json"
