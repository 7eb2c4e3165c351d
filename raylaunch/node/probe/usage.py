"""Reads what a server's processes, the node's memory, its disks and its NPUs use now."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from raylaunch.errors import NodeError
from raylaunch.node.probe import npu_parsers, npu_tools
from raylaunch.plan.facts import Npu
from raylaunch.plan.node_usage import DiskUsage, NodeUsage, NpuEcc, ProcessUsage


def read_usage(pid: int | None, log_folder: Path | None, weights: Path | None) -> NodeUsage:
    """Read everything but the NPUs; a few milliseconds.

    Args:
        pid: The server's main process; None while it does not run.
        log_folder: Holds the server's log.
        weights: The folder of the model.
    """
    memory = psutil.virtual_memory()
    return NodeUsage(
        server=None if pid is None else _read_processes(pid),
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        log_disk=_read_disk(log_folder),
        weights_disk=_read_disk(weights),
    )


def read_npus(env: Mapping[str, str], timeout_s: float) -> tuple[Npu, ...] | None:
    """Read the device table of `npu-smi info`; None where there is no npu-smi. Takes seconds.

    Raises:
        NodeError: npu-smi failed, hung or printed no device table.
    """
    tool = npu_tools.find_npu_smi(env)
    if tool is None:
        return None
    text = npu_tools.run_tool([tool, "info"], env=env, timeout_s=timeout_s)
    try:
        npus, _ = npu_parsers.parse_npu_smi_info(text)
    except npu_parsers.UnreadableOutputError as error:
        raise NodeError("the output of npu-smi cannot be read", why=str(error)) from error
    return tuple(npus)


def read_ecc(npus: Sequence[Npu], env: Mapping[str, str], timeout_s: float) -> tuple[NpuEcc, ...]:
    """Read the errors of the HBM of NPUs. Takes a call of npu-smi for each card.

    Args:
        npus: The devices of this node.
        env: Where npu-smi is found.
        timeout_s: For all of them.

    Raises:
        NodeError: npu-smi failed or hung.
    """
    tool = npu_tools.find_npu_smi(env)
    if tool is None:
        return ()
    deadline = time.monotonic() + timeout_s
    found = []
    for card in dict.fromkeys(npu.card for npu in npus):
        argv = [tool, "info", "-t", "ecc", "-i", str(card)]
        text = npu_tools.run_tool(argv, env=env, timeout_s=deadline - time.monotonic())
        ids = {npu.chip: npu.id for npu in npus if npu.card == card}
        for one in npu_parsers.parse_ecc(text):
            if one.chip in ids:
                counts = (one.corrected, one.uncorrected, one.isolated_pages)
                found.append(NpuEcc(ids[one.chip], *counts))
    return tuple(found)


def _read_processes(pid: int) -> ProcessUsage | None:
    try:
        main = psutil.Process(pid)
        tree = [main, *main.children(recursive=True)]
    except psutil.Error:
        return None
    count = resident = files = 0
    for process in tree:
        try:
            resident += process.memory_info().rss
            files += process.num_fds()
        except psutil.Error:  # it has just exited, or belongs to another user
            continue
        count += 1
    return ProcessUsage(count, resident, files) if count else None


def _read_disk(folder: Path | None) -> DiskUsage | None:
    if folder is None:
        return None
    try:
        disk = os.statvfs(folder)
    except (OSError, ValueError):  # ValueError: a null byte in the path
        return None
    return DiskUsage(disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize)
