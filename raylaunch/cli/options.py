"""The options and arguments that several verbs share, and the forms a result can have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

NAME_MAX = 255
"""Bytes of a file name on Linux (linux/limits.h)."""


class Format(StrEnum):
    """Forms of a result."""

    TABLE = "table"
    JSON = "json"


class RecipeFormat(StrEnum):
    """Forms of a recipe."""

    YAML = "yaml"
    JSON = "json"


class PlanFormat(StrEnum):
    """Forms of a plan."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def complete_recipe(incomplete: str) -> Iterator[str]:
    """Complete the name of a shipped recipe, for the shell's Tab key."""
    from raylaunch.recipe.catalog import recipe_names

    return (name for name in recipe_names() if name.startswith(incomplete))


def refuse_nan(value: float | None) -> float | None:
    """Refuse "nan" as a time-out: it is neither above nor below any limit.

    Raises:
        typer.BadParameter: the value is not a number.
    """
    if value is not None and value != value:
        raise typer.BadParameter("it is not a number")
    return value


def refuse_long_path(value: str) -> str:
    """Refuse a recipe name or path that no file can have.

    Raises:
        typer.BadParameter: a part of it is longer than Linux allows (NAME_MAX, 255 bytes).
    """
    parts = os.fsencode(f"{value}.yaml").split(b"/")
    if max(len(part) for part in parts) > NAME_MAX or b"\0" in parts[-1]:
        raise typer.BadParameter(f"a file name has at most {NAME_MAX} bytes, and no null byte")
    return value


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        callback=refuse_long_path,
        help="A recipe from `raylaunch list`, or the path of a .yaml file.",
        autocompletion=complete_recipe,
    ),
]
DeploymentName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the deployment.")]
NameOfNew = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="Name of the deployment; by default the recipe's."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one value of the recipe; may be repeated."
    ),
]
Group = Annotated[
    str | None,
    typer.Option("--group", metavar="GROUP", help="Only this group, e.g. serve-0."),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        metavar="IP%NIC",
        help="A node: its address and network interface; once per node, primary first.",
    ),
]
Primary = Annotated[
    str | None,
    typer.Option(
        "--primary", metavar="IP", help="The node that becomes the primary instead of the first."
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="Ray cluster; by default the one Ray finds (RAY_ADDRESS).",
    ),
]
ClusterFile = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        metavar="FILE",
        help="Run the command over SSH, on the head of the cluster that `ray up FILE` started.",
    ),
]
SkipChecks = Annotated[
    list[str] | None,
    typer.Option(
        "--skip-check",
        metavar="ID=REASON",
        help="Count this finding as a warning; may be repeated.",
    ),
]
Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Keep printing new lines until Ctrl-C.")
]
JsonOutput = Annotated[Format, typer.Option("--output", "-o", help="Form of the result.")]
PlanOutput = Annotated[PlanFormat, typer.Option("--output", "-o", help="Form of the plan.")]
RecipeOutput = Annotated[RecipeFormat, typer.Option("--output", "-o", help="Form of the recipe.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only.")]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        help="Log to stderr and show tracebacks; -vv logs details too.",
    ),
]
