"""All NPUs of a deployment together, or none: reservation, and what is missing when there are too few."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raylaunch.errors import BusyError, PlacementError
from raylaunch.recipe.model import Recipe
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.cluster.missing_workers import absent_workers

PREFIX = "raylaunch:"


@dataclass(frozen=True)
class Slot:
    """One bundle of the reservation: where a server will run."""

    bundle: int
    node_id: str
    ip: str


def reserve(
    name: str,
    recipe: Recipe,
    excluded: tuple[str, ...] = (),
    timeout_s: float | None = None,
    *,
    detached: bool = True,
) -> Any:  # noqa: ANN401
    """Reserve the NPUs of every server in one placement group. Blocks up to `timeouts.reserve`.

    Args:
        name: Deployment.
        recipe: Says how many servers, of how many NPUs.
        excluded: Addresses or ids of nodes not to be used.
        timeout_s: Wait so long, also for nodes that may yet come; by default `timeouts.reserve`.
        detached: Keep it when this process ends.

    Raises:
        BusyError: there is a reservation of that name.
        PlacementError: the cluster cannot give them; nothing stays reserved.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    if find_group(name) is not None:
        raise already_reserved(name)
    servers = recipe.parallel.servers
    if timeout_s is None:
        _refuse_impossible(recipe, excluded)
    group = placement_group(
        [{"NPU": float(recipe.npus_per_server)}] * servers,
        strategy="STRICT_SPREAD" if recipe.hardware.spread else "PACK",
        name=PREFIX + name,
        lifetime="detached" if detached else None,
        bundle_label_selector=_avoid(excluded, servers),
    )
    if group.wait(timeout_s or recipe.timeouts.reserve):
        return group
    remove_placement_group(group)
    raise _shortage(recipe, excluded, "they did not become free in time")


def already_reserved(name: str) -> BusyError:
    """The error for a reservation of that name whose controller is lost."""
    return BusyError(
        f"NPUs are reserved already for a deployment named {name!r}",
        why="it has lost its controller (Ray's head was restarted, or the controller was killed)",
        todo=f"`raylaunch clean --yes --deployment {name}` removes what is left; or use another --name",
    )


def find_group(name: str) -> Any | None:  # noqa: ANN401
    """The reservation of a deployment, if there is one."""
    from ray.util.placement_group import get_placement_group

    try:
        return get_placement_group(PREFIX + name)
    except ValueError:
        return None


def release(group: Any) -> None:  # noqa: ANN401
    """Give the NPUs back."""
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(group)


def slots(group: Any) -> list[Slot]:  # noqa: ANN401
    """Where the bundles are, ordered by address: ranks never follow the order of arrival."""
    from ray.util import placement_group_table

    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in alive_nodes()}
    table = placement_group_table(group)["bundles_to_node_id"]
    found = [
        Slot(int(bundle), node_id, nodes.get(node_id, "")) for bundle, node_id in table.items()
    ]
    return sorted(found, key=lambda slot: (_order(slot.ip), slot.node_id, slot.bundle))


def has_spare(
    recipe: Recipe, used: tuple[str, ...], excluded: tuple[str, ...] = (), servers: int = 1
) -> bool:
    """Whether nodes outside `used` and `excluded` (addresses or ids) have the NPUs of so many servers free."""
    free = _free_npus()
    nodes = [node for node in alive_nodes() if not _is_among(node, (*used, *excluded))]
    return _fitting(recipe, [int(free.get(node["NodeID"], 0)) for node in nodes]) >= servers


def _order(ip: str) -> tuple[int, int]:
    address = ipaddress.ip_address(ip) if ip else ipaddress.ip_address("::")
    return address.version, int(address)


def _is_among(node: dict[str, Any], nodes: tuple[str, ...]) -> bool:
    return node["NodeID"] in nodes or node["NodeManagerAddress"] in nodes


