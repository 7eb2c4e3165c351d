"""Installs, shows and removes the units of a service on its hosts, over SSH or on this machine.

All hosts are asked before the first one gets a file, and get all files before the first unit is
changed. A failure takes everything back, on every host.
"""

from __future__ import annotations

import contextlib
import io
import logging
import secrets
import shlex
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylaunch.errors import HeadError, NodeError
from raylaunch.recipe.cluster_yaml import ClusterFile
from raylaunch.runtime.ssh.host_script import as_root
from raylaunch.runtime.ssh.ssh_client import SSH_FAILED, ssh_words
from raylaunch.runtime.ssh.ssh_message import code_files

log = logging.getLogger(__name__)

ROOT = ""
"""In front of every path on a host; only tests have another one."""
ANSWER_S = 300.0
"""For one action; the longest one sends raylaunch itself, under 1 MB."""
REFUSED = 3
"""Exit status of the script for a host that cannot do it."""


@dataclass(frozen=True)
class HostFiles:
    """What one host gets.

    Args:
        host: Its address; "" for this machine.
        files: Text and mode by absolute path.
        units: In the order in which they are started.
        code: Folder for raylaunch itself; "" for none.
    """

    host: str
    files: Mapping[str, tuple[str, int]]
    units: tuple[str, ...]
    code: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that are replaced, in order; the units come last."""
        names = [*self.files, *([self.code] if self.code else [])]
        return tuple(sorted(names, key=lambda path: path.startswith("/etc/systemd/")))


@dataclass(frozen=True)
class UnitState:
    """A unit, as systemd describes it."""

    name: str
    enabled: str
    """"enabled", "disabled", or "" for a unit that is not there."""
    active: str
    """systemd's ActiveState and SubState, e.g. "active (running)"."""
    text: str
    """What the service last reported."""
    restarts: int

    @property
    def is_up(self) -> bool:
        """Whether it runs, and is started after a reboot."""
        return self.active.startswith("active ") and self.enabled == "enabled"


def install(
    hosts: Sequence[HostFiles],
    cluster: ClusterFile | None,
    token: tuple[str, str] | None = None,
) -> None:
    """Install and start the units on all hosts, or change nothing.

    Args:
        hosts: What each of them gets, the head first.
        cluster: How to reach them; None for this machine.
        token: Path below the user's home, and text, of the cluster's token.

    Raises:
        NodeError: a host refuses; nothing is left on any of them.
        HeadError: a host cannot be reached; nothing is left on those that can.
    """
    identity = secrets.token_hex(8)
    docker = cluster.docker if cluster is not None and cluster.container is not None else ""
    for one in hosts:
        _run(cluster, one.host, "ask", identity, (docker, *one.paths))
    with _undone_on_failure(hosts, cluster, identity):
        for one in hosts:
            _run(cluster, one.host, "stage", identity, stdin=_pack(one))
        for one in hosts:
            if token is not None and cluster is not None:
                path, text = token
                _run(cluster, one.host, "token", identity, (cluster.user, path), text.encode())
        for one in hosts:
            _run(cluster, one.host, "commit", identity, (*one.paths, "--", *one.units))
    for one in hosts:
        _run(cluster, one.host, "finish", identity, one.units)


def read_states(cluster: ClusterFile | None, host: str, units: Sequence[str]) -> list[UnitState]:
    """Return the state of units on a host; "" is this machine.

    Raises:
        HeadError: it cannot be reached.
        NodeError: it has no systemd.
    """
    text = _run(cluster, host, "status", "status", tuple(units))
    return [_state(dict(_pairs(block))) for block in text.strip().split("\n\n")]


def _state(found: Mapping[str, str]) -> UnitState:
    restarts = found.get("NRestarts", "")
    return UnitState(
        name=found.get("Id", ""),
        enabled=found.get("UnitFileState", ""),
        active=f"{found.get('ActiveState', '')} ({found.get('SubState', '')})",
        text=found.get("StatusText", ""),
        restarts=int(restarts) if restarts.isdigit() else 0,
    )


def find_other_users(cluster: ClusterFile, cluster_unit: str, own_unit: str) -> list[str]:
    """Return the units of other deployments on the head that need the cluster's unit.

    Raises:
        HeadError: the head cannot be reached.
    """
    text = _run(cluster, cluster.head_ip, "users", "users", (cluster_unit, own_unit))
    return text.split()


