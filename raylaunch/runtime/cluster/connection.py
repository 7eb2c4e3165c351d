"""The connection to Ray: which cluster, with which authentication, and why it was refused."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raylaunch.errors import ClusterError
from raylaunch.interrupts import sigterm_handler_kept

log = logging.getLogger(__name__)

NAMESPACE = "raylaunch"
"""Ray namespace of every actor of raylaunch."""

CONNECT_TIMEOUT_S = 5.0
RECORD_BYTES = 4096
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""Preface and empty SETTINGS frame of a gRPC client; every gRPC server answers with its own."""


def connect(address: str | None, token_file: Path | None = None) -> None:
    """Connect this process to a Ray cluster; does nothing when it is connected to that cluster.

    Args:
        address: `host:port` of the GCS, "auto" for the cluster of this machine, None for
            RAY_ADDRESS or "auto".
        token_file: Token of a cluster with authentication, when it is not in Ray's usual place.

    Raises:
        ClusterError: no cluster, no answer, or an authentication that does not match.
    """
    address = _resolve(address or os.environ.get("RAY_ADDRESS") or "auto")
    _check_reachable(address)
    if token_file is not None:
        use_token(token_file)
    os.environ.setdefault("RAY_TASK_EVENTS_REPORT_INTERVAL_MS", "0")
    import ray

    if ray.is_initialized():
        _check_same(address, ray.get_runtime_context().gcs_address)
        return
    with _explained(address), _loopback_kept(address), sigterm_handler_kept(), _quiet_in_threads():
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    log.debug("connected to the Ray cluster at %s", address)
    # Before Ray's own exit handler, which sleeps half a second for logs that are not shown.
    atexit.register(disconnect)
    _silence_node_messages()


@contextlib.contextmanager
def _quiet_in_threads() -> Iterator[None]:
    """Drop Ray's warning that it leaves SIGTERM alone in a thread (Ray 2.60, `init`)."""
    ray_log = logging.getLogger("ray._private.worker")
    before = ray_log.level
    ray_log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray_log.setLevel(before)


def use_token(token_file: Path) -> None:
    """Make Ray use this token.

    Ray has no parameter for it. It reads these variables once, unless it is made to read them again
    (as `ray/_private/authentication_test_utils.py` does, Ray 2.60): `start --fresh` leaves one
    cluster and joins another.
    """
    wanted = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    is_known = all(os.environ.get(name) == value for name, value in wanted.items())
    os.environ.update(wanted)
    if is_known or "ray" not in sys.modules:
        return
    raylet: Any = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def import_ahead() -> None:
    """Import in the background what the next step needs, while this one waits."""
    for name in ("raylaunch.runtime.controller.controller_client", "ray"):
        threading.Thread(target=importlib.import_module, args=(name,), daemon=True).start()


def disconnect() -> None:
    """Leave the cluster; does nothing when there is no connection."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def recorded_cluster() -> str | None:
    """Return the GCS address that `ray start` wrote down on this machine, if it did.

    Raises:
        ClusterError: the file belongs to another user, who could lead this process anywhere.
    """
    path = _record()
    try:
        return read_own_file(path, RECORD_BYTES).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ClusterError(
            f"{path} is not trusted",
            why=f"{error}; code and secrets would go to the cluster that it names",
            todo="if that cluster is yours to use, name it: --address HOST:PORT or RAY_ADDRESS",
        ) from error


def read_own_file(path: Path, last_bytes: int) -> bytes:
    """Read the end of a file with a predictable name in a folder that every user may write to.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: it is no regular file, or belongs to neither this user nor root.
        OSError: it cannot be read.
    """
    try:
        # O_NONBLOCK: opening a FIFO that another user put there would wait for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        if path.is_symlink():
            raise PermissionError("it is a symbolic link") from error
        raise
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise PermissionError("it is not a regular file")
        if found.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"it belongs to another user (uid {found.st_uid})")
        file.seek(max(0, found.st_size - last_bytes))
        return file.read(last_bytes)


def session_folder() -> Path:
    """Return Ray's folder on this machine: $RAY_TMPDIR/ray, or /tmp/ray."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"


