"""The keeper: owns the gateway's listening sockets, HAProxy and the relay, and outlives its owners.

Run as `python -m raylaunch.gateway.keeper STATE_DIR` with the first message on stdin
(`gateway_client.py`). It forks: the parent exits, so that the keeper is a child of neither Ray nor
a shell. One line on stdout says whether the gateway is up. Afterwards owners talk to it over a unix
socket, one JSON line each way. Without a message for `orphan_grace_s` it stops by itself.

Both listening sockets, HAProxy's and the relay's, belong to the keeper and are inherited. So while
one of the two is started again, connections wait in the kernel's backlog: none is refused. When
the keeper itself is killed, both serve on. The next keeper in the folder adopts them, and gets the
listening sockets from the relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from raylaunch.errors import NodeError, RaylaunchError
from raylaunch.gateway.child_process import Child, KeptProcess, spawn
from raylaunch.gateway.gateway_messages import (
    GatewayOptions,
    GatewayStatus,
    MemberStatus,
    RelayCounters,
    read_options,
)
from raylaunch.gateway.gateway_orphans import (
    RELAY,
    FoundRelay,
    adopt_haproxy,
    adopt_relay,
    remove_all,
    stop_orphans,
)
from raylaunch.gateway.haproxy_config import HaproxyFiles
from raylaunch.gateway.keeper_socket import (
    listen_for_clients,
    lock_folder,
    move_socket,
    serve_owners,
)
from raylaunch.gateway.kept_haproxy import KeptHaproxy
from raylaunch.gateway.log_pipe import LOG_PIPE, copy_log, open_log_pipe
from raylaunch.gateway.relay_link import START_S, RelayExitedError, RelayLink
from raylaunch.gateway.unix_socket import listen_unix
from raylaunch.node.process.guard import GUARD_OOM_SCORE, SERVER_OOM_SCORE, Log, set_oom_score

log = logging.getLogger(__name__)

LOG_BYTES = 8 << 20
LOG_FILES = 3
CLIENTS_FD, RELAY_FD = 60, 61
"""Numbers of the listening sockets in the keeper and its children; see `move_socket`."""
STOP_S = 5.0


class Keeper:
    """The gateway of one deployment on this node."""

    def __init__(self, folder: Path, first: Mapping[str, Any]) -> None:
        self.deployment = str(first["deployment"])
        self.instance = str(first["instance"])
        self.options = read_options(first["options"])
        self.members: list[Any] = list(first.get("members", []))
        self.files = HaproxyFiles(folder)
        self.front = KeptHaproxy(self.files, CLIENTS_FD)
        self.haproxy = self.front.process
        self.log = Log(str(folder / "gateway.log"), LOG_BYTES, LOG_FILES)
        self.link = RelayLink(self._spawn_relay, self._relay_state)
        self.relay = KeptProcess("relay", self.link.start)
        self.found: FoundRelay | None = None
        """The relay of the last keeper."""
        self.draining = False
        self.last_sign = time.monotonic()
        self._sign = asyncio.Event()
        self._done = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Take the sockets, of the last keeper if its relay lives, and write the files.

        Raises:
            NodeError: HAProxy is missing or refuses, no port is free, or the relay of another
                instance runs in the folder.
        """
        self.front.find()
        self._take_sockets()
        self.port = self.listener.getsockname()[1]
        self.output = open_log_pipe(self.files.folder / LOG_PIPE)
        self.front.prepare(self.options, self.output, is_running=self.found is not None)

    def _take_sockets(self) -> None:
        self.found = adopt_relay(self.files.folder, self.instance)
        if self.found is None:
            # A HAProxy without its relay holds the port and answers no request.
            self.stop_orphans()
            clients = listen_for_clients(self.options.address, self.options.port)
            inner = listen_unix(self.files.relay)
        else:
            clients, inner = self.found.clients, self.found.listener
        self.listener = move_socket(clients, CLIENTS_FD)
        self.inner = move_socket(inner, RELAY_FD)

    def stop_orphans(self) -> None:
        """Stop what runs in the folder beside this keeper."""
        stop_orphans(self.files.folder, self.deployment, self.instance)

    def give_up(self) -> None:
        """Leave nothing of a start that failed; what was adopted waits for the next keeper."""
        if self.found is None:
            self.stop_orphans()

    async def _adopt(self) -> None:
        """Take over the relay and the HAProxy of the last keeper, and have them follow."""
        found = self.found
        if found is None:
            return
        self.relay.adopt(found.process, found.relay_starts)
        await self.link.adopt(found.connection, found.before)
        process = await asyncio.to_thread(adopt_haproxy, self.files, self.deployment, self.instance)
        if process is not None:
            await self.front.adopt(process, found.haproxy_starts, self.options.key_hashes)

    async def run(self, ready: asyncio.Event) -> None:
        """Run until it is stopped, or no owner has sent a message for too long."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._done.set)
        self._spawn(copy_log(self.output, self.log.write))
        owners = await serve_owners(self.files.folder, self.on_message)
        await self._adopt()
        self._spawn(self.relay.run())
        await self.link.ready(START_S)
        self._spawn(self.haproxy.run())
        self._spawn(self._watch_owners())
        ready.set()
        await self._done.wait()
        owners.close()
        self.relay.expect_exit()
        self._refuse_connections()
        self.inner.close()
        await self.haproxy.stop(signal.SIGTERM, STOP_S)
        await self.relay.stop(signal.SIGTERM, STOP_S)
        # A HAProxy that was replaced may still have requests.
        await asyncio.to_thread(self.stop_orphans)
        remove_all(self.files.folder)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task of the keeper failed", exc_info=error)

    async def _watch_owners(self) -> None:
        while not self._done.is_set():
            silent_s = time.monotonic() - self.last_sign
            remaining_s = self.options.orphan_grace_s - silent_s
            if remaining_s <= 0:
                log.warning("no owner for %.0f s: the gateway stops", silent_s)
                self._done.set()
                return
            self._sign.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(remaining_s):
                    await self._sign.wait()

    async def on_message(self, message: Mapping[str, Any]) -> object:
        """Run one message of an owner; return its result as JSON.

        Raises:
            RaylaunchError: It cannot be done.
            ValueError: The message makes no sense.
        """
        self.last_sign = time.monotonic()
        self._sign.set()
        match message.get("do"):
            case "status":
                return (await self.status()).as_json()
            case "configure":
                await self._configure(message)
                return None
            case "drain":
                ids, timeout_s = message["ids"], float(message["timeout_s"])
                return await self._drain(ids, timeout_s)
            case "keys":
                await self._rotate_keys(message["key_hashes"])
                return None
            case "stop":
                return await self._stop(float(message["drain_s"]))
        raise ValueError(f"unknown message {message.get('do')!r}")

    async def status(self) -> GatewayStatus:
        """Return pids, counters and members; while the relay starts, the last known ones."""
        relay = await self.link.status()
        return GatewayStatus(
            deployment=self.deployment,
            instance=self.instance,
            address=self.options.address,
            port=self.port,
            tls=bool(self.options.certificate),
            keeper_pid=os.getpid(),
            haproxy_pid=self.haproxy.pid,
            relay_pid=self.relay.pid,
            haproxy_starts=self.haproxy.starts,
            relay_starts=self.relay.starts,
            draining=self.draining,
            counters=RelayCounters(**relay["counters"]),
            members=tuple(MemberStatus(**member) for member in relay["members"]),
        )

    async def _configure(self, message: Mapping[str, Any]) -> None:
        if "members" in message:
            self.members = list(message["members"])
        if "options" in message:
            await self._apply(read_options(message["options"]))
        await self.link.push()

    async def _apply(self, options: GatewayOptions) -> None:
        """Take other options. The port stays: clients have it.

        Raises:
            NodeError: HAProxy refuses them; the old ones stay in force.
        """
        await self.front.apply(options, self.options)
        self.options = options

    async def _drain(self, ids: list[str], timeout_s: float) -> object:
        try:
            return await self.link.call({"do": "drain", "ids": ids, "timeout_s": timeout_s})
        except RelayExitedError:
            return False  # its requests were sent again by the next relay

    async def _rotate_keys(self, hashes: Mapping[str, str]) -> None:
        changed = GatewayOptions(**{**self.options.as_json(), "key_hashes": dict(hashes)})
        await self._apply(changed)
        await self.link.push()

    async def _stop(self, drain_s: float) -> bool:
        """Refuse new connections, finish the running requests, stop; False if some were cut."""
        self.draining = True
        self._refuse_connections()
        finished = await self.haproxy.stop(signal.SIGUSR1, drain_s)
        asyncio.get_running_loop().call_soon(self._done.set)
        return finished

    def _relay_state(self) -> dict[str, Any]:
        starts = {"relay": self.relay.starts, "haproxy": self.haproxy.starts}
        return {"options": self.options.as_json(), "members": self.members, "starts": starts}

    async def _spawn_relay(self, owner: int) -> Child:
        numbers = (CLIENTS_FD, RELAY_FD, owner)
        arguments = [str(self.files.folder.absolute()), *map(str, numbers)]
        command = [sys.executable, "-m", RELAY, *arguments]
        folder = self.files.folder
        return await spawn(command, folder=folder, output=self.output, pass_fds=numbers)

    def _refuse_connections(self) -> None:
        """End listening, for all processes that have the socket."""
        with contextlib.suppress(OSError):  # it does not listen any more
            self.listener.shutdown(socket.SHUT_RD)


async def _serve(keeper: Keeper) -> None:
    ready = asyncio.Event()
    run = asyncio.create_task(keeper.run(ready))
    up = asyncio.create_task(ready.wait())
    await asyncio.wait((run, up), return_when=asyncio.FIRST_COMPLETED)
    if up.done():
        _report({"port": keeper.port, "pid": os.getpid()})
        _let_go_of_the_owner()
    await run


def _report(result: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def _let_go_of_the_owner() -> None:
    """Close the owner's pipes. Standard error is the log by now."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)


def main() -> int:
    """Fork; the parent exits, the child keeps the gateway."""
    folder = Path(sys.argv[1])
    first = json.loads(sys.stdin.readline())
    if os.fork():
        return 0
    os.setsid()
    os.umask(0o077)
    set_oom_score(GUARD_OOM_SCORE, SERVER_OOM_SCORE)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s keeper: %(message)s")
    keeper: Keeper | None = None
    try:
        lock = lock_folder(folder)
        keeper = Keeper(folder, first)
        keeper.open()
        asyncio.run(_serve(keeper))
        os.close(lock)
    except (RaylaunchError, TimeoutError) as error:
        if keeper is not None:
            keeper.give_up()
        known = error if isinstance(error, RaylaunchError) else _too_late(folder)
        _report(known.as_dict())
        return known.exit_code
    return 0


def _too_late(folder: Path) -> NodeError:
    return NodeError("the gateway's relay did not start", todo=f"read {folder}/gateway.log")


if __name__ == "__main__":
    sys.exit(main())
