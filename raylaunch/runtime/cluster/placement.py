"""Reserves all NPUs of a group together or none, and says what is missing."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylaunch.errors import BusyError, PlacementError
from raylaunch.recipe.model import Recipe
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.cluster.missing_workers import missing_workers

PREFIX = "raylaunch:"
_EXPECTED_TERMINATION = 1
"""`NodeDeathInfo.Reason` of a node that was stopped (Ray's gcs.proto)."""
_MOST_LOST = 4
"""Ray keeps a record of each node that it ever had."""


@dataclass(frozen=True)
class Slot:
    """One bundle of the reservation: where a server will run."""

    bundle: int
    node_id: str
    ip: str


def reserve(
    key: GroupKey,
    recipe: Recipe,
    excluded: tuple[str, ...] = (),
    timeout_s: float | None = None,
    *,
    detached: bool = True,
) -> Any:  # noqa: ANN401 - Ray's PlacementGroup; importing it here would import Ray
    """Reserve the NPUs of every server in one placement group. Blocks up to `timeouts.reserve`.

    Args:
        key: The group.
        recipe: Gives the number of servers and of NPUs for each.
        excluded: Addresses or ids of nodes that must not be used.
        timeout_s: Seconds to wait, also for nodes that may still join; by default
            `timeouts.reserve`, and only for what the cluster has.
        detached: Keep the reservation when this process exits.

    Raises:
        BusyError: the group has a reservation.
        PlacementError: the cluster has too few NPUs; nothing stays reserved.
    """
    group = request(key, recipe, excluded, timeout_s, detached=detached)
    await_reserved(group, recipe, excluded, timeout_s)
    return group


def request(
    key: GroupKey,
    recipe: Recipe,
    excluded: tuple[str, ...] = (),
    timeout_s: float | None = None,
    *,
    detached: bool = True,
    nodes: Sequence[str] = (),
) -> Any:  # noqa: ANN401 - Ray's PlacementGroup
    """Create the placement group of `reserve` without waiting for the NPUs.

    With `nodes` (Ray's ids), the NPUs of server i are those of node i.

    Raises:
        BusyError: there is a reservation of that name.
        PlacementError: waiting could not help.
    """
    from ray.util.placement_group import placement_group

    if find_reservation(key) is not None:
        raise already_reserved(key.deployment)
    servers = recipe.parallel.servers
    if timeout_s is None:
        _refuse_impossible(recipe, excluded)
    return placement_group(
        [{"NPU": float(recipe.npus_per_server)}] * servers,
        strategy="STRICT_SPREAD" if recipe.hardware.spread else "PACK",
        name=f"{PREFIX}{key}",
        lifetime="detached" if detached else None,
        bundle_label_selector=_choose(nodes) or _avoid(excluded, servers),
    )


def await_reserved(
    group: Any,  # noqa: ANN401 - Ray's PlacementGroup
    recipe: Recipe,
    excluded: tuple[str, ...] = (),
    timeout_s: float | None = None,
) -> None:
    """Wait until the group holds its NPUs; the arguments are those of `reserve`.

    Raises:
        PlacementError: they did not become free in time; the group is removed.
    """
    if group.wait(timeout_s or recipe.timeouts.reserve):
        return
    release(group)
    raise _shortage(recipe, excluded, "they did not become free in time")


def already_reserved(name: str) -> BusyError:
    """Return the error for a reservation of that name whose controller is gone."""
    return BusyError(
        f"NPUs are reserved already for a deployment named {name!r}",
        why="its controller is gone (Ray's head was restarted, or the actor was killed)",
        todo=f"`raylaunch clean --yes --deployment {name}` kills what is left of it; or use "
        "another --name",
    )


def find_reservation(key: GroupKey) -> Any | None:  # noqa: ANN401 - Ray's PlacementGroup
    """Return the reservation of a group; None when there is none."""
    from ray.util.placement_group import get_placement_group

    try:
        return get_placement_group(f"{PREFIX}{key}")
    except ValueError:
        return None


def reserved_groups(deployment: str) -> list[GroupKey]:
    """Return the groups of a deployment that have a reservation."""
    from ray.util import placement_group_table

    found = set()
    for group in placement_group_table().values():
        name = str(group["name"])
        if name.startswith(PREFIX) and group["state"] != "REMOVED":
            found.add(GroupKey.parse(name.removeprefix(PREFIX)))
    return sorted(key for key in found if key.deployment == deployment)


def release(group: Any) -> None:  # noqa: ANN401 - Ray's PlacementGroup
    """Release the NPUs of a reservation."""
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(group)


def slots(group: Any) -> list[Slot]:  # noqa: ANN401 - Ray's PlacementGroup
    """Return where the bundles are, ordered by address: ranks never follow the order of arrival."""
    from ray.util import placement_group_table

    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in alive_nodes()}
    table = placement_group_table(group)["bundles_to_node_id"]
    found = []
    for bundle, node_id in table.items():
        found.append(Slot(int(bundle), node_id, addresses.get(node_id, "")))
    return sorted(found, key=lambda slot: (_order(slot.ip), slot.node_id, slot.bundle))


