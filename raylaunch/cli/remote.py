"""--cluster: the same command line, on the head of a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Never

import typer

from raylaunch.cli.output import Output
from raylaunch.cli.views.status_view import ASKED_WITH
from raylaunch.recipe.cluster_yaml import GIVEN

SENT = ("NO_COLOR", "FORCE_COLOR", "VLLM_API_KEY")
"""Variables that the command finds there as they are here; the secrets that a recipe names go too."""
STAYS = ("cluster", "address", "quiet", "verbose", "help")
"""Parameters that are said anew, or belong to this side."""


def run_far(
    ctx: typer.Context, out: Output, file: Path, asked: Mapping[str, object], *, recipe: str | None
) -> Never:
    """Run the command of `ctx` on the head of the cluster that `ray up FILE` started, and end as it ends there.

    Args:
        ctx: The parsed command line.
        out: The global options.
        file: What --cluster names.
        asked: The values of the command line, as the command would get them.
        recipe: The argument that names a recipe of this machine, if there is one.

    Raises:
        RaylaunchError: the head cannot be reached, or what it was given is wrong.
    """
    if ctx.params.get("address"):
        raise typer.BadParameter(
            "--cluster FILE says already which cluster", param_hint="--address"
        )
    _refuse_files(asked)
    from raylaunch import api

    given: dict[str, Path] = {}
    env = {name: os.environ[name] for name in SENT if name in os.environ} | {ASKED_WITH: str(file)}
    arguments = list(_arguments(ctx))
    if recipe is not None:
        from raylaunch.recipe.catalog import files_of, read

        name = ctx.params[recipe]
        secrets = read(name, ctx.params.get("sets") or ()).recipe.secrets
        env |= {secret: os.environ[secret] for secret in secrets if secret in os.environ}
        name, given = files_of(name)
        arguments = [f"{GIVEN}/{name}" if given else name]
    options = [word for param in ctx.command.params for word in _option(ctx, param)]
    shared = [*(["-q"] if out.quiet else []), *(["-v"] if out.verbose else []), "--address", "auto"]
    words = [str(ctx.info_name), *options, *shared, *(["--", *arguments] if arguments else [])]
    raise typer.Exit(api.run_on_head(file, words, given, env))


def _refuse_files(asked: Mapping[str, object]) -> None:
    for name, value in asked.items():
        if any(isinstance(one, Path) for one in (value if isinstance(value, list) else [value])):
            raise typer.BadParameter(
                "it would be written on the head of the cluster", param_hint=f"--{name}"
            )


def _option(ctx: typer.Context, param: Any) -> Iterator[str]:  # noqa: ANN401 - typer has no public type
    """An option as it was given, or as good as; nothing when it has its default."""
    value = ctx.params.get(param.name)
    if (
        param.param_type_name != "option"
        or param.name in STAYS
        or value in (None, param.get_default(ctx))
    ):
        return
    if param.is_flag:
        yield (param.opts if value else param.secondary_opts)[0]
        return
    for each in value if param.multiple else [value]:
        yield from (param.opts[0], str(getattr(each, "value", each)))


def _arguments(ctx: typer.Context) -> Iterator[str]:
    found = [
        ctx.params[param.name]
        for param in ctx.command.params
        if param.param_type_name == "argument"
    ]
    given = [str(value) for value in found if value is not None]
    if "-" in given:
        raise typer.BadParameter(
            "this machine's stdin does not go to the cluster", param_hint="--cluster"
        )
    yield from given
