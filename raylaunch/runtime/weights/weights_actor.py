"""What one node has of a recipe's weights, and the downloads into it; in an actor there, or in the command itself."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from raylaunch.errors import NodeError, RecipeError
from raylaunch.node.model.download import Download, find_programs
from raylaunch.node.model.tiny_model import ensure_tiny_model
from raylaunch.node.model.weight_files import inspect_weights
from raylaunch.node.process.log_files import log_root
from raylaunch.plan.wanted_weights import (
    INSTALL,
    DownloadProgress,
    Hub,
    Role,
    Stock,
    Wanted,
    download_argv,
    hubs_of,
)
from raylaunch.runtime.agent.probe_actor import state_dir


class Depot:
    """Looks at the wanted folders of one node, and downloads into them. `label` marks the processes."""

    def __init__(
        self, host: str, node_id: str, title: str, label: str, wanted: tuple[Wanted, ...]
    ) -> None:
        self._host, self._node_id, self._title, self._label = host, node_id, title, label
        self._wanted = {one.role: one for one in wanted}
        self._running: dict[Role, Download] = {}

    def look(self) -> list[Stock]:
        """One stock for each wanted folder. Blocks while a network filesystem does not answer."""
        return [self._look_at(wanted) for wanted in self._wanted.values()]

    def fetch(self, role: Role, hub: Hub | None, needed_bytes: int) -> str:
        """Start the download of one folder, from `hub` or from the first that has it; returns the command.

        Raises:
            RecipeError: no hub is known that has it.
            NodeError: the node has no program for it, or the folder refuses.
        """
        wanted = self._wanted[role]
        argv = self._command(wanted, hub)
        log = log_root(os.environ) / "weights" / f"{self._title}-{role}.log"
        number = list(self._wanted).index(wanted.role)
        download = Download(argv, Path(argv[-1]), log, os.environ, label=self._label, number=number)
        download.start(needed_bytes)
        self._running[role] = download
        return " ".join(argv)

    def wait(self, role: Role, timeout_s: float) -> DownloadProgress:
        """How far a download is: when it ends, or after `timeout_s` seconds."""
        progress = self._running[role].wait(timeout_s)
        if not progress.running:
            del self._running[role]
        return progress

    def make_tiny(self) -> None:
        """Make the tiny model that the recipe wants, unless it is there."""
        for wanted in self._wanted.values():
            if wanted.tiny is not None:
                ensure_tiny_model(wanted.tiny, self._folder(wanted))

    def end(self) -> tuple[int, ...]:
        """End all downloads; returns the pids of processes that resisted."""
        return tuple(pid for download in self._running.values() for pid in download.stop())

    def _look_at(self, wanted: Wanted) -> Stock:
        try:
            weights, problem = inspect_weights(str(self._folder(wanted))), ""
        except OSError as error:
            weights, problem = None, f"{type(error).__name__}: {error}"
        programs = find_programs(os.environ, sys.executable)
        return Stock(
            self._host,
            socket.gethostname(),
            self._node_id,
            wanted,
            weights,
            programs,
            sys.executable,
            problem,
        )

    def _folder(self, wanted: Wanted) -> Path:
        return (
            Path(wanted.path)
            if wanted.tiny is None
            else state_dir() / "models" / f"tiny-{wanted.tiny}"
        )

    def _command(self, wanted: Wanted, hub: Hub | None) -> tuple[str, ...]:
        hubs = [one for one in hubs_of(wanted) if hub in (None, one)]
        if not hubs:
            example = f"--set '{_field(wanted)}={{{hub or 'modelscope'}: OWNER/NAME}}'"
            raise RecipeError(
                f"the recipe names no source{f' on {hub}' if hub else ''} for {wanted.path}",
                todo=f"copy the weights there, or name one: {example}",
            )
        programs = find_programs(os.environ, sys.executable)
        for one in hubs:
            if one in programs and (argv := download_argv(one, wanted, programs[one])):
                return argv
        raise NodeError(
            f"node {self._host} ({socket.gethostname()}) has no program that downloads from {' or '.join(hubs)}",
            todo=" or ".join(f"`{sys.executable} -m {INSTALL[one]}`" for one in hubs)
            + " on that node, and try again",
        )


def _field(wanted: Wanted) -> str:
    return "model.sources" if wanted.role == "model" else "features.speculative.sources"
