"""`raylaunch weights`: what each node has of a recipe's weights, how to bring the rest, and the download itself."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from raylaunch.cli.command import Address, Format, JsonOutput, RecipeName, Sets, command
from raylaunch.cli.output import Output, Style, table
from raylaunch.errors import ChecksFailedError

if TYPE_CHECKING:
    from raylaunch.plan.wanted_weights import DownloadProgress, Stock, Wanted, WeightsReport

HEADER = ("NODE", "WHAT", "STATE", "SIZE", "FILES", "DISK", "FREE", "PATH")
NOTE_EVERY_S = 10.0
"""How often a pipe gets a line about a download."""
RATE_OVER_S = 20.0


def add_commands(app: typer.Typer) -> None:
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
            "--download", help="Bring what is missing, with the hub's own program on the node."
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
    """Show what each node has of a recipe's weights; download the rest.

    Looks, on every node that could hold a server, at names, sizes and headers of the files, and says the command that
    brings what is missing; reserves nothing. With --download one node of those that share a folder runs `modelscope` or
    `hf` into it. Ctrl-C ends the download; the same command goes on where it stopped.
    A recipe for CPU without a cluster is looked at on this machine.
    Exit codes: 0 complete on every node, 4 something is missing or damaged, 11 a download failed.
    """
    from raylaunch import api

    shown = _Shown(out)
    report = api.weights(
        name,
        sets=sets or (),
        address=address,
        download=download,
        hub=hub,
        on_progress=shown.take if download else None,
    )
    shown.finish()
    if output is Format.JSON:
        out.json(_as_dict(report))
    else:
        out.lines(_lines(report, out.style))
        _explain(out, report)
    if not report.is_complete:
        raise typer.Exit(ChecksFailedError.exit_code)


def _lines(report: WeightsReport, style: Style) -> Iterator[str]:
    yield from table(
        [_row(stock) for stock in report.stocks], style, header=HEADER, kinds=("name",)
    )
    for stock in report.stocks:
        if wrong := _wrong(stock):
            yield f"{stock.name}: {wrong}"
    for places in _shared(report.stocks):
        yield f"the same folder: {', '.join(stock.name for stock in places)}"
    yield from _command_lines(report, style)


def _row(stock: Stock) -> tuple[str, ...]:
    seen = stock.weights
    if seen is None:
        return (stock.name, stock.wanted.role, stock.state, "-", "-", "-", "-", stock.wanted.path)
    size = _size(seen.total_bytes) if seen.files else "-"
    if seen.files and seen.expected_bytes > seen.total_bytes:
        size = f"{size} of {_size(seen.expected_bytes)}"
    speed = f" {_size(seen.read_rate)}/s" if seen.read_rate else ""
    disk, free = f"{seen.filesystem or '-'}{speed}", _size(seen.free_bytes)
    return (
        stock.name,
        stock.wanted.role,
        stock.state,
        size,
        str(len(seen.files)),
        disk,
        free,
        seen.path,
    )


def _wrong(stock: Stock) -> str:
    from raylaunch.plan.wanted_weights import gaps_of

    if stock.weights is None:
        return f"no answer: {stock.problem}"
    if stock.state == "missing" and stock.wanted.tiny:
        return "a tiny model is made by the first start, or by --download"
    return gaps_of(stock.weights) if stock.state == "incomplete" else ""


def _shared(stocks: Sequence[Stock]) -> list[list[Stock]]:
    """Nodes that see the same folder, where there are several."""
    places: dict[tuple[str, str], list[Stock]] = {}
    for stock in stocks:
        if stock.weights is not None and stock.weights.place:
            places.setdefault((stock.wanted.role, stock.weights.place), []).append(stock)
    return [stocks for stocks in places.values() if len(stocks) > 1]


def _command_lines(report: WeightsReport, style: Style) -> Iterator[str]:
    """The commands for every folder that lacks something, whether their programs are installed or not."""
    for wanted in report.wanted:
        lacking = [
            stock for stock in report.stocks if stock.wanted == wanted and stock.state != "complete"
        ]
        if not lacking or wanted.tiny:
            continue
        nodes = ", ".join(stock.name for stock in lacking)
        yield style.paint(f"to bring the {wanted.role}, on {nodes}:", "title")
        commands = _commands(wanted)
        yield from (f"  {line}" for line in commands.values())
        if not commands:
            field = "model.sources" if wanted.role == "model" else "features.speculative.sources"
            yield f"  the recipe names no source ({field}): copy it there"
        yield from (
            f"  {line}" for stock in lacking if (line := _without_program(stock, list(commands)))
        )


def _commands(wanted: Wanted) -> dict[str, str]:
    from raylaunch.plan.wanted_weights import HUBS, download_argv

    return {
        hub: shlex.join(argv) for hub in HUBS if (argv := download_argv(hub, wanted)) is not None
    }


def _without_program(stock: Stock, hubs: list[str]) -> str:
    """What to install on a node that has no program for any of `hubs`."""
    from raylaunch.plan.wanted_weights import HUBS, INSTALL, PROGRAMS

    if stock.weights is None or not hubs or set(hubs).intersection(stock.programs):
        return ""
    wanted = [hub for hub in HUBS if hub in hubs]
    names = " nor ".join(f"`{PROGRAMS[hub]}`" for hub in wanted)
    todo = " or ".join(f"`{stock.python} -m {INSTALL[hub]}`" for hub in wanted)
    return f"{stock.name} has no {names}: {todo}"


def _explain(out: Output, report: WeightsReport) -> None:
    bad = [stock for stock in report.stocks if stock.state != "complete"]
    if not bad:
        out.note(
            f"{report.recipe}: complete on {len({stock.node_id for stock in report.stocks})} node(s)"
        )
    elif any(_commands(stock.wanted) for stock in bad):
        out.note(f"`raylaunch weights {report.recipe} --download` runs it there")


def _as_dict(report: WeightsReport) -> dict[str, object]:
    return {
        "recipe": report.recipe,
        "complete": report.is_complete,
        "commands": {wanted.role: _commands(wanted) for wanted in report.wanted},
        "nodes": [_stock_as_dict(stock) for stock in report.stocks],
    }


def _stock_as_dict(stock: Stock) -> dict[str, object]:
    seen: dict[str, object] = (
        dataclasses.asdict(stock.weights) if stock.weights else {"path": stock.wanted.path}
    )
    files = stock.weights.files if stock.weights else {}
    for name in ("files", "config"):
        seen.pop(name, None)
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


class _Shown:
    """Downloads on the terminal: a line each that is drawn anew, or now and then a line in a pipe."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._live = out.error_style.width is not None and not out.quiet
        self._drawn = 0
        self._told: dict[tuple[str, str], float] = {}
        self._samples: dict[tuple[str, str], list[tuple[float, int]]] = {}

    def take(self, seen: Sequence[tuple[Stock, DownloadProgress]]) -> None:
        """Show how far they are."""
        now = time.monotonic()
        lines = [self._line(stock, progress, now) for stock, progress in seen]
        if self._live:
            self._draw(lines)
            return
        for line, (stock, progress) in zip(lines, seen, strict=True):
            key = (stock.node_id, stock.wanted.role)
            if not progress.running or now - self._told.get(key, -NOTE_EVERY_S) >= NOTE_EVERY_S:
                self._told[key] = now
                self._out.note(line)

    def finish(self) -> None:
        """Leave the last lines where they are."""
        self._drawn = 0

    def _draw(self, lines: Sequence[str]) -> None:
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        width = self._out.error_style.width or 80
        self._out.to_stderr([up + "\n".join(f"\r\x1b[K{line[: width - 1]}" for line in lines)])
        self._drawn = len(lines)

    def _line(self, stock: Stock, progress: DownloadProgress, now: float) -> str:
        rate = self._rate((stock.node_id, stock.wanted.role), now, progress.have_bytes)
        head = f"{stock.name} {stock.wanted.role}: {_size(progress.have_bytes)}"
        if not progress.running:
            return f"{head}, {'failed' if progress.failed else 'done'}"
        left = progress.total_bytes - progress.have_bytes
        if not progress.total_bytes:
            return f"{head}, {_size(rate)}/s  {progress.line}"
        share = min(progress.have_bytes / progress.total_bytes, 1.0)
        time_left = f", {_duration(left / rate)} left" if rate > 0 and left > 0 else ""
        return f"{head} of {_size(progress.total_bytes)} ({share:.0%}), {_size(rate)}/s{time_left}  {progress.line}"

    def _rate(self, key: tuple[str, str], now: float, have: int) -> float:
        samples = [*self._samples.get(key, []), (now, have)]
        self._samples[key] = samples = [one for one in samples if now - one[0] <= RATE_OVER_S]
        began, first = samples[0]
        return max(0.0, (have - first) / (now - began)) if now > began else 0.0


def _size(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _duration(seconds: float) -> str:
    from raylaunch.cli.views.status_view import duration

    return duration(seconds)
