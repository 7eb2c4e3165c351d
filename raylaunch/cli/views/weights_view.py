"""The weights of a recipe for people: per node what is there, and the commands for the rest."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from raylaunch.cli.output import Style, table
from raylaunch.plan.wanted_weights import (
    HUBS,
    INSTALL,
    PROGRAMS,
    Stock,
    Wanted,
    WeightsReport,
    download_argv,
    gaps_of,
)

HEADER = ("NODE", "WHAT", "STATE", "SIZE", "FILES", "DISK", "FREE", "PATH")


def weights_lines(report: WeightsReport, style: Style) -> Iterator[str]:
    """Lay out a report: a row per node, what is wrong, shared folders, download commands."""
    rows = [_row(stock) for stock in report.stocks]
    yield from table(rows, style, header=HEADER, kinds=("name",))
    for stock in report.stocks:
        if problem := _problem(stock):
            yield f"{stock.name}: {problem}"
    for sharing in _shared(report.stocks):
        yield f"the same folder: {', '.join(stock.name for stock in sharing)}"
    for wanted in report.wanted:
        yield from _command_lines(report, wanted, style)


def download_commands(wanted: Wanted) -> dict[str, str]:
    """Return hub -> the command line that downloads `wanted` from it."""
    commands: dict[str, str] = {}
    for hub in HUBS:
        argv = download_argv(hub, wanted)
        if argv is not None:
            commands[hub] = shlex.join(argv)
    return commands


def size_text(size: float) -> str:
    """Write a number of bytes for people: "512 B", "1.5 GiB"."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def _row(stock: Stock) -> tuple[str, ...]:
    seen = stock.weights
    if seen is None:
        return (stock.name, stock.wanted.role, stock.state, "-", "-", "-", "-", stock.wanted.path)
    size = size_text(seen.total_bytes) if seen.files else "-"
    if seen.files and seen.expected_bytes > seen.total_bytes:
        size = f"{size} of {size_text(seen.expected_bytes)}"
    disk = seen.filesystem or "-"
    if seen.read_rate:
        disk += f" {size_text(seen.read_rate)}/s"
    return (
        stock.name,
        stock.wanted.role,
        stock.state,
        size,
        str(len(seen.files)),
        disk,
        size_text(seen.free_bytes),
        seen.path,
    )


def _problem(stock: Stock) -> str:
    if stock.weights is None:
        return f"no answer: {stock.problem}"
    if stock.state == "missing" and stock.wanted.tiny:
        return "a tiny model is made by the first start, or by --download"
    return gaps_of(stock.weights) if stock.state == "incomplete" else ""


def _shared(stocks: Sequence[Stock]) -> list[list[Stock]]:
    """Return the nodes that see the same folder, where there are several."""
    places: dict[tuple[str, str], list[Stock]] = {}
    for stock in stocks:
        if stock.weights is not None and stock.weights.place:
            key = (stock.wanted.role, stock.weights.place)
            places.setdefault(key, []).append(stock)
    return [sharing for sharing in places.values() if len(sharing) > 1]


def _command_lines(report: WeightsReport, wanted: Wanted, style: Style) -> Iterator[str]:
    """Yield the commands for a folder that lacks something, even if their programs are missing."""
    stocks = [stock for stock in report.stocks if stock.wanted == wanted]
    lacking = [stock for stock in stocks if stock.state != "complete"]
    if not lacking or wanted.tiny:
        return
    nodes = ", ".join(stock.name for stock in lacking)
    yield style.paint(f"to download the {wanted.role}, on {nodes}:", "title")
    commands = download_commands(wanted)
    yield from (f"  {line}" for line in commands.values())
    if not commands:
        field = "model.sources" if wanted.role == "model" else "features.speculative.sources"
        yield f"  the recipe names no source ({field}): copy it there"
    for stock in lacking:
        if line := _without_program(stock, list(commands)):
            yield f"  {line}"


def _without_program(stock: Stock, hubs: list[str]) -> str:
    """Return what to install on a node that has no program for any of `hubs`."""
    if stock.weights is None or not hubs or set(hubs).intersection(stock.programs):
        return ""
    wanted = [hub for hub in HUBS if hub in hubs]
    names = " nor ".join(f"`{PROGRAMS[hub]}`" for hub in wanted)
    todo = " or ".join(f"`{stock.python} -m {INSTALL[hub]}`" for hub in wanted)
    return f"{stock.name} has no {names}: {todo}"
