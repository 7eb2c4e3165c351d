"""The ports of a group: the API's is fixed by the user, the others move to free ones."""

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
"""Host ports of one HCCL process, from its base port (CANN documentation of HCCL_IF_BASE_PORT)."""
HCCL_LAST_BASE = 65520
"""The highest base port that HCCL accepts (the same page)."""
RAY_WORKERS = range(10002, 20000)
"""Ray's default ports of its workers. Ray binds them at any time: nothing is moved to them."""

EVERYWHERE = ("0.0.0.0", "::", "*", "")  # noqa: S104 - compared, not bound

Taken = Mapping[int, str]
"""Port -> its holder: "deployment x", "pid 4711 (python3)"."""


@dataclass(frozen=True)
class Port:
    """A port and why it is this one."""

    number: int
    origin: str


@dataclass(frozen=True)
class PortChoice:
    """The ports of a group, the same on all of its nodes.

    `hccl` is the base port of the first server of a node.
    """

    http: Port
    rpc: Port
    hccl: Port | None

    def at(self, slot: int) -> Ports:
        """Return the ports of the server with this number on its node."""
        base = None
        if self.hccl is not None:
            base = self.hccl.number + slot * HCCL_PORTS
        return Ports(self.http.number, self.rpc.number, base)


def choose_ports(
    loaded: LoadedRecipe,
    seats: Sequence[Seat],
    others: Sequence[LaunchPlan] = (),
    deployment: str = "",
) -> PortChoice:
    """Choose the ports of a group of `deployment` whose first seat is the primary's.

    HCCL's base and the rpc port start at the recipe's number and move to the next free one when a
    listener, or the plan of another deployment or group (`others`), has it on one of the nodes.
    Listeners alone are not enough: HCCL listens only while a communicator is set up. A port given
    with --set is moved for another group of the deployment only, since one number is given to all
    of them; the checks refuse it when something else uses it. The same holds for the API's port.
    """
    by_node = index_by_node(others, deployment)
    taken = [find_taken(seat.facts, seat.place, by_node) for seat in seats]
    siblings = index_by_node([one for one in others if one.deployment == deployment], deployment)
    primary = seats[0]
    by_siblings = find_taken(primary.facts, primary.place, siblings, listeners=False)
    http = _choose_http(loaded, seats, taken[0], by_siblings)
    hccl = None
    if loaded.recipe.hardware.platform != "cpu":
        hccl = _choose_hccl(loaded, seats, taken, http)
    rpc = _choose_rpc(loaded, seats, taken[0], hccl, http)
    return PortChoice(http, rpc, hccl)


def index_by_node(
    others: Iterable[LaunchPlan], deployment: str
) -> dict[str, list[tuple[str, ServerPlan]]]:
    """Index the servers of other plans by the id and by the address of their node.

    Each server comes with its holder: "group serve-0" of `deployment` itself, or "deployment x".
    """
    found: dict[str, list[tuple[str, ServerPlan]]] = {}
    for plan in others:
        is_own = plan.deployment == deployment
        holder = f"group {plan.group}" if is_own else f"deployment {plan.deployment}"
        for server in plan.servers:
            for node in filter(None, (server.node.node_id, server.node.ip)):
                found.setdefault(node, []).append((holder, server))
    return found


def find_taken(
    facts: Facts,
    place: Place,
    others: Mapping[str, list[tuple[str, ServerPlan]]],
    *,
    listeners: bool = True,
) -> dict[int, str]:
    """Return the ports in use on a node and their holders, for a server at `place`.

    `others`: see `index_by_node`. Without `listeners` only the plans of others count.
    """
    owners = {process.pid: process.owner for process in facts.marked}
    taken = {}
    for listener in facts.listeners if listeners else ():
        if collide(listener.address, place.ip):
            taken[listener.port] = describe_holder(listener, owners)
    for node in filter(None, (facts.node_id, facts.ip, place.ip)):
        for holder, server in others.get(node, ()):
            for _, port, _ in wanted_ports(server):
                taken[port] = holder
    return taken


