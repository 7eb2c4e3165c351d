"""Finds the guards of a node by their sockets, and connects to one as its next owner.

A guard outlives its agent, and everything of Ray, for `health.orphan_grace_s`. Its socket is in the
state folder of its user, under a name that the same server of the same start always has.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import cast

from raylaunch.errors import BusyError, NodeError
from raylaunch.node.process.guard import peer_of, short_path
from raylaunch.node.process.process_markers import ATTEMPT, DEPLOYMENT, GROUP, INSTANCE, SERVER

log = logging.getLogger(__name__)

ANSWER_S = 5.0
"""A guard answers in milliseconds; one that was stopped (SIGSTOP) does not answer."""
NAME_CHARS = 24
SUFFIX = ".sock"


class GuardSilentError(NodeError):
    """A guard listens and does not answer: a loaded machine, or a stopped process."""


@dataclass(frozen=True)
class GuardReport:
    """What a guard says of itself and its server. Times in seconds."""

    pid: int
    keeper: int
    marker: Mapping[str, str]
    server_pid: int | None
    log: str
    term_timeout_s: float
    kill_timeout_s: float
    phase: str
    owner: int | None
    """Pid of the agent that owns it; None for an orphan."""
    owner_wait_s: float | None
    """How long an orphan still waits for an owner before it stops its server."""
    notes: Mapping[str, tuple[int, str]] = field(default_factory=dict, repr=False)
    """What the last owners left for the next one: number and data, by name."""
    memo: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What came with the launch, secrets too. Only for an owner."""

    @property
    def deployment(self) -> str:
        """The deployment of its server."""
        return self.marker[DEPLOYMENT]

    @property
    def group(self) -> str:
        """The group of its server."""
        return self.marker.get(GROUP, "")

    @property
    def instance(self) -> str:
        """Id of the start that the server belongs to."""
        return self.marker.get(INSTANCE, "")

    @property
    def attempt(self) -> int:
        """The attempt that its server was launched in."""
        return int(self.marker.get(ATTEMPT, "0"))

    @property
    def server(self) -> int:
        """Index of its server in the plan."""
        return int(self.marker.get(SERVER, "0"))

    @property
    def name(self) -> str:
        """The server, for messages."""
        return f"server {self.server} of {self.deployment}/{self.group}"


def socket_path(home: Path, instance: str, group: str, server: int) -> Path:
    """Return where the guard of a server listens: the same for each attempt, so only one can."""
    name = f"{instance}/{group}/{server}".encode()
    folder = home.absolute() / "guards"
    return folder / (hashlib.sha256(name).hexdigest()[:NAME_CHARS] + SUFFIX)


def find_guards(home: Path, deployment: str | None = None) -> list[GuardReport]:
    """Return the guards that listen in this home, of one deployment or all.

    A socket without a listener is what a killed guard left; the next guard of that name removes it.
    """
    found = []
    for path in sorted((home / "guards").glob(f"*{SUFFIX}")):
        try:
            report = describe(path)
        except NodeError as error:
            log.info("%s", error)
            continue
        if deployment in (None, report.deployment):
            found.append(report)
    return found


def describe(path: Path) -> GuardReport:
    """Ask a guard what it owns, without becoming its owner.

    Raises:
        NodeError: None listens there, or it does not answer.
    """
    with _connect(path) as connection:
        return read_report(_exchange(connection, path, {"do": "describe"}))


def keep_note(path: Path, name: str, number: int, data: str) -> None:
    """Leave a note for the next owner; an older number never replaces a newer one.

    Raises:
        NodeError: No guard listens there, or it does not answer.
    """
    message = {"do": "keep", "name": name, "number": number, "data": data}
    with _connect(path) as connection:
        answer = _exchange(connection, path, message)
    if answer.get("event") != "kept":
        raise NodeError("a guard did not keep a note", why=str(answer.get("error", answer)))