def _avoid(excluded: tuple[str, ...], servers: int) -> list[dict[str, str]] | None:
    ids = [node["NodeID"] for node in alive_nodes() if _is_among(node, excluded)]
    return [{"ray.io/node-id": f"!in({','.join(ids)})"}] * servers if ids else None


def _refuse_impossible(recipe: Recipe, excluded: tuple[str, ...]) -> None:
    """Say at once what waiting cannot cure."""
    nodes = [node for node in alive_nodes() if not _is_among(node, excluded)]
    totals = [int(node["Resources"].get("NPU", 0)) for node in nodes]
    if _fitting(recipe, totals) < recipe.parallel.servers:
        raise _shortage(recipe, excluded, "the cluster does not have them")
    free = _free_npus()
    amounts = [int(free.get(node["NodeID"], 0)) for node in nodes]
    if _fitting(recipe, amounts) < recipe.parallel.servers and recipe.timeouts.reserve < 1:
        raise _shortage(recipe, excluded, "they are in use")


def _shortage(recipe: Recipe, excluded: tuple[str, ...], why: str) -> PlacementError:
    servers, need = recipe.parallel.servers, recipe.npus_per_server
    spread = f" on {servers} different nodes" if recipe.hardware.spread and servers > 1 else ""
    what = f"too few NPUs: {servers} server(s) with {need} NPUs each are needed{spread}, and {why}"
    nodes = _describe_nodes(excluded)
    if absent := absent_workers():
        return PlacementError(
            what,
            why=absent.what,
            evidence="\n".join([*nodes, *(f"  {line}" for line in absent.evidence)]),
            todo=f"{absent.todo}; or end what holds NPUs (`raylaunch list --running`, `raylaunch stop NAME`)",
        )
    return PlacementError(
        what,
        evidence="\n".join(nodes),
        todo="end what holds them (`raylaunch list --running`, `raylaunch stop NAME`), or wait for nodes that have "
        "not joined yet (`ray status`); a node whose NPUs Ray does not see needs `--resources '{\"NPU\": 8}'`",
    )


def _fitting(recipe: Recipe, npus: Sequence[int]) -> int:
    """How many servers so many NPUs per node are enough for."""
    need = recipe.npus_per_server
    return sum(count >= need if recipe.hardware.spread else count // need for count in npus)


def _describe_nodes(excluded: tuple[str, ...]) -> list[str]:
    free, holders = _free_npus(), _holders()
    lines = []
    for node in alive_nodes():
        ip, node_id = node["NodeManagerAddress"], node["NodeID"]
        total = int(node["Resources"].get("NPU", 0))
        held = ", ".join(f"{count} by {name}" for name, count in holders.get(node_id, {}).items())
        excluded_text = ", excluded after a device fault" if ip in excluded else ""
        lines.append(
            f"  {ip}: {total} NPUs, {int(free.get(node_id, 0))} free{', ' + held if held else ''}{excluded_text}"
        )
    return lines


def _free_npus() -> dict[str, float]:
    """Free NPUs by node id."""
    from ray._private.state import (
        available_resources_per_node,  # no public call has it without the dashboard
    )

    return {
        node_id: resources.get("NPU", 0.0)
        for node_id, resources in available_resources_per_node().items()
    }


def _holders() -> dict[str, dict[str, int]]:
    """Node id -> who has reserved how many NPUs there, by placement group."""
    from ray.util import placement_group_table

    holders: dict[str, dict[str, int]] = {}
    for group in placement_group_table().values():
        if group["state"] != "CREATED":
            continue
        name = (
            group["name"].removeprefix(PREFIX)
            or f"placement group {group['placement_group_id'][:8]}"
        )
        for bundle, node_id in group["bundles_to_node_id"].items():
            npus = int(group["bundles"][bundle].get("NPU", 0))
            if npus:
                held = holders.setdefault(node_id, {})
                held[name] = held.get(name, 0) + npus
    return holders
