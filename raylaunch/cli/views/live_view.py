"""Follows a start or a stop: a live table on a terminal, one line per change in a pipe.

Only this module and the progress bar of `bench` use rich.
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

REDRAWS_PER_S = 4


class LiveView:
    """Receives each new status. `last` is the newest one, None while there is none.

    Args:
        write: Called with one line per change; None writes nothing.
        warned: The findings of the first status have been shown before and are not repeated.
    """

    def __init__(self, write: Callable[[str], None] | None, *, warned: bool = False) -> None:
        self._write = write
        self._warned = warned
        self.last: Status | None = None

    def __call__(self, status: Status) -> None:
        """Store the status and write what changed."""
        before = self.last
        # Stored before anything is written: a Ctrl-C while writing must find the deployment known.
        self.last = status
        if self._write is None:
            return
        show_findings = before is not None or not self._warned
        for line in changes(before, status, show_findings=show_findings):
            self._write(line)


class Picture:
    """The live table. Its elapsed times advance between two statuses."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._status: Status | None = None
        self._received_at = 0.0
        self._stages: dict[tuple[str, int], tuple[str, float]] = {}

    def update(self, status: Status) -> None:
        """Show `status` from now on."""
        for server in status.servers:
            place = (server.group, server.index)
            stage, _ = self._stages.get(place, ("", 0.0))
            if stage != server.seen.stage:
                self._stages[place] = (server.seen.stage, status.now)
        self._status = status
        self._received_at = time.monotonic()

    def __rich__(self) -> Text:
        """Return the table, which rich asks for several times per second."""
        from rich.text import Text

        return Text.from_ansi(self._style.finish("\n".join(self.lines())))

    def lines(self) -> Iterator[str]:
        """Lay out the table as of now."""
        if self._status is None:
            return iter(["waiting for the cluster ..."])
        # The controller's clock, extrapolated by the time since the status arrived.
        now = self._status.now + time.monotonic() - self._received_at
        stage_since = {place: at for place, (_, at) in self._stages.items()}
        return progress_lines(self._status, stage_since, now, self._style)


@contextmanager
def watching(out: Output, *, to_stderr: bool = False, warned: bool = False) -> Iterator[LiveView]:
    """Yield a LiveView that suits the stream.

    Args:
        out: The writer; with -q nothing is shown.
        to_stderr: Keep stdout free for the result (`-o json`).
        warned: Do not repeat the findings that the first status holds.
    """
    style = out.style
    if style.width is not None and not out.quiet and not to_stderr:
        with _live(style) as view:
            yield view
        return
    if out.quiet:
        yield LiveView(None)
    elif to_stderr:
        yield LiveView(lambda line: out.to_stderr([line]), warned=warned)
    else:
        yield LiveView(out.line, warned=warned)


@contextmanager
def _live(style: Style) -> Iterator[LiveView]:
    from rich.console import Console
    from rich.live import Live

    picture = Picture(style)
    view = _TableView(picture)
    console = Console(no_color=not style.colour)
    # While it is shown, rich moves what others print (the log with -v) above the table.
    with Live(picture, console=console, refresh_per_second=REDRAWS_PER_S):
        yield view


class _TableView(LiveView):
    def __init__(self, picture: Picture) -> None:
        super().__init__(None)
        self._picture = picture

    def __call__(self, status: Status) -> None:
        super().__call__(status)
        self._picture.update(status)
