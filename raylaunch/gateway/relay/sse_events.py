"""Splits a stream of server-sent events into whole events."""

from __future__ import annotations

DONE = b"data: [DONE]"
ERROR = b'data: {"error"'
"""vLLM writes an error into a stream that it has begun as such an event."""


class EventSplitter:
    """Collects bytes until events are complete. Line ends may be LF or CRLF."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that are complete now, without the empty line after them."""
        if b"\r" in data or b"\r" in self._rest:
            # A CR at the end may belong to a CRLF whose LF is still to come.
            data = (self._rest + data).replace(b"\r\n", b"\n")
            self._rest = b""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        return [event for event in events if event]

    @property
    def rest(self) -> bytes:
        """Bytes of an event that is not complete."""
        return self._rest


def payload(event: bytes) -> bytes | None:
    """Return what stands after `data:`; None for comments and other fields."""
    if not event.startswith(b"data:"):
        return None
    return event[5:].lstrip(b" ")
