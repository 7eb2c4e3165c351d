"""The verb `events`: what happened to a deployment, on one clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import (
    Address,
    DeploymentOrGroup,
    Follow,
    Format,
    Group,
    JsonOutput,
    target,
)
from raylaunch.cli.output import Output, to_json

if TYPE_CHECKING:
    from raylaunch.deployment import Deployment
    from raylaunch.supervise.deployment_status import Event


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch events a2-dual
        raylaunch events a2-dual -f -o json
        """,
    )(events)


def events(
    out: Output,
    name: DeploymentOrGroup,
    group: Group = None,
    follow: Follow = False,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Print what happened when, on one clock.

    With -o json one object per line.
    """
    from raylaunch import api
    from raylaunch.cli.views.status_view import event_line

    subject = target(name, group)
    deployment = api.attach(subject, address=address)
    style = out.style
    # Of a single group no name is shown. The groups of a deployment begin with it.
    groups: set[str] = set()
    for event in _each_once(deployment, follow=follow):
        groups.add(event.group)
        if output is Format.JSON:
            out.line(to_json(dataclasses.asdict(event)))
        else:
            out.line(event_line(event, style, several=len(groups - {""}) > 1))


def _each_once(deployment: Deployment, *, follow: bool) -> Iterator[Event]:
    last = 0
    for event in deployment.events():
        last = event.number
        yield event
    if not follow:
        return
    for event in deployment.follow_events():
        # The stream begins with the first event again.
        if event.number > last:
            yield event
