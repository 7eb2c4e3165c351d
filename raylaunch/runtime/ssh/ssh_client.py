"""The near side of `--cluster`: this raylaunch, run on the head of a cluster that `ray up` started.

Over SSH with the options of Ray's own launcher, in the login shell and container that `ray up` uses, but not through
`ray exec`, which asks for a terminal: with Ray 2.60 it writes its log and the far side's stderr to stdout, ends with 1
whatever the command's exit code, and works only where `ray up` was run, since the last reboot (its state is in /tmp).
Ray's job API would need the dashboard, keeps a job's environment where every job can read it, makes one stream of
stdout and stderr, and ends with 1 for every failure. Here all goes through stdin, secrets too, to ssh_bootstrap.py.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from raylaunch.errors import ClusterFileError, HeadError, from_dict
from raylaunch.recipe.catalog import configs_dir
from raylaunch.recipe.cluster_yaml import GIVEN, ClusterFile, read_cluster_file
from raylaunch.runtime.ssh import ssh_bootstrap

CONNECT_S = 10
BEGIN_S = 90.0
"""From the start of ssh until raylaunch runs on the head; a second or two when all is well."""
NEEDED = (
    "ray",
    "yaml",
    "pydantic",
    "typer",
    "rich",
    "httpx",
    "openai",
    "psutil",
    "prometheus_client",
)
"""What raylaunch imports. vLLM brings all but Ray, so nothing is installed on the head for raylaunch's sake."""
LOST = 255
"""With this ssh itself fails; raylaunch never does."""
INTERRUPTED = 130
CHUNK = 65536
BEAT_S = 10.0
"""How often the far side hears that this one is there; it gives up after errand.PATIENCE_S."""

LOGIN = """\
source ~/.bashrc;
program=$(command -v ray) || { echo "no program named ray is in the PATH of a login shell" >&2; exit 127; };
read -r first < "$program"; python=${first#??}; case $python in */python*) ;; *) python=python3;; esac;
exec $python -c 'import os; near = os.fdopen(os.dup(0), "rb"); exec(near.read(int(near.readline())))' <&3"""
"""Finds the Python that Ray's own program runs in, and has it run what arrives; 3 keeps that from the login scripts."""


def run_on_head(
    file: Path, words: Sequence[str], given: Mapping[str, Path], env: Mapping[str, str]
) -> int:
    """Run a command line of raylaunch on a cluster's head, stdout and stderr passed on as they are.

    The first Ctrl-C is passed on too; at a second one nobody waits for the far side's answer.

    Args:
        file: The cluster's file for `ray up`.
        words: The command line; GIVEN in a word stands for the folder with the files of `given`.
        given: Files to bring along, by their path below that folder.
        env: Variables to set there. Their values are on no command line.

    Returns:
        The exit code of the far side; 130 when Ctrl-C came before it began.

    Raises:
        ClusterFileError: the file is missing or not one for `ray up`.
        HeadError: the head cannot be reached or cannot run raylaunch, or the connection was lost.
        ClusterError: Ray does not run there.
    """
    cluster = _read(file)
    mark = secrets.token_hex(16)
    order = {"mark": mark, "words": [word.replace(GIVEN, mark) for word in words], "env": dict(env)}
    load = _load({**order, "needs": NEEDED, "file": str(file)}, _zip(given))
    with _ssh(cluster) as process:
        errand_run = _Errand(process, mark, file, cluster)
        with _sending(process, load), _on_interrupt(errand_run):
            return errand_run.follow()


def ssh_command(cluster: ClusterFile) -> list[str]:
    """The command that runs the errand on the head, as the user and in the container of the cluster's file."""
    from ray.autoscaler._private.command_runner import SSHOptions

    options = SSHOptions(cluster.key, None, ProxyCommand=cluster.proxy, BatchMode="yes")
    inner = f"exec bash --login -c -i {shlex.quote(LOGIN)} 3<&0 </dev/null"
    if cluster.container:
        inner = f"exec {cluster.docker} exec -i {shlex.quote(cluster.container)} bash -c {shlex.quote(inner)}"
    where = f"{cluster.user}@{cluster.outer_ip or cluster.head_ip}"
    return ["ssh", *options.to_ssh_options_list(timeout=CONNECT_S), where, inner]


