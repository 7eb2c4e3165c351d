"""A small Ray cluster of our own on this machine: nodes with declared NPUs, for recipes on CPU.

It never touches a cluster that is already there: own ports, own folder, own token. Each of its
processes carries a marker, by which exactly those are killed. Everything listens on 127.0.0.1 only.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from raylaunch.errors import BusyError, ClusterError, LaunchError, NotReadyError
from raylaunch.interrupts import StartUndone
from raylaunch.node.process.cluster_records import (
    ClusterRecord,
    encode,
    read_record,
    record_path,
    this_process,
)
from raylaunch.runtime.cluster.code_store import private_folder
from raylaunch.runtime.cluster.connection import import_ahead, use_token
from raylaunch.runtime.cluster.daemon_supervisor import (
    find_supervisors,
    prepared_supervisor,
    supervise,
)
from raylaunch.runtime.cluster.local_cleanup import (
    cancellation_path,
    gcs_store_of,
    guards_without_ray,
    kill_cluster,
    kill_ray,
)
from raylaunch.runtime.cluster.ray_start import (
    LOOPBACK,
    agent_ports,
    begin,
    finish,
    ray_env,
    ray_start,
)

log = logging.getLogger(__name__)

GCS_BACK_S = 20.0
"""How long a command waits for a GCS that the supervisor of its cluster is starting again."""
POLL_S = 0.2


@dataclass(frozen=True)
class LocalCluster:
    """A running embedded cluster. `address` is the GCS.

    Ray's session is below `folder`, in /tmp as Ray's own: the path of a Unix socket may have 107
    bytes, and Ray takes 70 of them. The token is in the home: cleaners delete old files below /tmp.
    """

    deployment: str
    address: str
    folder: str
    marker: str
    """Value of the marker variable in each of the cluster's processes."""
    token_file: Path
    gcs_store: Path
    """Where the GCS keeps its tables. In the home, as the token."""
    is_revived: bool = False
    """It was started again around servers that had outlived it."""


def find_local(home: Path, deployment: str) -> LocalCluster | None:
    """Find the embedded cluster of `deployment`; None while it is being started.

    Raises:
        ClusterError: its record cannot be read.
    """
    record = read_record(home, deployment)
    if record is None or not record.address:
        return None
    return _cluster_of(record)


def require_started(home: Path, deployment: str) -> LocalCluster | None:
    """As `find_local`, but a cluster whose start is not complete is an error.

    Raises:
        NotReadyError: another process starts it at the moment.
        ClusterError: its start was interrupted, or its record cannot be read.
    """
    record = read_record(home, deployment)
    if record is None:
        return None
    if record.is_starting():
        pid = record.starter.pid if record.starter is not None else 0
        raise NotReadyError(
            f"{deployment} is being started: its Ray cluster is not up yet",
            why=f"process {pid} starts it",
            todo=f"wait for it, or `raylaunch stop {deployment}` cancels the start",
        )
    if record.is_abandoned():
        raise ClusterError(
            f"the start of {deployment} was interrupted",
            why="the process that started its Ray cluster exited before the cluster was up",
            todo=f"`raylaunch stop {deployment}` kills what is left of it; `raylaunch start` does "
            "so too, and starts over",
        )
    return _cluster_of(record)


def start_local(
    home: Path,
    deployment: str,
    *,
    nodes: int,
    npus_per_node: int,
    secret_names: Collection[str] = (),
) -> LocalCluster:
    """Start the embedded cluster of `deployment`.

    One whose processes have all died, while its servers run on, is started again with its tables.
    What an interrupted start of that name left behind is killed first.

    Args:
        home: Folder of this user's raylaunch.
        deployment: Its name.
        nodes: Ray nodes, one per server.
        npus_per_node: NPUs that each of them declares.
        secret_names: Variables that Ray must not inherit; others are recognized by their names.

    Raises:
        BusyError: one of that name exists or is being started.
        LaunchError: `raylaunch stop` cancelled the start.
        ClusterError: Ray did not come up, or the record cannot be written. Nothing is left running.
        StartUndone: Ctrl-C.
    """
    if (dead := _find_revivable(home, deployment)) is not None:
        return _revive(home, dead, nodes, npus_per_node, secret_names)
    _remove_garbage(home, deployment)
    record = _claim(home, deployment)
    log.info("starting the embedded cluster of %s, marker %s", deployment, record.marker)
    try:
        return _start(home, record, nodes, npus_per_node, secret_names)
    except BaseException as error:
        is_cancelled = cancellation_path(home, record).exists()
        killed = kill_cluster(home, record)
        if isinstance(error, KeyboardInterrupt):
            raise StartUndone(killed.left) from error
        if is_cancelled and isinstance(error, ClusterError):
            # A cancellation kills `ray start`, which must not look like a failure of Ray.
            raise _cancelled(deployment) from None
        raise


def refuse_cancelled(home: Path, deployment: str) -> None:
    """Abort a start that `raylaunch stop` has cancelled.

    Raises:
        LaunchError: it was cancelled.
    """
    record = read_record(home, deployment)
    own = record is not None and record.starter == this_process()
    if record is None or not own or cancellation_path(home, record).exists():
        raise _cancelled(deployment)


def await_gcs(cluster: LocalCluster, patience_s: float = GCS_BACK_S) -> None:
    """Wait while nothing listens at the address of the GCS and a supervisor starts it again."""
    deadline = time.monotonic() + patience_s
    while _is_refused(cluster.address) and find_supervisors(cluster.marker):
        if time.monotonic() >= deadline:
            return
        time.sleep(POLL_S)


def _is_refused(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), POLL_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _find_revivable(home: Path, deployment: str) -> ClusterRecord | None:
    """Return the record of a cluster without processes, around which servers wait for an agent."""
    record = read_record(home, deployment)
    if record is None or not record.is_dead() or not gcs_store_of(record).is_dir():
        return None
    return record if guards_without_ray(home, record) else None


