"""Tests whether hosts reach each other, with listeners on the plan's ports and real connections.

The connections leave from the address that the servers will use.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Mapping, Sequence

from raylaunch.checks.reach_checks import FailedConnection, ProbeListener

log = logging.getLogger(__name__)

HOLD_S = 5.0
"""How long a client may keep a connection open."""
MAX_CONNECTING = 64
"""Connections that one host opens at the same time."""


async def open_listeners(
    ip: str, ports: Mapping[str, int]
) -> tuple[list[asyncio.Server], tuple[ProbeListener, ...]]:
    """Listen on `ip` at each port; port 0 is one that the system chooses.

    A port that cannot be opened is left out: the port checks name its owner. The caller closes the
    servers.
    """
    servers: list[asyncio.Server] = []
    doors: list[ProbeListener] = []
    for name, port in ports.items():
        greeting = secrets.token_hex(8)
        try:
            server = await asyncio.start_server(_Greeter(greeting), ip, port)
        except OSError as error:
            log.debug("no test listener for %s at %s:%s: %s", name, ip, port, error)
            continue
        bound_port = server.sockets[0].getsockname()[1]
        servers.append(server)
        doors.append(ProbeListener(ip, name, bound_port, greeting))
    return servers, tuple(doors)


async def connect_to_all(
    source: str,
    doors: Sequence[ProbeListener],
    timeout_s: float,
) -> list[FailedConnection]:
    """Connect from the address `source` to every listener of other hosts.

    Returns those that did not send their greeting within `timeout_s` seconds each.
    """
    limit = asyncio.Semaphore(MAX_CONNECTING)
    others = [door for door in doors if door.host != source]
    attempts = [_connect(source, door, timeout_s, limit) for door in others]
    reasons = await asyncio.gather(*attempts)
    missed = []
    for door, reason in zip(others, reasons, strict=True):
        if reason:
            missed.append(FailedConnection(source, door, reason))
    return missed


class _Greeter:
    """Sends its greeting to every client."""

    def __init__(self, greeting: str) -> None:
        self._greeting = greeting

    async def __call__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Greet one client and wait until it closes.

        The client closes first: TIME_WAIT then stays on its side, and not on a port that a server
        will need.
        """
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(HOLD_S):
                writer.write(f"{self._greeting}\n".encode())
                await reader.read()
        writer.close()


async def _connect(
    source: str,
    door: ProbeListener,
    timeout_s: float,
    limit: asyncio.Semaphore,
) -> str:
    """Return why there is no connection; "" when the greeting arrived."""
    async with limit:
        try:
            async with asyncio.timeout(timeout_s):
                greeting = await _read_greeting(source, door)
        except TimeoutError:
            return f"no answer in {timeout_s:g} s"
        except ValueError:  # a line longer than the stream's limit of 64 KiB
            greeting = ""
        except OSError as error:
            return os.strerror(error.errno) if error.errno else str(error)
    if greeting != door.greeting:
        return f"something else answers at {door.host}"
    return ""


async def _read_greeting(source: str, door: ProbeListener) -> str:
    reader, writer = await asyncio.open_connection(
        door.host,
        door.port,
        local_addr=(source, 0),
    )
    try:
        line = await reader.readline()
    finally:
        writer.close()
    return line.decode(errors="replace").strip()
