"""The ports of a deployment: the API's is the user's to say, the others move out of the way of whoever is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raylaunch.plan.facts import Facts, Listener
from raylaunch.plan.launch_plan import LaunchPlan, Place, Ports, ServerPlan
from raylaunch.plan.layout import Seat

if TYPE_CHECKING:
    from raylaunch.recipe.load import LoadedRecipe

HCCL_PORTS = 16
"""Host ports one HCCL process takes from its base port (CANN documentation of HCCL_IF_BASE_PORT)."""
HCCL_LAST_BASE = 65520
"""The highest base port that HCCL takes (the same page)."""
RAY_WORKERS = range(10002, 20000)
"""Ports that Ray gives its workers unless told otherwise, at any moment: nothing is moved to them."""

_EVERYWHERE = ("0.0.0.0", "::", "*", "")  # noqa: S104 - compared, not bound

Taken = Mapping[int, str]
"""Port -> who has it: "deployment x", "pid 4711 (python3)"."""


@dataclass(frozen=True)
class Port:
    """A port and why it is this one."""

    number: int
    origin: str


@dataclass(frozen=True)
class PortChoice:
    """The ports of a deployment, the same on all of its nodes. `hccl` is the base of the first server of a node."""

    http: Port
    rpc: Port
    hccl: Port | None

    def at(self, slot: int) -> Ports:
        """The ports of the server with this number on its node."""
        base = None if self.hccl is None else self.hccl.number + slot * HCCL_PORTS
        return Ports(self.http.number, self.rpc.number, base)


def choose_ports(
    loaded: LoadedRecipe, seats: Sequence[Seat], others: Sequence[LaunchPlan] = ()
) -> PortChoice:
    """Choose the ports of a deployment whose first seat is the primary's.

    HCCL's base and the rpc port begin at the recipe's number and move to the next free one when a listener or the plan
    of another deployment (`others`) has it on one of the nodes; HCCL listens only while a communicator is set up, so
    listeners alone would not do. What was given with --set is never moved: then it is for the checks to refuse.
    """
    at = index_by_node(others)
    taken = [find_taken(seat.facts, seat.place, at) for seat in seats]
    hccl = None if loaded.recipe.hardware.platform == "cpu" else _choose_hccl(loaded, seats, taken)
    http = Port(loaded.recipe.network.http_port, loaded.origin("network.http_port"))
    return PortChoice(http, _choose_rpc(loaded, seats, taken[0], hccl), hccl)


def index_by_node(others: Iterable[LaunchPlan]) -> dict[str, list[tuple[str, ServerPlan]]]:
    """The servers of other deployments, with the deployment's name, by the id and by the address of their node."""
    found: dict[str, list[tuple[str, ServerPlan]]] = {}
    for plan in others:
        for server in plan.servers:
            for key in filter(None, (server.node.node_id, server.node.ip)):
                found.setdefault(key, []).append((plan.deployment, server))
    return found


def find_taken(
    facts: Facts,
    place: Place,
    others: Mapping[str, list[tuple[str, ServerPlan]]],
    *,
    listeners: bool = True,
) -> dict[int, str]:
    """Who has which port on a node, for a server that would listen at `place`. `others`: see `index_by_node`."""
    owners = {process.pid: process.deployment for process in facts.marked}
    taken = {
        listener.port: describe_holder(listener, owners)
        for listener in facts.listeners
        if listeners and collide(listener.address, place.ip)
    }
    for key in filter(None, (facts.node_id, facts.ip, place.ip)):
        for deployment, server in others.get(key, ()):
            taken.update((port, f"deployment {deployment}") for _, port, _ in wanted_ports(server))
    return taken


def wanted_ports(server: ServerPlan) -> Iterator[tuple[str, int, str]]:
    """Field, port and address of what a server binds. A headless one has no API, and only the primary the handshake."""
    if server.role == "primary":
        yield "network.http_port", server.ports.http, server.flag("--host") or ""
        if (address := server.flag("--data-parallel-address")) is not None:
            yield "network.rpc_port", server.ports.rpc, address
    if server.ports.hccl_base is not None:
        for port in range(server.ports.hccl_base, server.ports.hccl_base + HCCL_PORTS):
            yield "network.hccl_base_port", port, server.node.ip


def collide(held: str, wanted: str) -> bool:
    """Whether listening at address `wanted` meets a listener at `held` on the same port."""
    return held == wanted or held in _EVERYWHERE or wanted in _EVERYWHERE


def describe_holder(listener: Listener, owners: Mapping[int, str]) -> str:
    """Who listens. `owners` maps pids to deployments of raylaunch, also of other clusters, as a probe found them."""
    if listener.pid is None:
        return "a process of another user"
    owner = owners.get(listener.pid)
    return (
        f"pid {listener.pid} ({f'deployment {owner}' if owner else listener.process or 'unknown'})"
    )


def is_fixed(loaded: LoadedRecipe, field: str) -> bool:
    """Whether a port may not be moved: whoever writes --set means that one."""
    return loaded.origin(field) == "--set"


def _choose_hccl(loaded: LoadedRecipe, seats: Sequence[Seat], taken: Sequence[Taken]) -> Port:
    field, start = "network.hccl_base_port", loaded.recipe.network.hccl_base_port
    own = {loaded.recipe.network.http_port, loaded.recipe.network.rpc_port}
    holder = _find_holder(start, seats, taken)
    if holder is None or is_fixed(loaded, field):
        return Port(start, loaded.origin(field))
    last = HCCL_LAST_BASE - max(seat.slot for seat in seats) * HCCL_PORTS
    for base in range(start + HCCL_PORTS, last + 1, HCCL_PORTS):
        block = range(base, base + HCCL_PORTS * (1 + max(seat.slot for seat in seats)))
        if not own.intersection(block) and _find_holder(base, seats, taken) is None:
            return Port(base, f"raylaunch: {holder[0]} is used by {holder[1]}")
    return Port(start, loaded.origin(field))


def _find_holder(
    base: int, seats: Sequence[Seat], taken: Sequence[Taken]
) -> tuple[int, str] | None:
    """The first port of the servers' HCCL blocks that somebody has, and who."""
    for seat, here in zip(seats, taken, strict=True):
        first = base + seat.slot * HCCL_PORTS
        for port in range(first, first + HCCL_PORTS):
            if port in here:
                return port, here[port]
    return None


def _choose_rpc(
    loaded: LoadedRecipe, seats: Sequence[Seat], taken: Taken, hccl: Port | None
) -> Port:
    field, start = "network.rpc_port", loaded.recipe.network.rpc_port
    if len(seats) == 1 or start not in taken or is_fixed(loaded, field):
        return Port(start, loaded.origin(field))
    slots = 1 + max(seat.slot for seat in seats)
    own = range(hccl.number, hccl.number + slots * HCCL_PORTS) if hccl else range(0)
    for port in range(start + 1, 65536):
        if not (
            port in taken
            or port in own
            or port in RAY_WORKERS
            or port == loaded.recipe.network.http_port
        ):
            return Port(port, f"raylaunch: {start} is used by {taken[start]}")
    return Port(start, loaded.origin(field))
