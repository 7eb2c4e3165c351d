"""One node's share of the work on weights: inspects its folders and downloads into them.

Runs as a Ray actor on that node, or in the process of the command for this machine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from pathlib import Path

from raylaunch.errors import NodeError, RecipeError
from raylaunch.home import home
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

log = logging.getLogger(__name__)


class WeightsActor:
    """Inspects the wanted folders of one node and downloads into them.

    Args:
        host: The node's address, for reports.
        node_id: Ray's id of the node; "" for this machine without a cluster.
        recipe: Name of the recipe, for the names of the logs.
        label: Marks the processes of the downloads.
        wanted: The folders.
    """

    def __init__(
        self, host: str, node_id: str, recipe: str, label: str, wanted: tuple[Wanted, ...]
    ) -> None:
        self._host = host
        self._node_id = node_id
        self._recipe = recipe
        self._label = label
        self._wanted = {one.role: one for one in wanted}
        self._running: dict[Role, Download] = {}

    async def inspect(self) -> list[Stock]:
        """Return one stock for each wanted folder.

        Takes as long as a network file system does not answer; other calls are answered meanwhile.
        """
        return await asyncio.to_thread(self._inspect_all)

    async def start_download(self, *, role: Role, hub: Hub | None, needed_bytes: int) -> str:
        """Start the download of one folder and return its command.

        Args:
            role: Which folder.
            hub: Where from; None for the first that has the weights and a program on this node.
            needed_bytes: Size of the whole model, 0 when it is not known.

        Raises:
            RecipeError: the recipe names no such hub for this folder.
            NodeError: the node has no program for it, or the folder refuses the download.
        """
        wanted = self._wanted[role]
        argv = self._download_command(wanted, hub)
        log_file = log_root(os.environ) / "weights" / f"{self._recipe}-{role}.log"
        download = Download(
            argv,
            Path(argv[-1]),
            log_file,
            os.environ,
            label=self._label,
            number=list(self._wanted).index(role),
        )
        await asyncio.to_thread(download.start, needed_bytes)
        self._running[role] = download
        return " ".join(argv)

    async def wait(self, *, role: Role, wait_s: float) -> DownloadProgress:
        """Return the progress of a download: at its exit, at the latest after `wait_s`."""
        progress = await asyncio.to_thread(self._running[role].wait, wait_s)
        if not progress.running:
            del self._running[role]
            log.info("the download of the %s of %s has exited", role, self._recipe)
        return progress

    async def make_tiny(self) -> None:
        """Generate the tiny model that the recipe wants, unless it exists."""
        for wanted in self._wanted.values():
            if wanted.tiny is not None:
                await asyncio.to_thread(ensure_tiny_model, wanted.tiny, self._folder(wanted))

    async def stop(self) -> tuple[int, ...]:
        """Stop all downloads; return the pids of processes that survived."""
        survivors: list[int] = []
        for download in list(self._running.values()):
            survivors += await asyncio.to_thread(download.stop)
        return tuple(survivors)

    def _inspect_all(self) -> list[Stock]:
        return [self._inspect_one(wanted) for wanted in self._wanted.values()]

    def _inspect_one(self, wanted: Wanted) -> Stock:
        weights = None
        problem = ""
        try:
            weights = inspect_weights(str(self._folder(wanted)))
        except OSError as error:
            problem = f"{type(error).__name__}: {error}"
        return Stock(
            host=self._host,
            hostname=socket.gethostname(),
            node_id=self._node_id,
            wanted=wanted,
            weights=weights,
            programs=find_programs(os.environ, sys.executable),
            python=sys.executable,
            problem=problem,
        )

    def _folder(self, wanted: Wanted) -> Path:
        if wanted.tiny is None:
            return Path(wanted.path)
        return home() / "models" / f"tiny-{wanted.tiny}"

    def _download_command(self, wanted: Wanted, hub: Hub | None) -> tuple[str, ...]:
        hubs = [one for one in hubs_of(wanted) if hub in (None, one)]
        if not hubs:
            raise _no_source(wanted, hub)
        programs = find_programs(os.environ, sys.executable)
        for one in hubs:
            if one not in programs:
                continue
            argv = download_argv(one, wanted, programs[one])
            if argv:
                return argv
        installs = [f"`{sys.executable} -m {INSTALL[one]}`" for one in hubs]
        node = f"{self._host} ({socket.gethostname()})"
        raise NodeError(
            f"node {node} has no program that downloads from {' or '.join(hubs)}",
            todo=f"{' or '.join(installs)} on that node, and try again",
        )


def _no_source(wanted: Wanted, hub: Hub | None) -> RecipeError:
    field = "model.sources"
    if wanted.role != "model":
        field = "features.speculative.sources"
    where = f" on {hub}" if hub else ""
    example = f"--set '{field}={{{hub or 'modelscope'}: OWNER/NAME}}'"
    return RecipeError(
        f"the recipe names no source{where} for {wanted.path}",
        todo=f"copy the weights there, or name one: {example}",
    )
