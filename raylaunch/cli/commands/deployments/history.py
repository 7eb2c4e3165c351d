"""The verbs that read what a deployment left to read: logs, events, diagnose."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import Address, DeploymentName, Format, JsonOutput, command
from raylaunch.cli.output import Output, Style, table, to_json

if TYPE_CHECKING:
    from raylaunch.deployment import Deployment
    from raylaunch.supervise.deployment_status import Event
    from raylaunch.supervise.diagnosis.root_cause import Diagnosis

Server = Annotated[
    int, typer.Option("--server", metavar="I", min=0, help="Index of the server, 0 is the primary.")
]
Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Go on as more comes; Ctrl-C ends it.")
]


def add_commands(app: typer.Typer) -> None:
    """Register the verbs of this module, in the order of the help."""
    command(
        app,
        examples="""
        raylaunch logs a2-dual
        raylaunch logs a2-dual --server 1 -n 1000
        raylaunch logs a2-dual -f
        """,
    )(logs)
    command(
        app,
        examples="""
        raylaunch events a2-dual
        raylaunch events a2-dual -f -o json
        """,
    )(events)
    command(
        app,
        examples="""
        raylaunch diagnose a2-dual
        raylaunch diagnose /var/log/vllm.log
        ssh node1 cat vllm.log | raylaunch diagnose -
        """,
    )(diagnose)


def logs(
    out: Output,
    name: DeploymentName,
    server: Server = 0,
    follow: Follow = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", metavar="LINES", min=0, help="How many, from the end.")
    ] = 100,
    address: Address = None,
) -> None:
    """Print the log of a server, from whichever node it is on."""
    from raylaunch import api

    deployment = api.attach(name, address=address)
    text = deployment.logs(server=server, lines=lines) if lines else ""
    out.lines(text.splitlines())
    if follow:
        for line in deployment.follow_logs(server=server):
            out.line(line.rstrip("\n"))


def events(
    out: Output,
    name: DeploymentName,
    follow: Follow = False,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Print what happened when, on one clock.

    With -o json one object per line.
    """
    from raylaunch import api
    from raylaunch.cli.views.status_view import event_line

    deployment = api.attach(name, address=address)
    style = out.style
    for event in _each_once(deployment, follow=follow):
        out.line(
            to_json(dataclasses.asdict(event))
            if output is Format.JSON
            else event_line(event, style)
        )


def diagnose(
    out: Output,
    target: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE|DIR",
            help="A deployment, a log (- is stdin), or a bundle of evidence.",
        ),
    ],
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Name the cause of a failure: server, line, remedy.

    Reads a live deployment, a bundle of evidence, or any log of vLLM or vllm-ascend.
    Exit codes: 0 something was found or nothing is wrong, 9 there is no such deployment, file or folder.
    """
    found = _diagnose(target, address)
    if output is Format.JSON:
        out.json(dataclasses.asdict(found) if found else None)
    elif found is None:
        out.line("nothing known to be wrong was found")
    else:
        out.lines(_diagnosis_lines(found, out.style))


def _each_once(deployment: Deployment, *, follow: bool) -> Iterator[Event]:
    last = 0
    for event in deployment.events():
        last = event.number
        yield event
    for event in deployment.follow_events() if follow else ():
        if event.number > last:
            yield event


def _diagnose(target: str, address: str | None) -> Diagnosis | None:
    from raylaunch.supervise.diagnosis.root_cause import diagnose_text

    path = Path(target)
    if target == "-":
        return diagnose_text(sys.stdin.read(), "stdin")
    if path.is_file():
        return diagnose_text(path.read_text(encoding="utf-8", errors="replace"), path.name)
    from raylaunch import api

    return api.diagnose(target, address=address)


def _diagnosis_lines(found: Diagnosis, style: Style) -> Iterator[str]:
    root = (
        ""
        if found.root is None
        else f"server {found.root}" + (f" on {found.node}" if found.node else "")
    )
    sure = "" if found.certain else ", not certain"
    line = found.line + (f"  (line {found.line_number})" if found.line_number is not None else "")
    rows = [
        ("found", f"{found.id} ({found.kind}{sure})"),
        ("root", root),
        ("device", "" if found.device is None else f"NPU {found.device}"),
        ("line", line),
        ("cause", found.cause),
        ("remedy", found.remedy),
        ("detail", found.detail),
        ("source", found.source),
        ("collateral", ", ".join(f"server {index}" for index in found.collateral)),
    ]
    return table([row for row in rows if row[1]], style, kinds=("title",))
