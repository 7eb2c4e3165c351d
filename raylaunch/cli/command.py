"""Registers a function as a command: shared options, examples in the help, errors as exit codes."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import typer

from raylaunch.cli.options import ClusterFile, Quiet, RecipeName, Verbose
from raylaunch.cli.output import Output
from raylaunch.errors import RaylaunchError

INTERRUPTED = 130
"""Exit code that a shell reports for a program stopped by Ctrl-C: 128 + SIGINT."""


def command(
    app: typer.Typer, *, examples: str, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function `(out: Output, ...)` as a command of `app`.

    The command also accepts -q and -v behind its name, and --cluster if it has --address.
    Its help ends with `examples`. A RaylaunchError is printed as a block on stderr and becomes
    the exit code of its class.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        lines = [f"  {line}" for line in inspect.cleandoc(examples).splitlines()]
        # \b keeps the help formatter from re-wrapping the examples.
        epilog = "\n".join(["\b", "Examples:", *lines])
        app.command(name, epilog=epilog)(_guarded(function))
        return function

    return register


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(function, eval_str=True)
    name_parameter = signature.parameters.get("name")
    takes_recipe = name_parameter is not None and name_parameter.annotation == RecipeName

    @functools.wraps(function)
    def run(
        ctx: typer.Context,
        *,
        quiet: bool,
        verbose: int,
        **given: Any,  # noqa: ANN401 - whatever typer has parsed
    ) -> None:
        json_errors = given.get("output") == "json"
        out = _output(ctx, quiet=quiet, verbose=verbose, json_errors=json_errors)
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

    run.__signature__ = _with_shared_options(signature)  # type: ignore[attr-defined]
    return run


def _with_shared_options(signature: inspect.Signature) -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    without_out = list(signature.parameters.values())[1:]
    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    ]
    parameters.extend(parameter.replace(kind=keyword) for parameter in without_out)
    if "address" in signature.parameters:
        cluster = inspect.Parameter("cluster", keyword, default=None, annotation=ClusterFile)
        parameters.append(cluster)
    parameters.append(inspect.Parameter("quiet", keyword, default=False, annotation=Quiet))
    parameters.append(inspect.Parameter("verbose", keyword, default=0, annotation=Verbose))
    return signature.replace(parameters=parameters)


def _output(ctx: typer.Context, *, quiet: bool, verbose: int, json_errors: bool) -> Output:
    """Combine the options before the verb with those behind it."""
    before_verb = ctx.find_object(Output) or Output()
    out = dataclasses.replace(
        before_verb,
        quiet=before_verb.quiet or quiet,
        verbose=before_verb.verbose + verbose,
        json_errors=json_errors,
    )
    if out.verbose:
        from raylaunch.cli.driver_log import log_to_stderr

        log_to_stderr(out.verbose)
    return out
