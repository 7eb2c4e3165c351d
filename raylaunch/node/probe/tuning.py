"""Host tuning: reads and sets the CPU governor and some kernel settings, and finds jemalloc."""

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
SYSCTLS = (
    "vm.swappiness",
    "kernel.numa_balancing",
    "kernel.sched_migration_cost_ns",
)

# What a container, a missing privilege or an unknown value gives: the administrator has to act.
_HOST_ERRORS = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOENT,
        errno.EINVAL,
        errno.EIO,
    }
)
_SYSCTL_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[A-Za-z0-9_-]+)+")

Setting = str | int | bool


def read_tuning(names: Iterable[str] = (), *, root: Path = Path("/")) -> dict[str, str]:
    """Read the current settings: the governor, SYSCTLS and `names`, and the path of jemalloc.

    A setting that this machine does not have or does not show is "". Governors that differ between
    CPUs are joined by commas.
    """
    settings = {GOVERNOR: _joined(_governor_files(root))}
    for name in (*SYSCTLS, *names):
        if name not in (GOVERNOR, JEMALLOC):
            settings[name] = read_sysctl(name, root=root)
    settings[JEMALLOC] = find_jemalloc(root=root) or ""
    return settings


def apply(wanted: Mapping[str, Setting], *, root: Path = Path("/")) -> list[TuningStep]:
    """Set what differs from `wanted`, in the order given, each setting on its own.

    A setting that cannot be written (container, no root, no such knob) is a step with outcome
    "host", not an error.

    Raises:
        ValueError: A name is neither governor nor jemalloc nor a sysctl.
    """
    return [
        _step(
            name,
            _text(value),
            root,
            write=True,
        )
        for name, value in wanted.items()
    ]


def compare(wanted: Mapping[str, Setting], *, root: Path = Path("/")) -> list[TuningStep]:
    """Compare as `apply` does, but set nothing: a difference is a step with outcome "unmet".

    Raises:
        ValueError: A name is neither governor nor jemalloc nor a sysctl.
    """
    return [
        _step(
            name,
            _text(value),
            root,
            write=False,
        )
        for name, value in wanted.items()
    ]


def read_sysctl(name: str, *, root: Path = Path("/")) -> str:
    """Read a kernel setting by its sysctl name; "" when there is none.

    Raises:
        ValueError: `name` is not of the form "vm.swappiness".
    """
    for file in _sysctl_files(name, root):
        value = _read(file)
        if value:
            return value
    return ""


def find_jemalloc(arch: str | None = None, *, root: Path = Path("/")) -> str | None:
    """Find libjemalloc.so.2 where distributions place it (Debian multiarch, lib64 of openEuler).

    Only a file that exists is returned: ld.so ignores a preload that is missing, with an error line
    for every process.
    """
    machine = arch or platform.machine()
    folders = (
        f"usr/lib/{machine}-linux-gnu",
        "usr/lib64",
        "usr/local/lib",
        "usr/local/lib64",
        "usr/lib",
    )
    for folder in folders:
        file = root / folder / "libjemalloc.so.2"
        if file.is_file():
            return str(file)
    return None


def _step(
    name: str,
    wanted: str,
    root: Path,
    *,
    write: bool,
) -> TuningStep:
    if name == JEMALLOC:
        return _jemalloc_step(wanted, root)
    files = _governor_files(root) if name == GOVERNOR else _sysctl_files(name, root)
    # os.path.exists is False where Path.exists raises: debugfs cannot be entered without root.
    present = [file for file in files if os.path.exists(file)]  # noqa: PTH110
    before = _joined(present)
    command = tuning_command(name, wanted)
    if before == wanted:
        return TuningStep(name, wanted, before, "already")
    if not present:
        why = "this kernel, or this container, has no such setting"
        return TuningStep(
            name,
            wanted,
            before,
            "host",
            why,
            command,
        )
    if not write:
        return TuningStep(
            name,
            wanted,
            before,
            "unmet",
            todo=command,
        )
    why = _write_all(present, wanted)
    if why:
        return TuningStep(
            name,
            wanted,
            before,
            "host",
            why,
            command,
        )
    return TuningStep(name, wanted, before, "set")


def _write_all(files: list[Path], value: str) -> str:
    """Write `value` into all files and read it back; returns why that failed, "" when it worked.

    Raises:
        OSError: An error that is no matter of privileges, such as a full disk.
    """
    for file in files:
        try:
            file.write_text(value)
        except OSError as error:
            if error.errno not in _HOST_ERRORS:
                raise
            return f"{file}: {error.strerror}"
        # Some kernels accept a write and keep their value.
        kept = _read(file)
        if kept != value:
            return f"{file}: the kernel kept {kept or 'its value'}"
    return ""


def _jemalloc_step(wanted: str, root: Path) -> TuningStep:
    found = find_jemalloc(root=root) or ""
    is_unwanted = wanted in ("", "0")
    if found or is_unwanted:
        return TuningStep(JEMALLOC, wanted, found, "already")
    return TuningStep(
        JEMALLOC,
        wanted,
        before="",
        outcome="host",
        why="libjemalloc.so.2 is not installed",
        todo=INSTALL_JEMALLOC,
    )


def _governor_files(root: Path) -> list[Path]:
    return sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"))


def _sysctl_files(name: str, root: Path) -> list[Path]:
    """Return the file behind a sysctl, and the file in debugfs that newer kernels have instead.

    Raises:
        ValueError: `name` is not of the form "vm.swappiness".
    """
    if not _SYSCTL_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no host setting: use governor, jemalloc or a sysctl such as vm.swappiness"
        )
    files = [root / "proc/sys" / name.replace(".", "/")]
    if name in DEBUGFS:
        files.append(root / DEBUGFS[name])
    return files


def _joined(files: Iterable[Path]) -> str:
    """Join the different values of several files by commas."""
    values = {_read(file) for file in files}
    return ",".join(sorted(values - {""}))


def _text(value: Setting) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return str(value)


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
