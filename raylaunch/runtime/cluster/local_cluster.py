"""A small Ray cluster of our own on this machine: nodes with declared NPUs, for recipes on CPU.

It never touches a cluster that is already there: own ports, own folder, own token. Each of its
processes carries a marker, by which exactly those are killed. Everything listens on 127.0.0.1 only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import psutil

from raylaunch.errors import BusyError, ClusterError, LaunchError, NotReadyError
from raylaunch.node.process.cluster_records import (
    ClusterRecord,
    damaged,
    encode,
    read_record,
    read_records,
    record_path,
    this_process,
)
from raylaunch.node.process.process_markers import ATTEMPT, DEPLOYMENT, end_marked, find_marked
from raylaunch.plan.facts import MarkedProcess
from raylaunch.runtime.cluster.code_store import private_folder
from raylaunch.runtime.cluster.connection import import_ahead, use_token, why_unreachable

START_TIMEOUT_S = 90.0
END_GRACE_S = 1.0
"""Ray's daemons have nothing to save: the servers were stopped before them."""
SERVER_GRACE_S = 5.0
"""For servers whose agents were killed with the cluster: their guards stop them by themselves."""
CANCEL_TIMEOUT_S = 15.0
"""In which a starting process notices that its start was cancelled; it checks between two steps."""
POLL_S = 0.1
OBJECT_STORE_BYTES = 80_000_000
"""Ray's smallest is 75 MB; raylaunch passes almost no objects."""
LOOPBACK = "127.0.0.1"

RAY_START = """
import sys
from ray._private import services
from ray.scripts import scripts
services.resolve_ip_for_localhost = lambda host: host
scripts.get_ray_client_dependency_error = lambda: "switched off by raylaunch"
sys.stdin.readline() and scripts.main()
"""
"""`ray start`, with two changes for which Ray 2.60 has no option.

Ray replaces 127.0.0.1 by the machine's own address, and then every daemon listens on all
interfaces. And it starts a client server on port 10001 unless its dependencies are missing; with
SO_REUSEPORT, so that two clusters share the port.
"""

SECRET_NAME = re.compile(
    r"(^|_)(TOKENS?|SECRETS?|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|ACCESS_KEY(_ID)?|KEY)(_|$)",
    re.IGNORECASE,
)
"""Names of variables that hold a secret: VLLM_API_KEY, HF_TOKEN, AWS_SECRET_ACCESS_KEY, ..."""


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


