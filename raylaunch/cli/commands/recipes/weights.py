"""The verb `weights`: what each node has of a recipe's weights, and the download of the rest."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Address, Format, JsonOutput, RecipeName, Sets
from raylaunch.cli.output import Output
from raylaunch.errors import ChecksFailedError

if TYPE_CHECKING:
    from raylaunch.plan.wanted_weights import Stock, WeightsReport


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch weights a2-dual
        raylaunch weights a2-dual --download
        raylaunch weights a2-dual --download --from huggingface
        raylaunch weights local-dual -o json | jq '.nodes[].state'
        """,
    )(weights)


def weights(
    out: Output,
    name: RecipeName,
    download: Annotated[
        bool,
        typer.Option(
            "--download", help="Download what is missing, with the hub's own program on the node."
        ),
    ] = False,
    hub: Annotated[
        Literal["modelscope", "huggingface"] | None,
        typer.Option(
            "--from", help="Hub to download from; by default the first that recipe and node have."
        ),
    ] = None,
    address: Address = None,
    sets: Sets = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Show what each node has of the weights; download the rest.

    Reads, on every node that could hold a server, names, sizes and headers of the files, and prints
    the command that downloads what is missing; reserves nothing. With --download one node of those
    that share a folder runs `modelscope` or `hf` into it. Ctrl-C stops the download; the same
    command resumes it.
    For a recipe for CPU without a cluster this machine is probed.
    Exit codes: 0 complete on every node, 4 something is missing or damaged, 11 a download failed.
    """
    from raylaunch import api
    from raylaunch.cli.views.download_view import DownloadView
    from raylaunch.cli.views.weights_view import weights_lines

    view = DownloadView(out)
    report = api.weights(
        name,
        set=sets or (),
        address=address,
        download=download,
        hub=hub,
        on_progress=view.update if download else None,
    )
    view.finish()
    if output is Format.JSON:
        out.json(_as_dict(report))
    else:
        out.lines(weights_lines(report, out.style))
        _explain(out, report)
    if not report.is_complete:
        raise typer.Exit(ChecksFailedError.exit_code)


def _explain(out: Output, report: WeightsReport) -> None:
    from raylaunch.cli.views.weights_view import download_commands

    incomplete = [stock for stock in report.stocks if stock.state != "complete"]
    if not incomplete:
        nodes = len({stock.node_id for stock in report.stocks})
        out.note(f"{report.recipe}: complete on {nodes} node(s)")
    elif any(download_commands(stock.wanted) for stock in incomplete):
        out.note(f"`raylaunch weights {report.recipe} --download` runs it there")


def _as_dict(report: WeightsReport) -> dict[str, object]:
    from raylaunch.cli.views.weights_view import download_commands

    return {
        "recipe": report.recipe,
        "complete": report.is_complete,
        "commands": {wanted.role: download_commands(wanted) for wanted in report.wanted},
        "nodes": [_stock_as_dict(stock) for stock in report.stocks],
    }


def _stock_as_dict(stock: Stock) -> dict[str, object]:
    seen: dict[str, object] = {"path": stock.wanted.path}
    files = {}
    if stock.weights:
        seen = dataclasses.asdict(stock.weights)
        files = stock.weights.files
    # Hundreds of shards: their number and total size are enough.
    seen.pop("files", None)
    seen.pop("config", None)
    return {
        "host": stock.host,
        "hostname": stock.hostname,
        "role": stock.wanted.role,
        "state": stock.state,
        "problem": stock.problem,
        **seen,
        "bytes": sum(files.values()),
        "files": len(files),
        "programs": dict(stock.programs),
    }