class _Errand:
    """The dialogue with the far side."""

    def __init__(
        self, process: subprocess.Popen[bytes], mark: str, file: Path, cluster: ClusterFile
    ) -> None:
        self._process = process
        self._file = file
        self._cluster = cluster
        self._out = _Gate(mark.encode() + b" ", sys.stdout)
        self._err = _Gate(mark.encode() + b"\n", sys.stderr)
        self._begun = False
        self._interrupts = 0

    def follow(self) -> int:
        """Pass on what the far side says, until it ends."""
        deadline = time.monotonic() + BEGIN_S
        with selectors.DefaultSelector() as selector:
            for pipe, gate in (
                (self._process.stdout, self._out),
                (self._process.stderr, self._err),
            ):
                assert pipe is not None
                selector.register(pipe, selectors.EVENT_READ, gate)
            while selector.get_map():
                ready = selector.select(
                    None if self._begun else max(0.0, deadline - time.monotonic())
                )
                if not ready and not self._begun and time.monotonic() >= deadline:
                    raise self._silent()
                for key, _ in ready:
                    self._pass_on(selector, key)
        return self._judge(self._process.wait())

    def interrupt(self) -> None:
        """Ctrl-C: the end of its stdin tells the far side; one that has not begun, or does not listen, is left."""
        self._interrupts += 1
        if self._begun and self._interrupts == 1:
            assert self._process.stdin is not None
            self._process.stdin.close()
        else:
            self._process.terminate()

    def _pass_on(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        chunk = os.read(key.fd, CHUNK)
        if not chunk:
            selector.unregister(key.fileobj)
            return
        key.data.take(chunk)
        if not self._begun and self._out.is_open:
            self._begun = True
            if problem := json.loads(self._out.first_line):
                raise from_dict(problem)

    def _judge(self, code: int) -> int:
        if self._interrupts and (not self._begun or code < 0):
            return INTERRUPTED
        if not self._begun:
            raise self._refused(code)
        if code == LOST or code < 0:
            raise HeadError(
                f"the connection to the head {self._cluster.head_ip} was lost",
                why="a deployment goes on without this command, and so does a start",
                todo=f"`raylaunch status --cluster {self._file}` shows what runs",
            )
        return code

    def _refused(self, code: int) -> HeadError:
        ssh = shlex.join(ssh_command(self._cluster)[:-1])
        if code == LOST:
            what, todo = (
                f"the head {self._cluster.head_ip} cannot be reached over SSH",
                f"mend what `{ssh} true` says",
            )
        else:
            place = (
                f"container {self._cluster.container} on the head"
                if self._cluster.container
                else "head"
            )
            what = (
                f"raylaunch cannot be run in the {place} {self._cluster.head_ip} (exit code {code})"
            )
            todo = f"`ray up -y {self._file}` prepares it; `ray attach {self._file}` shows how a shell there begins"
        return HeadError(what, evidence=self._said(), todo=todo)

    def _silent(self) -> HeadError:
        return HeadError(
            f"the head {self._cluster.head_ip} did not begin within {BEGIN_S:.0f} s",
            evidence=self._said(),
            todo=f"`ray attach {self._file}` shows how a shell there begins: nothing in it may wait for an answer",
        )

    def _said(self) -> str:
        noise = (
            "cannot set terminal process group",
            "no job control in this shell",
            "Permanently added",
        )
        text = (self._out.held + b"\n" + self._err.held).decode(errors="replace")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        return "\n".join([line for line in lines if not any(part in line for part in noise)][-10:])


class _Gate:
    """A stream of the far side: what comes before the mark is the login shell's, and kept; the rest is passed on."""

    def __init__(self, mark: bytes, target: TextIO) -> None:
        self._mark = b"\n" + mark
        self._target = target.buffer
        self.held = b""
        self.first_line = b""
        self.is_open = False

    def take(self, chunk: bytes) -> None:
        if not self.is_open:
            self.held += chunk
            before, mark, after = self.held.partition(self._mark)
            if not mark or (self._mark.endswith(b" ") and b"\n" not in after):
                return
            self.is_open, self.held = True, before
            if self._mark.endswith(b" "):
                self.first_line, _, after = after.partition(b"\n")
            chunk = after
        self._target.write(chunk)
        self._target.flush()


def _read(file: Path) -> ClusterFile:
    try:
        text = file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterFileError(
            f"the cluster's file {file} cannot be read",
            why=str(error),
            todo="give the file with which `ray up` started the cluster",
        ) from error
    return read_cluster_file(text, str(file))


def _zip(given: Mapping[str, Path]) -> bytes:
    """Pack this raylaunch with its recipes, and the files that are brought along."""
    package = Path(__file__).resolve().parents[2]
    files = {f"raylaunch/{path.relative_to(package)}": path for path in _files(package)}
    files |= {
        f"raylaunch/configs/{path.relative_to(configs_dir())}": path
        for path in _files(configs_dir())
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for name, path in {**files, **given}.items():
            archive.write(path, name)
    return packed.getvalue()


def _files(folder: Path) -> list[Path]:
    return [
        path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]


def _load(order: Mapping[str, object], package: bytes) -> bytes:
    source = Path(ssh_bootstrap.__file__).read_bytes() + b"\nmain(near)\n"
    line = json.dumps({**order, "size": len(package)}).encode()
    return b"%d\n" % len(source) + source + line + b"\n" + package


@contextlib.contextmanager
def _ssh(cluster: ClusterFile) -> Iterator[subprocess.Popen[bytes]]:
    """The ssh process, in a session of its own: Ctrl-C is passed on, not shared."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            ssh_command(cluster),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            bufsize=0,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise HeadError("this machine has no ssh", todo="install an OpenSSH client") from error
    with process:
        try:
            yield process
        finally:
            process.terminate()


@contextlib.contextmanager
def _sending(process: subprocess.Popen[bytes], load: bytes) -> Iterator[None]:
    ended = threading.Event()
    threading.Thread(target=_send, args=(process, load, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _send(process: subprocess.Popen[bytes], load: bytes, ended: threading.Event) -> None:
    """Write all of it, then signs of life until the end. Whether it arrived shows in what comes back."""
    assert process.stdin is not None
    left = memoryview(load)
    with contextlib.suppress(
        OSError, ValueError
    ):  # the far side has ended, or its stdin was closed for a Ctrl-C
        while left:
            left = left[process.stdin.write(left) or 0 :]
        while not ended.wait(BEAT_S):
            process.stdin.write(b".")


@contextlib.contextmanager
def _on_interrupt(running: _Errand) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, lambda *_: running.interrupt())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
