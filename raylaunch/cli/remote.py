"""--cluster: runs the same command line on the head of a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Never, Protocol

import typer

from raylaunch.cli.output import Output
from raylaunch.cli.views.status_view import ASKED_WITH
from raylaunch.recipe.cluster_yaml import GIVEN

SENT = ("NO_COLOR", "FORCE_COLOR", "VLLM_API_KEY")
"""Variables that the remote command gets from here; the secrets that a recipe names are added."""
LOCAL_ONLY = ("cluster", "address", "quiet", "verbose", "help")
"""Parameters that are written out again, or belong to this side."""


class Parameter(Protocol):
    """A parsed option or argument, for which typer has no public type."""

    name: str
    opts: list[str]
    secondary_opts: list[str]

    @property
    def param_type_name(self) -> str:
        """Return "option" or "argument"."""

    def get_default(self, ctx: typer.Context, /) -> object:
        """Return the default value."""


def run_far(
    ctx: typer.Context,
    out: Output,
    file: Path,
    asked: Mapping[str, object],
    *,
    recipe: str | None,
) -> Never:
    """Run the command of `ctx` on the head of the cluster and exit with its exit code.

    Args:
        ctx: The parsed command line.
        out: The global options.
        file: The value of --cluster: the file that `ray up` was given.
        asked: The values of the command line, as the command would get them.
        recipe: Name of the argument that names a recipe of this machine, if there is one.

    Raises:
        RaylaunchError: the head cannot be reached, or the recipe or the file is wrong.
    """
    if ctx.params.get("address"):
        raise typer.BadParameter("--cluster FILE already names the cluster", param_hint="--address")
    _refuse_files(asked)
    from raylaunch import api

    files: dict[str, Path] = {}
    env = {name: os.environ[name] for name in SENT if name in os.environ}
    env[ASKED_WITH] = str(file)
    arguments = list(_arguments(ctx))
    if recipe is not None:
        name = ctx.params[recipe]
        env |= _secrets_of(name, ctx.params.get("sets") or ())
        argument, files = _recipe_to_send(name)
        arguments = [argument]
    words = [str(ctx.info_name), *_options(ctx, out)]
    if arguments:
        words += ["--", *arguments]
    raise typer.Exit(api.run_on_head(file, words, files, env))


def _refuse_files(asked: Mapping[str, object]) -> None:
    for name, value in asked.items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, Path) for one in values):
            raise typer.BadParameter(
                "it would be written on the head of the cluster", param_hint=f"--{name}"
            )


def _secrets_of(recipe: str, sets: list[str] | tuple[str, ...]) -> dict[str, str]:
    from raylaunch.recipe.catalog import read

    names = read(recipe, sets).recipe.secrets
    # A secret that is not set here may be set there: the remote command decides.
    return {name: os.environ[name] for name in names if name in os.environ}


def _recipe_to_send(name: str) -> tuple[str, dict[str, Path]]:
    from raylaunch.recipe.catalog import files_of

    sent_name, files = files_of(name)
    if not files:
        return sent_name, files
    return f"{GIVEN}/{sent_name}", files


def _options(ctx: typer.Context, out: Output) -> list[str]:
    words = [word for param in ctx.command.params for word in _option(ctx, param)]
    if out.quiet:
        words.append("-q")
    words += ["-v"] * out.verbose
    return [*words, "--address", "auto"]


def _option(ctx: typer.Context, param: Parameter) -> Iterator[str]:
    """Write out an option as it was given; nothing when it has its default."""
    if param.param_type_name != "option" or param.name in LOCAL_ONLY:
        return
    value = ctx.params.get(param.name)
    if value is None or value == param.get_default(ctx):
        return
    if getattr(param, "is_flag", False):
        spellings = param.opts if value else param.secondary_opts
        yield spellings[0]
        return
    values = value if getattr(param, "multiple", False) else [value]
    for each in values:
        yield param.opts[0]
        yield str(getattr(each, "value", each))


def _arguments(ctx: typer.Context) -> Iterator[str]:
    for param in ctx.command.params:
        if param.param_type_name != "argument":
            continue
        value = ctx.params[param.name]
        if value == "-":
            raise typer.BadParameter(
                "the stdin of this machine is not sent to the cluster", param_hint="--cluster"
            )
        if value is not None:
            yield str(value)
