"""Inspects the weights of a recipe on every node that could run it, and downloads what is missing.

No NPU is reserved: weights can be downloaded while something else runs. The actors are not
detached, so the downloads stop when this process exits, whatever the reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from raylaunch.errors import NodeError, RaylaunchError, RecipeError
from raylaunch.plan.wanted_weights import (
    DownloadProgress,
    Hub,
    Stock,
    WeightsReport,
    downloader,
    lanes,
    wanted_weights,
)
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.weights.weights_handle import WeightsNodes, cluster_weights, local_weights

log = logging.getLogger(__name__)

POLL_S = 1.0
"""Between two reports of the progress."""

OnProgress = Callable[[Sequence[tuple[Stock, DownloadProgress]]], None]
T = TypeVar("T")


def fetch_weights(
    loaded: LoadedRecipe,
    *,
    here: bool = False,
    download: bool = False,
    hub: Hub | None = None,
    on_progress: OnProgress | None = None,
) -> WeightsReport:
    """Inspect the weights on all nodes; with `download` fetch what is missing first.

    Args:
        loaded: The recipe.
        here: This machine is the only node; otherwise those of the connected cluster.
        download: Run the hub's own program on the nodes, once per shared folder, and wait for it.
        hub: Where from; by default the first of the recipe's hubs for which the node has a program.
        on_progress: Called about once per second with the running downloads.

    Raises:
        RaylaunchError: no node fits, or a download failed (the others were finished).
    """
    _refuse_relative(loaded)
    return _run(_fetch_weights(loaded, here, download, hub, on_progress))


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to completion, also if the caller's thread has a running event loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


async def _fetch_weights(
    loaded: LoadedRecipe,
    here: bool,
    download: bool,
    hub: Hub | None,
    on_progress: OnProgress | None,
) -> WeightsReport:
    provide = local_weights if here else cluster_weights
    async with provide(loaded) as nodes:
        report = await survey(nodes, loaded)
        if download:
            await fetch(nodes, report, hub, on_progress)
            report = await survey(nodes, loaded)
    return report


async def survey(nodes: WeightsNodes, loaded: LoadedRecipe) -> WeightsReport:
    """Inspect all nodes in parallel. A node that does not answer has a problem, and no weights."""
    wanted = wanted_weights(loaded.recipe)
    answers = await _gather(node.inspect() for node in nodes.nodes.values())
    stocks: list[Stock] = []
    for host, answer in zip(nodes.hosts.values(), answers, strict=True):
        if isinstance(answer, RaylaunchError):
            stocks += [Stock(host, "", "", one, problem=answer.what) for one in wanted]
        else:
            stocks += answer
    return WeightsReport(loaded.name, wanted, tuple(stocks))


async def fetch(
    nodes: WeightsNodes,
    report: WeightsReport,
    hub: Hub | None,
    on_progress: OnProgress | None = None,
) -> None:
    """Generate tiny models and download what is missing, until each has succeeded or failed.

    Raises:
        RaylaunchError: what failed; the rest was downloaded.
    """
    tiny = {stock.node_id for stock in report.stocks if stock.wanted.tiny}
    # In parallel also where nodes share the folder: the first rename into place wins.
    made = await _gather(nodes.nodes[node_id].make_tiny() for node_id in sorted(tiny))
    fetching = _Fetching(nodes, report, hub)
    fetching.failures += [answer for answer in made if answer is not None]
    await fetching.run(on_progress)
    if fetching.failures:
        raise _join(fetching.failures)


class _Fetching:
    """Downloads lanes in parallel, and the groups of a lane one after the other."""

    def __init__(self, nodes: WeightsNodes, report: WeightsReport, hub: Hub | None) -> None:
        self._nodes = nodes.nodes
        self._report = report
        self._hub = hub
        self._lanes = lanes(report.stocks)
        self._active: dict[int, Stock] = {}
        """The stock that downloads, by lane."""
        self.failures: list[RaylaunchError] = []

    async def run(self, on_progress: OnProgress | None) -> None:
        while True:
            for number in range(len(self._lanes)):
                await self._start_next(number)
            if not self._active:
                return
            progress = await self._wait()
            if on_progress is not None:
                on_progress(progress)

    async def _start_next(self, number: int) -> None:
        """Start the next download of a lane that is idle."""
        lane = self._lanes[number]
        while lane and number not in self._active:
            group = await self._inspect_again(lane.pop(0))
            # Inspected again just now: it may be the same folder under another name,
            # which this lane has downloaded already.
            if all(stock.state == "complete" for stock in group):
                continue
            stock = downloader(group)
            start = self._nodes[stock.node_id].start_download(
                role=stock.wanted.role,
                hub=self._hub,
                needed_bytes=self._needed_bytes(stock),
            )
            answer = await _or_error(start)
            if isinstance(answer, RaylaunchError):
                self.failures.append(answer)
            else:
                log.info("node %s downloads into %s: %s", stock.name, stock.wanted.path, answer)
                self._active[number] = stock

    async def _inspect_again(self, group: list[Stock]) -> list[Stock]:
        answers = await _gather(self._nodes[stock.node_id].inspect() for stock in group)
        wanted = {(stock.node_id, stock.wanted.role) for stock in group}
        fresh: list[Stock] = []
        for answer in answers:
            if isinstance(answer, RaylaunchError):
                continue
            fresh += [stock for stock in answer if (stock.node_id, stock.wanted.role) in wanted]
        return fresh or group

    def _needed_bytes(self, stock: Stock) -> int:
        """Return the size of the whole model, as far as any node knows it; 0 if none does."""
        sizes = [0]
        for other in self._report.stocks:
            if other.wanted == stock.wanted and other.weights is not None:
                sizes += [other.weights.expected_bytes, other.weights.total_bytes]
        return max(sizes)

    async def _wait(self) -> list[tuple[Stock, DownloadProgress]]:
        """Wait at most `POLL_S` for the running downloads; return the progress of each."""
        active = dict(self._active)
        answers = await _gather(
            self._nodes[stock.node_id].wait(role=stock.wanted.role, wait_s=POLL_S)
            for stock in active.values()
        )
        progress: list[tuple[Stock, DownloadProgress]] = []
        for (number, stock), answer in zip(active.items(), answers, strict=True):
            if isinstance(answer, RaylaunchError):
                del self._active[number]
                self.failures.append(answer)
                continue
            progress.append((stock, answer))
            if not answer.running:
                del self._active[number]
            if answer.failed:
                self.failures.append(_download_error(stock, answer))
        return progress


async def _gather(calls: Iterable[Awaitable[T]]) -> list[T | RaylaunchError]:
    """Await all calls in parallel; the answer of one that failed is its error."""
    return list(await asyncio.gather(*(_or_error(call) for call in calls)))


async def _or_error(call: Awaitable[T]) -> T | RaylaunchError:
    try:
        return await call
    except RaylaunchError as error:
        log.warning("%s", error.what)
        return error


def _refuse_relative(loaded: LoadedRecipe) -> None:
    for wanted in wanted_weights(loaded.recipe):
        if wanted.tiny is None and not Path(wanted.path).is_absolute():
            raise RecipeError(
                f"{wanted.path!r} is not an absolute path: "
                "it would mean a different folder on each node",
                todo="give the folder of the weights from / on, "
                "for instance --set model.path=/data/models/NAME",
            )


def _download_error(stock: Stock, progress: DownloadProgress) -> RaylaunchError:
    if progress.error:
        reason = progress.error
    elif progress.exit_signal:
        reason = f"signal {progress.exit_signal}"
    else:
        reason = f"exit code {progress.exit_code}"
    return NodeError(
        f"the download into {stock.wanted.path} on node {stock.name} failed: {reason}",
        evidence="\n".join(progress.tail),
        todo="the same command resumes the download; "
        f"the whole output is in {progress.log} on that node",
    )


def _join(failures: list[RaylaunchError]) -> RaylaunchError:
    if len(failures) == 1:
        return failures[0]
    todos = dict.fromkeys(failure.todo for failure in failures if failure.todo)
    parts = [f"{failure.what}\n{failure.evidence}".rstrip() for failure in failures]
    return NodeError(
        f"{len(failures)} downloads failed",
        evidence="\n".join(parts),
        todo="; ".join(todos),
    )