def adopt(path: Path) -> tuple[GuardReport, socket.socket, BufferedReader]:
    """Become the owner of a guard; return its report, the connection, and its events.

    Raises:
        BusyError: It has an owner, or it is stopping its server.
        NodeError: None listens there, or it does not answer.
    """
    connection = _connect(path)
    try:
        events = connection.makefile("rb")
        line = _ask(connection, events, path, {"do": "adopt"})
        report = read_report(line)
        if line.get("event") == "busy":
            raise _busy(report)
        connection.settimeout(None)
    except BaseException:
        connection.close()
        raise
    return report, connection, events


def _busy(report: GuardReport) -> BusyError:
    if report.owner is None:
        return BusyError(
            f"the guard of {report.name} is stopping its server",
            why=f"guard pid {report.pid} is {report.phase}",
            todo="wait until it is gone; `raylaunch status` shows what runs",
        )
    return BusyError(
        f"the guard of {report.name} has an owner",
        why=f"agent pid {report.owner} owns guard pid {report.pid}",
        todo="only one agent can own a guard; this one is not needed while the other lives",
    )


def read_report(line: Mapping[str, object]) -> GuardReport:
    """Read a guard's description of itself.

    Raises:
        NodeError: It is none.
    """
    values = cast("Mapping[str, dict[str, str]]", line)
    facts = cast("dict[str, int]", line)
    try:
        marker = values["marker"]
        notes = cast("dict[str, list[object]]", line["notes"])
        return GuardReport(
            pid=facts["pid"],
            keeper=facts["keeper"],
            marker={**marker, DEPLOYMENT: marker[DEPLOYMENT]},
            server_pid=facts["server_pid"],
            log=str(line["log"]),
            term_timeout_s=float(facts["term_timeout_s"]),
            kill_timeout_s=float(facts["kill_timeout_s"]),
            phase=str(line["phase"]),
            owner=facts["owner"],
            owner_wait_s=facts["owner_wait_s"],
            notes={name: (int(str(note[0])), str(note[1])) for name, note in notes.items()},
            memo=values.get("memo", {}),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise NodeError("a guard's answer cannot be read", why=repr(error)) from error


def _connect(path: Path) -> socket.socket:
    """Connect to a guard's socket.

    Raises:
        NodeError: Nothing listens there, or a process of another user does.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(ANSWER_S)
    try:
        owner = path.lstat()
        if not stat.S_ISSOCK(owner.st_mode):
            raise NodeError(f"{path} is not a socket", todo="remove it")
        with short_path(str(path.parent), path.name) as address:
            connection.connect(address)
        _, uid = peer_of(connection)
        if uid not in (os.geteuid(), 0):
            raise NodeError(
                f"the guard's socket {path} is of another user",
                why=f"user {uid} listens there, and this process is of user {os.geteuid()}",
                todo="set RAYLAUNCH_HOME to a folder of yours",
            )
    except (TimeoutError, BlockingIOError) as error:
        connection.close()
        raise GuardSilentError(
            f"the guard behind {path} does not answer", why=str(error)
        ) from error
    except OSError as error:
        connection.close()
        raise NodeError(f"no guard listens on {path}", why=str(error)) from error
    except NodeError:
        connection.close()
        raise
    return connection


def _exchange(
    connection: socket.socket, path: Path, message: Mapping[str, object]
) -> dict[str, object]:
    with connection.makefile("rb") as answers:
        return _ask(connection, answers, path, message)


def _ask(
    connection: socket.socket, answers: BufferedReader, path: Path, message: Mapping[str, object]
) -> dict[str, object]:
    """Send a message and return the answer.

    Raises:
        NodeError: There is no answer, or it cannot be read.
    """
    try:
        connection.sendall(json.dumps(message).encode() + b"\n")
        line = answers.readline()
    except OSError as error:
        raise GuardSilentError(
            f"the guard behind {path} does not answer", why=str(error)
        ) from error
    if not line:
        raise NodeError(
            f"the guard behind {path} refused the connection",
            why="it closed the connection without an answer",
        )
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise NodeError("a guard's answer cannot be read", why=str(error)) from error
    if not isinstance(answer, dict):
        raise NodeError("a guard's answer cannot be read", why="it is not a JSON object")
    return answer
