"""`raylaunch` as the chaos benchmark runs it: one user, one home, one deployment."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import httpx
from chaos_faults import UnexpectedError
from recovery import User

from raylaunch import api
from raylaunch.errors import RaylaunchError
from raylaunch.node.process.process_markers import ANY_INSTANCE, find_marked, terminate_marked
from raylaunch.recipe.group_names import GATEWAY_GROUP
from raylaunch.runtime.cluster.local_cleanup import stop_local
from raylaunch.supervise.deployment_status import Event, Status

BUG = ("Traceback (most recent call last)", "this is a bug in raylaunch")
GONE_S = 20.0


@dataclass(frozen=True)
class Server:
    """What runs in place of vLLM, and how long it may take. All times in seconds.

    Args:
        is_standin: The stand-in of the tests instead of real vLLM.
        ready_s: For a recovery.
        command_s: For a command of raylaunch, a start included.
        settings: Changes to the recipe.
    """

    is_standin: bool
    ready_s: float
    command_s: float
    settings: Mapping[str, object]


SETTINGS = {
    # A round waits for the recovery, not for the back-off.
    "health.max_restarts": 1000,
    "health.backoff_first_s": 0,
    # What else keeps this machine busy is no fault of a round: an agent that gets no CPU for the
    # usual 6 s would be a restart.
    "health.agent_silent_s": 60,
}
STANDIN = Server(
    is_standin=True,
    ready_s=180.0,
    command_s=300.0,
    settings=SETTINGS,
)
VLLM = Server(is_standin=False, ready_s=400.0, command_s=600.0, settings=SETTINGS)


@dataclass(frozen=True)
class Done:
    """A command that has exited."""

    code: int
    text: str


class Product:
    """`raylaunch` for one user with a home, and one deployment of local-dual."""

    def __init__(self, home: Path, server: Server, preload: Mapping[str, str]) -> None:
        self.home = home
        self.name = f"chaos-{secrets.token_hex(3)}"
        self.server = server
        user = User(home, standin=server.is_standin)
        self.user = user
        self._following: ProcessPoolExecutor | None = None
        self.env = {
            variable: value
            for variable, value in user.env.items()
            if not variable.startswith("RAY_")
        } | dict(preload)
        self.port = _free_port()
        settings = {
            "network.http_port": self.port,
            "network.rpc_port": _free_port(),
            **server.settings,
        }
        words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        self.start_words = ("start", "local-dual", "--name", self.name, *words)

    def command(self, *words: str) -> list[str]:
        """Return the command line of `raylaunch` with these words."""
        return [sys.executable, "-m", "raylaunch", *words]

    def run(self, *words: str) -> Done:
        """Run a command; never raises for its exit status.

        Raises:
            UnexpectedError: it hung, or printed a traceback.
        """
        try:
            done = subprocess.run(
                self.command(*words),
                env=self.env,
                capture_output=True,
                text=True,
                check=False,
                timeout=self.server.command_s,
            )
        except subprocess.TimeoutExpired as error:
            raise UnexpectedError(
                f"`{words[0]}` took over {self.server.command_s:.0f} s"
            ) from error
        text = done.stdout + done.stderr
        refuse_bug(words[0], text)
        return Done(done.returncode, text)

    def begin(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Begin a command in a session of its own.

        Under nohup this process ignores SIGHUP, and a child inherits that.
        """
        return subprocess.Popen(
            ["env", "--default-signal=HUP", *command],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def status(self) -> Status | None:
        """Return the status; None while nothing answers."""
        return self._follower().submit(_ask_status, self.name).result()

    def events(self, after: int = 0) -> list[Event]:
        """Return the events after number `after`."""
        return self._follower().submit(_ask_events, self.name, after).result()

    def _follower(self) -> ProcessPoolExecutor:
        """Return a process that stays connected to the cluster.

        A command for each question would take seconds on a small machine. This process cannot be
        the one: Ray reads the cluster's token once, and each cluster has a token of its own.
        """
        if self._following is None:
            os.environ["RAYLAUNCH_HOME"] = str(self.home)
            self._following = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        return self._following

    def unfollow(self) -> None:
        """Disconnect from the cluster."""
        if self._following is not None:
            self._following.shutdown()
            self._following = None

    def processes(self, *, but_attempt: int | None = None) -> list[str]:
        """Return the marked processes of the deployment and of its cluster.

        With `but_attempt` it runs: only the servers of other attempts.
        """
        names = (self.name, f"@{self.name}-")
        found = [one for one in find_marked() if one.deployment.startswith(names)]
        if but_attempt is not None:
            found = [
                one
                for one in found
                if one.deployment == self.name
                and one.group != GATEWAY_GROUP
                and one.attempt != but_attempt
            ]
        return [f"pid {one.pid} {one.command[:60]}" for one in found]

    def records(self) -> list[str]:
        """Return the files that record embedded clusters of this home."""
        return sorted(path.name for path in (self.home / "clusters").glob("*"))

    def answers(self) -> bool:
        """Return whether a client gets a completion."""
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        try:
            return httpx.post(url, json=body, timeout=30, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def remove(self) -> None:
        """Kill whatever is left, by the markers of this deployment and cluster only."""
        self.unfollow()
        stop_local(self.home, self.name)
        markers = {one.deployment for one in find_marked()}
        for marker in markers:
            if marker == self.name or marker.startswith(f"@{self.name}-"):
                terminate_marked(marker, instance=ANY_INSTANCE, grace_s=0)


def _ask_status(name: str) -> Status | None:
    try:
        return api.attach(name).status()
    except RaylaunchError:
        return None


def _ask_events(name: str, after: int) -> list[Event]:
    return api.attach(name).events(after)


def refuse_bug(verb: str, text: str) -> None:
    """Refuse an output that is a traceback.

    Raises:
        UnexpectedError: it is one.
    """
    for sign in BUG:
        if sign in text:
            raise UnexpectedError(f"`{verb}` ended in a traceback: {text[-600:]}")


def require_nothing_left(product: Product) -> None:
    """Wait until no process and no record is left.

    Raises:
        UnexpectedError: something is left.
    """
    deadline = time.monotonic() + GONE_S
    while time.monotonic() < deadline:
        left = [*product.processes(), *product.records()]
        if not left:
            return
        time.sleep(0.2)
    raise UnexpectedError(f"left behind: {left}")


def _free_port() -> int:
    """Return a free port below those that the kernel hands out by itself."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
