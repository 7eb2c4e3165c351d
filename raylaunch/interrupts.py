"""SIGTERM and SIGHUP as Ctrl-C: what a command has started is cleaned up, and it exits with 130."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType


class StartUndone(KeyboardInterrupt):
    """Ctrl-C before a controller took over: the embedded cluster was stopped again.

    `left` describes its processes that resisted: "pid 12 raylet".
    """

    def __init__(self, left: Sequence[str]) -> None:
        super().__init__()
        self.left = tuple(left)


@contextlib.contextmanager
def signals_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM and SIGHUP like Ctrl-C within the block.

    An SSH session that closes sends SIGHUP. A signal that has a handler, or is ignored, stays as it
    is; outside the main thread signals cannot be handled, and nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup ignores SIGHUP, and the command then survives the terminal.
        if signal.getsignal(number) == signal.SIG_DFL:
            before[number] = signal.signal(number, _raise_interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _raise_interrupt:
                signal.signal(number, handler)


@contextlib.contextmanager
def sigterm_handler_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM after the block, if there was one.

    `ray.init` replaces it (Ray 2.60, `worker.py`): the process would exit with 15, the status of a
    failed `verify`. Its C++ part prints a stack trace before that.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt
