"""Whether hosts reach each other: real listeners on the ports of the plan, and connections from the right address."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence

from raylaunch.checks.reach_checks import FailedConnection, ProbeListener

VISIT_S = 5.0
"""How long a visitor may keep a connection open."""
AT_ONCE = 64


async def open_doors(
    ip: str, ports: Mapping[str, int]
) -> tuple[list[asyncio.Server], tuple[ProbeListener, ...]]:
    """Listen on the address; port 0 is one that the system chooses.

    A port that cannot be opened is left out: who holds it is another check's to say. The caller closes the servers.
    """
    servers, doors = [], []
    for name, port in ports.items():
        greeting = secrets.token_hex(8)
        with contextlib.suppress(OSError):
            server = await asyncio.start_server(_Greeter(greeting), ip, port)
            servers.append(server)
            doors.append(ProbeListener(ip, name, server.sockets[0].getsockname()[1], greeting))
    return servers, tuple(doors)


async def knock(
    source: str, doors: Sequence[ProbeListener], timeout_s: float
) -> list[FailedConnection]:
    """Connect from the address `source` to every door of other hosts; returns those that did not answer in time."""
    few = asyncio.Semaphore(AT_ONCE)
    others = [door for door in doors if door.host != source]
    reasons = await asyncio.gather(*(_knock_one(source, door, timeout_s, few) for door in others))
    return [
        FailedConnection(source, door, reason)
        for door, reason in zip(others, reasons, strict=True)
        if reason
    ]


class _Greeter:
    def __init__(self, greeting: str) -> None:
        self._greeting = greeting

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The visitor closes first: TIME_WAIT then stays on its side, and not on a port that a server will want."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(VISIT_S):
                writer.write(f"{self._greeting}\n".encode())
                await reader.read()
        writer.close()


async def _knock_one(
    source: str, door: ProbeListener, timeout_s: float, few: asyncio.Semaphore
) -> str:
    """Why there is no way, "" when there is one."""
    async with few:
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(
                    door.host, door.port, local_addr=(source, 0)
                )
                try:
                    said = (await reader.readline()).decode(errors="replace").strip()
                finally:
                    writer.close()
        except TimeoutError:
            return f"no answer in {timeout_s:g} s"
        except OSError as error:
            return os.strerror(error.errno) if error.errno else str(error)
    return "" if said == door.greeting else f"something else answers at {door.host}"
