"""The controller's handle on a gateway: starts or adopts its keeper and talks to it.

Every call opens a connection of its own, so a client can be used from several threads, and one that
was made by an earlier controller is as good as a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from raylaunch.errors import BusyError, NodeError, from_dict
from raylaunch.gateway.gateway_messages import (
    GatewayOptions,
    GatewayStatus,
    Member,
    hash_key,
    read_status,
)
from raylaunch.gateway.keeper_socket import KEEPER_SOCKET
from raylaunch.gateway.unix_socket import connect_unix
from raylaunch.node.process.guard import read_process
from raylaunch.node.process.process_markers import (
    ATTEMPT,
    DEPLOYMENT,
    INSTANCE,
    await_exit,
    is_alive,
)
from raylaunch.recipe.gateway_settings import Gateway

log = logging.getLogger(__name__)

START_S = 90.0
ANSWER_S = 15.0
"""Beyond what the message itself may take. A reload of HAProxy takes tenths of a second."""
POLL_S = 0.05


def gateway_options(
    settings: Gateway,
    address: str,
    secrets: Mapping[str, str],
    server_key: str = "",
    orphan_grace_s: float = 600.0,
) -> GatewayOptions:
    """Resolve the recipe's settings.

    Args:
        settings: The section `gateway` of the recipe.
        address: Of this node; it stands for `host: node`.
        secrets: Values by name; `settings.api_keys` names some of them.
        server_key: The key that the servers ask for, "" for none.
        orphan_grace_s: How long the gateway lives without an owner.

    Raises:
        NodeError: A key has no value.
    """
    if missing := [name for name in settings.api_keys if not secrets.get(name)]:
        raise NodeError(
            f"the gateway's API key {missing[0]} has no value",
            why=f"gateway.api_keys names {', '.join(missing)}",
            todo=f"export {missing[0]}=..., and list it in the recipe's `secrets`",
        )
    shared = settings.model_dump(
        exclude={"enabled", "host", "nodes", "tls", "api_keys"},
    )
    return GatewayOptions(
        **shared,
        address=address if settings.host == "node" else settings.host,
        certificate=_absolute(settings.tls.certificate) if settings.tls else "",
        key=_absolute(settings.tls.key) if settings.tls else "",
        key_hashes={hash_key(secrets[name]): name for name in settings.api_keys},
        server_key=server_key,
        orphan_grace_s=orphan_grace_s,
    )


def _absolute(path: str) -> str:
    """Return the path as the keeper, which runs in another folder, can use it."""
    return os.fspath(Path(path).absolute())


class GatewayClient:
    """A gateway that runs."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir

    def status(self) -> GatewayStatus:
        """Return pids, port, counters and members.

        Raises:
            NodeError: No keeper answers.
        """
        return read_status(cast("dict[str, Any]", self._call({"do": "status"})))

    def configure(
        self, members: Sequence[Member] | None = None, options: GatewayOptions | None = None
    ) -> None:
        """Push membership, options or both. Running requests of members that are down move on.

        Raises:
            NodeError: No keeper answers, or HAProxy refuses the options; the old ones stay then.
        """
        message: dict[str, Any] = {"do": "configure"}
        if members is not None:
            message["members"] = [member.as_json() for member in members]
        if options is not None:
            message["options"] = options.as_json()
        self._call(message)

    def drain(self, ids: Sequence[str], timeout_s: float) -> bool:
        """Wait until members (pushed as `draining` before) have nothing in flight.

        Return False when `timeout_s` was not enough.

        Raises:
            NodeError: No keeper answers.
        """
        message = {"do": "drain", "ids": list(ids), "timeout_s": timeout_s}
        return bool(self._call(message, timeout_s))

    def rotate_keys(self, keys: Mapping[str, str]) -> None:
        """Replace the accepted API keys (name of the secret -> value) without a restart.

        Raises:
            NodeError: No keeper answers, or HAProxy refuses.
        """
        hashes = {hash_key(value): name for name, value in keys.items()}
        self._call({"do": "keys", "key_hashes": hashes})

    def stop(self, drain_s: float) -> bool:
        """Refuse new connections, let running requests finish, stop everything.

        Return False when some were cut after `drain_s`.

        Raises:
            NodeError: No keeper answers, or it does not exit.
        """
        pid = self.status().keeper_pid
        finished = bool(self._call({"do": "stop", "drain_s": drain_s}, drain_s))
        if not _await_exit(pid, ANSWER_S):
            raise NodeError(f"the gateway's keeper (pid {pid}) does not exit")
        return finished

    async def wait_exit(self) -> None:
        """Return when the keeper exits: the kernel closes its end of the connection."""
        path = self.state_dir / KEEPER_SOCKET
        with contextlib.suppress(OSError):  # it has exited already
            connection = await asyncio.to_thread(connect_unix, path, ANSWER_S)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
            try:
                await reader.read()
            finally:
                writer.close()

    def _call(self, message: Mapping[str, Any], allowed_s: float = 0.0) -> object:
        path = self.state_dir / KEEPER_SOCKET
        try:
            with connect_unix(path, allowed_s + ANSWER_S) as connection:
                connection.sendall(json.dumps(message).encode() + b"\n")
                with connection.makefile("rb") as answers:
                    line = answers.readline()
        except OSError as error:
            raise self._silent(str(error)) from error
        if not line:
            raise self._silent("it closed the connection")
        reply = json.loads(line)
        if "error" in reply:
            raise from_dict(reply["error"])
        return cast("object", reply["result"])

    def _silent(self, why: str) -> NodeError:
        return NodeError(
            "the gateway's keeper does not answer",
            why=why,
            todo=f"read {self.state_dir}/gateway.log",
        )


