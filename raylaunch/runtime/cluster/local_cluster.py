"""A small Ray cluster of our own on this machine: two nodes with NPUs declared by hand, for recipes on CPU.

It never touches a cluster that is already there: own ports, own folder, own token, and each of its processes
carries a marker by which exactly those are ended.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from raylaunch.errors import BusyError, ClusterError
from raylaunch.node.process.process_markers import (
    ANY_INSTANCE,
    ATTEMPT,
    DEPLOYMENT,
    terminate_marked,
)
from raylaunch.runtime.cluster.connection import import_ahead, use_token

START_TIMEOUT_S = 90.0
END_GRACE_S = 1.0
"""Ray's daemons hold nothing worth a longer farewell: the servers have been ended before them."""
OBJECT_STORE_BYTES = 80_000_000
"""Ray's smallest is 75 MB; raylaunch passes almost no objects."""

RAY_START = "import sys; from ray.scripts.scripts import main; sys.stdin.readline() and main()"


@dataclass(frozen=True)
class LocalCluster:
    """A running embedded cluster. `address` is the GCS, `folder` holds Ray's session and the token.

    The folder is in /tmp, as Ray's own: the path of a Unix socket in it may have 107 bytes, and Ray takes 70 of them.
    """

    deployment: str
    address: str
    folder: str
    marker: str
    """Value of the marker variable in each of the cluster's processes."""

    @property
    def token_file(self) -> Path:
        """File with the token of the cluster."""
        return Path(self.folder) / "token"


def find_local(home: Path, deployment: str) -> LocalCluster | None:
    """The embedded cluster of `deployment`, if one was started and its record is whole."""
    try:
        record = json.loads(_record(home, deployment).read_text())
    except FileNotFoundError:
        return None
    return LocalCluster(**record) if "address" in record else None


def start_local(home: Path, deployment: str, *, nodes: int, npus_per_node: int) -> LocalCluster:
    """Start the embedded cluster of `deployment`.

    Raises:
        BusyError: one of that name exists or is being started.
        ClusterError: Ray did not come up; nothing of it is left running.
    """
    record = _record(home, deployment)
    record.parent.mkdir(parents=True, exist_ok=True)
    _claim(record, deployment)
    folder = Path(tempfile.mkdtemp(prefix="raylaunch-", dir="/tmp"))
    marker = f"@{deployment}-{secrets.token_hex(4)}"  # no deployment can have this name
    cluster = LocalCluster(deployment, f"{_own_address()}:{_free_port()}", str(folder), marker)
    try:
        _write_token(cluster)
        _write(record, {"marker": marker, "folder": str(folder), "deployment": deployment})
        _start_nodes(cluster, nodes, npus_per_node)
        _write(record, asdict(cluster))
    except BaseException:
        _end(record, marker, folder)
        raise
    return cluster


def stop_local(home: Path, deployment: str) -> list[str]:
    """End the embedded cluster of `deployment`; returns what could not be ended ("pid 12 raylet")."""
    record = _record(home, deployment)
    try:
        known = json.loads(record.read_text())
    except FileNotFoundError:
        return []
    return _end(record, known["marker"], Path(known["folder"]))


def _record(home: Path, deployment: str) -> Path:
    return home / "clusters" / f"{deployment}.json"


def _claim(record: Path, deployment: str) -> None:
    try:
        record.touch(exist_ok=False)
    except FileExistsError as error:
        raise BusyError(
            f"the embedded cluster of {deployment!r} is already there or being started",
            todo=f"`raylaunch status {deployment}` shows it, `raylaunch stop {deployment}` ends it",
        ) from error


def _write(record: Path, value: dict[str, str]) -> None:
    draft = record.with_suffix(".tmp")
    draft.write_text(json.dumps(value, indent=1))
    draft.replace(record)


def _write_token(cluster: LocalCluster) -> None:
    descriptor = os.open(cluster.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def _start_nodes(cluster: LocalCluster, nodes: int, npus: int) -> None:
    """All import Ray at once; the others begin once the head is there, for Ray looks for it every two seconds only."""
    port = cluster.address.rpartition(":")[2]
    with ExitStack() as stack:  # a start that nobody lets begin ends at the end of its input
        head = stack.enter_context(
            _ray_start(cluster, npus, "--head", f"--port={port}", "--include-dashboard=false")
        )
        others = [
            stack.enter_context(_ray_start(cluster, npus, f"--address={cluster.address}"))
            for _ in range(nodes - 1)
        ]
        _begin(head)
        use_token(cluster.token_file)
        import_ahead()
        _finish(head)
        for other in others:
            _begin(other)
        for other in others:
            _finish(other)


def _ray_start(cluster: LocalCluster, npus: int, *arguments: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-c", RAY_START, "start", *arguments,
        f"--node-ip-address={cluster.address.rpartition(':')[0]}", f"--temp-dir={cluster.folder}",
         f"--resources={json.dumps({'NPU': npus})}",
        f"--object-store-memory={OBJECT_STORE_BYTES}", "--num-cpus=1", "--disable-usage-stats",
        "--dashboard-agent-listen-port=0",  # a port in use costs Ray four seconds of retries (measured)
        "--no-monitor",
        "--include-log-monitor=false",
        "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    return subprocess.Popen(
        command, env=_ray_env(cluster), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip


def _ray_env(cluster: LocalCluster) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **inherited,
        DEPLOYMENT: cluster.marker,
        ATTEMPT: "0",
        "SPT_NOENV": "1",  # keeps the marker readable: Ray renames its processes over their environment
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(cluster.token_file),
        "RAY_worker_niceness": "0",  # by default Ray's workers run at 15, and a server would inherit it
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_metrics_collection": "0",
    }


def _begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has failed; `_finish` tells how
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
            f"the embedded Ray cluster did not start (exit code {process.returncode})",
            evidence=tail,
            todo="the lines above are Ray's; `raylaunch start` may simply be tried again",
        )


def _end(record: Path, marker: str, folder: Path) -> list[str]:
    left = terminate_marked(marker, instance=ANY_INSTANCE, grace_s=END_GRACE_S)
    if not left:
        shutil.rmtree(folder, ignore_errors=True)
        record.unlink(missing_ok=True)
    return [f"pid {process.pid} {process.command}" for process in left]


def _own_address() -> str:
    """The address Ray will take for this machine; it replaces 127.0.0.1 by it (measured, Ray 2.60).

    Found as Ray finds it, by the route to the internet (no packet is sent), without importing Ray: that would fix its
    authentication mode before there is a token.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("8.8.8.8", 80))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
