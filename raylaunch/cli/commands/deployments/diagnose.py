"""The verb `diagnose`: the cause of a failure, from a deployment, a bundle or a log."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, Format, Group, JsonOutput, target
from raylaunch.cli.output import Output, Style, table

if TYPE_CHECKING:
    from raylaunch.supervise.diagnosis.root_cause import Diagnosis


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch diagnose a2-dual
        raylaunch diagnose /var/log/vllm.log
        ssh node1 cat vllm.log | raylaunch diagnose -
        """,
    )(diagnose)


def diagnose(
    out: Output,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE|DIR",
            help="A deployment (or NAME/GROUP), a log (- is stdin), or a bundle of evidence.",
        ),
    ],
    group: Group = None,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Name the cause of a failure: server, line, remedy.

    Reads a running deployment, a bundle of evidence, or any log of vLLM or vllm-ascend.
    Exit codes: 0 a cause was found or none is known, 9 there is no such deployment, file or folder,
    11 a file cannot be read.
    """
    from raylaunch import api

    if subject == "-":
        found = api.diagnose_log(sys.stdin.buffer, "stdin")
    elif subject:
        found = api.diagnose(target(subject, group), address=address)
    else:
        raise typer.BadParameter("give a deployment, a file or a folder")
    if output is Format.JSON:
        out.json(dataclasses.asdict(found) if found else None)
    elif found is None:
        out.line("no known failure signature matched")
    else:
        out.lines(_diagnosis_lines(found, out.style))


def _diagnosis_lines(found: Diagnosis, style: Style) -> Iterator[str]:
    rows = [
        ("found", f"{found.id} ({found.kind}{'' if found.certain else ', not certain'})"),
        ("root", _root(found)),
        ("device", "" if found.device is None else f"NPU {found.device}"),
        ("line", _log_line(found)),
        ("cause", found.cause),
        ("remedy", found.remedy),
        ("detail", found.detail),
        ("source", found.source),
        ("collateral", ", ".join(f"server {index}" for index in found.collateral)),
    ]
    return table([row for row in rows if row[1]], style, kinds=("title",))


def _root(found: Diagnosis) -> str:
    if found.root is None:
        return ""
    return f"server {found.root}" + (f" on {found.node}" if found.node else "")


def _log_line(found: Diagnosis) -> str:
    if found.line_number is None:
        return found.line
    return f"{found.line}  (line {found.line_number})"
