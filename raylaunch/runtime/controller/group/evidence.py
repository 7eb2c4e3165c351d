"""Evidence of a failed attempt: collected from the nodes, diagnosed, kept as a bundle.

Evidence is best effort: whatever fails here is reported, and never keeps a group from its restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from raylaunch.runtime.agent.snapshot import Snapshot
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.controller.group.agent_watch import shift_times
from raylaunch.runtime.controller.group.bundle_writer import write_bundle
from raylaunch.runtime.controller.group.journal import Journal
from raylaunch.supervise.detect import FailureSeen
from raylaunch.supervise.diagnosis.root_cause import Diagnosis, ServerEvidence, diagnose
from raylaunch.supervise.diagnosis.signatures import load_signatures
from raylaunch.supervise.state import ServerSeen

log = logging.getLogger(__name__)

T = TypeVar("T")
SNAPSHOT_LINES = 1000
DIAGNOSIS_TIMEOUT_S = 10.0
"""A diagnosis takes milliseconds. One that does not end costs a cause, not the recovery."""
BUNDLE_TIMEOUT_S = 30.0
"""For a disk that hangs (NFS)."""


@dataclass
class Case:
    """What is known of one failed attempt."""

    snapshots: Mapping[int, Snapshot] = field(default_factory=dict)
    diagnosis: Diagnosis | None = None
    bundle: Path | None = None
    problem: str = ""
    """Why there is no bundle."""

    def complete_diagnosis(self, failure: FailureSeen) -> Diagnosis:
        """Name what was observed where logs and exit statuses show nothing, as in a hang."""
        assert self.diagnosis is not None
        if self.diagnosis.id == "no-evidence":
            cause = f"{failure.reason}. {self.diagnosis.cause}"
            self.diagnosis = replace(self.diagnosis, root=failure.root, cause=cause)
        return self.diagnosis


class Nodes(Protocol):
    """Where evidence is collected."""

    async def read_snapshots(self, lines: int, without: Collection[int]) -> dict[int, Snapshot]:
        """Return what each server left behind; servers that cannot be asked are missing.

        Those in `without` are not asked.
        """

    def wall_offsets(self) -> dict[int, float]:
        """Return each node's wall clock minus this one's, in seconds."""


class EvidenceCollector:
    """Collects, diagnoses and keeps the evidence of one group.

    Args:
        nodes: Where it is collected.
        clock: For the times in the evidence.
        folder: Where bundles are kept.
        key: The group.
        diagnose: Names the root cause.
        write_bundle: Writes a bundle and returns its folder.
    """

    def __init__(
        self,
        nodes: Nodes,
        clock: Clock,
        folder: Path,
        key: GroupKey,
        *,
        diagnose: Callable[..., Diagnosis] = diagnose,
        write_bundle: Callable[..., Path] = write_bundle,
        diagnosis_timeout_s: float = DIAGNOSIS_TIMEOUT_S,
    ) -> None:
        self._nodes = nodes
        self._clock = clock
        self._folder = folder
        self._key = key
        self._diagnose = diagnose
        self._write_bundle = write_bundle
        self._diagnosis_timeout_s = diagnosis_timeout_s
        # A pool of its own: work that never ends must not use up asyncio's own threads, on which
        # placement and file access depend.
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="evidence")
        # Read them now: the file may be unreadable when the first failure comes.
        self._pool.submit(load_signatures)

    async def examine(self, journal: Journal, seen: Mapping[int, ServerSeen]) -> Case:
        """Freeze the evidence on every node and name the root cause."""
        case = Case()
        try:
            # No call of a lost node would be answered, and the next start would wait for it.
            lost = [index for index, one in seen.items() if one.is_node_lost]
            case.snapshots = await self._nodes.read_snapshots(SNAPSHOT_LINES, lost)
            evidence = as_evidence(
                journal, self._on_wall_clock(seen), case.snapshots, self._nodes.wall_offsets()
            )
            work = self._in_thread(lambda: self._name_cause(evidence))
            case.diagnosis = await asyncio.wait_for(work, self._diagnosis_timeout_s)
        except TimeoutError:
            log.error("the diagnosis did not end within %g s", self._diagnosis_timeout_s)
            case.diagnosis = unknown(
                f"the evidence could not be diagnosed within {self._diagnosis_timeout_s:g} s"
            )
        except Exception as error:  # best effort: see above
            log.exception("the evidence could not be diagnosed")
            case.diagnosis = unknown(f"the evidence could not be diagnosed: {error!r}")
        return case

    def _name_cause(self, evidence: Sequence[ServerEvidence]) -> Diagnosis:
        """Diagnose with the signatures that the site has at this moment on this node."""
        from raylaunch.supervise.diagnosis.inputs.site_signatures import read_site

        checked = read_site(self._folder)
        for problem in checked.problems:
            log.warning("not used: signatures.d/%s", problem)
        return self._diagnose(evidence, at=self._clock.wall(), site=checked.site)

    async def keep(self, case: Case, journal: Journal, seen: Mapping[int, ServerSeen]) -> None:
        """Write the bundle; on failure `case.problem` says why there is none."""
        snapshots = case.snapshots
        diagnosis = case.diagnosis
        servers = self._on_wall_clock(seen)
        # The journal changes while the thread writes.
        copy = replace(journal, events=list(journal.events))
        try:
            work = self._in_thread(
                lambda: self._write_bundle(
                    self._folder, self._key, copy, servers, snapshots, diagnosis
                )
            )
            case.bundle = await asyncio.wait_for(work, BUNDLE_TIMEOUT_S)
        except Exception as error:  # best effort: a full or read-only disk, a bug in the writer
            log.exception("the bundle could not be written")
            case.problem = f"cannot write the bundle of attempt {journal.attempt}: {error!r}"

    def _in_thread(self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _on_wall_clock(self, seen: Mapping[int, ServerSeen]) -> dict[int, ServerSeen]:
        """Return the observations with times that compare with the stamps of log lines."""
        return on_wall_clock(seen, self._clock)


def on_wall_clock(seen: Mapping[int, ServerSeen], clock: Clock) -> dict[int, ServerSeen]:
    """Convert observations from the monotonic clock to seconds since the epoch."""
    shift_s = clock.wall() - clock.monotonic()
    return {index: shift_times(one, shift_s) for index, one in seen.items()}


def unknown(cause: str) -> Diagnosis:
    """Return the diagnosis of a failure whose class is unknown."""
    return Diagnosis(
        id="unknown",
        kind="transient",
        root=None,
        line="",
        line_number=None,
        cause=cause,
        remedy="read the servers' logs, and the controller's (`raylaunch logs NAME --controller`)",
        source="raylaunch",
        certain=False,
    )


def as_evidence(
    journal: Journal,
    seen: Mapping[int, ServerSeen],
    snapshots: Mapping[int, Snapshot],
    wall_offsets: Mapping[int, float],
) -> Sequence[ServerEvidence]:
    """Return what the diagnosis reads, per server of the plan; times on the wall clock."""
    assert journal.plan is not None
    evidence = []
    for server in journal.plan.servers:
        index = server.index
        snapshot = snapshots.get(index)
        last = seen.get(index, ServerSeen(index))
        evidence.append(
            ServerEvidence(
                index=index,
                role=server.role,
                ranks=server.ranks,
                node_ip=server.node.ip,
                log_lines=snapshot.log_lines if snapshot else (),
                exit=last.exit,
                agent_lost=last.agent_lost,
                lost_at=last.agent_at if last.agent_lost else None,
                clock_offset_s=wall_offsets.get(index, 0.0),
                utc_offset_s=snapshot.utc_offset_s if snapshot else 0.0,
                first_line=snapshot.first_line if snapshot else 1,
                cann_codes=snapshot.cann_codes if snapshot else {},
            )
        )
    return evidence
