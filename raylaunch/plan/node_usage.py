"""What a server and its node use at one moment, as plain values: input of metrics and of `top`."""

from __future__ import annotations

from dataclasses import dataclass

from raylaunch.plan.facts import Npu


@dataclass(frozen=True)
class ProcessUsage:
    """The processes of one server together."""

    processes: int
    resident_bytes: int
    """Sum of the resident set sizes: memory that they share counts once for each."""
    open_files: int


@dataclass(frozen=True)
class DiskUsage:
    """The file system that a folder is on."""

    total_bytes: int
    free_bytes: int
    """What an ordinary user can still write."""


@dataclass(frozen=True)
class NpuEcc:
    """Errors of the HBM of one NPU: all of its life, as npu-smi keeps them."""

    npu: int
    """Its id, as in the table of devices."""
    corrected: int
    """Single-bit errors."""
    uncorrected: int
    """Errors of several bits: what was stored is lost."""
    isolated_pages: int
    """Pages that are not used any more, because of uncorrected errors."""


@dataclass(frozen=True)
class NodeUsage:
    """One node as the agent of one server sees it. None: it could not be read."""

    server: ProcessUsage | None = None
    """None while the server does not run."""
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    log_disk: DiskUsage | None = None
    weights_disk: DiskUsage | None = None
    npus: tuple[Npu, ...] = ()
    ecc: tuple[NpuEcc, ...] = ()
    """Of the NPUs whose counters could be read."""
    npu_age_s: float | None = None
    """Age of the NPUs' state; None while there is none."""
    npu_problem: str = ""
    """Why npu-smi gave no answer; "" where it did, and where there is none."""
