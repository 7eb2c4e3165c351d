"""The verb `top`: a deployment live on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, Group, target
from raylaunch.cli.output import Output, Style

if TYPE_CHECKING:
    from raylaunch.cli.terminal import Screen
    from raylaunch.cli.views.top_view import TopHistory, Usage
    from raylaunch.deployment import Deployment
    from raylaunch.supervise.deployment_status import Status
    from raylaunch.supervise.diagnosis.root_cause import Diagnosis

PIPE_LINES = 200
"""Lines of a frame where no terminal limits them."""


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch top a2-dual
        raylaunch top a2-dual --frames 1 | cat
        """,
    )(top)


def top(
    out: Output,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Name of the deployment, or NAME/GROUP; the only one without it."
        ),
    ] = None,
    group: Group = None,
    address: Address = None,
    interval: Annotated[
        float, typer.Option(min=0.2, metavar="SECONDS", help="Time between two frames.")
    ] = 2.0,
    frames: Annotated[
        int, typer.Option(min=0, metavar="N", help="Exit after N frames; 0 for never.")
    ] = 0,
) -> None:
    """Show a deployment live: servers, ranks, speeds, NPUs, events.

    Keys: q quits, r ranks, e events, l log, d diagnosis; a digit selects the server of the log. In
    a pipe, and with --cluster, each frame is printed below the last one and there are no keys.
    """
    from raylaunch import api
    from raylaunch.cli.overview import only_deployment

    subject = target(name or only_deployment(address), group)
    deployment = api.attach(subject, address=address)
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or out.quiet:
        _print_frames(out, deployment, interval, frames)
        return
    from raylaunch.cli.terminal import full_screen

    view = _View(deployment, lambda: api.diagnose(subject, address=address))
    with full_screen(out.style) as screen:
        view.run(screen, interval, frames)


def _print_frames(out: Output, deployment: Deployment, interval: float, frames: int) -> None:
    from raylaunch.cli.views.top_view import TopHistory

    history = TopHistory()
    shown = 0
    while True:
        out.lines(_ranks_page(deployment, history, out.style, PIPE_LINES)[:-1])
        shown += 1
        if shown == frames:
            return
        out.line()
        time.sleep(interval)


def _ranks_page(
    deployment: Deployment, history: TopHistory, style: Style, height: int
) -> list[str]:
    from raylaunch.cli.views.top_view import ASCII_BLOCKS, BLOCKS, top_lines

    status = deployment.status()
    history.update(status)
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    blocks = BLOCKS if is_unicode else ASCII_BLOCKS
    return top_lines(status, history, style, height, blocks, _usage(deployment, status))


def _usage(deployment: Deployment, status: Status) -> Usage:
    """Return the usage of a deployment on NPUs: on CPU there is nothing of it to show."""
    from raylaunch.errors import ClusterError

    if not any(server.devices for server in status.servers):
        return {}
    try:
        return deployment.usage()
    except ClusterError:
        # A controller of an earlier version has no answer, and the rest of the frame is known.
        return {}


class _View:
    """The pages, and which one is shown."""

    def __init__(self, deployment: Deployment, diagnose: Callable[[], Diagnosis | None]) -> None:
        from raylaunch.cli.views.top_view import TopHistory

        self._deployment = deployment
        self._diagnose = diagnose
        self._history = TopHistory()
        self._page = "r"
        self._server = 0
        self._found: list[str] = []

    def run(self, screen: Screen, interval: float, frames: int) -> None:
        """Draw until q is typed."""
        shown = 0
        while True:
            _, height = screen.size
            screen.draw(self._lines(screen.style, height))
            shown += 1
            if shown == frames:
                return
            key = screen.read_key(interval)
            if key == "q":
                return
            self._select(key)

    def _select(self, key: str) -> None:
        if key.isdecimal():
            self._server = int(key)
            self._page = "l"
        elif key and key in "reld":
            self._page = key
        if key == "d":
            self._found = self._read_diagnosis()

    def _lines(self, style: Style, height: int) -> list[str]:
        from raylaunch.cli.views.status_view import event_line
        from raylaunch.cli.views.top_view import page_lines

        # The speeds are measured behind the other pages too.
        ranks = _ranks_page(self._deployment, self._history, style, height)
        if self._page == "e":
            events = [event_line(event, style) for event in self._deployment.events()[-height:]]
            return page_lines("events", events, style, height)
        if self._page == "l":
            text = self._deployment.logs(self._server, height).splitlines()
            return page_lines(f"log of server {self._server}", text, style, height)
        if self._page == "d":
            return page_lines("diagnosis", self._found, style, height)
        return ranks

    def _read_diagnosis(self) -> list[str]:
        import textwrap

        found = self._diagnose()
        if found is None:
            return ["no known failure signature matched"]
        rows = {"found": found.id, "class": found.kind, "line": found.line}
        rows |= {"cause": found.cause, "remedy": found.remedy}
        lines = []
        for name, text in rows.items():
            lines += textwrap.wrap(f"{name:8}{text}", 76, subsequent_indent=" " * 8)
        return lines
