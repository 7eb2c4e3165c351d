"""The keeper: owns the gateway's listening socket, HAProxy and the relay, and outlives its owners.

Run as `python -m raylaunch.gateway.keeper STATE_DIR` with the first message on stdin
(`gateway_client.py`). It forks: the parent exits, so that the keeper is a child of neither Ray nor
a shell. One line on stdout says whether the gateway is up. Afterwards owners talk to it over a unix
socket, one JSON line each way. Without a message for `orphan_grace_s` it stops by itself.

Both listening sockets, HAProxy's and the relay's, belong to the keeper and are inherited. So while
one of the two is started again, connections wait in the kernel's backlog: none is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from raylaunch.errors import NodeError, RaylaunchError
from raylaunch.gateway.child_process import KeptProcess, spawn, until
from raylaunch.gateway.gateway_messages import (
    GatewayOptions,
    GatewayStatus,
    MemberStatus,
    RelayCounters,
    read_options,
)
from raylaunch.gateway.haproxy_config import HaproxyFiles, haproxy_config, keys_map
from raylaunch.gateway.haproxy_process import (
    check_config,
    find_haproxy,
    holds_socket,
    replace_keys,
    serves,
)
from raylaunch.gateway.keeper_socket import (
    listen_for_clients,
    listen_for_haproxy,
    lock_folder,
    serve_owners,
)
from raylaunch.gateway.relay_link import START_S, RelayExitedError, RelayLink
from raylaunch.gateway.tls_certificate import require_certificate
from raylaunch.node.process.guard import GUARD_OOM_SCORE, SERVER_OOM_SCORE, Log, set_oom_score

log = logging.getLogger(__name__)

LOG_BYTES = 8 << 20
LOG_FILES = 3
RELAY = (sys.executable, "-m", "raylaunch.gateway.relay.relay_process")
RELOAD_S = 10.0
STOP_S = 5.0


class Keeper:
    """The gateway of one deployment on this node."""

    def __init__(self, folder: Path, first: Mapping[str, Any]) -> None:
        self.deployment = str(first["deployment"])
        self.instance = str(first["instance"])
        self.options = read_options(first["options"])
        self.members: list[Any] = list(first.get("members", []))
        self.files = HaproxyFiles(folder)
        self.log = Log(str(folder / "gateway.log"), LOG_BYTES, LOG_FILES)
        self.link: RelayLink
        self.relay = KeptProcess("relay", self._start_relay)
        self.haproxy = KeptProcess("haproxy", self._start_haproxy)
        self.draining = False
        self.last_sign = time.monotonic()
        self._sign = asyncio.Event()
        self._done = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Write the files and take the port.

        Raises:
            NodeError: HAProxy is missing or refuses, or no port is free.
        """
        self.program = find_haproxy()
        require_certificate(self.options.certificate, self.options.key)
        self.listener = listen_for_clients(self.options.address, self.options.port)
        self.port = self.listener.getsockname()[1]
        self.inner = listen_for_haproxy(self.files.relay)
        self.link = RelayLink(RELAY, self.inner.fileno(), self._relay_state(), self._write_log)
        self._write_files(self.options)
        self._certificate = _certificate_times(self.options)
        check_config(self.program, self.files.config, self.listener.fileno())

    async def run(self, ready: asyncio.Event) -> None:
        """Run until it is stopped, or no owner has sent a message for too long."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._done.set)
        owners = await serve_owners(self.files.folder / "keeper.sock", self.on_message)
        self._spawn(self.relay.run())
        await self.link.ready(START_S)
        self._spawn(self.haproxy.run())
        self._spawn(self._watch_owners())
        ready.set()
        await self._done.wait()
        owners.close()
        self.relay.expect_exit()
        self.listener.close()
        self.inner.close()
        await self.haproxy.stop(signal.SIGTERM, STOP_S)
        await self.relay.stop(signal.SIGTERM, STOP_S)
        self._remove_files()

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
            options = read_options(message["options"])
            if options != self.options or _certificate_times(options) != self._certificate:
                await self._apply(options)
        await self.link.push(self._relay_state())

    async def _apply(self, options: GatewayOptions) -> None:
        """Take other options. The port stays: clients have it.

        Raises:
            NodeError: HAProxy refuses them; the old ones stay in force.
        """
        require_certificate(options.certificate, options.key)
        before = self.files.config.read_text()
        self._write_files(options)
        try:
            check_config(self.program, self.files.config, self.listener.fileno())
        except NodeError:
            self._write_files(self.options)
            raise
        old, self.options = self.options, options
        changed = self.files.config.read_text() != before
        times = _certificate_times(options)
        renewed, self._certificate = times != self._certificate, times
        if changed or renewed:
            await self._reload()
        elif old.key_hashes != options.key_hashes:
            self._replace_keys()

    async def _reload(self) -> None:
        """Start another HAProxy on the same socket; the old one finishes what it has.

        Returns when only the new one accepts connections.
        """
        old = self.haproxy.pid
        process = await self.haproxy.launch()
        await until(lambda: serves(self.files.admin, process.pid), RELOAD_S)
        if old is None:
            return
        inode = os.fstat(self.listener.fileno()).st_ino
        with contextlib.suppress(ProcessLookupError):  # it exited: nothing is left to replace
            os.kill(old, signal.SIGUSR1)
        await until(lambda: not holds_socket(old, inode), RELOAD_S)

    async def _drain(self, ids: list[str], timeout_s: float) -> object:
        try:
            return await self.link.call({"do": "drain", "ids": ids, "timeout_s": timeout_s})
        except RelayExitedError:
            return False  # its requests were sent again by the next relay

    async def _rotate_keys(self, hashes: Mapping[str, str]) -> None:
        changed = GatewayOptions(**{**self.options.as_json(), "key_hashes": dict(hashes)})
        if bool(hashes) != bool(self.options.key_hashes):
            await self._apply(changed)
        else:
            self.options = changed
            self.files.keys.write_text(keys_map(hashes))
            self._replace_keys()
        await self.link.push(self._relay_state())

    def _replace_keys(self) -> None:
        if self.haproxy.pid is None:
            return  # it reads the file when it starts
        try:
            replace_keys(self.files.admin, self.files.keys, self.options.key_hashes)
        except OSError as error:
            raise NodeError("HAProxy did not take the new API keys", why=str(error)) from error

    async def _stop(self, drain_s: float) -> bool:
        """Refuse new connections, finish the running requests, stop; False if some were cut."""
        self.draining = True
        self.listener.close()
        finished = await self.haproxy.stop(signal.SIGUSR1, drain_s)
        asyncio.get_running_loop().call_soon(self._done.set)
        return finished

    def _relay_state(self) -> dict[str, Any]:
        return {"options": self.options.as_json(), "members": self.members}

    async def _start_relay(self) -> asyncio.subprocess.Process:
        return await self.link.start()

    async def _start_haproxy(self) -> asyncio.subprocess.Process:
        fd = self.listener.fileno()
        command = [str(self.program), "-f", str(self.files.config), "-db"]
        process = await spawn(command, pass_fds=(fd,))
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            self._spawn(self._copy_to_log(pipe))
        return process

    async def _copy_to_log(self, pipe: asyncio.StreamReader) -> None:
        while data := await pipe.read(65536):
            self._write_log(data)

    def _write_log(self, data: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk costs lines, not the gateway
            self.log.write(data)

    def _write_files(self, options: GatewayOptions) -> None:
        files = self.files
        files.keys.write_text(keys_map(options.key_hashes))
        files.config.write_text(haproxy_config(options, files, self.listener.fileno()))
        links = ((files.certificate, options.certificate), (_key_beside(files), options.key))
        for link, target in links:
            link.unlink(missing_ok=True)
            if target:
                link.symlink_to(target)

    def _remove_files(self) -> None:
        files = self.files
        sockets = (files.admin, files.relay, files.folder / "keeper.sock")
        for file in (*sockets, files.keys, files.certificate, _key_beside(files)):
            file.unlink(missing_ok=True)


def _key_beside(files: HaproxyFiles) -> Path:
    return Path(f"{files.certificate}.key")


def _certificate_times(options: GatewayOptions) -> list[int]:
    """Return when certificate and key were written: a renewed one has the same name."""
    files = [Path(name) for name in (options.certificate, options.key) if name]
    return [file.stat().st_mtime_ns for file in files if file.exists()]


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
    try:
        lock = lock_folder(folder)
        keeper = Keeper(folder, first)
        keeper.open()
        asyncio.run(_serve(keeper))
        os.close(lock)
    except RaylaunchError as error:
        _report(error.as_dict())
        return error.exit_code
    except TimeoutError:
        late = NodeError("the gateway's relay did not start", todo=f"read {folder}/gateway.log")
        _report(late.as_dict())
        return late.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
