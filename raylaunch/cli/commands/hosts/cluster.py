"""The verb `cluster`: a file for `ray up`, and the token that the cluster's hosts share."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.options import RecipeName, Sets
from raylaunch.cli.output import Output
from raylaunch.errors import NodeError

TOKEN_BYTES = 32


def add_command(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        examples="""
        raylaunch cluster a2-dual --head 192.0.2.10 --worker 192.0.2.11 --ssh-user root -o a2.yaml
        raylaunch cluster a2-dual --bare --head 192.0.2.10 --worker 192.0.2.11 --ssh-user r > h.yaml
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
        str, typer.Option("--ssh-user", metavar="USER", help="Login name on every host.")
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
        bool, typer.Option("--bare", help="No container: Ray directly on the hosts.")
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

    Image, devices, mounts and NPU counts are the recipe's; the ports avoid the recipe's ports. The
    cluster requires a token, kept in ~/.raylaunch/cluster/NAME/token: `ray up` copies it to the
    hosts.
    """
    from raylaunch import api

    title, text = api.cluster_file(
        name,
        head=head,
        workers=worker or [],
        ssh_user=ssh_user,
        ssh_key=ssh_key,
        bare=bare,
        cluster_name=cluster_name,
        set=sets or (),
    )
    if file:
        from raylaunch.cli.file_writer import write_files

        write_files(file.parent, {file.name: text}, force=force)
    kept = keep_token(_token_folder(title), token)
    out.note(f"note: the cluster's token is in {kept}")
    out.line(str(file) if file else text.rstrip("\n"))


def keep_token(folder: Path, given: Path | None) -> Path:
    """Return the file of the cluster's token, mode 0600.

    It holds a copy of the given token, the token that is there already, or a new one.

    Raises:
        NodeError: a file cannot be read or written, or the given one is empty.
    """
    kept = folder / "token"
    try:
        text = _read_token(given) if given else _present(kept)
        if not text:
            text = secrets.token_hex(TOKEN_BYTES)
        # rsync keeps the modes: the folder must be closed here to be closed on the hosts.
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        _write_private(kept, text)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a null byte in the path
        raise NodeError("cannot store the cluster's token", why=str(error)) from error
    return kept


def _token_folder(cluster_name: str) -> Path:
    from raylaunch.render.ray_commands import token_folder

    return Path(token_folder(cluster_name)).expanduser()


def _read_token(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise NodeError(f"the token {path} is not a file")
    text = path.read_text(encoding="utf-8").strip()
    if not text:
        raise NodeError(f"the token file {path} is empty")
    return text


def _present(kept: Path) -> str:
    return kept.read_text(encoding="utf-8").strip() if kept.is_file() else ""


def _write_private(path: Path, text: str) -> None:
    """Replace a file by one that other users could not read at any moment."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    draft.replace(path)