def connect_gateway(state_dir: Path) -> GatewayClient | None:
    """Return the handle of a gateway that runs; None when there is none."""
    client = GatewayClient(state_dir)
    try:
        client.status()
    except NodeError:
        return None
    return client


def start_gateway(
    state_dir: Path,
    options: GatewayOptions,
    *,
    deployment: str,
    instance: str,
    env: Mapping[str, str],
    members: Sequence[Member] = (),
) -> GatewayClient:
    """Start the gateway, or adopt the one of this instance that runs there.

    Where only its keeper has died, the next one adopts HAProxy and relay: no connection is refused.

    Args:
        state_dir: The gateway's folder, of mode 0700 afterwards.
        options: See `gateway_options`.
        deployment: Name, for the marker.
        instance: Random id of this start of the deployment, for the marker.
        env: Base of the processes' environment.
        members: The first membership.

    Raises:
        BusyError: A gateway of another instance runs there.
        NodeError: HAProxy is missing or refuses, or no port is free.
    """
    running = connect_gateway(state_dir)
    if running is None:
        _start_keeper(state_dir, options, deployment, instance, env, members)
        running = GatewayClient(state_dir)
    status = running.status()
    if status.instance != instance:
        raise BusyError(
            f"a gateway of another start of {status.deployment} runs in {state_dir}",
            why=f"its keeper is pid {status.keeper_pid}, its instance {status.instance}",
            todo=f"raylaunch clean --deployment {status.deployment}",
        )
    running.configure(members, options)
    return running


def _start_keeper(
    state_dir: Path,
    options: GatewayOptions,
    deployment: str,
    instance: str,
    env: Mapping[str, str],
    members: Sequence[Member],
) -> None:
    marker = {DEPLOYMENT: deployment, INSTANCE: instance, ATTEMPT: "0"}
    first = {
        "deployment": deployment,
        "instance": instance,
        "options": options.as_json(),
        "members": [member.as_json() for member in members],
    }
    # The first process only forks: the keeper must not be our child (Ray kills those).
    with subprocess.Popen(
        [sys.executable, "-m", "raylaunch.gateway.keeper", os.fspath(state_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**_without_ray(env), **marker, "PYTHONPATH": _python_path(env)},
        start_new_session=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            parent.stdin.write(json.dumps(first).encode() + b"\n")
            parent.stdin.close()
        line = _read_line(parent.stdout, START_S)
        _raise_for(line, state_dir, parent)


def _raise_for(line: bytes, state_dir: Path, parent: subprocess.Popen[bytes]) -> None:
    """Raise what the keeper reports instead of its port."""
    if not line:
        evidence = b""
        if parent.stderr is not None and parent.poll():
            evidence = parent.stderr.read()
        raise NodeError(
            "the gateway's keeper did not start",
            todo=f"read {state_dir}/gateway.log",
            evidence=evidence.decode(errors="replace")[-2000:],
        )
    report = json.loads(line)
    if "error" not in report:
        log.info("the gateway's keeper is pid %d, port %d", report["pid"], report["port"])
        return
    error = from_dict(report)
    if isinstance(error, BusyError) and _await_keeper(state_dir):
        return  # another start was faster: its gateway is adopted
    raise error


def _await_keeper(state_dir: Path) -> bool:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if connect_gateway(state_dir) is not None:
            return True
        time.sleep(POLL_S)
    return False


def _without_ray(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith("RAY_")}


def _python_path(env: Mapping[str, str]) -> str:
    """Return where raylaunch is found: on a node it is in the code store, off Python's path."""
    root = os.fspath(Path(__file__).resolve().parents[2])
    return os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH", "")])])


def _read_line(pipe: IO[bytes], timeout_s: float) -> bytes:
    """Return one line, or nothing at the end of the stream or after the time."""
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    if not poller.poll(timeout_s * 1000):
        return b""
    return pipe.readline()


def _await_exit(pid: int, timeout_s: float) -> bool:
    process = read_process(pid)
    if process is None:
        return True
    await_exit(process, time.monotonic() + timeout_s)
    return not is_alive(process)
