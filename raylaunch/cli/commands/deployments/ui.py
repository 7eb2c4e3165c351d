"""The verb `ui`: a deployment live in a browser."""

from __future__ import annotations

import os
from typing import Annotated
from urllib.parse import urlsplit

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, Group, target
from raylaunch.cli.output import Output


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch ui a2-dual
        raylaunch ui a2-dual --port 8090
        raylaunch ui a2-dual --allow-actions
        """,
    )(ui)


def ui(
    out: Output,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Name of the deployment, or NAME/GROUP; the only one without it."
        ),
    ] = None,
    group: Group = None,
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, metavar="PORT", help="Port on 127.0.0.1; 0: any free one."),
    ] = 0,
    allow_actions: Annotated[
        bool,
        typer.Option(
            "--allow-actions",
            help="The page can also restart, drill and stop the deployment; it asks first.",
        ),
    ] = False,
    address: Address = None,
) -> None:
    """Show a deployment live in a browser: hosts, timelines, logs.

    Prints a link that works once, for a browser on the machine that runs the command, and serves
    the page until the deployment is stopped, or Ctrl-C. Without --allow-actions the page only
    reads. With --cluster the command runs on the head: forward its port, as the note says.
    """
    from raylaunch import api
    from raylaunch.cli.overview import only_deployment
    from raylaunch.cli.views.status_view import ASKED_WITH

    def show(link: str) -> None:
        out.line(link)
        for note in link_notes(link, os.environ.get(ASKED_WITH, "")):
            out.note(note)

    subject = target(name or only_deployment(address), group)
    api.ui(subject, show, port=port, allow_actions=allow_actions, address=address)
    out.note(f"{subject} was stopped, and the page with it")


def link_notes(link: str, asked_with: str) -> list[str]:
    """Return what a user has to know about the link.

    Args:
        link: As printed.
        asked_with: The file of --cluster; "" when the command runs where it was typed.
    """
    notes = ["the link works once; Ctrl-C stops the page and does not touch the deployment"]
    if asked_with:
        port = urlsplit(link).port
        forward = f"ssh -N -L {port}:127.0.0.1:{port} HEAD"
        notes.append(f"the page is served on the head of the cluster: run `{forward}` first")
    return notes
