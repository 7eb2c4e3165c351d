"""Builds the root of a host that boots systemd, and boots it: run by booted_host.py, as root.

Standard library alone; run by `unshare` in new mount, network, UTS and IPC namespaces. It reads one
JSON object per line and answers each with one: `{"boot": [PROGRAM, ...]}` starts PROGRAM as the
first process of the host. At the end of stdin, or at its own, the kernel kills all of the host.

What runs inside cannot change the machine, also not as root:

- Its root folder is a tmpfs with a copy of some files of /etc, and read-only mounts of the
  programs. Nothing else of the machine's files is mounted: the machine's root is unmounted before
  the boot.
- It has a user namespace. Its root is an ordinary user of the machine: no settings of the kernel,
  no devices, no reboot, and mounts that were read-only before stay so.
- It has PIDs, a control group, a hostname and a network of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

FIRST_ID = 1 << 20
"""User and group of the machine that are root on the host; the next 65535 are its others."""
IDS = 65536
NEW_MOUNTS, NEW_CGROUP, NEW_UTS = 0x00020000, 0x02000000, 0x04000000
NEW_IPC, NEW_USER, NEW_PIDS = 0x08000000, 0x10000000, 0x20000000
DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG."""
DETACH = 2
"""MNT_DETACH."""
EMPTY_S = 60.0
"""The kernel has killed a whole host within it."""
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
COPIED = (
    *("alternatives", "bash.bashrc", "gai.conf", "group", "ld.so.cache", "ld.so.conf"),
    *("ld.so.conf.d", "login.defs", "nsswitch.conf", "pam.d", "passwd", "profile", "protocols"),
    *("security", "services", "shells", "ssl", "timezone"),
)
"""Of the machine's /etc. No secrets, and no units."""
FOLDERS = (
    *("dev", "etc/systemd/system", "home", "mnt", "proc", "root", "run", "srv", "sys", "tmp"),
    *("var/cache", "var/lib/systemd", "var/log", "var/spool", "var/tmp"),
)
FRESH = {
    "/run": "mode=755,size=256m",
    "/tmp": "mode=1777,size=4g",
    "/dev/shm": "mode=1777,size=2g",
}
"""File systems that each boot makes again, and their options."""
UNITS = Path("/usr/lib/systemd/system")
STARTED = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")
"""Of what the distribution starts at a boot. The rest is for hardware, logins or the kernel."""

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Build the root folder, then boot and power off as asked."""
    wanted = json.loads(sys.argv[1])
    os.umask(0o022)
    # The end of stdin is the one that counts; handlers, so that programs begin with the defaults.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    group = make_group(wanted["name"])
    root = Path(wanted["root"])
    build_root(root, wanted)
    enter_root(root)
    run("ip", "link", "set", "lo", "up")
    # Of this network alone: sshd is not root of the namespace that the network belongs to.
    write("sys/net/ipv4/ip_unprivileged_port_start", "0", proc)
    print(json.dumps({"ready": os.getpid()}), flush=True)
    holders = []
    for line in sys.stdin:
        command = json.loads(line)["boot"]
        holder, pid = boot(command, wanted["name"], proc, group, f"boot{len(holders) + 1}")
        holders.append(holder)
        print(json.dumps({"pid": pid}), flush=True)
    for holder in holders:
        os.kill(holder, signal.SIGKILL)  # a child that has exited is a zombie until `waitpid`
        os.waitpid(holder, 0)
    remove_group(group, wanted["name"])


def make_group(name: str) -> int:
    """Make a control group for the host; return its folder, opened."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    place = next(Path(mount[1]) for mount in mounts if mount[2] == "cgroup2")
    (place / name).mkdir()
    return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def remove_group(place: int, name: str) -> None:
    """Remove the control groups of the host when the kernel has killed what was in them."""
    until = time.monotonic() + EMPTY_S
    while "populated 1" in read(f"{name}/cgroup.events", place) and time.monotonic() < until:
        time.sleep(0.1)
    for folder, folders, _, opened in os.fwalk(name, topdown=False, dir_fd=place):
        del folder
        for one in folders:
            os.rmdir(one, dir_fd=opened)
    os.rmdir(name, dir_fd=place)


