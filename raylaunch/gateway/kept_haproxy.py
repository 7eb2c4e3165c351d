"""HAProxy as the keeper keeps it: with its files, and replaced without a refused connection."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from raylaunch.errors import NodeError
from raylaunch.gateway.child_process import Child, KeptProcess, spawn, until
from raylaunch.gateway.gateway_messages import GatewayOptions
from raylaunch.gateway.haproxy_config import HaproxyFiles
from raylaunch.gateway.haproxy_files import has_keys, is_current, write_files
from raylaunch.gateway.haproxy_process import (
    check_config,
    find_haproxy,
    holds_socket,
    replace_keys,
    serving_pid,
)
from raylaunch.gateway.tls_certificate import require_certificate

RELOAD_S = 10.0


class KeptHaproxy:
    """One HAProxy on an inherited listening socket.

    Args:
        files: Where its files are.
        listener: The number of the listening socket.
    """

    def __init__(self, files: HaproxyFiles, listener: int) -> None:
        self.files = files
        self.process = KeptProcess("haproxy", self._start)
        self._listener = listener
        self._program = Path()
        self._output = -1
        self._must_reload = False
        self._has_other_keys = False

    def find(self) -> None:
        """Find the program.

        Raises:
            NodeError: It is not installed.
        """
        self._program = find_haproxy()

    def prepare(self, options: GatewayOptions, output: int, *, is_running: bool) -> None:
        """Write the files, before `KeptProcess.run` or `adopt`.

        Args:
            options: The gateway's.
            output: Where its output goes.
            is_running: Whether an earlier keeper's HAProxy serves with the files there.

        Raises:
            NodeError: HAProxy refuses them.
        """
        self._output = output
        self._has_other_keys = not has_keys(self.files, options)
        self._must_reload = not is_current(self.files, options, self._listener)
        if self._must_reload or not is_running:
            self._write_checked(options, None)
        elif self._has_other_keys:
            write_files(self.files, options, self._listener)

    async def adopt(self, process: Child, starts: int, key_hashes: Mapping[str, str]) -> None:
        """Take over an earlier keeper's HAProxy, and have it follow what `prepare` has written."""
        self.process.adopt(process, starts)
        if self._must_reload:
            await self._reload()
        elif self._has_other_keys:
            self.replace_keys(key_hashes)

    async def apply(self, options: GatewayOptions, old: GatewayOptions) -> None:
        """Take other options.

        Raises:
            NodeError: HAProxy refuses them; the old ones stay in force.
        """
        if not is_current(self.files, options, self._listener):
            self._write_checked(options, old)
            await self._reload()
        elif options.key_hashes != old.key_hashes:
            write_files(self.files, options, self._listener)
            self.replace_keys(options.key_hashes)

    def replace_keys(self, hashes: Mapping[str, str]) -> None:
        """Have the HAProxy that runs accept the keys that the files have.

        Raises:
            NodeError: It does not answer, or refuses.
        """
        if self.process.pid is None:
            return  # it reads the file when it starts
        try:
            replace_keys(self.files.admin, self.files.keys, hashes)
        except OSError as error:
            raise NodeError("HAProxy did not take the new API keys", why=str(error)) from error

    def _write_checked(self, options: GatewayOptions, old: GatewayOptions | None) -> None:
        require_certificate(options.certificate, options.key)
        write_files(self.files, options, self._listener)
        try:
            check_config(self._program, self.files, self._listener)
        except NodeError:
            if old is None:
                self.files.config.unlink()  # what an earlier keeper wrote is not known
            else:
                write_files(self.files, old, self._listener)
            raise

    async def _start(self) -> Child:
        command = [str(self._program), "-f", self.files.config.name, "-db"]
        folder = self.files.folder
        return await spawn(command, folder=folder, output=self._output, pass_fds=(self._listener,))

    async def _reload(self) -> None:
        """Start another HAProxy on the same socket; the old one finishes what it has.

        Returns when only the new one accepts connections.
        """
        old = self.process.pid
        new = await self.process.launch()
        await until(lambda: serving_pid(self.files.admin) == new.pid, RELOAD_S)
        if old is None:
            return
        inode = os.fstat(self._listener).st_ino
        with contextlib.suppress(ProcessLookupError):  # it exited: nothing is left to replace
            os.kill(old, signal.SIGUSR1)
        await until(lambda: not holds_socket(old, inode), RELOAD_S)