def wanted_ports(server: ServerPlan) -> Iterator[tuple[str, int, str]]:
    """Yield field, port and address of each port that a server binds.

    A headless server has no API, and only the primary listens for the data-parallel handshake.
    """
    ports = server.ports
    if server.role == "primary":
        yield "network.http_port", ports.http, server.flag("--host") or ""
        address = server.flag("--data-parallel-address")
        if address is not None:
            yield "network.rpc_port", ports.rpc, address
    if ports.hccl_base is not None:
        for port in range(ports.hccl_base, ports.hccl_base + HCCL_PORTS):
            yield "network.hccl_base_port", port, server.node.ip


def collide(held: str, wanted: str) -> bool:
    """Return whether a listener at address `held` excludes one at `wanted` on the same port."""
    return held == wanted or held in EVERYWHERE or wanted in EVERYWHERE


def describe_holder(listener: Listener, owners: Mapping[int, str]) -> str:
    """Name the process that listens.

    `owners` maps pids to deployments of raylaunch, also those of other clusters, as a probe found
    them.
    """
    if listener.pid is None:
        return "a process of another user"
    name = listener.process or "unknown"
    owner = owners.get(listener.pid)
    if owner:
        name = f"deployment {owner}"
    return f"pid {listener.pid} ({name})"


def is_fixed(loaded: LoadedRecipe, field: str) -> bool:
    """Return whether a port may not be moved: a port given with --set is meant literally."""
    return loaded.origin(field) == "--set"


def _may_move(loaded: LoadedRecipe, field: str, holder: str) -> bool:
    return holder.startswith("group ") or not is_fixed(loaded, field)


def _choose_http(
    loaded: LoadedRecipe, seats: Sequence[Seat], taken: Taken, by_siblings: Taken
) -> Port:
    network = loaded.recipe.network
    start = network.http_port
    origin = loaded.origin("network.http_port")
    if start not in by_siblings:
        return Port(start, origin)
    slots = 1 + max(seat.slot for seat in seats)
    hccl = range(network.hccl_base_port, network.hccl_base_port + slots * HCCL_PORTS)
    for port in range(start + 1, 65536):
        if port in taken or port in RAY_WORKERS or port in hccl or port == network.rpc_port:
            continue
        return Port(port, f"raylaunch: {start} is used by {by_siblings[start]}")
    return Port(start, origin)


def _choose_hccl(
    loaded: LoadedRecipe, seats: Sequence[Seat], taken: Sequence[Taken], http: Port
) -> Port:
    field = "network.hccl_base_port"
    network = loaded.recipe.network
    start = network.hccl_base_port
    own = {http.number, network.rpc_port}
    holder = _find_holder(start, seats, taken)
    if holder is None or not _may_move(loaded, field, holder[1]):
        return Port(start, loaded.origin(field))
    last_slot = max(seat.slot for seat in seats)
    size = HCCL_PORTS * (1 + last_slot)
    last_base = HCCL_LAST_BASE - last_slot * HCCL_PORTS
    for base in range(start + HCCL_PORTS, last_base + 1, HCCL_PORTS):
        block = range(base, base + size)
        if not own.intersection(block) and _find_holder(base, seats, taken) is None:
            return Port(base, f"raylaunch: {holder[0]} is used by {holder[1]}")
    return Port(start, loaded.origin(field))


def _find_holder(
    base: int, seats: Sequence[Seat], taken: Sequence[Taken]
) -> tuple[int, str] | None:
    """Return the first port of the servers' HCCL blocks that is in use, and its holder."""
    for seat, taken_here in zip(seats, taken, strict=True):
        first = base + seat.slot * HCCL_PORTS
        for port in range(first, first + HCCL_PORTS):
            if port in taken_here:
                return port, taken_here[port]
    return None


def _choose_rpc(
    loaded: LoadedRecipe,
    seats: Sequence[Seat],
    taken: Taken,
    hccl: Port | None,
    http: Port,
) -> Port:
    field = "network.rpc_port"
    network = loaded.recipe.network
    start = network.rpc_port
    if len(seats) == 1 or start not in taken or not _may_move(loaded, field, taken[start]):
        return Port(start, loaded.origin(field))
    reserved = {*RAY_WORKERS, http.number}
    if hccl is not None:
        slots = 1 + max(seat.slot for seat in seats)
        reserved.update(range(hccl.number, hccl.number + slots * HCCL_PORTS))
    for port in range(start + 1, 65536):
        if port not in taken and port not in reserved:
            return Port(port, f"raylaunch: {start} is used by {taken[start]}")
    return Port(start, loaded.origin(field))
