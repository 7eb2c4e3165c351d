"""The actions of a page: each is a command of raylaunch, run as a process of its own.

So an action does what the same command does in a terminal, and the page can show which one it is.
A command that stops an embedded cluster leaves the connection of this process to Ray alone.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from raylaunch.deployment.names import is_target
from raylaunch.errors import BusyError, RecipeError
from raylaunch.page.page_model import encode_value
from raylaunch.supervise.drills import FAULTS, ON_REQUEST

PROGRAM = (sys.executable, "-P", "-m", "raylaunch")
"""-P: a folder `raylaunch` in the working directory is not the program."""
KEPT_CHARS = 4000
READ_BYTES = 4096

STOP = "stop"
RESTART = "restart"
DRILL = "drill"


@dataclass(frozen=True)
class ActionRequest:
    """What a browser asks for."""

    action: str
    confirm: str
    """The name of the deployment, as the user has typed it."""
    group: str = ""
    """Only this group; "" for the whole deployment."""
    fault: str = ""
    """Of a drill."""


@dataclass(frozen=True)
class ActionRun:
    """One action: its command, and what came out."""

    command: str
    began_at: float
    """Seconds since the epoch."""
    exit_code: int | None = None
    """None while it runs."""
    output: str = ""
    """The end of stdout and stderr."""


@dataclass(frozen=True)
class _FaultView:
    name: str
    what: str


@dataclass(frozen=True)
class _ActionsView:
    """The part "actions" of the page."""

    names: tuple[str, ...]
    faults: tuple[_FaultView, ...]
    run: ActionRun | None


class PageActions:
    """Runs the actions of a page, one at a time.

    Args:
        title: The deployment, or NAME/GROUP: then nothing beyond that group is touched.
        address: Ray cluster, as for `attach`.
        environ: Of the commands.
        program: The words before the verb.
    """

    def __init__(
        self,
        title: str,
        address: str | None,
        environ: Mapping[str, str],
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._name, _, self._group = title.partition("/")
        self._address = address
        self._environ = {**environ, "PYTHONPATH": _search_path(environ)}
        self._program = program
        self._run: ActionRun | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What can be asked for."""
        return (RESTART, DRILL) if self._group else (RESTART, DRILL, STOP)

    @property
    def running(self) -> str:
        """The command that runs; "" when none does."""
        if self._run is None or self._run.exit_code is not None:
            return ""
        return self._run.command

    def encode(self, secrets: Collection[str]) -> str:
        """Return the part "actions" of the page as JSON."""
        view = _ActionsView(self.names, _offered_faults(), self._run)
        return encode_value(asdict(view), secrets)

    def start(self, request: ActionRequest, on_change: Callable[[], None]) -> None:
        """Start an action.

        Args:
            request: What is asked for.
            on_change: Called when `encode` returns something else.

        Raises:
            RecipeError: there is no such action, or it was not confirmed.
            BusyError: another one runs.
        """
        words = self._words(request)
        if self.running:
            raise BusyError(f"`{self.running}` runs", todo="wait until it has exited")
        command = " ".join(("raylaunch", *words))
        self._run = ActionRun(command, time.time())
        self._task = asyncio.create_task(self._execute(words, on_change))
        on_change()

    async def finish(self) -> None:
        """Wait until the action that runs has exited."""
        if self._task is not None:
            await asyncio.shield(self._task)

    def _words(self, request: ActionRequest) -> tuple[str, ...]:
        """Return the command line of a request, without the program."""
        if request.action not in self.names:
            raise RecipeError(f"there is no action {request.action!r} on this page")
        if request.confirm != self._name:
            raise RecipeError(
                f"{request.action} was not confirmed",
                todo=f"type {self._name}, the name of the deployment",
            )
        words = [request.action, self._target(request)]
        if request.action == DRILL:
            if request.fault not in {fault.name for fault in _offered_faults()}:
                raise RecipeError(f"there is no fault {request.fault!r} on this page")
            words += ["--fault", request.fault, "--yes"]
        if self._address is not None:
            words += ["--address", self._address]
        return tuple(words)

    def _target(self, request: ActionRequest) -> str:
        group = request.group or self._group
        if self._group and group != self._group:
            raise RecipeError(f"this page is about the group {self._group} alone")
        if not group:
            return self._name
        target = f"{self._name}/{group}"
        if request.action == STOP or not is_target(target):
            raise RecipeError(f"{request.action} cannot be about the group {group!r}")
        return target

    async def _execute(self, words: Sequence[str], on_change: Callable[[], None]) -> None:
        """Run the command, and take its output as it comes."""
        assert self._run is not None
        try:
            process = await asyncio.create_subprocess_exec(
                *self._program,
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=self._environ,
                # Ctrl-C stops the page. A stop that is half done would leave servers behind.
                start_new_session=True,
            )
        except OSError as error:
            self._run = replace(self._run, exit_code=1, output=f"cannot be run: {error}")
            on_change()
            return
        assert process.stdout is not None
        output = b""
        while piece := await process.stdout.read(READ_BYTES):
            output = (output + piece)[-KEPT_CHARS:]
            self._run = replace(self._run, output=output.decode(errors="replace"))
            on_change()
        self._run = replace(self._run, exit_code=await process.wait())
        on_change()


def _offered_faults() -> tuple[_FaultView, ...]:
    """Return the faults that affect nothing but the deployment."""
    return tuple(
        _FaultView(fault.name, fault.what) for fault in FAULTS if fault.name not in ON_REQUEST
    )


def _search_path(environ: Mapping[str, str]) -> str:
    """Return a PYTHONPATH that begins with this raylaunch: on a head it may not be installed."""
    here = str(Path(__file__).resolve().parents[2])
    rest = environ.get("PYTHONPATH", "")
    return f"{here}:{rest}" if rest else here
