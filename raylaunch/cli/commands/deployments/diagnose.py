"""The verb `diagnose`: the cause of a failure, from a deployment, a bundle or logs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, Format, Group, JsonOutput, target
from raylaunch.cli.output import Output, Style, table
from raylaunch.errors import NodeError

if TYPE_CHECKING:
    from raylaunch.supervise.diagnosis.root_cause import Diagnosis


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch diagnose a2-dual
        raylaunch diagnose /var/log/vllm.log.2.gz
        raylaunch diagnose ~/ascend/log
        ssh node1 cat vllm.log | raylaunch diagnose -
        raylaunch diagnose --check-signatures
        """,
    )(diagnose)


def diagnose(
    out: Output,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|FILE|DIR",
            help="A deployment (or NAME/GROUP), a log (- is stdin), a folder or bundle.",
            show_default=False,
        ),
    ] = None,
    group: Group = None,
    check_signatures: Annotated[
        bool,
        typer.Option(
            "--check-signatures",
            help="Only check this site's own signatures, signatures.d/*.yaml in the home of "
            "raylaunch.",
        ),
    ] = False,
    address: Address = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Name the cause of a failure: server, line, remedy.

    Reads a running deployment, a bundle of evidence, or any logs of vLLM, vllm-ascend, Ray and
    CANN (plog): one of any size, compressed or not, or a folder with those of several servers.
    Exit codes: 0 a cause was found or none is known, 9 there is no such deployment, file or folder,
    11 a file cannot be read, or a signature of this site is broken.
    """
    from raylaunch import api

    if check_signatures:
        _check_signatures(out, output)
        return
    if not subject:
        raise typer.BadParameter("give a deployment, a file or a folder")
    if subject == "-":
        found = api.diagnose_log(sys.stdin.buffer, "stdin")
    else:
        found = api.diagnose(target(subject, group), address=address)
    if output is Format.JSON:
        out.json(dataclasses.asdict(found) if found else None)
    elif found is None:
        out.line("no known failure signature matched")
    else:
        out.lines(_diagnosis_lines(found, out.style))


def _check_signatures(out: Output, output: Format) -> None:
    """Show what the site's own files hold.

    Raises:
        NodeError: one of them is broken.
    """
    from raylaunch import api

    checked = api.check_signatures()
    ids = [signature.id for signature in checked.site.signatures]
    if output is Format.JSON:
        noise = [pattern.pattern for pattern in checked.site.noise]
        out.json(
            {
                "files": checked.files,
                "signatures": ids,
                "noise": noise,
                "problems": checked.problems,
            }
        )
    else:
        files = ", ".join(checked.files) or "no file"
        out.line(f"{files}: {len(ids)} signatures, {len(checked.site.noise)} noise patterns")
    if checked.problems:
        raise NodeError(
            "a signature of this site is broken; its file is not used",
            evidence="\n".join(checked.problems),
            todo="docs/diagnosis.md explains each field",
        )


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
    if found.file:
        return found.file
    if found.root is None:
        return ""
    return f"server {found.root}" + (f" on {found.node}" if found.node else "")


def _log_line(found: Diagnosis) -> str:
    if found.line_number is None:
        return found.line
    place = f"{found.file}:" if found.file else "line "
    return f"{found.line}  ({place}{found.line_number})"
