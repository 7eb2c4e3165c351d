"""The first process of a test host: gives it folders, a name and a loopback of its own, then waits
for its end.

Run by `unshare` in new mount, network, PID, UTS and IPC namespaces, with the standard library
alone:
`host_init.py NAME '{"private": [...], "kept": [...], "files": {"/etc/hosts": "..."}}'`. Prints `ready`. Ends when its
stdin does, which is when the process that built the host ends for whatever reason; the kernel then
kills every process of the host and frees its network.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    name, wanted = sys.argv[1], json.loads(sys.argv[2])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for path, text in wanted["files"].items():
        replace_file(Path(path), text)
    for folder in wanted["private"]:
        empty_folder(Path(folder), [Path(kept) for kept in wanted["kept"]])
    show_own_interfaces()
    socket.sethostname(name)
    run("ip", "link", "set", "lo", "up")
    # Whoever loses its parent becomes a child of this process: ignored children leave no zombies.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    sys.stdin.buffer.read()


def replace_file(path: Path, text: str) -> None:
    """Put a file of this host's own over a file of the machine."""
    if path.exists():
        with tempfile.NamedTemporaryFile("w", delete=False) as own:
            own.write(text)
        Path(own.name).chmod(0o644)
        run("mount", "-n", "--bind", own.name, str(path))
        Path(own.name).unlink()


def empty_folder(folder: Path, kept: list[Path]) -> None:
    """Put an empty folder over one of the machine, in which only the `kept` folders below it are
    still seen."""
    # An open folder can still be mounted elsewhere after its path is covered.
    inside = {path: os.open(path, os.O_PATH) for path in kept if path.is_relative_to(folder)}
    run(
        "mount",
        "-n",
        "-t",
        "tmpfs",
        "-o",
        f"mode={folder.stat().st_mode & 0o7777:o}",
        "host",
        str(folder),
    )
    for path, covered in inside.items():
        path.mkdir(parents=True, exist_ok=True)
        run(
            "mount", "-n", "-c", "--bind", f"/proc/self/fd/{covered}", str(path), pass_fds=[covered]
        )
        os.close(covered)


def show_own_interfaces() -> None:
    """Let /sys tell of this host's interfaces: what is mounted there tells of the machine's."""
    with tempfile.TemporaryDirectory() as own:
        run("mount", "-n", "-t", "sysfs", "sysfs", own)
        for folder in ("devices/virtual/net", "class/net"):
            run("mount", "-n", "--bind", f"{own}/{folder}", f"/sys/{folder}")
        run("umount", "-n", own)


def run(*command: str, **more: object) -> None:
    subprocess.run(command, check=True, **more)


if __name__ == "__main__":
    main()
