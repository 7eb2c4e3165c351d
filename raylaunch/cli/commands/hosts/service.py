"""The verb `service`: systemd units that bring a deployment back after a reboot."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import Format, JsonOutput, NameOfNew, Sets, refuse_long_path
from raylaunch.cli.output import Output
from raylaunch.errors import NotReadyError

if TYPE_CHECKING:
    from raylaunch.render.host_service import HostService

THIS_HOST = "this-host"
"""Folder of the files for this machine, which has no address among them."""


class Action(StrEnum):
    """What is done with a service."""

    INSTALL = "install"
    STATUS = "status"
    REMOVE = "remove"


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch service install a2-dual --cluster a2.yaml
        raylaunch service install a2-dual --cluster a2.yaml --name prod --print --out units
        raylaunch service install local-dual --local
        raylaunch service status a2-dual --cluster a2.yaml
        raylaunch service remove a2-dual --cluster a2.yaml
        """,
    )(service)


def service(
    out: Output,
    action: Annotated[Action, typer.Argument(metavar="install|status|remove", help="What to do.")],
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            callback=refuse_long_path,
            help="For install a recipe; otherwise the name of the deployment.",
        ),
    ],
    cluster_file: Annotated[
        Path | None,
        typer.Option("--cluster", metavar="FILE", help="The hosts, as a file for `ray up`."),
    ] = None,
    local: Annotated[
        bool,
        typer.Option("--local", help="On this machine, with an embedded Ray cluster."),
    ] = False,
    deployment: NameOfNew = None,
    sets: Sets = None,
    print_only: Annotated[
        bool, typer.Option("--print", help="Write the files only; no host is asked.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="With --print: a folder per host; by default stdout."
        ),
    ] = None,
    output: JsonOutput = Format.TABLE,
) -> None:
    """Have systemd start Ray and a deployment, also after a reboot.

    Each host gets a unit that keeps Ray running, instead of `ray up`; the head also gets one that
    runs `start --follow`. With --local there is the second one alone. The user of the
    SSH connections is root, or may use sudo without a password. `remove` stops the deployment
    before Ray; where Ray stays (--local, another service), the deployment keeps running.
    Exit codes: 0 done, 8 a unit does not run (status), 11 a host refuses, 14 it is not reached.
    """
    from raylaunch import api

    if local == (cluster_file is not None):
        raise typer.BadParameter("give one of them", param_hint="--cluster FILE or --local")
    if folder and not print_only:
        raise typer.BadParameter("only --print writes there", param_hint="--out")
    if action is not Action.INSTALL:
        if deployment or sets or print_only:
            raise typer.BadParameter("only `install` takes --name, --set and --print")
        (_show if action is Action.STATUS else _remove)(out, name, cluster_file, output)
        return
    if not print_only:
        services = api.install_service(
            name, cluster=cluster_file, set=sets or (), deployment=deployment
        )
        _report(out, services, output)
        return
    services = api.service_files(name, cluster=cluster_file, set=sets or (), deployment=deployment)
    if folder:
        _write(out, services, folder)
    else:
        _print(out, services)


def _report(out: Output, services: Sequence[HostService], output: Format) -> None:
    if output is Format.JSON:
        out.json({one.host or THIS_HOST: list(one.units) for one in services})
        return
    for one in services:
        out.line(f"{one.host or THIS_HOST}: {', '.join(one.units)}")


def _show(out: Output, name: str, cluster_file: Path | None, output: Format) -> None:
    from raylaunch import api

    states = api.service_status(name, cluster=cluster_file)
    if output is Format.JSON:
        rows = [
            {"host": host or THIS_HOST, **dataclasses.asdict(one)}
            for host, units in states.items()
            for one in units
        ]
        out.json(rows)
    else:
        for host, units in states.items():
            for one in units:
                enabled = one.enabled or "not installed"
                text = f": {one.text}" if one.text else ""
                restarts = f", {one.restarts} restarts" if one.restarts else ""
                out.line(
                    f"{host or THIS_HOST}  {one.name}  {one.active}, {enabled}{restarts}{text}"
                )
    if not all(one.is_up for units in states.values() for one in units):
        raise typer.Exit(NotReadyError.exit_code)


def _remove(out: Output, name: str, cluster_file: Path | None, output: Format) -> None:
    from raylaunch import api

    removed = api.remove_service(name, cluster=cluster_file, on_note=out.note)
    if output is Format.JSON:
        out.json({"removed": removed})
    else:
        out.lines([f"removed {unit}" for unit in removed])


def _print(out: Output, services: Sequence[HostService]) -> None:
    for one in services:
        for file in one.files:
            out.line(f"# ---- {one.host or THIS_HOST}:{file.path} (mode {file.mode:04o})")
            out.line(file.text)


def _write(out: Output, services: Sequence[HostService], folder: Path) -> None:
    from raylaunch.cli.file_writer import write_files

    texts = {
        f"{one.host or THIS_HOST}{file.path}": file.text for one in services for file in one.files
    }
    for path in write_files(folder, texts):
        out.line(str(path))
