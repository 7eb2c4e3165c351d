"""The connection to Ray: which cluster, with which authentication, and what its refusal means."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raylaunch.errors import ClusterError

NAMESPACE = "raylaunch"
"""Ray namespace of every actor of raylaunch."""

CONNECT_TIMEOUT_S = 5.0


def connect(address: str | None, token_file: Path | None = None) -> None:
    """Connect this process to a Ray cluster, once; a second call with the same cluster does nothing.

    Args:
        address: `host:port` of the GCS, "auto" for the cluster of this machine, None for RAY_ADDRESS or "auto".
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
    with _explained(address):
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    atexit.register(
        disconnect
    )  # before Ray's own farewell, which sleeps half a second for logs that we do not show
    _hush()


def _hush() -> None:
    """Keep Ray's notes about lost nodes off this process's stdout, where `-o json` writes.

    Ray 2.60 prints them in every driver, whatever `log_to_driver` says; status and events tell them in our words.
    """
    worker: Any = importlib.import_module("ray._private.worker")
    worker.print_to_stdstream = lambda *_, **__: None


def use_token(token_file: Path) -> None:
    """Have Ray use this token. It offers no parameter for it, and reads these variables when it is imported."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file)


def import_ahead() -> None:
    """Import in the background what the next step needs, while something else is waited for."""
    threading.Thread(
        target=importlib.import_module,
        args=("raylaunch.runtime.controller.controller_client",),
        daemon=True,
    ).start()
    threading.Thread(target=importlib.import_module, args=("ray",), daemon=True).start()


def disconnect() -> None:
    """Leave the cluster; does nothing when there is no connection."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def _resolve(address: str) -> str:
    """The address behind "auto": what `ray start` wrote down on this machine.

    Ray itself would go on to search all processes, and take a cluster that somebody embedded for a test.
    """
    if address != "auto":
        return address
    recorded = recorded_cluster()
    if recorded is None:
        raise ClusterError(
            "there is no Ray cluster on this machine",
            why=f"neither --address nor RAY_ADDRESS is set, and `ray start` has left no {_record()}",
            todo="`ray up cluster/a2-dual.yaml` starts one over SSH; `raylaunch start local-dual` needs none",
        )
    return recorded


def recorded_cluster() -> str | None:
    """GCS address that `ray start` wrote down on this machine, if it did."""
    try:
        return _record().read_text().strip()
    except FileNotFoundError:
        return None


def _record() -> Path:
    return (
        Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    )


def _check_reachable(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}",
            why=str(error),
            todo="start one (`ray up cluster/a2-dual.yaml`, or `ray start --head` on that host), or mend --address",
        ) from error


def _check_same(address: str, connected: str) -> None:
    if address != connected:
        raise ClusterError(
            f"this process is connected to the Ray cluster at {connected}, not to {address}",
            todo="call ray.shutdown() first, or use a process of its own",
        )


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
            todo="set the same RAY_AUTH_MODE everywhere, before `ray` is imported; with `token` also the same "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH (`ray get-auth-token` on the head prints it)",
            evidence=str(error).splitlines()[0],
        )
    return ClusterError(
        f"the Ray cluster at {address} cannot be joined",
        why=text.splitlines()[0],
        todo="`ray status` on the head; Ray and the minor version of Python must be the same here and there",
    )


def _chain(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield f"{type(error).__name__}: {error}"
        error = error.__cause__


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's records of the nodes that are alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]
