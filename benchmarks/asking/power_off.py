"""Cut the power of the test host on which this runs, as far as a namespace can lose it.

SIGKILL to every process but the first, then what a reboot does to a host: /tmp, /run and /dev/shm
are empty, the boot id is new, and pids count from the beginning. Other folders stay, as on a disk.
Prints `off`. What stays as it was: the kernel's clocks, and sockets in TIME_WAIT.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

FIRST = b"host_init.py"
LOST = ("/tmp", "/run", "/dev/shm")
BOOT_ID = "/proc/sys/kernel/random/boot_id"
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
POLL_S = 0.02


def main() -> None:
    # The signal reaches every process of this pid namespace, so it must be that of a test host.
    is_own = Path("/proc/self").readlink().name == str(os.getpid())
    if not is_own or FIRST not in Path("/proc/1/cmdline").read_bytes():
        sys.exit("this is no test host")
    while others := living():
        os.kill(-1, signal.SIGKILL)
        # Killed ones are reaped by the first process; nothing reports that to this one.
        time.sleep(POLL_S if others else 0)
    for folder in LOST:
        empty(Path(folder))
    renew_boot_id()
    LAST_PID.write_text("1")
    print("off", flush=True)


def living() -> list[str]:
    """Return the pids of all processes but the first and this one."""
    mine = {"1", str(os.getpid())}
    return [path.name for path in Path("/proc").glob("[0-9]*") if path.name not in mine]


def empty(folder: Path) -> None:
    """Delete what is in a folder, but no other file system that is mounted below it."""
    device = folder.stat().st_dev
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        elif path.stat().st_dev == device and not holds_mount(path):
            shutil.rmtree(path, ignore_errors=True)


def holds_mount(folder: Path) -> bool:
    """Whether something is mounted below the folder."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return any(point.startswith(f"{folder}/") for point in points)


def renew_boot_id() -> None:
    """Put another boot id over the machine's, and away with the one of the last cut."""
    subprocess.run(["umount", "-n", BOOT_ID], capture_output=True, check=False)
    with tempfile.NamedTemporaryFile("w") as own:
        own.write(f"{uuid.uuid4()}\n")
        own.flush()
        subprocess.run(["mount", "-n", "--bind", own.name, BOOT_ID], check=True)


if __name__ == "__main__":
    main()