def has_spare(
    recipe: Recipe,
    used: tuple[str, ...],
    excluded: tuple[str, ...] = (),
    servers: int = 1,
    *,
    freed: Mapping[str, int] | None = None,
) -> bool:
    """Return whether other nodes have enough free NPUs for `servers` servers.

    Args:
        recipe: Gives the number of NPUs for each server.
        used: Addresses or ids of nodes that do not count, because they are in use.
        excluded: Addresses or ids of nodes that must not be used.
        servers: How many servers need a place.
        freed: NPUs that count as free, by Ray's id of the node.
    """
    amounts = _amounts(_usable_nodes((*used, *excluded)), freed or {})
    return _count_fitting(recipe, amounts) >= servers


def places(recipe: Recipe, freed: Mapping[str, int], excluded: tuple[str, ...] = ()) -> list[str]:
    """Return Ray's id of a node with enough free NPUs for each server, ordered by address.

    The arguments are those of `has_spare`.

    Raises:
        PlacementError: there are too few.
    """
    nodes = sorted(_usable_nodes(excluded), key=lambda node: _order(node["NodeManagerAddress"]))
    found: list[str] = []
    for node, amount in zip(nodes, _amounts(nodes, freed), strict=True):
        found += [str(node["NodeID"])] * _count_fitting(recipe, [amount])
    servers = recipe.parallel.servers
    if len(found) < servers:
        raise _shortage(recipe, excluded, "they are not free")
    return found[:servers]


def _usable_nodes(avoided: tuple[str, ...]) -> list[dict[str, Any]]:
    return [node for node in alive_nodes() if not _is_among(node, avoided)]


def _amounts(nodes: Sequence[dict[str, Any]], freed: Mapping[str, int]) -> list[int]:
    """Return the free NPUs of each node."""
    free = _free_npus()
    ids = [node["NodeID"] for node in nodes]
    return [int(free.get(node_id, 0)) + freed.get(node_id, 0) for node_id in ids]


def _order(ip: str) -> tuple[int, int]:
    address = ipaddress.ip_address(ip or "::")
    return address.version, int(address)


def _is_among(node: dict[str, Any], nodes: tuple[str, ...]) -> bool:
    return node["NodeID"] in nodes or node["NodeManagerAddress"] in nodes


def _choose(nodes: Sequence[str]) -> list[dict[str, str]]:
    return [{"ray.io/node-id": node_id} for node_id in nodes]


def _avoid(excluded: tuple[str, ...], servers: int) -> list[dict[str, str]] | None:
    """Return Ray's label selectors, one per bundle, that keep the servers off some nodes."""
    ids = [node["NodeID"] for node in alive_nodes() if _is_among(node, excluded)]
    if not ids:
        return None
    return [{"ray.io/node-id": f"!in({','.join(ids)})"}] * servers


