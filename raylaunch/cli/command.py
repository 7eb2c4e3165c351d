"""How a command is registered: the options all commands share, examples in its help, errors into exit codes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from raylaunch.cli.output import Output
from raylaunch.errors import RaylaunchError


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
    """Names of shipped recipes, for the shell's Tab key."""
    from raylaunch.recipe.catalog import recipe_names

    return (name for name in recipe_names() if name.startswith(incomplete))


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A recipe from `raylaunch list`, or the path of a .yaml file.",
        autocompletion=complete_recipe,
    ),
]
DeploymentName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the deployment.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one value of the recipe; may be repeated."
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
        help="Do it over SSH, on the head of the cluster that `ray up FILE` started.",
    ),
]
JsonOutput = Annotated[Format, typer.Option("--output", "-o", help="Form of the result.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors only.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show tracebacks and Ray's own messages.")
]


def command(
    app: typer.Typer, *, examples: str, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function `(out: Output, ...)` as a command of `app`.

    The command also takes -q and -v behind its name, and --cluster if it takes --address; its help ends with
    `examples`, and a RaylaunchError becomes a block on stderr and the error's own exit code.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        lines = [f"  {line}" for line in inspect.cleandoc(examples).splitlines()]
        # \b keeps the help formatter from re-wrapping the examples.
        app.command(name, epilog="\n".join(["\b", "Examples:", *lines]))(_guarded(function))
        return function

    return register


def reasons(skips: list[str]) -> dict[str, str]:
    """Read the values of --skip-check: id of the check, and why it does not count."""
    from raylaunch.checks.findings import hint_for

    given = {}
    for skip in skips:
        check, _, reason = skip.partition("=")
        if not check or not reason.strip():
            raise typer.BadParameter(
                f"{skip!r}: write ID=REASON; the reason is kept in the events",
                param_hint="--skip-check",
            )
        if hint := hint_for(check):
            raise typer.BadParameter(
                f"no check has the id {check!r}: {hint}", param_hint="--skip-check"
            )
        given[check] = reason.strip()
    return given


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def run(ctx: typer.Context, *, quiet: bool, verbose: bool, **given: Any) -> None:  # noqa: ANN401 - typer's values
        out = _output(ctx, quiet=quiet, verbose=verbose, json_errors=given.get("output") == "json")
        file = given.pop("cluster", None)
        try:
            if file is not None:
                from raylaunch.cli.remote import run_far

                run_far(ctx, out, file, given, recipe="name" if takes_recipe else None)
            function(out, **given)
        except RaylaunchError as error:
            if out.verbose:
                import traceback

                out.to_stderr(traceback.format_exc().splitlines())
            out.error(error)
            raise typer.Exit(error.exit_code) from None

    signature = inspect.signature(function, eval_str=True)
    takes_recipe = getattr(signature.parameters.get("name"), "annotation", None) == RecipeName
    kind = inspect.Parameter.KEYWORD_ONLY
    own = [parameter.replace(kind=kind) for parameter in list(signature.parameters.values())[1:]]
    if "address" in signature.parameters:
        own.append(inspect.Parameter("cluster", kind, default=None, annotation=ClusterFile))
    shared = [
        inspect.Parameter("quiet", kind, default=False, annotation=Quiet),
        inspect.Parameter("verbose", kind, default=False, annotation=Verbose),
    ]
    context = inspect.Parameter(
        "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    run.__signature__ = signature.replace(parameters=[context, *own, *shared])  # type: ignore[attr-defined]
    return run


def _output(ctx: typer.Context, *, quiet: bool, verbose: bool, json_errors: bool) -> Output:
    asked = ctx.find_object(Output) or Output()
    out = dataclasses.replace(
        asked, quiet=asked.quiet or quiet, verbose=asked.verbose or verbose, json_errors=json_errors
    )
    if out.verbose:
        import logging

        # The rooms below ask this logger whether Ray may talk.
        logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
        logging.getLogger("raylaunch").setLevel(logging.DEBUG)
    return out
