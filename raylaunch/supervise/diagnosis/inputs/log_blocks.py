"""Bytes of any length as blocks of whole lines, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

CHUNK_BYTES = 1 << 20
"""How much to read at a time: a block stays in the processor's cache while it is searched."""
LONG_LINE_BYTES = 1 << 16
"""Of a longer line the middle is dropped; twice as much as `cut_line` leaves of any text."""
_MARK = b" [...] "


def split_blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes again, each block ending with a newline.

    A line without an end (a file of zeros, 48 MB of JSON) is shortened while it grows.
    """
    pending = b""
    for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if not end:
            pending = _shorten(pending + chunk)
            continue
        yield pending + chunk[:end]
        pending = _shorten(chunk[end:])
    if pending:
        yield pending + b"\n"


def _shorten(line: bytes) -> bytes:
    if len(line) <= LONG_LINE_BYTES:
        return line
    half = LONG_LINE_BYTES // 2
    return line[:half] + _MARK + line[-half:]
