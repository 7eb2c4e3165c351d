"""The typed boundary to the weights actors: create one per node, call it, kill it.

Every method of a handle raises as `RemoteActor.call` does: what the actor itself raised on purpose,
or an `ActorError` when no answer came.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from raylaunch.errors import ClusterError, PlacementError
from raylaunch.plan.wanted_weights import DownloadProgress, Hub, Role, Stock, wanted_weights
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.cluster.packaging import packaged
from raylaunch.runtime.cluster.remote_call import RemoteActor
from raylaunch.runtime.weights.weights_actor import WeightsActor

INSPECT_S = 60.0
"""To inspect the folders of one node, beside the recipe's `timeouts.probe`."""
ANSWER_S = 60.0
"""Time-out of a call beyond its own work: Ray creates the actor, or a download is stopped."""


class WeightsNode(Protocol):
    """The weights of one node: a `WeightsActor`, or the handle of one."""

    async def inspect(self) -> list[Stock]:
        """Return one stock for each wanted folder."""

    async def start_download(self, *, role: Role, hub: Hub | None, needed_bytes: int) -> str:
        """Start the download of one folder and return its command."""

    async def wait(self, *, role: Role, wait_s: float) -> DownloadProgress:
        """Return the progress of a download: at its exit, at the latest after `wait_s`."""

    async def make_tiny(self) -> None:
        """Generate the tiny model that the recipe wants, unless it exists."""


@dataclass(frozen=True)
class WeightsNodes:
    """The nodes that need the weights, by node id, and their addresses."""

    nodes: dict[str, WeightsNode]
    hosts: dict[str, str]


@dataclass(frozen=True)
class WeightsActorHandle:
    """Calls the weights actor of one node.

    Args:
        remote: The Ray actor.
        inspect_timeout_s: Time-out of `inspect`.
    """

    remote: RemoteActor[WeightsActor]
    inspect_timeout_s: float

    async def inspect(self) -> list[Stock]:
        """Call `WeightsActor.inspect`."""
        call = self.remote.call(WeightsActor.inspect, timeout_s=self.inspect_timeout_s)
        return await call()

    async def start_download(self, *, role: Role, hub: Hub | None, needed_bytes: int) -> str:
        """Call `WeightsActor.start_download`."""
        call = self.remote.call(WeightsActor.start_download, timeout_s=ANSWER_S)
        return await call(role=role, hub=hub, needed_bytes=needed_bytes)

    async def wait(self, *, role: Role, wait_s: float) -> DownloadProgress:
        """Call `WeightsActor.wait`, a long poll of at most `wait_s`."""
        call = self.remote.call(WeightsActor.wait, timeout_s=wait_s + ANSWER_S)
        return await call(role=role, wait_s=wait_s)

    async def make_tiny(self) -> None:
        """Call `WeightsActor.make_tiny`."""
        await self.remote.call(WeightsActor.make_tiny, timeout_s=ANSWER_S)()

    async def stop(self) -> tuple[int, ...]:
        """Call `WeightsActor.stop`."""
        return await self.remote.call(WeightsActor.stop, timeout_s=ANSWER_S)()

    def kill(self) -> None:
        """Kill the actor process. The guards of its downloads then stop them."""
        self.remote.kill()


@asynccontextmanager
async def local_weights(loaded: LoadedRecipe) -> AsyncIterator[WeightsNodes]:
    """Provide this machine as the only node. At the end of the block its downloads are stopped."""
    host = "127.0.0.1"
    actor = WeightsActor(host, "", loaded.name, _label(loaded), wanted_weights(loaded.recipe))
    try:
        yield WeightsNodes({"": actor}, {"": host})
    finally:
        await actor.stop()


@asynccontextmanager
async def cluster_weights(loaded: LoadedRecipe) -> AsyncIterator[WeightsNodes]:
    """Create an actor on each node of the connected cluster that could hold a server.

    At the end of the block the downloads are stopped and the actors killed.

    Raises:
        PlacementError: no node could hold a server.
    """
    hosts = _fitting_hosts(loaded)
    handles = _create(hosts, loaded)
    try:
        yield WeightsNodes(dict(handles), hosts)
    finally:
        await _stop_all(list(handles.values()))


async def _stop_all(handles: Sequence[WeightsActorHandle]) -> None:
    try:
        await asyncio.gather(*(_stop(handle) for handle in handles))
    finally:
        for handle in handles:
            handle.kill()


async def _stop(handle: WeightsActorHandle) -> None:
    try:
        await handle.stop()
    except ClusterError:
        # Lost or late, and logged as such: the guards stop the downloads when the actor is gone.
        return


def _create(hosts: dict[str, str], loaded: LoadedRecipe) -> dict[str, WeightsActorHandle]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # One actor class for all nodes: Ray then uploads the packed code of raylaunch once.
    actor_class = ray.remote(packaged(WeightsActor))
    wanted = wanted_weights(loaded.recipe)
    label = _label(loaded)
    inspect_timeout_s = INSPECT_S + loaded.recipe.timeouts.probe
    handles: dict[str, WeightsActorHandle] = {}
    for node_id, host in hosts.items():
        options = actor_class.options(
            num_cpus=0,
            # A restarted actor would not know its downloads, and their guards have stopped them.
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        actor = options.remote(host, node_id, loaded.name, label, wanted)
        remote: RemoteActor[WeightsActor] = RemoteActor(actor, f"the weights actor of node {host}")
        handles[node_id] = WeightsActorHandle(remote, inspect_timeout_s)
    return handles


def _fitting_hosts(loaded: LoadedRecipe) -> dict[str, str]:
    """Return the addresses of the nodes with enough NPUs for a server of any group, by node id."""
    need = min(group.loaded.recipe.npus_per_server for group in expand_groups(loaded))
    hosts = {}
    for node in alive_nodes():
        if node["Resources"].get("NPU", 0) >= need:
            hosts[node["NodeID"]] = node["NodeManagerAddress"]
    if not hosts:
        raise PlacementError(
            f"no node of the cluster has the {need} NPUs of one server, so none needs the weights",
            todo="`ray status` shows the nodes. If Ray does not detect a node's NPUs, start it "
            "with `--resources '{\"NPU\": 8}'`",
        )
    return hosts


def _label(loaded: LoadedRecipe) -> str:
    """Return the marker of the downloads' processes. No deployment's name contains blanks."""
    return f"weights of {loaded.name} {secrets.token_hex(3)}"
