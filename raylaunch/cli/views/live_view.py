"""Watching a deployment start or stop: a live table on a terminal, a line per change in a pipe.

Only this module uses rich.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raylaunch.cli.output import Output, Style
from raylaunch.cli.views.status_view import changes, progress_lines
from raylaunch.supervise.deployment_status import Status

if TYPE_CHECKING:
    from rich.text import Text


class LiveView:
    """Takes each new look at a deployment; `last` is the newest, None while none came."""

    def __init__(self, write: Callable[[str], None] | None) -> None:
        self._write = write
        self.last: Status | None = None

    def __call__(self, status: Status) -> None:
        """Take a look; write what changed."""
        # First of all, so that a Ctrl-C in the midst of writing finds the deployment known.
        before, self.last = self.last, status
        if self._write:
            for line in changes(before, status):
                self._write(line)


class Picture:
    """The live table. The clock goes on between two looks, so a person sees that it lives."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._status: Status | None = None
        self._taken = 0.0
        self._steps: dict[int, tuple[str, float]] = {}

    def take(self, status: Status) -> None:
        """Show `status` from now on."""
        for server in status.servers:
            stage, _ = self._steps.get(server.index, ("", 0.0))
            if stage != server.seen.stage:
                self._steps[server.index] = (server.seen.stage, status.now)
        self._status, self._taken = status, time.monotonic()

    def __rich__(self) -> Text:
        """The table, as rich asks for it several times a second."""
        from rich.text import Text

        return Text.from_ansi("\n".join(self.lines()))

    def lines(self) -> Iterator[str]:
        """The lines of the table at this moment."""
        if self._status is None:
            return iter(["waiting for the cluster ..."])
        now = self._status.now + time.monotonic() - self._taken
        since = {index: at for index, (_, at) in self._steps.items()}
        return progress_lines(self._status, since, now, self._style)


@contextmanager
def watching(out: Output, *, to_stderr: bool = False) -> Iterator[LiveView]:
    """Yield a Watch for the place the words go to.

    Args:
        out: The writer; with -q nothing is shown.
        to_stderr: Keep stdout free for the result (`-o json`).
    """
    style = out.style
    live = style.width is not None and not out.quiet and not to_stderr
    if live:
        with _live(style) as watch:
            yield watch
        return
    write = (lambda line: out.to_stderr([line])) if to_stderr else out.line
    yield LiveView(None if out.quiet else write)


@contextmanager
def _live(style: Style) -> Iterator[LiveView]:
    from rich.console import Console
    from rich.live import Live

    picture = Picture(style)
    watch = _LiveWatch(picture)
    # While it lives, rich moves what others print (Ray's messages with -v) above the table.
    with Live(picture, console=Console(no_color=not style.colour), refresh_per_second=4):
        yield watch


class _LiveWatch(LiveView):
    def __init__(self, picture: Picture) -> None:
        super().__init__(None)
        self._picture = picture

    def __call__(self, status: Status) -> None:
        super().__call__(status)
        self._picture.take(status)
