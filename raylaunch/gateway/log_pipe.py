"""The output of HAProxy and the relay: a named pipe in the gateway's folder.

Both processes hold its read end too, so the keeper's death breaks no pipe, and the next keeper
reads on. The pipe never blocks its writers: what does not fit while no keeper reads is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

LOG_PIPE = "log.pipe"
CHUNK_BYTES = 65536


def open_log_pipe(path: Path) -> int:
    """Open the pipe in both directions, and make it where it is missing.

    Raises:
        OSError: The folder is not writable.
    """
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path, 0o600)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


async def copy_log(pipe: int, write: Callable[[bytes], None]) -> None:
    """Copy what comes until this task is cancelled."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(pipe), "rb", buffering=0)
    )
    try:
        while data := await reader.read(CHUNK_BYTES):
            with contextlib.suppress(OSError):  # a full disk costs lines, not the gateway
                write(data)
    finally:
        transport.close()
