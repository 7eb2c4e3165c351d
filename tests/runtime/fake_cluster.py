"""Nodes in memory that are lost and come back: groups of `fake_controllers` reserve them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fake_controllers import FakeBackend, creator

from raylaunch.checks.findings import Finding
from raylaunch.errors import LaunchError, PlacementError
from raylaunch.plan.launch_plan import Place
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.controller import journal_store
from raylaunch.runtime.controller.changes import fallback_loop
from raylaunch.runtime.controller.group import group_supervisor
from raylaunch.runtime.controller.group.orphan_stop import StoppedInstances
from raylaunch.supervise.state import RankSeen, ServerSeen

SMALLER = "fallback=[{set: {parallel.data: 1}}]"
ONE_GROUP = (
    "parallel.replicas=1",
    "parallel.data=2",
    "health.degrade_after_s=0.05",
    "health.grow_back_after_s=0.05",
    SMALLER,
)
"""dp=2 on two nodes, with dp=1 as its fallback."""


class FakeCluster:
    """How many nodes there are, and which group has how many of them."""

    def __init__(self) -> None:
        self.nodes = 2
        self.held: dict[str, int] = {}
        self.broken: set[int] = set()
        """Sizes of groups that cannot be launched, in servers."""
        self.refused: set[int] = set()
        """Sizes of groups that the checks refuse."""
        self.slow = False
        """What is launched becomes ready only when another controller has adopted it."""
        self.launched: list[str] = []
        self.problem = ""
        """Why the recipe itself would not start."""
        self.checks = 0
        self.stored: dict[str, bytes] = {}
        """The journals in Ray's key-value store, by owner."""
        self.survivors: set[str] = set()
        """Groups whose servers have survived on the node that was lost."""
        self._changed = asyncio.Event()

    @property
    def free(self) -> int:
        return self.nodes - sum(self.held.values())

    def note(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def take(self, name: str, nodes: int, *, waits: bool) -> None:
        while self.held.get(name) != nodes:
            if self.free >= nodes:
                self.held[name] = nodes
            elif not waits:
                raise PlacementError("too few NPUs")
            else:
                await self._changed.wait()

    def give_back(self, name: str) -> None:
        self.held.pop(name, None)
        self.note()

    def put(self, deployment, instance, owner, data) -> None:
        self.stored[owner] = data

    def remove_all(self, *_) -> None:
        self.stored.clear()

    def lose_node(self, backend: NodesBackend) -> None:
        """Lose the node of a group's last server."""
        self.nodes -= 1
        backend.kill_agent(max(backend.agents), "node died")

    def bring_back(self) -> None:
        self.nodes += 1
        self.note()

    def has_spare(self, recipe, used, excluded=(), servers=1, *, freed=None) -> bool:
        freed_nodes = sum((freed or {}).values()) // recipe.npus_per_server
        return self.free + freed_nodes >= servers

    async def find_problem(self, *_) -> str:
        self.checks += 1
        return self.problem or ", ".join(f"{name} holds NPUs" for name in self.survivors)

    async def stop_instances(self, _deployment, instances, _grace_s) -> StoppedInstances:
        named = {instance.partition(".")[2] for instance in instances}
        assert named.isdisjoint(self.held), "a group that runs"
        stopped, self.survivors = self.survivors & named, self.survivors - named
        return StoppedInstances({"10.0.0.2": ", ".join(stopped)} if stopped else {})


class NodesBackend(FakeBackend):
    """A group with as many servers as its recipe says, each on a node of the cluster."""

    cluster: FakeCluster

    def __init__(self, request, health, turns, on_failure) -> None:
        super().__init__(request, health, turns, on_failure)
        self.size = request.spec.loaded.recipe.parallel.servers
        first, second = self.plan_made.servers
        others = [
            replace(
                second,
                index=index,
                ranks=(index,),
                node=Place(f"10.0.0.{index + 1}", "eth0", node_id=f"node-{index}"),
            )
            for index in range(1, self.size)
        ]
        self.plan_made = replace(self.plan_made, servers=(first, *others))
        self.spare = False
        self.excluded: tuple[str, ...] = ()
        self.adopted = False
        """Another controller has launched it."""

    async def reserve(self, excluded, timeout_s) -> None:
        self.adopted = False
        self.excluded = tuple(excluded)
        await self.cluster.take(self.name, self.size, waits=timeout_s is not None)
        await super().reserve(excluded, timeout_s)
        self.agents = set(range(self.size))

    async def plan(self, facts):
        plan, findings = await super().plan(facts)
        if self.size in self.cluster.refused:
            findings = [Finding("heads", "error", "refused", "look")]
        return plan, findings

    async def launch(self, plan, attempt, facts, secrets) -> None:
        if self.size in self.cluster.broken:
            raise LaunchError("it does not start")
        self.cluster.launched.append(self.name)
        self.becomes_ready = not self.cluster.slow
        await super().launch(plan, attempt, facts, secrets)

    def watch(self, plan, update, *, servers=None) -> None:
        super().watch(plan, update, servers=servers)
        if self.adopted:
            self.seen = {index: ServerSeen(index, attempt=1, pid=1) for index in self.agents}
            asyncio.get_running_loop().call_soon(self._show_adopted)

    def _show_adopted(self) -> None:
        self.heartbeat()
        self.show_ready()

    def show_ready(self) -> None:
        super().show_ready()
        now = self.clock.now
        self.show(0, ranks=tuple(RankSeen(index, at=now) for index in range(self.size)))

    def release(self) -> None:
        super().release()
        self.cluster.give_back(self.name)

    async def find(self):
        self.agents = set(range(self.cluster.held.get(self.name, 0)))
        self.adopted = True


def cluster_creator(monkeypatch, tmp_path):
    """Return what makes controllers of groups on a cluster, and the cluster."""
    create = creator(monkeypatch, tmp_path)
    cluster = FakeCluster()
    monkeypatch.setattr(NodesBackend, "cluster", cluster, raising=False)
    monkeypatch.setattr(group_supervisor, "RayGroup", NodesBackend)
    monkeypatch.setattr(placement, "has_spare", cluster.has_spare)
    monkeypatch.setattr(fallback_loop, "find_problem", cluster.find_problem)
    monkeypatch.setattr(fallback_loop, "stop_instances", cluster.stop_instances)
    monkeypatch.setattr(fallback_loop, "PERIOD_S", 0.01)
    monkeypatch.setattr(journal_store, "PAUSE_S", 0.01)
    monkeypatch.setattr(journal_store, "put", cluster.put)
    monkeypatch.setattr(journal_store, "remove_all", cluster.remove_all)

    def make(*settings, reconstructed=False):
        return create(*ONE_GROUP, *settings, reconstructed=reconstructed)

    return make, cluster
