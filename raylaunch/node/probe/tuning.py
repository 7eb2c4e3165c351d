"""Host tuning: how the CPU governor, a few kernel settings and jemalloc stand here, and setting what may be set."""

from __future__ import annotations

import errno
import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from raylaunch.checks.node_checks import DEBUGFS, GOVERNOR, INSTALL_JEMALLOC, tuning_command
from raylaunch.plan.facts import TuningStep

JEMALLOC = "jemalloc"
SYSCTLS = ("vm.swappiness", "kernel.numa_balancing", "kernel.sched_migration_cost_ns")

_HOST_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EINVAL, errno.EIO}


def read_tuning(names: Iterable[str] = (), *, root: Path = Path("/")) -> dict[str, str]:
    """The settings as they are now; "" for one that this machine does not have or does not show.

    Governors that differ between CPUs are joined by commas. jemalloc is the path of the library.
    """
    sysctls = {
        name: read_sysctl(name, root=root)
        for name in (*SYSCTLS, *names)
        if name not in (GOVERNOR, JEMALLOC)
    }
    governors = sorted({_read(file) for file in _governor_files(root)} - {""})
    return {GOVERNOR: ",".join(governors), **sysctls, JEMALLOC: find_jemalloc(root=root) or ""}


def apply(wanted: Mapping[str, str | int | bool], *, root: Path = Path("/")) -> list[TuningStep]:
    """Set what is wanted and not yet so; in the order given, each setting on its own.

    A setting that cannot be written (container, no root, no such knob) is a step with outcome "host", no error.

    Raises:
        ValueError: A name is neither governor nor jemalloc nor a sysctl.
    """
    return [_apply_one(name, _text(value), root, write=True) for name, value in wanted.items()]


def compare(wanted: Mapping[str, str | int | bool], *, root: Path = Path("/")) -> list[TuningStep]:
    """As `apply`, but nothing is set: what differs is a step with outcome "unmet"."""
    return [_apply_one(name, _text(value), root, write=False) for name, value in wanted.items()]


def read_sysctl(name: str, *, root: Path = Path("/")) -> str:
    """A kernel setting by its sysctl name, "" when there is none."""
    return next((value for file in _sysctl_files(name, root) if (value := _read(file))), "")


def find_jemalloc(arch: str | None = None, *, root: Path = Path("/")) -> str | None:
    """The path of libjemalloc.so.2 as the distribution of this host places it (Debian multiarch, lib64 of openEuler).

    ld.so ignores a preload that is not there, with an error line for every process: so only a file that exists.
    """
    machine = arch or platform.machine()
    folders = (
        f"usr/lib/{machine}-linux-gnu",
        "usr/lib64",
        "usr/local/lib",
        "usr/local/lib64",
        "usr/lib",
    )
    files = (root / folder / "libjemalloc.so.2" for folder in folders)
    return next((str(file) for file in files if file.is_file()), None)


def _apply_one(name: str, wanted: str, root: Path, *, write: bool) -> TuningStep:
    if name == JEMALLOC:
        return _judge_jemalloc(wanted, root)
    files = _governor_files(root) if name == GOVERNOR else _sysctl_files(name, root)
    present = [file for file in files if os.path.exists(file)]  # noqa: PTH110 (False, not an error, without root)
    before = ",".join(sorted({_read(file) for file in present} - {""}))
    if before == wanted:
        return TuningStep(name, wanted, before, "already")
    if not write and present:
        return TuningStep(name, wanted, before, "unmet", todo=tuning_command(name, wanted))
    why = (
        _write_all(present, wanted)
        if present
        else "this kernel, or this container, has no such setting"
    )
    if why:
        return TuningStep(name, wanted, before, "host", why, tuning_command(name, wanted))
    return TuningStep(name, wanted, before, "set")


def _write_all(files: list[Path], value: str) -> str:
    """Write `value` into all files and read it back; returns why that did not work, "" when it did."""
    for file in files:
        try:
            file.write_text(value)
        except OSError as error:
            if error.errno not in _HOST_ERRORS:
                raise
            return f"{file}: {error.strerror}"
        if _read(file) != value:
            return f"{file}: the kernel kept {_read(file) or 'its value'}"
    return ""


def _judge_jemalloc(wanted: str, root: Path) -> TuningStep:
    found = find_jemalloc(root=root)
    if found or wanted in ("", "0"):
        return TuningStep(JEMALLOC, wanted, found or "", "already")
    return TuningStep(
        JEMALLOC, wanted, "", "host", "libjemalloc.so.2 is not installed", INSTALL_JEMALLOC
    )


def _governor_files(root: Path) -> list[Path]:
    return sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"))


def _sysctl_files(name: str, root: Path) -> list[Path]:
    """The file behind a sysctl, and its newer place if it moved.

    Raises:
        ValueError: `name` is not of the form "vm.swappiness".
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_-]+)+", name):
        raise ValueError(
            f"{name!r} is no host setting: use governor, jemalloc or a sysctl such as vm.swappiness"
        )
    old = root / "proc/sys" / name.replace(".", "/")
    return [old, root / DEBUGFS[name]] if name in DEBUGFS else [old]


def _text(value: str | int | bool) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
