"""The client side of `--cluster`: runs this raylaunch on the head of a cluster of `ray up`.

It uses SSH with the options of Ray's own launcher, in the login shell and container that `ray up`
uses. It does not use `ray exec`, which asks for a terminal: with Ray 2.60 that writes its log and
the remote stderr to stdout, exits with 1 whatever the command's exit status, and works only where
`ray up` was run, since the last reboot (its state is in /tmp). Ray's job API would need the
dashboard, keeps a job's environment where every job can read it, merges stdout and stderr, and
exits with 1 for every failure. Here everything goes through stdin, secrets too, to
ssh_bootstrap.py.

Unlike Ray's launcher it compares host keys: the secrets of a recipe go to the host that answers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from raylaunch.errors import ClusterFileError, HeadError, from_dict
from raylaunch.recipe.cluster_yaml import GIVEN, ClusterFile, open_cluster_file
from raylaunch.runtime.ssh.ssh_message import pack_message

log = logging.getLogger(__name__)

CONNECT_S = 10
BEGIN_S = 90.0
"""From the start of ssh until raylaunch runs on the head; normally a second or two."""
REQUIRED_MODULES = (
    "ray",
    "yaml",
    "pydantic",
    "typer",
    "rich",
    "aiohttp",
    "httpx",
    "openai",
    "psutil",
    "prometheus_client",
)
"""What raylaunch imports. vLLM brings all but Ray, so raylaunch installs nothing on the head."""
SSH_FAILED = 255
"""Exit status of ssh when ssh itself fails; raylaunch never exits with it."""
INTERRUPTED = 130
CHUNK = 65536
HEARTBEAT_S = 10.0
"""Interval of the client's heartbeats; the head waits ssh_bootstrap.CLIENT_SILENCE_S for one."""
SHELL_NOISE = (
    "cannot set terminal process group",
    "no job control in this shell",
    "Permanently added",
)
"""Lines that every login over SSH may print; they explain no failure."""
HOST_KEY_CHANGED = "Host key verification failed"

LOGIN = """\
source ~/.bashrc;
program=$(command -v ray) ||
{ echo "no program named ray is in the PATH of a login shell" >&2; exit 127; };
read -r first < "$program"; python=${first#??};
case $python in */python*) ;; *) python=python3;; esac;
exec $python -c '
import os
sent = os.fdopen(os.dup(0), "rb")
exec(sent.read(int(sent.readline())))' <&3"""
"""Finds the Python that Ray's own program uses, and has it run what is sent.

Descriptor 3 keeps what is sent from the login scripts.
"""


def run_on_head(
    file: Path, words: Sequence[str], given: Mapping[str, Path], env: Mapping[str, str]
) -> int:
    """Run a command line of raylaunch on a cluster's head.

    Its stdout and stderr are passed on unchanged.
    The first Ctrl-C is passed on too. After a second one the answer of the head is not awaited.

    Args:
        file: The cluster's file for `ray up`.
        words: The command line; GIVEN in a word stands for the folder with the files of `given`.
        given: Files to send along, by their path below that folder.
        env: Variables to set there. Their values are on no command line.

    Returns:
        The exit status of the remote command; 130 when Ctrl-C came before it began.

    Raises:
        ClusterFileError: the file is missing or not one for `ray up`.
        HeadError: the head cannot be reached or cannot run raylaunch, or the connection was lost.
        ClusterError: Ray does not run there.
    """
    cluster = open_cluster_file(file, "give the file with which `ray up` started the cluster")
    mark = secrets.token_hex(16)
    request = {
        "mark": mark,
        "words": [word.replace(GIVEN, mark) for word in words],
        "env": dict(env),
        "needs": REQUIRED_MODULES,
        "file": str(file),
    }
    message = pack_message(request, given)
    log.info("running `raylaunch %s` on %s over SSH", shlex.join(words), cluster.head_ip)
    with _ssh(cluster) as process:
        command = _RemoteCommand(process, mark, file, cluster)
        with _sending(process, message), _on_interrupt(command):
            return command.follow()


