"""The weights of a recipe on all nodes that could run it: looked at together, and downloaded once per folder.

No NPU is reserved: weights may be brought while something else runs. The actors belong to this process, so that the
downloads end with it, however it ends.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from raylaunch.errors import ClusterError, NodeError, PlacementError, RaylaunchError, RecipeError
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
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.cluster.packaging import packaged
from raylaunch.runtime.weights.weights_actor import Depot

LOOK_S = 60.0
TICK_S = 1.0
ANSWER_S = 60.0
"""For an actor to be made, or to end a download, beside what it was asked to wait."""

OnProgress = Callable[[Sequence[tuple[Stock, DownloadProgress]]], None]
Call = tuple[str, str, tuple[Any, ...]]
"""Node id, method of its Depot, arguments."""


def bring(
    loaded: LoadedRecipe,
    *,
    here: bool = False,
    download: bool = False,
    hub: Hub | None = None,
    on_progress: OnProgress | None = None,
) -> WeightsReport:
    """Look at the weights on all nodes; with `download` bring what is missing first.

    Args:
        loaded: The recipe.
        here: This machine is the only node; otherwise those of the connected cluster.
        download: Run the hub's own program on the nodes, once per shared folder, and wait for it.
        hub: Where from; by default the first of the recipe's hubs for which the node has a program.
        on_progress: Called about once a second with what is being downloaded.

    Raises:
        RaylaunchError: no node that fits, or a download failed (the others were finished).
    """
    _refuse_relative(loaded)
    with local_depots(loaded) if here else cluster_depots(loaded) as depots:
        report = survey(depots, loaded)
        if download:
            fetch(depots, report, hub, on_progress)
            report = survey(depots, loaded)
    return report


class Depots(Protocol):
    """The depots of all nodes."""

    nodes: dict[str, str]
    """Node id → address."""

    def ask(self, calls: Sequence[Call], timeout_s: float) -> list[Any]:
        """Call all at once; the answer of one that fails or is late is a RaylaunchError."""


def survey(depots: Depots, loaded: LoadedRecipe) -> WeightsReport:
    """Look at all nodes at once. A node without an answer has a problem instead of weights."""
    wanted = wanted_weights(loaded.recipe)
    looks = depots.ask(
        [(node, "look", ()) for node in depots.nodes], LOOK_S + loaded.recipe.timeouts.probe
    )
    stocks: list[Stock] = []
    for (node, host), look in zip(depots.nodes.items(), looks, strict=True):
        silent = isinstance(look, RaylaunchError)
        stocks += (
            [Stock(host, "", node, one, problem=look.what) for one in wanted] if silent else look
        )
    return WeightsReport(loaded.name, wanted, tuple(stocks))


def fetch(
    depots: Depots, report: WeightsReport, hub: Hub | None, on_progress: OnProgress | None = None
) -> None:
    """Download what is missing, and make what is tiny, until all of it is done or has failed.

    Raises:
        RaylaunchError: what failed; the rest was downloaded.
    """
    tiny = {stock.node_id for stock in report.stocks if stock.wanted.tiny}
    made = depots.ask([(node, "make_tiny", ()) for node in sorted(tiny)], ANSWER_S)
    fetching = _Fetching(depots, report, hub)
    fetching.failures += [answer for answer in made if isinstance(answer, RaylaunchError)]
    fetching.run(on_progress)
    if fetching.failures:
        raise _join(fetching.failures)


class _Fetching:
    """Lanes side by side, the groups of a lane one after the other."""

    def __init__(self, depots: Depots, report: WeightsReport, hub: Hub | None) -> None:
        self._depots, self._report, self._hub = depots, report, hub
        self._lanes = lanes(report.stocks)
        self._active: dict[int, Stock] = {}
        self.failures: list[RaylaunchError] = []

    def run(self, on_progress: OnProgress | None) -> None:
        while True:
            for number in range(len(self._lanes)):
                self._fill(number)
            if not self._active:
                return
            seen = self._wait()
            if on_progress is not None:
                on_progress([one for one in seen if isinstance(one[1], DownloadProgress)])

    def _fill(self, number: int) -> None:
        """Start what comes next in a lane that is idle."""
        lane = self._lanes[number]
        while lane and number not in self._active:
            group = self._look_again(lane.pop(0))
            if all(stock.state == "complete" for stock in group):  # the same folder by another name
                continue
            stock = downloader(group)
            call = (stock.node_id, "fetch", (stock.wanted.role, self._hub, self._needed(stock)))
            (answer,) = self._depots.ask([call], ANSWER_S)
            if isinstance(answer, RaylaunchError):
                self.failures.append(answer)
            else:
                self._active[number] = stock

    def _look_again(self, group: list[Stock]) -> list[Stock]:
        looks = self._depots.ask([(stock.node_id, "look", ()) for stock in group], LOOK_S)
        fresh = [one for look in looks if isinstance(look, list) for one in look]
        wanted = {(stock.node_id, stock.wanted.role) for stock in group}
        return [stock for stock in fresh if (stock.node_id, stock.wanted.role) in wanted] or group

    def _needed(self, stock: Stock) -> int:
        """Bytes of the whole, as far as any node knows."""
        same = [
            each
            for each in self._report.stocks
            if each.wanted == stock.wanted and each.weights is not None
        ]
        sizes = [
            (each.weights.expected_bytes, each.weights.total_bytes) for each in same if each.weights
        ]
        return max((size for pair in sizes for size in pair), default=0)

    def _wait(self) -> list[tuple[Stock, Any]]:
        numbers = list(self._active)
        calls: list[Call] = [
            (stock.node_id, "wait", (stock.wanted.role, TICK_S)) for stock in self._active.values()
        ]
        answers = self._depots.ask(calls, TICK_S + ANSWER_S)
        seen = [
            (self._active[number], answer) for number, answer in zip(numbers, answers, strict=True)
        ]
        for number, (stock, answer) in zip(numbers, seen, strict=True):
            if isinstance(answer, RaylaunchError) or not answer.running:
                del self._active[number]
                self.failures += _failure(stock, answer)
        return seen


@contextmanager
def local_depots(loaded: LoadedRecipe) -> Iterator[Depots]:
    """The depot of this machine. On leaving, its downloads are ended."""
    depot = Depot("127.0.0.1", "", loaded.name, _label(loaded), wanted_weights(loaded.recipe))
    try:
        yield _LocalDepots(depot)
    finally:
        depot.end()


class _LocalDepots:
    def __init__(self, depot: Depot) -> None:
        self.nodes = {"": "127.0.0.1"}
        self._depot = depot

    def ask(self, calls: Sequence[Call], timeout_s: float) -> list[Any]:
        del timeout_s  # a person waits for the own disk, and has Ctrl-C
        return [self._call(method, arguments) for _, method, arguments in calls]

    def _call(self, method: str, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401
        try:
            return getattr(self._depot, method)(*arguments)
        except RaylaunchError as error:
            return error


@contextmanager
def cluster_depots(loaded: LoadedRecipe) -> Iterator[Depots]:
    """One depot on each node of the connected cluster that could hold a server. On leaving, downloads are ended.

    Raises:
        PlacementError: there is no such node.
    """
    depots = _ClusterDepots(_nodes_for(loaded), loaded)
    try:
        yield depots
    finally:
        depots.close()


class _ClusterDepots:
    def __init__(self, nodes: dict[str, str], loaded: LoadedRecipe) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.nodes = nodes
        actor = ray.remote(packaged(Depot))
        label, wanted = _label(loaded), wanted_weights(loaded.recipe)
        self._actors = {
            node: actor.options(
                num_cpus=0,
                max_restarts=0,
                max_concurrency=4,  # a look while a download is waited for
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            ).remote(host, node, loaded.name, label, wanted)
            for node, host in nodes.items()
        }

    def ask(self, calls: Sequence[Call], timeout_s: float) -> list[Any]:
        import ray

        refs = [
            getattr(self._actors[node], method).remote(*arguments)
            for node, method, arguments in calls
        ]
        done = set(ray.wait(refs, num_returns=len(refs), timeout=timeout_s)[0]) if refs else set()
        return [
            self._answer(ref if ref in done else None, call, timeout_s)
            for ref, call in zip(refs, calls, strict=True)
        ]

    def _answer(self, ref: Any, call: Call, timeout_s: float) -> Any:  # noqa: ANN401
        import ray

        node, method, _ = call
        if ref is None:
            return ClusterError(
                f"node {self.nodes[node]} did not answer in {timeout_s:g} s ({method})"
            )
        try:
            return ray.get(ref)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, RaylaunchError):
                return cause
            why = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return ClusterError(
                f"node {self.nodes[node]} was lost ({method})", why=why, todo="see `ray status`"
            )

    def close(self) -> None:
        """End the downloads in order; an actor that does not answer is ended by Ray, and its guards end the rest."""
        import ray

        self.ask([(node, "end", ()) for node in self._actors], ANSWER_S)
        for actor in self._actors.values():
            ray.kill(actor, no_restart=True)


def _refuse_relative(loaded: LoadedRecipe) -> None:
    for wanted in wanted_weights(loaded.recipe):
        if wanted.tiny is None and not Path(wanted.path).is_absolute():
            raise RecipeError(
                f"{wanted.path!r} is no absolute path: it would mean another folder on each node",
                todo="give the folder of the weights from / on, for instance --set model.path=/data/models/NAME",
            )


def _nodes_for(loaded: LoadedRecipe) -> dict[str, str]:
    need = loaded.recipe.npus_per_server
    fitting = [node for node in alive_nodes() if node["Resources"].get("NPU", 0) >= need]
    if not fitting:
        raise PlacementError(
            f"no node of the cluster has the {need} NPUs of one server, so none needs the weights",
            todo="`ray status` shows the nodes; one whose NPUs Ray does not see needs `--resources '{\"NPU\": 8}'`",
        )
    return {node["NodeID"]: node["NodeManagerAddress"] for node in fitting}


def _label(loaded: LoadedRecipe) -> str:
    """Marks the processes. No deployment can have a name with blanks."""
    return f"weights of {loaded.name} {secrets.token_hex(3)}"


def _failure(stock: Stock, answer: DownloadProgress | RaylaunchError) -> list[RaylaunchError]:
    if isinstance(answer, RaylaunchError):
        return [answer]
    if not answer.failed:
        return []
    ending = (
        f"signal {answer.exit_signal}" if answer.exit_signal else f"exit code {answer.exit_code}"
    )
    return [
        NodeError(
            f"the download into {stock.wanted.path} on node {stock.name} ended with {answer.error or ending}",
            evidence="\n".join(answer.tail),
            todo=f"the same command goes on where it stopped; all it said is in {answer.log} on that node",
        )
    ]


def _join(failures: list[RaylaunchError]) -> RaylaunchError:
    if len(failures) == 1:
        return failures[0]
    todo = "; ".join(dict.fromkeys(failure.todo for failure in failures if failure.todo))
    evidence = "\n".join(f"{failure.what}\n{failure.evidence}".rstrip() for failure in failures)
    return NodeError(f"{len(failures)} downloads failed", evidence=evidence, todo=todo)