def remove(hosts: Sequence[HostFiles], cluster: ClusterFile | None, label: str) -> None:
    """Stop and remove units and their files, the head's first.

    Args:
        hosts: The paths and units to remove; the texts do not matter.
        cluster: How to reach the hosts; None for this machine.
        label: Label of the containers to remove; "" for none.

    Raises:
        NodeError: a host refuses, because a file is not raylaunch's.
        HeadError: a host cannot be reached.
    """
    docker = cluster.docker if cluster is not None and label else ""
    for one in hosts:
        arguments = (docker, label, *one.paths, "--", *reversed(one.units))
        _run(cluster, one.host, "remove", "remove", arguments)


@contextlib.contextmanager
def _undone_on_failure(
    hosts: Sequence[HostFiles], cluster: ClusterFile | None, identity: str
) -> Iterator[None]:
    try:
        yield
    except BaseException as failure:
        left = []
        for one in hosts:
            try:
                _run(cluster, one.host, "undo", identity, (*one.paths, "--", *one.units))
            except (HeadError, NodeError) as error:
                log.warning("%s: %s", one.host, error.what)
                left.append(one.host)
        if left and isinstance(failure, HeadError | NodeError):
            raise type(failure)(
                f"{failure.what}; the files that were sent could not be removed on "
                f"{', '.join(left)}",
                why=failure.why,
                evidence=failure.evidence,
                todo="`raylaunch service install` again when they answer",
            ) from failure
        raise


def _run(
    cluster: ClusterFile | None,
    host: str,
    action: str,
    identity: str,
    arguments: tuple[str, ...] = (),
    stdin: bytes = b"",
) -> str:
    """Run one action of the script on a host; return what it printed.

    Raises:
        NodeError: it failed there.
        HeadError: the host cannot be reached, or does not answer.
    """
    line = as_root(ROOT, action, identity, arguments)
    words = (
        ["bash", "-c", line]
        if cluster is None
        else [*ssh_words(cluster, _outer(cluster, host)), line]
    )
    place = host or "this machine"
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, timeout=ANSWER_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise HeadError(f"{place} did not answer within {ANSWER_S:.0f} s ({action})") from error
    except FileNotFoundError as error:
        raise HeadError("this machine has no ssh", todo="install an OpenSSH client") from error
    if done.returncode == 0:
        return done.stdout.decode(errors="replace")
    printed = done.stderr.decode(errors="replace").strip()
    if cluster is not None and done.returncode == SSH_FAILED:
        raise HeadError(
            f"{place} cannot be reached over SSH",
            evidence=printed,
            todo=f"fix what `{shlex.join(words[:-1])} true` reports",
        )
    if done.returncode == REFUSED:
        raise NodeError(f"{place} cannot have the service: {printed}")
    raise NodeError(
        f"{place}: `{action}` failed (exit code {done.returncode})",
        evidence=printed,
        todo="the user needs to be root, or to have `sudo` without a password",
    )


def _outer(cluster: ClusterFile, host: str) -> str:
    is_head = host == cluster.head_ip
    return cluster.outer_ip or host if is_head else host


def _pack(one: HostFiles) -> bytes:
    """Return a tar file of everything that a host gets."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path, (text, mode) in one.files.items():
            _add(archive, path, text.encode(), mode)
        if one.code:
            for name, file in code_files().items():
                _add(archive, f"{one.code}/{name}", Path(file).read_bytes(), 0o644)
    return packed.getvalue()


def _add(archive: tarfile.TarFile, path: str, data: bytes, mode: int) -> None:
    _add_folders(archive, path)
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.size = len(data)
    entry.mode = mode
    archive.addfile(entry, io.BytesIO(data))


def _add_folders(archive: tarfile.TarFile, path: str) -> None:
    """Add the folders of a file: tar would make them for root alone, as the umask may ask for."""
    known = set(archive.getnames())
    for folder in reversed(Path(path.lstrip("/")).parents):
        name = str(folder)
        if name != "." and name not in known:
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE
            entry.mode = 0o755
            archive.addfile(entry)


def _pairs(block: str) -> Iterator[tuple[str, str]]:
    for line in block.splitlines():
        name, _, value = line.partition("=")
        yield name, value