def ssh_command(cluster: ClusterFile) -> list[str]:
    """Return the ssh command line, for the user and the container of the cluster's file.

    Host keys are compared with ~/.ssh/known_hosts. An unknown one is added (accept-new): `ray up`
    has added none, because it compares none, so refusing it would refuse every first command. A key
    that has changed is refused.

    Raises:
        ClusterFileError: the user or host would be read as an option of ssh or docker.
    """
    _refuse_options(cluster.container)
    inner = f"exec bash --login -c -i {shlex.quote(LOGIN)} 3<&0 </dev/null"
    if cluster.container:
        enter = f"exec {cluster.docker} exec -i {shlex.quote(cluster.container)}"
        inner = f"{enter} bash -c {shlex.quote(inner)}"
    return [*ssh_words(cluster, cluster.outer_ip or cluster.head_ip), inner]


def ssh_words(cluster: ClusterFile, host: str) -> list[str]:
    """Return the ssh command line for a host of the cluster, up to what is to run there.

    Raises:
        ClusterFileError: the user or host would be read as an option of ssh.
    """
    from ray.autoscaler._private.command_runner import SSHOptions

    options = SSHOptions(
        cluster.key,
        None,
        ProxyCommand=cluster.proxy,
        BatchMode="yes",
        StrictHostKeyChecking="accept-new",
        UserKnownHostsFile=None,  # instead of Ray's /dev/null: ssh's own files
    )
    _refuse_options(cluster.user, host)
    words = options.to_ssh_options_list(timeout=CONNECT_S)
    return ["ssh", *words, "--", f"{cluster.user}@{host}"]


class _RemoteCommand:
    """The dialogue with the command that runs on the head."""

    def __init__(
        self, process: subprocess.Popen[bytes], mark: str, file: Path, cluster: ClusterFile
    ) -> None:
        self._process = process
        self._file = file
        self._cluster = cluster
        self._out = _Gate(mark.encode() + b" ", sys.stdout)
        self._err = _Gate(mark.encode() + b"\n", sys.stderr)
        self._has_begun = False
        self._interrupts = 0

    def follow(self) -> int:
        """Pass on what the command prints until it exits; returns its exit status."""
        deadline = time.monotonic() + BEGIN_S
        with selectors.DefaultSelector() as selector:
            for pipe, gate in (
                (self._process.stdout, self._out),
                (self._process.stderr, self._err),
            ):
                assert pipe is not None
                selector.register(pipe, selectors.EVENT_READ, gate)
            while selector.get_map():
                left_s = max(0.0, deadline - time.monotonic())
                ready = selector.select(None if self._has_begun else left_s)
                if not ready and not self._has_begun and time.monotonic() >= deadline:
                    raise self._not_begun_in_time()
                for key, _ in ready:
                    self._pass_on(selector, key)
        return self._judge(self._process.wait())

    def interrupt(self) -> None:
        """Pass Ctrl-C on by closing the command's stdin; one that has not begun is abandoned."""
        self._interrupts += 1
        if self._has_begun and self._interrupts == 1:
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
        if not self._has_begun and self._out.is_open:
            self._has_begun = True
            problem = json.loads(self._out.first_line)
            if problem:
                raise from_dict(problem)

    def _judge(self, code: int) -> int:
        if self._interrupts and (not self._has_begun or code < 0):
            return INTERRUPTED
        if not self._has_begun:
            raise self._explain_failure(code)
        if code == SSH_FAILED or code < 0:
            raise HeadError(
                f"the connection to the head {self._cluster.head_ip} was lost",
                why="a deployment does not depend on this command, and neither does a start",
                todo=f"`raylaunch status --cluster {self._file}` shows what runs",
            )
        return code

    def _explain_failure(self, code: int) -> HeadError:
        printed = self._printed_before()
        if code != SSH_FAILED:
            return self._cannot_run(code, printed)
        ssh = shlex.join(ssh_command(self._cluster)[:-1])
        if HOST_KEY_CHANGED in printed:
            return HeadError(
                f"the host key of {self._cluster.head_ip} is not the one that it had before",
                why="the host was installed again, or another one answers in its place; nothing "
                "was sent to it",
                evidence=printed,
                todo="compare the key with that of the host; if it is right, remove the old one "
                f"with `ssh-keygen -R {self._cluster.outer_ip or self._cluster.head_ip}`",
            )
        return HeadError(
            f"the head {self._cluster.head_ip} cannot be reached over SSH",
            evidence=printed,
            todo=f"fix what `{ssh} true` reports",
        )

    def _cannot_run(self, code: int, printed: str) -> HeadError:
        place = "head"
        if self._cluster.container:
            place = f"container {self._cluster.container} on the head"
        return HeadError(
            f"raylaunch cannot be run in the {place} {self._cluster.head_ip} (exit code {code})",
            evidence=printed,
            todo=f"`ray up -y {self._file}` prepares it; `ray attach {self._file}` shows how a "
            "shell there begins",
        )

    def _not_begun_in_time(self) -> HeadError:
        return HeadError(
            f"the head {self._cluster.head_ip} did not begin within {BEGIN_S:.0f} s",
            evidence=self._printed_before(),
            todo=f"`ray attach {self._file}` shows how a shell there begins: nothing in it may "
            "wait for an answer",
        )

    def _printed_before(self) -> str:
        """Return the last lines that ssh and the login shell printed."""
        text = (self._out.held + b"\n" + self._err.held).decode(errors="replace")
        lines = []
        for line in text.splitlines():
            is_noise = any(part in line for part in SHELL_NOISE)
            if line.strip() and not is_noise:
                lines.append(line.rstrip())
        return "\n".join(lines[-10:])


