"""The command line: `raylaunch VERB`. Wires the verbs; each imports what it needs when it runs.

Exit codes are those of `raylaunch.errors`, 2 for a wrong command line, 130 for Ctrl-C, SIGTERM
and SIGHUP, 1 for a bug.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from types import TracebackType
from typing import Annotated

import typer
from typer.main import get_command

from raylaunch.cli.commands import version
from raylaunch.cli.commands.deployments import (
    bench,
    diagnose,
    drill,
    events,
    keys,
    logs,
    report,
    restart,
    scale,
    start,
    status,
    stop,
    top,
    ui,
    upgrade,
    verify,
)
from raylaunch.cli.commands.hosts import check, clean, cluster, service, tune
from raylaunch.cli.commands.recipes import import_, list_, monitoring, plan, render, show, weights
from raylaunch.cli.options import Quiet, Verbose
from raylaunch.cli.output import Output
from raylaunch.interrupts import signals_as_interrupt

VERBS = (
    list_,
    show,
    plan,
    render,
    import_,
    check,
    tune,
    clean,
    weights,
    start,
    status,
    top,
    ui,
    stop,
    restart,
    scale,
    upgrade,
    keys,
    verify,
    bench,
    logs,
    events,
    diagnose,
    report,
    drill,
    cluster,
    service,
    monitoring,
    version,
)
"""The modules of the verbs, in the order of the help."""

HELP = """Start data-parallel vLLM on a Ray cluster with one command, and keep it up.

\b
  raylaunch list                  which recipes there are
  raylaunch plan a2-dual          what would run where, no cluster needed
  raylaunch start a2-dual         start it and wait until it serves
  raylaunch status a2-dual        its phase and last observations
  raylaunch stop a2-dual          stop it, leaving nothing behind

No NPUs at hand? `raylaunch start local-dual` does the same on this machine's CPU.
"""

EPILOG = """\b
Exit codes tell failures apart (docs/cli.md); -o json gives every result and error as JSON.
NO_COLOR turns colours off; `raylaunch --install-completion` completes recipe names."""

app = typer.Typer(
    name="raylaunch",
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    # Rich's help and tracebacks would double the time of --help.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def program() -> None:
    """Run the program `raylaunch` as a process of its own, and exit."""
    try:
        main()
    except SystemExit as end:
        _leave(end)
        raise


def main() -> None:
    """Run the program `raylaunch` within this process.

    Raises:
        SystemExit: always, with the exit code.
    """
    sys.excepthook = _report_bug
    with signals_as_interrupt():
        get_command(app)(prog_name="raylaunch")


def _leave(end: SystemExit) -> None:
    """Exit without the destructors of Ray's C++ library, if it is loaded.

    Its metrics thread may still run while they free what it uses: SIGSEGV at the exit of a command
    that had succeeded, in `opencensus::stats::DeltaProducer::RunHarvesterLoop` (Ray 2.60, seen once
    in some thousand exits).
    """
    if "ray._raylet" not in sys.modules:
        return
    atexit._run_exitfuncs()  # noqa: SLF001 - `os._exit` skips them
    with contextlib.suppress(OSError, ValueError):  # a reader that has gone, as in `| head`
        sys.stdout.flush()
        sys.stderr.flush()
    code = end.code
    os._exit(code if isinstance(code, int) else int(code is not None))


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version as installed

        Output().line(f"raylaunch {installed('raylaunch')}")
        raise typer.Exit


@app.callback()
def _global(
    ctx: typer.Context,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    del show_version  # handled by its callback
    ctx.obj = Output(quiet=quiet, verbose=verbose)


def _report_bug(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    import traceback

    Output().to_stderr(
        [
            f"this is a bug in raylaunch: {kind.__name__}: {error}",
            *"".join(traceback.format_exception(kind, error, trace)).splitlines(),
            "please report it with the lines above and the output of `raylaunch version`",
        ]
    )


for verb in VERBS:
    verb.add_command(app)
