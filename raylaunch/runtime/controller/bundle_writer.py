"""The bundle of a failed attempt: what is frozen before anything is torn down, kept per attempt and bounded in size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from raylaunch.plan.plan_json import plan_to_dict
from raylaunch.runtime.agent.snapshot import Snapshot
from raylaunch.runtime.controller.journal import Journal
from raylaunch.supervise.diagnosis.root_cause import Diagnosis, ServerEvidence
from raylaunch.supervise.state import ServerSeen

TAIL_LINES = 1000
KEPT_BUNDLES = 10


def as_evidence(
    journal: Journal,
    seen: Mapping[int, ServerSeen],
    remains: Mapping[int, Snapshot],
    offsets: Mapping[int, float],
) -> list[ServerEvidence]:
    """What the diagnosis reads, per server of the plan."""
    assert journal.plan is not None
    return [
        ServerEvidence(
            index=server.index,
            role=server.role,
            ranks=server.ranks,
            node_ip=server.node.ip,
            log_lines=remains[server.index].log_lines if server.index in remains else (),
            exit=seen[server.index].exit if server.index in seen else None,
            agent_lost=seen[server.index].agent_lost if server.index in seen else None,
            lost_at=seen[server.index].agent_at
            if server.index in seen and seen[server.index].agent_lost
            else None,
            clock_offset_s=offsets.get(server.index, 0.0),
            utc_offset_s=remains[server.index].utc_offset_s if server.index in remains else 0.0,
            first_line=remains[server.index].first_line if server.index in remains else 1,
        )
        for server in journal.plan.servers
    ]


def write_bundle(
    root: Path,
    deployment: str,
    journal: Journal,
    seen: Mapping[int, ServerSeen],
    remains: Mapping[int, Snapshot],
    diagnosis: Diagnosis,
) -> Path:
    """Write the bundle of the current attempt and return its folder; old ones beyond a bound are removed."""
    folder = root / "bundles" / deployment / f"{int(journal.created_at)}-attempt-{journal.attempt}"
    folder.mkdir(parents=True, exist_ok=True)
    if journal.plan is not None:
        _write_json(folder / "plan.json", plan_to_dict(journal.plan))
    _write_json(folder / "diagnosis.json", asdict(diagnosis))
    _write_json(
        folder / "versions.json", {index: dict(found) for index, found in journal.versions.items()}
    )
    _write_json(folder / "servers.json", {index: asdict(one) for index, one in seen.items()})
    timeline = "".join(json.dumps(asdict(event)) + "\n" for event in journal.events)
    (folder / "timeline.jsonl").write_text(timeline, encoding="utf-8")
    for index, left in remains.items():
        (folder / f"server-{index}.log").write_text(
            "\n".join(left.log_lines) + "\n", encoding="utf-8"
        )
        (folder / f"server-{index}.processes.txt").write_text(
            left.processes + "\n", encoding="utf-8"
        )
        if left.npu:
            (folder / f"server-{index}.npu.txt").write_text(left.npu + "\n", encoding="utf-8")
        if left.plog:
            text = "\n".join((left.plog_path, *left.plog))
            (folder / f"server-{index}.plog.txt").write_text(text + "\n", encoding="utf-8")
    _prune(folder.parent)
    return folder


def tail_of(remains: Mapping[int, Snapshot], servers: Sequence[int], lines: int = 12) -> str:
    """The last log lines of the given servers, for an error message."""
    parts = []
    for index in servers:
        left = remains.get(index)
        if left and left.log_lines:
            shown = "\n".join(f"    {line}" for line in left.log_lines[-lines:])
            parts.append(f"  server {index}, {left.log}:\n{shown}")
    return "\n".join(parts)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _prune(folder: Path) -> None:
    bundles = sorted(
        (path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime
    )
    for path in bundles[:-KEPT_BUNDLES]:
        shutil.rmtree(path, ignore_errors=True)