class _Gate:
    """A remote stream. What precedes the mark comes from the login shell and is held back."""

    def __init__(self, mark: bytes, target: TextIO) -> None:
        self._mark = b"\n" + mark
        # On stdout the rest of the mark's line is JSON: a problem, or null.
        self._has_line = mark.endswith(b" ")
        self._target = target.buffer
        self.held = b""
        self.first_line = b""
        self.is_open = False

    def take(self, chunk: bytes) -> None:
        """Hold `chunk`, or pass it on when the mark has come."""
        if self.is_open:
            self._write(chunk)
            return
        self.held += chunk
        before, mark, after = self.held.partition(self._mark)
        if not mark or (self._has_line and b"\n" not in after):
            return
        self.is_open = True
        self.held = before
        if self._has_line:
            self.first_line, _, after = after.partition(b"\n")
        self._write(after)

    def _write(self, chunk: bytes) -> None:
        self._target.write(chunk)
        self._target.flush()


def _refuse_options(*names: str | None) -> None:
    """Refuse a name that ssh, docker or a shell on the way would not read as a name."""
    for name in names:
        if name is not None and (name.startswith("-") or not name.isprintable() or " " in name):
            raise ClusterFileError(
                f"{name!r} in the cluster's file is not the name of a user, host or container",
                why="ssh would read it as an option",
                todo="correct auth.ssh_user, provider.head_ip, provider.external_head_ip or "
                "docker.container_name",
            )


@contextlib.contextmanager
def _ssh(cluster: ClusterFile) -> Iterator[subprocess.Popen[bytes]]:
    """Run ssh in a session of its own: Ctrl-C is passed on, not shared."""
    try:
        process = subprocess.Popen(
            ssh_command(cluster),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
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
def _sending(process: subprocess.Popen[bytes], message: bytes) -> Iterator[None]:
    finished = threading.Event()
    threading.Thread(target=_send, args=(process, message, finished), daemon=True).start()
    try:
        yield
    finally:
        finished.set()


def _send(process: subprocess.Popen[bytes], message: bytes, finished: threading.Event) -> None:
    """Write all of it, then heartbeats. Whether it arrived shows in what comes back."""
    assert process.stdin is not None
    left = memoryview(message)
    # The remote command has exited, or its stdin was closed for a Ctrl-C.
    with contextlib.suppress(OSError, ValueError):
        while left:
            left = left[process.stdin.write(left) or 0 :]
        while not finished.wait(HEARTBEAT_S):
            process.stdin.write(b".")


@contextlib.contextmanager
def _on_interrupt(command: _RemoteCommand) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, lambda *_: command.interrupt())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
