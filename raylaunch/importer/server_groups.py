"""Which servers make one deployment, and which deployment of a document is meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raylaunch.errors import RecipeError
from raylaunch.importer.script_model import Reading, Server

_OTHER_BALANCING = (
    "data-parallel-rank",
    "data-parallel-hybrid-lb",
    "data-parallel-external-lb",
    "data-parallel-multi-port-external-lb",
    "kv-transfer-config",
)
"""Flags of deployments that raylaunch does not do: load balancing outside of vLLM, prefill apart
from decode."""


@dataclass(frozen=True)
class Group:
    """The servers of one deployment, the one with the API first."""

    servers: tuple[Server, ...]

    @property
    def primary(self) -> Server:
        """The server the recipe follows where the servers differ."""
        return self.servers[0]

    @property
    def foreign(self) -> bool:
        """Whether it balances its load in a way that raylaunch does not deploy."""
        return any(server.flag(name) for server in self.servers for name in _OTHER_BALANCING)

    def describe(self) -> str:
        """One line for a list to choose from."""
        size = f"{len(self.servers)} server{'s' if len(self.servers) > 1 else ''}"
        kind = ", balanced from outside" if self.foreign else ""
        return f"{self.primary.where}: {self.primary.model or 'no model'} ({size}{kind})"


def group_servers(servers: Sequence[Server]) -> list[Group]:
    """Assign each headless server to the nearest primary before it with equal model and sizes."""
    groups: list[list[Server]] = [[server] for server in servers if not server.headless]
    orphans: list[list[Server]] = []
    position = {id(server): number for number, server in enumerate(servers)}
    for server in servers:
        if server.headless:
            fitting = [
                group
                for group in groups
                if _identity(group[0]) == _identity(server) and _has_room(group)
            ]
            before = [group for group in fitting if position[id(group[0])] < position[id(server)]]
            home = before[-1] if before else fitting[0] if fitting else _orphanage(orphans, server)
            home.append(server)
    return [Group(tuple(group)) for group in (*groups, *orphans)]


def choose_group(reading: Reading, pick: int | None) -> Group:
    """Return deployment number `pick` (from 1), or the one that fits raylaunch best.

    Raises:
        RecipeError: There is no `vllm serve`, or no deployment of that number.
    """
    groups = group_servers(reading.servers)
    if not groups:
        warnings = [each for each in reading.findings if each.level == "warning"]
        unread = [f"{each.where}: {each.what}" for each in warnings]
        raise RecipeError(
            "there is no `vllm serve` in it",
            why="a recipe is made from the commands that start the servers",
            todo="give the scripts that run on the nodes, e.g. raylaunch import node0.sh node1.sh",
            evidence="\n".join(unread[:5]),
        )
    listed = "\n".join(f"{number}  {group.describe()}" for number, group in enumerate(groups, 1))
    if pick is not None and not 1 <= pick <= len(groups):
        raise RecipeError(
            f"there is no deployment {pick}", evidence=listed, todo=f"--pick 1 to {len(groups)}"
        )
    chosen = (
        groups[pick - 1]
        if pick
        else max(groups, key=lambda group: (not group.foreign, len(group.servers)))
    )
    if pick is None and len(groups) > 1:
        others = "; ".join(
            f"{number} is {group.describe()}"
            for number, group in enumerate(groups, 1)
            if group != chosen
        )
        reading.note(
            "several-deployments",
            "warning",
            f"{len(groups)} deployments are described, {chosen.describe()} was taken",
            chosen.primary.where,
            seen=others,
            todo="take another one with --pick NUMBER, or give only the scripts of one",
        )
    return chosen


def _identity(server: Server) -> tuple[str | None, ...]:
    sizes = ("data-parallel-size", "tensor-parallel-size", "max-model-len")
    return (server.model, *(server.value(name) for name in sizes))


def _has_room(group: Sequence[Server]) -> bool:
    data, local = (group[0].value(f"data-parallel-size{part}") for part in ("", "-local"))
    if not (data or "").isdigit() or not (local or "").isdigit() or not int(local or 0):
        return True
    return len(group) < max(2, int(data or 0) // int(local or 1))


def _orphanage(orphans: list[list[Server]], server: Server) -> list[Server]:
    for group in orphans:
        if _identity(group[0]) == _identity(server):
            return group
    orphans.append([])
    return orphans[-1]