def _refuse_impossible(recipe: Recipe, excluded: tuple[str, ...]) -> None:
    """Refuse without waiting what waiting cannot change."""
    nodes = [node for node in alive_nodes() if not _is_among(node, excluded)]
    wanted = recipe.parallel.servers
    totals = [int(node["Resources"].get("NPU", 0)) for node in nodes]
    if _count_fitting(recipe, totals) < wanted:
        raise _shortage(recipe, excluded, "the cluster does not have them")
    free = _free_npus()
    amounts = [int(free.get(node["NodeID"], 0)) for node in nodes]
    # A recipe that allows less than a second of waiting gets its answer without a reservation.
    if _count_fitting(recipe, amounts) < wanted and recipe.timeouts.reserve < 1:
        raise _shortage(recipe, excluded, "they are in use")


def _shortage(recipe: Recipe, excluded: tuple[str, ...], why: str) -> PlacementError:
    servers = recipe.parallel.servers
    need = recipe.npus_per_server
    spread = f" on {servers} different nodes" if recipe.hardware.spread and servers > 1 else ""
    what = f"too few NPUs: {servers} server(s) with {need} NPUs each are needed{spread}, and {why}"
    nodes = _describe_nodes(excluded)
    missing = missing_workers()
    if missing:
        return PlacementError(
            what,
            why=missing.what,
            evidence="\n".join([*nodes, *(f"  {line}" for line in missing.evidence)]),
            todo=f"{missing.todo}; or stop what holds NPUs (`raylaunch list --running`, "
            "`raylaunch stop NAME`)",
        )
    return PlacementError(
        what,
        evidence="\n".join(nodes),
        todo="stop what holds them (`raylaunch list --running`, `raylaunch stop NAME`), or wait "
        "for nodes that have not joined yet (`ray status`); a node whose NPUs Ray does not see "
        "needs `--resources '{\"NPU\": 8}'`",
    )


def _count_fitting(recipe: Recipe, npus: Sequence[int]) -> int:
    """Return how many servers find enough NPUs on nodes with these amounts."""
    need = recipe.npus_per_server
    if recipe.hardware.spread:
        return sum(amount >= need for amount in npus)
    return sum(amount // need for amount in npus)


def _describe_nodes(excluded: tuple[str, ...]) -> list[str]:
    free = _free_npus()
    holders = _holders()
    lines = []
    for node in alive_nodes():
        ip = node["NodeManagerAddress"]
        node_id = node["NodeID"]
        total = int(node["Resources"].get("NPU", 0))
        parts = [f"{ip}: {total} NPUs", f"{int(free.get(node_id, 0))} free"]
        for name, count in holders.get(node_id, {}).items():
            parts.append(f"{count} by {name}")
        if ip in excluded:
            parts.append("excluded after a device fault")
        lines.append("  " + ", ".join(parts))
    return lines + [f"  {line}" for line in _describe_lost()]


def _describe_lost() -> list[str]:
    """Return the nodes that were not stopped on purpose, each with the reason that Ray gives."""
    import ray

    lost = [
        f"{node['NodeManagerAddress']}: lost, {node['DeathReasonMessage']}"
        for node in ray.nodes()
        if not node["Alive"] and node["DeathReason"] != _EXPECTED_TERMINATION
    ]
    return lost[:_MOST_LOST]


def _free_npus() -> dict[str, float]:
    """Return the free NPUs by node id."""
    # No public function has this without the dashboard.
    from ray._private.state import available_resources_per_node

    free = {}
    for node_id, resources in available_resources_per_node().items():
        free[node_id] = resources.get("NPU", 0.0)
    return free


def _holders() -> dict[str, dict[str, int]]:
    """Return who has reserved how many NPUs, by node id and deployment or placement group."""
    from ray.util import placement_group_table

    holders: dict[str, dict[str, int]] = {}
    for group in placement_group_table().values():
        if group["state"] != "CREATED":
            continue
        name = str(group["name"])
        if name.startswith(PREFIX):
            name = GroupKey.parse(name.removeprefix(PREFIX)).deployment
        elif not name:
            name = f"placement group {group['placement_group_id'][:8]}"
        for bundle, node_id in group["bundles_to_node_id"].items():
            npus = int(group["bundles"][bundle].get("NPU", 0))
            if npus:
                held = holders.setdefault(node_id, {})
                held[name] = held.get(name, 0) + npus
    return holders
