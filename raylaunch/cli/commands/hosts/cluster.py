"""The verb that writes a file for `ray up`, and the token that the cluster's hosts share."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from raylaunch.cli.command import RecipeName, Sets, command
from raylaunch.cli.output import Output
from raylaunch.errors import NodeError

TOKEN_BYTES = 32


def add_commands(app: typer.Typer) -> None:
    """Register the verbs of this module."""
    command(
        app,
        examples="""
        raylaunch cluster a2-dual --head 192.0.2.10 --worker 192.0.2.11 --ssh-user root --ssh-key ~/.ssh/key -o a2.yaml
        raylaunch cluster a2-dual --bare --head 192.0.2.10 --worker 192.0.2.11 --ssh-user ray > hosts.yaml
        ray up -y a2.yaml
        """,
    )(cluster)


def cluster(
    out: Output,
    name: RecipeName,
    head: Annotated[
        str, typer.Option("--head", metavar="IP", help="Address of the host that runs Ray's head.")
    ],
    ssh_user: Annotated[
        str, typer.Option("--ssh-user", metavar="USER", help="Who logs in on every host.")
    ],
    worker: Annotated[
        list[str] | None,
        typer.Option("--worker", metavar="IP", help="Address of a further host; may be repeated."),
    ] = None,
    ssh_key: Annotated[
        str | None,
        typer.Option(
            "--ssh-key",
            metavar="FILE",
            help="That user's private key; the head gets it too, for the workers.",
        ),
    ] = None,
    bare: Annotated[
        bool, typer.Option("--bare", help="No container: Ray straight on the hosts.")
    ] = False,
    cluster_name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Name of the cluster; by default the recipe's."
        ),
    ] = None,
    token: Annotated[
        Path | None,
        typer.Option(
            "--token",
            metavar="FILE",
            help="A token to use; by default one is made, once per cluster name.",
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="File to write; by default stdout."),
    ] = None,
    sets: Sets = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a file that raylaunch did not write.")
    ] = False,
) -> None:
    """Write a file with which `ray up` starts Ray on your hosts.

    Image, devices, mounts and NPU counts are the recipe's; ports keep clear of its ports. The cluster asks for a token,
    kept in ~/.raylaunch/cluster/NAME/token: `ray up` brings it to the hosts.
    """
    from raylaunch.recipe.catalog import read
    from raylaunch.render.ray_cluster import render_cluster, token_folder

    loaded = read(name, sets or [])
    text = render_cluster(
        loaded,
        head=head,
        workers=worker or [],
        ssh_user=ssh_user,
        ssh_key=ssh_key,
        bare=bare,
        name=cluster_name,
        asked=[name, *(word for each in sets or [] for word in ("--set", each))],
    )
    if file:
        from raylaunch.cli.file_writer import write_files

        write_files(file.parent, {file.name: text}, force=force)
    kept = keep_token(Path(token_folder(cluster_name or loaded.name)).expanduser(), token)
    out.note(f"note: the cluster's token is in {kept}")
    out.line(str(file) if file else text.rstrip("\n"))


def keep_token(folder: Path, given: Path | None) -> Path:
    """Return the file of the cluster's token: the given one copied, the one that is there, or a new one; mode 0600.

    Raises:
        NodeError: a file cannot be read or written, or the given one is empty.
    """
    kept = folder / "token"
    try:
        text = (
            given.read_text(encoding="utf-8").strip()
            if given
            else _present(kept) or secrets.token_hex(TOKEN_BYTES)
        )
        if not text:
            raise NodeError(f"the token file {given} is empty")
        # rsync takes the modes along: the folder must be closed here to be closed on the hosts.
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        _write_closed(kept, text)
    except (OSError, UnicodeDecodeError) as error:
        raise NodeError("the cluster's token cannot be kept", why=str(error)) from error
    return kept


def _present(kept: Path) -> str:
    return kept.read_text(encoding="utf-8").strip() if kept.is_file() else ""


def _write_closed(path: Path, text: str) -> None:
    """Replace a file by one that was never readable for others."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(
        os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as stream:
        stream.write(text)
    draft.replace(path)