def why_unreachable(address: str, timeout_s: float = CONNECT_TIMEOUT_S) -> str:
    """Return why no GCS answers at `address`; "" when one does, or `address` is no host:port.

    The TCP connection alone proves nothing: the kernel accepts it for a process that is stopped
    (SIGSTOP) or blocked, and `ray.init` would then wait for minutes.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return ""
    try:
        probe = socket.create_connection((host.strip("[]"), int(port)), timeout_s)
    except (OSError, OverflowError) as error:
        return str(error)
    with probe:
        try:
            probe.sendall(HTTP2_HELLO)
            probe.recv(1)
        except TimeoutError:
            return f"no answer within {timeout_s:g} s"
        except OSError:
            # A server with TLS closes the connection at this greeting: it is alive.
            return ""
    return ""


def all_nodes() -> list[dict[str, Any]]:
    """Return Ray's records of all nodes, also of those that it has lost."""
    import ray

    return list(ray.nodes())


def alive_nodes() -> list[dict[str, Any]]:
    """Return Ray's records of the nodes that are alive."""
    return [node for node in all_nodes() if node["Alive"]]


def _silence_node_messages() -> None:
    """Keep Ray's messages about lost nodes off this process's stdout, where `-o json` writes.

    Ray 2.60 prints them in every driver, whatever `log_to_driver` says. `status` and `events`
    report lost nodes.
    """
    worker: Any = importlib.import_module("ray._private.worker")
    worker.print_to_stdstream = lambda *_, **__: None


def _resolve(address: str) -> str:
    """Return the address behind "auto": what `ray start` wrote down on this machine.

    Ray itself would then search all processes, and use a cluster that another user's test embeds.
    """
    if address != "auto":
        return address
    recorded = recorded_cluster()
    if recorded is None:
        raise ClusterError(
            "there is no Ray cluster on this machine",
            why="neither --address nor RAY_ADDRESS is set, and `ray start` has left no "
            f"{_record()}",
            todo="`ray up cluster/a2-dual.yaml` starts one over SSH; "
            "`raylaunch start local-dual` needs none",
        )
    return recorded


def _record() -> Path:
    return session_folder() / "ray_current_cluster"


def _check_reachable(address: str) -> None:
    if why := why_unreachable(address):
        raise ClusterError(
            f"no Ray cluster answers at {address}",
            why=why,
            todo="start one (`ray up cluster/a2-dual.yaml`, or `ray start --head` on that host), "
            "or correct --address",
        )


def _check_same(address: str, connected: str) -> None:
    if address != connected:
        raise ClusterError(
            f"this process is connected to the Ray cluster at {connected}, not to {address}",
            todo="call ray.shutdown() first, or use a process of its own",
        )


@contextlib.contextmanager
def _loopback_kept(address: str) -> Iterator[None]:
    """Let Ray connect to a cluster on the loopback address, as the embedded one is.

    Ray 2.60 replaces 127.0.0.1 in an address by the machine's own, where that cluster does not
    listen. For `ray.init` only: workers get the address as it is.
    """
    if not address.startswith("127."):
        yield
        return
    services: Any = importlib.import_module("ray._private.services")
    original = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = original


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _explain(address, error) from error


def _explain(address: str, error: Exception) -> ClusterError:
    text = "\n".join(_chain(error))
    if "InvalidAuthToken" in text or "AuthenticationError" in text:
        return ClusterError(
            f"the Ray cluster at {address} refuses this token",
            why="the nodes and this process disagree on Ray's token authentication",
            todo="set the same RAY_AUTH_MODE everywhere, before `ray` is imported; with `token` "
            "also the same RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH (`ray get-auth-token` on the head "
            "prints it)",
            evidence=str(error).splitlines()[0],
        )
    return ClusterError(
        f"the Ray cluster at {address} cannot be joined",
        why=text.splitlines()[0],
        todo="`ray status` on the head; Ray and the minor version of Python must be the same here "
        "and there",
    )


def _chain(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield f"{type(error).__name__}: {error}"
        error = error.__cause__
