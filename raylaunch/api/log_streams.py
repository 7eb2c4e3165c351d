"""Bytes of a log file as a stream, also of a compressed one, in bounded memory.

The compression is known by the first bytes, not by the name: a pipe has no name.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from raylaunch.errors import NodeError

CHUNK_BYTES = 1 << 20
MAX_DECOMPRESSED_BYTES = 8 << 30
"""A kilobyte can decompress to a gigabyte; no log that a person sends is larger than this."""
LZMA_MEMORY_BYTES = 100 << 20
"""`xz -9` needs 65 MiB to decompress; a hostile file may ask for 4 GiB."""
_MAGIC_BYTES = 6


class Readable(Protocol):
    """A source of bytes."""

    def read(self, size: int, /) -> bytes | None:
        """Return at most `size` bytes; b"" at the end, None when there are none yet."""


class LogStream:
    """A log that is read once, from its beginning.

    Args:
        source: Where the bytes come from.
        name: What it is called in messages.
    """

    def __init__(self, source: BinaryIO, name: str) -> None:
        self._source = source
        self._name = name
        self.note = ""
        """What could not be read; known when the chunks are."""

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes of the log, decompressed.

        Raises:
            NodeError: it cannot be read, or decompresses to too much.
        """
        try:
            first = self._source.read(CHUNK_BYTES) or b""
            yield from self._read(first)
        except OSError as error:
            raise NodeError(
                f"cannot read {self._name}", why=error.strerror or str(error)
            ) from error

    def _read(self, first: bytes) -> Iterator[bytes]:
        rest = _Rest(first, self._source)
        decompressed = _open_compressed(first, rest, self._name)
        if decompressed is None:
            yield from _chunks_of(rest)
            return
        size = 0
        parts = _Parts(decompressed)
        for chunk in parts.chunks():
            size += len(chunk)
            if size > MAX_DECOMPRESSED_BYTES:
                raise _too_much(self._name)
            yield chunk
        if parts.damage:
            self.note = f"{self._name} is damaged after {size} decompressed bytes ({parts.damage})"


class _Parts:
    """What can be read of a compressed file: of a copy that broke off all that came before."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self.damage = ""

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes in pieces of about CHUNK_BYTES."""
        while not self.damage:
            chunk = self._chunk()
            if not chunk:
                return
            yield chunk

    def _chunk(self) -> bytes:
        parts = []
        size = 0
        try:
            while size < CHUNK_BYTES and (part := self._source.read(CHUNK_BYTES)):
                parts.append(part)
                size += len(part)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            self.damage = str(error)
        return b"".join(parts)


class _Rest(io.RawIOBase):
    """The bytes that were read already, then those of the source."""

    def __init__(self, first: bytes, source: Readable) -> None:
        self._first = first
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if not self._first:
            self._first = self._source.read(len(buffer)) or b""
        count = min(len(buffer), len(self._first))
        buffer[:count] = self._first[:count]
        self._first = self._first[count:]
        return count


def _chunks_of(source: Readable) -> Iterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def _open_compressed(first: bytes, rest: _Rest, name: str) -> Readable | None:
    """Return the decompressed bytes; None when they are not compressed."""
    magic = first[:_MAGIC_BYTES]
    if magic.startswith(b"\x1f\x8b"):
        return _InSteps(gzip.GzipFile(fileobj=io.BufferedReader(rest)))
    if magic.startswith(b"BZh"):
        return _InSteps(bz2.BZ2File(io.BufferedReader(rest)))
    if magic == b"\xfd7zXZ\0":
        return _Xz(rest)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return _open_zstd(rest, name)
    return None


class _InSteps:
    """A compressed file that gives what it has: a whole `read` loses it when the end is damaged."""

    def __init__(self, file: gzip.GzipFile | bz2.BZ2File) -> None:
        self._file = file

    def read(self, size: int, /) -> bytes:
        return self._file.read1(size)


class _Xz:
    """Like `lzma.LZMAFile`, with a bound on its memory."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._decompressor = _new_xz()
        self._input = b""

    def read(self, size: int, /) -> bytes:
        while True:
            if self._decompressor.eof:
                self._input = (
                    self._decompressor.unused_data or self._source.read(CHUNK_BYTES) or b""
                )
                if not self._input.strip(b"\0"):
                    return b""
                self._decompressor = _new_xz()
            elif self._decompressor.needs_input and not self._input:
                self._input = self._source.read(CHUNK_BYTES) or b""
                if not self._input:
                    raise EOFError("the file ends within a stream")
            given, self._input = self._input, b""
            if found := self._decompressor.decompress(given, size):
                return found


def _new_xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LZMA_MEMORY_BYTES)


def _open_zstd(rest: _Rest, name: str) -> Readable:
    """Return the decompressed bytes of a zstd file, if a library for it is installed."""
    try:
        import zstandard
    except ImportError as error:
        raise NodeError(
            f"cannot read {name}: it is compressed with zstd",
            why="the Python package `zstandard` is not installed",
            todo=f"`zstd -dc {name} | raylaunch diagnose -`",
        ) from error
    decompressor = zstandard.ZstdDecompressor(max_window_size=LZMA_MEMORY_BYTES)
    return _Zstd(decompressor.stream_reader(rest, read_across_frames=True), zstandard.ZstdError)


class _Zstd:
    """Names the errors of the library as those of a file."""

    def __init__(self, reader: Readable, error: type[Exception]) -> None:
        self._reader = reader
        self._error = error

    def read(self, size: int, /) -> bytes | None:
        try:
            return self._reader.read(size)
        except self._error as error:
            raise OSError(str(error)) from error


def _too_much(name: str) -> NodeError:
    return NodeError(
        f"{name} decompresses to more than {MAX_DECOMPRESSED_BYTES >> 30} GiB",
        why="it is damaged or made to fill memory, or several logs are in it",
        todo="decompress it and give the part in question: `... | raylaunch diagnose -`",
    )
