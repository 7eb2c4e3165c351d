"""Bundles: the evidence of each failed attempt as files, for people. Bounded in number."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from raylaunch.plan.plan_json import plan_to_dict
from raylaunch.runtime.agent.snapshot import Snapshot
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.controller.group.journal import Journal
from raylaunch.supervise.diagnosis.root_cause import Diagnosis
from raylaunch.supervise.state import ServerSeen

KEPT_BUNDLES = 10
"""Of each group."""


def write_bundle(
    root: Path,
    key: GroupKey,
    journal: Journal,
    seen: Mapping[int, ServerSeen],
    snapshots: Mapping[int, Snapshot],
    diagnosis: Diagnosis,
) -> Path:
    """Write the bundle of the current attempt and return its folder; prune old ones.

    Folders have mode 0700 and files 0600: logs may hold what users sent to the model.

    Raises:
        OSError: the folder cannot be written.
    """
    name = f"{int(journal.created_at)}-attempt-{journal.attempt}"
    folder = root / "bundles" / key.deployment / key.group / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # `mode` holds for the last folder only, and an older raylaunch made these readable to all.
    for private in (root / "bundles", folder.parent.parent, folder.parent, folder):
        private.chmod(0o700)
    if journal.plan is not None:
        _write_json(folder / "plan.json", plan_to_dict(journal.plan))
    versions = {index: dict(found) for index, found in journal.versions.items()}
    servers = {index: asdict(one) for index, one in seen.items()}
    timeline = [json.dumps(asdict(event)) for event in journal.events]
    _write_json(folder / "diagnosis.json", asdict(diagnosis))
    _write_json(folder / "versions.json", versions)
    _write_json(folder / "servers.json", servers)
    _write_text(folder / "timeline.jsonl", "\n".join(timeline))
    for index, snapshot in snapshots.items():
        _write_snapshot(folder, f"server-{index}", snapshot)
    _prune(folder.parent)
    return folder


def _write_snapshot(folder: Path, name: str, snapshot: Snapshot) -> None:
    _write_text(folder / f"{name}.log", "\n".join(snapshot.log_lines))
    _write_text(folder / f"{name}.processes.txt", snapshot.processes)
    if snapshot.npu:
        _write_text(folder / f"{name}.npu.txt", snapshot.npu)
    if snapshot.plog:
        plog = "\n".join((snapshot.plog_path, *snapshot.plog))
        _write_text(folder / f"{name}.plog.txt", plog)


def tail_of(snapshots: Mapping[int, Snapshot], servers: Sequence[int], lines: int = 12) -> str:
    """Return the last log lines of the given servers, for an error message."""
    parts = []
    for index in servers:
        snapshot = snapshots.get(index)
        if snapshot is None or not snapshot.log_lines:
            continue
        shown = "\n".join(f"    {line}" for line in snapshot.log_lines[-lines:])
        parts.append(f"  server {index}, {snapshot.log}:\n{shown}")
    return "\n".join(parts)


def _write_json(path: Path, value: object) -> None:
    _write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def _write_text(path: Path, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text + "\n")


def _prune(folder: Path) -> None:
    bundles = [path for path in folder.iterdir() if path.is_dir()]
    bundles.sort(key=lambda path: path.stat().st_mtime)
    for path in bundles[:-KEPT_BUNDLES]:
        shutil.rmtree(path, ignore_errors=True)