def _revive(
    home: Path,
    record: ClusterRecord,
    nodes: int,
    npus_per_node: int,
    secret_names: Collection[str],
) -> LocalCluster:
    """Start Ray again with the tables of its GCS: its actors come back by themselves.

    Raises:
        BusyError: another command does so at the moment.
        ClusterError: Ray did not come up. The servers run on, as long as their guards wait.
    """
    log.warning("starting the embedded cluster of %s again", record.deployment)
    with _revival_lock(record):
        Path(record.folder).mkdir(mode=0o700, exist_ok=True)
        own = replace(record, starter=this_process())
        _replace_record(home, own)
        cluster = replace(_cluster_of(own), is_revived=True)
        try:
            _start_nodes(home, cluster, nodes, npus_per_node, secret_names)
        except BaseException:
            kill_ray(record)
            raise
    return cluster


@contextlib.contextmanager
def _revival_lock(record: ClusterRecord) -> Iterator[None]:
    handle = os.open(record.token_file, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BusyError(
            f"the embedded cluster of {record.deployment!r} is being started again",
            why="another command does so at the moment",
            todo=f"`raylaunch status {record.deployment}` shows it",
        ) from error
    finally:
        os.close(handle)


def _cancelled(deployment: str) -> LaunchError:
    return LaunchError(
        f"{deployment} was stopped while it started",
        why="`raylaunch stop` cancelled the start; nothing of it is left",
    )


def _cluster_of(record: ClusterRecord) -> LocalCluster:
    return LocalCluster(
        deployment=record.deployment,
        address=record.address,
        folder=record.folder,
        marker=record.marker,
        token_file=Path(record.token_file),
        gcs_store=gcs_store_of(record),
    )


def _records_folder(home: Path) -> Path:
    try:
        return private_folder(home, "clusters")
    except OSError as error:
        raise _unusable(home, error) from error


def _unusable(home: Path, error: OSError) -> ClusterError:
    return ClusterError(
        f"the folder {home} cannot hold the record of an embedded Ray cluster",
        why=str(error),
        todo="set RAYLAUNCH_HOME to a folder of yours with free space",
    )


def _remove_garbage(home: Path, deployment: str) -> None:
    """Kill what an interrupted start of that name left, and forget a cluster without processes."""
    record = read_record(home, deployment)
    if record is not None and (record.is_abandoned() or record.is_dead()):
        kill_cluster(home, record)


def _claim(home: Path, deployment: str) -> ClusterRecord:
    """Create the record with its whole content in one step: it can never be read half-written."""
    records = _records_folder(home)
    folder = tempfile.mkdtemp(prefix="raylaunch-", dir="/tmp")
    marker = f"@{deployment}-{secrets.token_hex(4)}"  # no deployment can have this name
    record = ClusterRecord(
        deployment=deployment,
        marker=marker,
        folder=folder,
        token_file=str(records / f"{marker[1:]}.token"),
        starter=this_process(),
    )
    draft = records / f"{marker[1:]}.draft"
    try:
        _write_private(draft, encode(record))
        record_path(home, deployment).hardlink_to(draft)
    except FileExistsError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise BusyError(
            f"the embedded cluster of {deployment!r} is already there or being started",
            todo=f"`raylaunch status {deployment}` shows it, "
            f"`raylaunch stop {deployment}` stops it",
        ) from error
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise _unusable(home, error) from error
    finally:
        draft.unlink(missing_ok=True)
    return record


def _start(
    home: Path,
    record: ClusterRecord,
    nodes: int,
    npus_per_node: int,
    secret_names: Collection[str],
) -> LocalCluster:
    _write_private(Path(record.token_file), secrets.token_hex(32))
    gcs_store_of(record).mkdir(mode=0o700)
    complete = replace(record, address=f"{LOOPBACK}:{_free_port()}")
    cluster = _cluster_of(complete)
    _start_nodes(home, cluster, nodes, npus_per_node, secret_names)
    _replace_record(home, complete)
    # After the record is complete: a cancellation that came before is seen here, and one that comes
    # later finds a complete record and stops the cluster as any other.
    refuse_cancelled(home, record.deployment)
    return cluster


def _replace_record(home: Path, record: ClusterRecord) -> None:
    path = record_path(home, record.deployment)
    draft = path.with_name(f"{record.marker[1:]}.draft")
    _write_private(draft, encode(record))
    draft.replace(path)


def _write_private(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)


def _start_nodes(
    home: Path, cluster: LocalCluster, nodes: int, npus: int, secret_names: Collection[str]
) -> None:
    """Start the head, then the other nodes.

    All import Ray at the same time. The others begin once the head is there: Ray looks for its head
    only every two seconds.
    """
    env = ray_env(cluster.marker, cluster.token_file, secret_names, cluster.gcs_store)
    port = cluster.address.rpartition(":")[2]
    of_head, *of_others = agent_ports(nodes)
    with ExitStack() as stack:
        supervisor = stack.enter_context(prepared_supervisor(cluster.marker, cluster.folder, env))
        arguments = ("--head", f"--port={port}", "--include-dashboard=false")
        head = stack.enter_context(ray_start(cluster.folder, npus, env, of_head, *arguments))
        others = []
        for ports in of_others:
            node = ray_start(cluster.folder, npus, env, ports, f"--address={cluster.address}")
            others.append(stack.enter_context(node))
        begin(head)
        use_token(cluster.token_file)
        import_ahead()
        finish(head)
        refuse_cancelled(home, cluster.deployment)
        for other in others:
            begin(other)
        for other in others:
            finish(other)
        supervise(supervisor)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