def build_root(root: Path, wanted: dict) -> None:
    """Fill a tmpfs on `root`; the mount is in this process's namespace only."""
    before = root.stat().st_dev
    options = f"uid={FIRST_ID},gid={FIRST_ID},mode=755,size={wanted['size']}"
    run("mount", "-n", "-t", "tmpfs", "-o", options, "root", str(root))
    if root.stat().st_dev == before:
        raise SystemExit(f"{root} is not a file system of its own")
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "var/run").symlink_to("/run")
    (root / "var/tmp").chmod(0o1777)
    (root / "root").chmod(0o700)
    for name in COPIED:
        copy(Path("/etc") / name, root / "etc" / name)
    for path, text in wanted["files"].items():
        (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (root / path.lstrip("/")).write_text(text)
    mask_units(root / "etc/systemd/system")
    for folder, _, files in os.walk(root):
        for one in (folder, *(f"{folder}/{file}" for file in files)):
            os.chown(one, FIRST_ID, FIRST_ID, follow_symlinks=False)
    for path in ("/usr", *wanted["programs"]):
        show_read_only(path, root)
    show_devices(root)


def copy(source: Path, target: Path) -> None:
    """Copy a file or folder of the machine, if it is there."""
    if source.is_dir():
        ignored = shutil.ignore_patterns("private")
        shutil.copytree(source, target, symlinks=True, ignore=ignored)
    elif source.exists():
        shutil.copy2(source, target, follow_symlinks=False)


def mask_units(folder: Path) -> None:
    """Keep systemd from starting what the distribution would start."""
    for unit in UNITS.glob("*.target.wants/*"):
        if unit.name not in STARTED and not (folder / unit.name).is_symlink():
            (folder / unit.name).symlink_to("/dev/null")


def show_read_only(path: str, root: Path) -> None:
    """Mount a folder of the machine at the same path below `root`."""
    target = root / path.lstrip("/")
    for parent in reversed(target.relative_to(root).parents):
        if not (root / parent).is_dir():
            (root / parent).mkdir()
            os.chown(root / parent, FIRST_ID, FIRST_ID)
    target.mkdir(exist_ok=True)
    run("mount", "-n", "--bind", path, str(target))
    run("mount", "-n", "-o", "remount,bind,ro,nosuid,nodev", str(target))


def show_devices(root: Path) -> None:
    """Give the host the devices that are no hardware."""
    folder = root / "dev"
    options = f"nosuid,uid={FIRST_ID},gid={FIRST_ID},mode=755,size=1m"
    run("mount", "-n", "-t", "tmpfs", "-o", options, "dev", str(folder))
    for name in (*DEVICES, "console"):
        (folder / name).touch()
        source = "null" if name == "console" else name
        run("mount", "-n", "--bind", f"/dev/{source}", str(folder / name))
    for name, target in {"fd": "/proc/self/fd", "ptmx": "pts/ptmx"}.items():
        (folder / name).symlink_to(target)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (folder / name).symlink_to(f"/proc/self/fd/{number}")
    (folder / "shm").mkdir()
    (folder / "pts").mkdir()


def enter_root(root: Path) -> None:
    """Make `root` the root folder, and unmount everything else."""
    os.chdir(root)
    (root / "mnt/old").mkdir()
    run("pivot_root", ".", "mnt/old")
    os.chdir("/")
    if libc.umount2(b"/mnt/old", DETACH):
        raise OSError(ctypes.get_errno(), "umount2")
    Path("/mnt/old").rmdir()


def boot(command: list[str], name: str, proc: int, group: int, place: str) -> tuple[int, int]:
    """Start the host's first process; return the pids of its parent and of itself."""
    place = f"{name}/{place}"
    os.mkdir(place, dir_fd=group)
    for file in ("", "/cgroup.procs", "/cgroup.threads", "/cgroup.subtree_control"):
        os.chown(f"{place}{file}", FIRST_ID, FIRST_ID, dir_fd=group)
    reading, writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        try:
            os.close(reading)
            hold(command, name, proc, (group, place), writing)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as answers:
        answer = answers.read()
    if not answer:
        raise SystemExit("the host could not be booted")
    return holder, int(answer)


def hold(command: list[str], name: str, proc: int, place: tuple[int, str], answer: int) -> None:
    """Be the parent of the first process: the namespace of PIDs is the one of children only."""
    die_with_parent()
    group, folder = place
    write(f"{folder}/cgroup.procs", str(os.getpid()), group)
    unshare(NEW_PIDS | NEW_CGROUP)
    asked, mapped = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            die_with_parent()
            mount_fresh()
            unshare(NEW_USER | NEW_MOUNTS | NEW_UTS | NEW_IPC)
            os.write(asked[1], b"x")
            os.read(mapped[0], 1)
            start(command, name)
        finally:
            os._exit(1)
    write(f"{name}/cgroup.procs", str(os.getpid()), group)  # the host's own group is systemd's
    os.close(asked[1])
    if os.read(asked[0], 1):
        for kind in ("uid_map", "gid_map"):
            write(f"{pid}/{kind}", f"0 {FIRST_ID} {IDS}\n", proc)
        os.write(mapped[1], b"x")
        os.write(answer, str(pid).encode())
    os.close(answer)
    os.waitpid(pid, 0)
    os._exit(0)


def mount_fresh() -> None:
    """Mount what a boot finds empty, and what belongs to the new namespaces."""
    unshare(NEW_MOUNTS)
    run("mount", "-n", "--make-rprivate", "/")
    for path, options in FRESH.items():
        own = f"nosuid,nodev,uid={FIRST_ID},gid={FIRST_ID},{options}"
        run("mount", "-n", "-t", "tmpfs", "-o", own, "fresh", path)
    options = f"nosuid,noexec,newinstance,ptmxmode=0666,mode=620,gid={FIRST_ID + 5}"
    run("mount", "-n", "-t", "devpts", "-o", options, "devpts", "/dev/pts")
    run("mount", "-n", "-t", "proc", "-o", "nosuid,nodev,noexec", "proc", "/proc")
    for path in ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"):
        if Path(path).exists():
            run("mount", "-n", "--bind", path, path)
            run("mount", "-n", "-o", "remount,bind,ro", path)
    run("mount", "-n", "-t", "sysfs", "-o", "ro,nosuid,nodev,noexec", "sysfs", "/sys")
    run("mount", "-n", "-t", "cgroup2", "-o", "nosuid,nodev,noexec", "cgroup2", "/sys/fs/cgroup")


def start(command: list[str], name: str) -> None:
    """Become the host's first process."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    die_with_parent()  # a change of the user has cleared it
    os.setsid()
    run("hostname", name)
    console = os.open("/var/log/console", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(console, 1)
    os.dup2(console, 2)
    os.closerange(3, 256)
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.execve(command[0], command, {"container": "raylaunch", "PATH": path})


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent exits."""
    if libc.prctl(DIE_WITH_PARENT, signal.SIGKILL):
        raise OSError(ctypes.get_errno(), "prctl")


def unshare(flags: int) -> None:
    """Move this process to new namespaces."""
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), f"unshare {flags:#x}")


def read(path: str, folder: int) -> str:
    """Read a file of the kernel below an opened folder."""
    file = os.open(path, os.O_RDONLY, dir_fd=folder)
    with os.fdopen(file) as opened:
        return opened.read()


def write(path: str, text: str, folder: int) -> None:
    """Write a file of the kernel below an opened folder."""
    file = os.open(path, os.O_WRONLY, dir_fd=folder)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def run(*command: str) -> None:
    """Run a command; exit if it fails."""
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