@dataclass(frozen=True)
class KilledCluster:
    """What killing an embedded cluster by its marker came to."""

    processes: int
    """How many were found, servers included."""
    left: tuple[str, ...] = ()
    """What resisted: "pid 12 raylet"."""


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
    """
    records = _records_folder(home)
    _remove_garbage(home, deployment)
    folder = Path(tempfile.mkdtemp(prefix="raylaunch-", dir="/tmp"))
    marker = f"@{deployment}-{secrets.token_hex(4)}"  # no deployment can have this name
    record = ClusterRecord(
        deployment=deployment,
        marker=marker,
        folder=str(folder),
        token_file=str(records / f"{marker[1:]}.token"),
        starter=this_process(),
    )
    try:
        _claim(home, record)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        _write_private(Path(record.token_file), secrets.token_hex(32))
        address = f"{LOOPBACK}:{_free_port()}"
        cluster = _cluster_of(replace(record, address=address))
        _start_nodes(home, cluster, nodes, npus_per_node, secret_names)
        _replace_record(home, replace(record, address=address))
        # After the record is complete: a cancellation that came before is seen here, and one that
        # comes later finds a complete record and stops the cluster as any other.
        refuse_cancelled(home, deployment)
    except ClusterError:
        # A cancellation kills `ray start`, which must not look like a failure of Ray.
        is_cancelled = _cancellation(home, record).exists()
        _kill(home, record)
        if is_cancelled:
            raise _cancelled(deployment) from None
        raise
    except BaseException:
        _kill(home, record)
        raise
    return cluster


def stop_local(home: Path, deployment: str) -> list[str]:
    """Kill the embedded cluster of `deployment`; returns what resisted ("pid 12 raylet").

    Raises:
        ClusterError: its record cannot be read.
    """
    return list(kill_local(home, deployment).left)


def kill_local(home: Path, deployment: str) -> KilledCluster:
    """Kill the embedded cluster of `deployment`, and the servers below its agents, by their markers.

    Needs no answer from Ray. Takes at most 2 x 10 s, for processes that resist SIGKILL.

    Raises:
        ClusterError: its record cannot be read.
    """
    record = read_record(home, deployment)
    return KilledCluster(0) if record is None else _kill(home, record)


def cancel_start(home: Path, deployment: str) -> KilledCluster | None:
    """Cancel a start that is under way, or clean up an interrupted one; None when there is none.

    The starter is not signalled: it may be somebody's Python program. It sees the cancellation, or
    that its `ray start` was killed, and removes the record.

    Raises:
        ClusterError: the record cannot be read.
    """
    record = read_record(home, deployment)
    if record is None or not (record.is_starting() or record.is_abandoned()):
        return None
    seen: set[int] = set()
    if record.is_starting():
        cancellation = _cancellation(home, record)
        cancellation.touch(mode=0o600)
        deadline = time.monotonic() + CANCEL_TIMEOUT_S
        while _is_under_way(home, record) and time.monotonic() < deadline:
            seen.update(process.pid for process in find_marked(record.marker))
            end_marked(record.marker, grace_s=0)
            time.sleep(POLL_S)
        latest = read_record(home, deployment)
        if latest is not None and latest.marker == record.marker and latest.address:
            # It was complete before the cancellation: a deployment like any other.
            cancellation.unlink(missing_ok=True)
            return None
    killed = _kill(home, record)
    return replace(killed, processes=killed.processes + len(seen))


def refuse_cancelled(home: Path, deployment: str) -> None:
    """Abort a start that `raylaunch stop` has cancelled.

    Raises:
        LaunchError: it was cancelled.
    """
    record = read_record(home, deployment)
    own = record is not None and record.starter == this_process()
    if record is None or not own or _cancellation(home, record).exists():
        raise _cancelled(deployment)


@contextlib.contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM and SIGHUP like Ctrl-C within the block, so that what was started is cleaned up.

    An SSH session that closes sends SIGHUP. Outside the main thread signals cannot be handled, and
    nothing is changed. Ray sets a SIGTERM handler of its own when it connects; that one stays.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup ignores SIGHUP, and the start then survives the terminal.
        if signal.getsignal(number) == signal.SIG_DFL:
            before[number] = signal.signal(number, _raise_interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _raise_interrupt:
                signal.signal(number, handler)


def stale_records(home: Path, deployment: str | None) -> list[str]:
    """Name the deployments of which only a record, or an interrupted start, is left.

    A damaged record counts when no process can belong to it, or when `deployment` names it.
    """
    records, problems = read_records(home)
    stale = [one.deployment for one in records if one.is_abandoned() or one.is_dead()]
    stale += [
        problem.deployment
        for problem in problems
        if deployment == problem.deployment or not _has_processes(problem.deployment)
    ]
    return sorted(name for name in stale if deployment in (None, name))


def undecided_records(home: Path, deployment: str | None) -> list[str]:
    """Describe the records that `clean` does not judge, each with what a person can do."""
    records, problems = read_records(home)
    lines = []
    for record in records:
        if deployment not in (None, record.deployment) or not record.address or record.is_dead():
            continue
        if why := why_unreachable(record.address):
            count = len(find_marked(record.marker))
            lines.append(
                f"the embedded cluster of {record.deployment} does not answer ({why}), and {count} "
                f"of its processes live: `raylaunch stop {record.deployment}` kills them"
            )
    for problem in problems:
        name = problem.deployment
        if deployment is None and _has_processes(name):
            error = damaged(problem)
            lines.append(f"{error.what} ({error.why}), and its processes live: {error.todo}")
    return lines


def remove_record(home: Path, deployment: str) -> bool:
    """Remove a stale record with the processes and the folder of its cluster; False: some resisted."""
    try:
        return not kill_local(home, deployment).left
    except ClusterError:
        record_path(home, deployment).unlink(missing_ok=True)
        return True


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
    )


def _records_folder(home: Path) -> Path:
    try:
        return private_folder(home, "clusters")
    except OSError as error:
        raise ClusterError(
            f"the folder {home} cannot hold the record of an embedded Ray cluster",
            why=str(error),
            todo="set RAYLAUNCH_HOME to a folder of yours with free space",
        ) from error


def _remove_garbage(home: Path, deployment: str) -> None:
    """Kill what an interrupted start of that name left, and forget a cluster without processes."""
    record = read_record(home, deployment)
    if record is not None and (record.is_abandoned() or record.is_dead()):
        _kill(home, record)


def _claim(home: Path, record: ClusterRecord) -> None:
    """Create the record with its whole content at one moment: nobody ever reads half of it."""
    path = record_path(home, record.deployment)
    draft = path.with_name(f"{record.marker[1:]}.draft")
    _write_private(draft, encode(record))
    try:
        path.hardlink_to(draft)
    except FileExistsError as error:
        raise BusyError(
            f"the embedded cluster of {record.deployment!r} is already there or being started",
            todo=f"`raylaunch status {record.deployment}` shows it, "
            f"`raylaunch stop {record.deployment}` stops it",
        ) from error
    finally:
        draft.unlink()


def _replace_record(home: Path, record: ClusterRecord) -> None:
    path = record_path(home, record.deployment)
    draft = path.with_name(f"{record.marker[1:]}.draft")
    _write_private(draft, encode(record))
    draft.replace(path)


def _write_private(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)


def _cancellation(home: Path, record: ClusterRecord) -> Path:
    """Return the file whose existence says that this start is cancelled."""
    return record_path(home, record.deployment).with_name(f"{record.marker[1:]}.cancelled")


def _is_under_way(home: Path, record: ClusterRecord) -> bool:
    latest = read_record(home, record.deployment)
    return latest is not None and latest.marker == record.marker and latest.is_starting()


def _has_processes(deployment: str) -> bool:
    """Return whether a process carries the marker of a cluster of this deployment, of any home."""
    pattern = re.compile(rf"@{re.escape(deployment)}-[0-9a-f]{{8}}")
    return any(pattern.fullmatch(found.deployment) for found in find_marked())


def _start_nodes(
    home: Path, cluster: LocalCluster, nodes: int, npus: int, secret_names: Collection[str]
) -> None:
    """Start the head, then the other nodes.

    All import Ray at the same time. The others begin once the head is there: Ray looks for its head
    only every two seconds.
    """
    env = _ray_env(cluster, secret_names)
    port = cluster.address.rpartition(":")[2]
    with ExitStack() as stack:
        # A process that is never allowed to begin exits at the end of its input.
        arguments = ("--head", f"--port={port}", "--include-dashboard=false")
        head = stack.enter_context(_ray_start(cluster, npus, env, *arguments))
        others = []
        for _ in range(nodes - 1):
            node = _ray_start(cluster, npus, env, f"--address={cluster.address}")
            others.append(stack.enter_context(node))
        _begin(head)
        use_token(cluster.token_file)
        import_ahead()
        _finish(head)
        refuse_cancelled(home, cluster.deployment)
        for other in others:
            _begin(other)
        for other in others:
            _finish(other)


@contextlib.contextmanager
def _ray_start(
    cluster: LocalCluster, npus: int, env: dict[str, str], *arguments: str
) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable, "-c", RAY_START, "start", *arguments,
        f"--node-ip-address={LOOPBACK}",
        # Ray makes its folder 0777, so it gets one below ours, which is 0700.
        f"--temp-dir={cluster.folder}/r",
        f"--resources={json.dumps({'NPU': npus})}",
        f"--object-store-memory={OBJECT_STORE_BYTES}", "--num-cpus=1", "--disable-usage-stats",
        "--dashboard-agent-listen-port=0",  # a port in use costs Ray four seconds of retries
        "--no-monitor",
        "--include-log-monitor=false",
        "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        except BaseException:
            # Before `with` waits for its exit: after Ctrl-C nobody wants to wait for Ray.
            process.kill()
            raise


def _ray_env(cluster: LocalCluster, secret_names: Collection[str]) -> dict[str, str]:
    """Return the environment of Ray's daemons: this process's, without its secrets.

    Every worker inherits it, and every driver with the token may read it. The servers get the
    secrets that their recipe names from raylaunch.
    """
    inherited = {}
    for name, value in os.environ.items():
        is_secret = name in secret_names or SECRET_NAME.search(name) is not None
        if not is_secret and not name.startswith("RAY_"):
            inherited[name] = value
    return {
        **inherited,
        DEPLOYMENT: cluster.marker,
        ATTEMPT: "0",
        # Keeps the marker readable: Ray renames its processes over their environment.
        "SPT_NOENV": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(cluster.token_file),
        # By default Ray's workers run at 15, and a server would inherit it.
        "RAY_worker_niceness": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_metrics_collection": "0",
    }


def _begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has failed; `_finish` reports why
        process.stdin.write("\n")
        process.stdin.flush()


def _finish(process: subprocess.Popen[str]) -> None:
    try:
        output, _ = process.communicate(timeout=START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    if process.returncode:
        tail = "\n".join(output.strip().splitlines()[-8:])
        raise ClusterError(
            f"the embedded Ray cluster did not start (exit status {process.returncode})",
            evidence=tail,
            todo="the lines above are Ray's; `raylaunch start` may simply be tried again",
        )


def _kill(home: Path, record: ClusterRecord) -> KilledCluster:
    servers = _servers_below(record)
    found = {process.pid for process in find_marked(record.marker)}
    left = end_marked(record.marker, grace_s=END_GRACE_S)
    if servers:
        left += _kill_servers(record.deployment, servers)
    if not left:
        _remove_files(home, record)
    return KilledCluster(
        processes=len(found) + len(servers),
        left=tuple(f"pid {process.pid} {process.command}" for process in left),
    )


def _servers_below(record: ClusterRecord) -> set[int]:
    """Return the pids of the deployment's servers that descend from a process of this cluster.

    Not by name alone: another cluster may run a deployment of the same name.
    """
    cluster = {process.pid for process in find_marked(record.marker)}
    servers = set()
    for server in find_marked(record.deployment):
        with suppress(psutil.Error):  # it exited meanwhile
            if any(parent.pid in cluster for parent in psutil.Process(server.pid).parents()):
                servers.add(server.pid)
    return servers


def _kill_servers(deployment: str, pids: set[int]) -> list[MarkedProcess]:
    """Let the guards stop their servers, then kill what is left of them."""
    deadline = time.monotonic() + SERVER_GRACE_S
    while time.monotonic() < deadline:
        alive = pids.intersection(process.pid for process in find_marked(deployment))
        if not alive:
            return []
        time.sleep(POLL_S)
    return end_marked(deployment, grace_s=END_GRACE_S, pids=pids)


def _remove_files(home: Path, record: ClusterRecord) -> None:
    shutil.rmtree(record.folder, ignore_errors=True)
    Path(record.token_file).unlink(missing_ok=True)
    _cancellation(home, record).unlink(missing_ok=True)
    path = record_path(home, record.deployment)
    with suppress(ClusterError):
        latest = read_record(home, record.deployment)
        if latest is None or latest.marker != record.marker:
            return  # by now the name belongs to another start
    path.unlink(missing_ok=True)


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
