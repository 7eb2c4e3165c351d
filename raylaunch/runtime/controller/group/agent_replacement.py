"""Gives servers of a running attempt new agents: reservation, agents and adoption, one try each.

What Ray raises meanwhile is an error of that try. A GCS that was started again, and a loaded
machine, answer late, and the servers run on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

from raylaunch.errors import LaunchError
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.recipe.model import Recipe
from raylaunch.runtime.agent.gang import Gang
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.cluster.placement import Slot
from raylaunch.runtime.cluster.remote_call import explained_ray_errors
from raylaunch.runtime.controller.group.adoption import (
    NODE_WAIT_S,
    find_slots,
    move_nodes,
    sort_answers,
)
from raylaunch.runtime.controller.group.group_backend import Adopted
from raylaunch.supervise.health_config import HealthConfig

log = logging.getLogger(__name__)

NAME_TAKEN_S = 5.0
"""Ray frees the name of a killed actor after its process has exited."""
NAME_POLL_S = 0.2
STUCK_S = 5.0
"""Ray places the rest of a reservation within a second or two, once the nodes are there."""


async def replace_agents(
    gang: Gang,
    recipe: Recipe,
    plan: LaunchPlan,
    attempt: int,
    servers: Sequence[int],
    *,
    addresses: Mapping[str, str],
    health: HealthConfig,
) -> Adopted:
    """Create an agent for each of these servers, which adopts the server as it runs.

    Raises:
        RaylaunchError: the try failed; another one may succeed.
    """
    with explained_ray_errors("another agent"):
        for index in servers:
            gang.give_up(index)
        slots = await _slots_of(gang, recipe, plan, addresses)
        there = {index: slots[index] for index in servers if slots[index].ip}
        if not there:
            return Adopted(plan)
        await create_missing(gang, there)
    answers = await gang.ask_all(
        lambda agent: agent.adopt(plan=plan, attempt=attempt, health=health),
        servers=there.keys(),
    )
    adopted, refused = sort_answers(answers)
    return Adopted(move_nodes(plan, slots), adopted, refused)


async def _slots_of(
    gang: Gang, recipe: Recipe, plan: LaunchPlan, addresses: Mapping[str, str]
) -> list[Slot]:
    """Return the slot of each server, as `find_slots` does; none while nothing is reserved."""
    nowhere = [Slot(-1, "", "") for _ in plan.servers]
    if gang.reservation is None:
        gang.reservation = await asyncio.to_thread(placement.find_reservation, gang.key)
    if gang.reservation is None:
        # Ray has lost its tables. On other nodes a reservation would be of no use.
        nodes = choose_nodes(plan, await asyncio.to_thread(alive_nodes), addresses)
        if not all(nodes):
            return nowhere
        log.warning("reserving again around the servers of %s", gang.key)
        gang.reservation = await asyncio.to_thread(
            placement.request, gang.key, recipe, timeout_s=NODE_WAIT_S, nodes=nodes
        )
    try:
        reserved = await asyncio.to_thread(placement.slots, gang.reservation)
    except KeyError:  # Ray does not know this placement group any more
        gang.reservation = None
        return nowhere
    found = find_slots(plan, reserved, addresses)
    if await _is_stuck(gang, plan, found, addresses):
        # The agents in it die with it: other servers of the group are orphans for a moment too.
        log.warning("Ray does not complete the reservation of %s: releasing it", gang.key)
        await asyncio.to_thread(placement.release, gang.reservation)
        gang.reservation = None
        gang.incomplete_since = None
        return nowhere
    return found


async def _is_stuck(
    gang: Gang, plan: LaunchPlan, slots: Sequence[Slot], addresses: Mapping[str, str]
) -> bool:
    """Return whether a server has no slot for STUCK_S although all nodes are there.

    A GCS that is stopped just after a node may have stored the node's death, and not that the NPUs
    reserved there must be placed again: the next GCS never does (seen, Ray 2.60). Nor can it place
    NPUs that were reserved by the id of a node that came back under another one.
    """
    if all(slot.ip for slot in slots):
        gang.incomplete_since = None
        return False
    nodes = choose_nodes(plan, await asyncio.to_thread(alive_nodes), addresses)
    if not all(nodes):
        gang.incomplete_since = None
        return False
    now = time.monotonic()
    if gang.incomplete_since is None:
        gang.incomplete_since = now
    return now - gang.incomplete_since >= STUCK_S


def choose_nodes(
    plan: LaunchPlan, nodes: Sequence[Mapping[str, str]], addresses: Mapping[str, str]
) -> tuple[str, ...]:
    """Return Ray's id of the node of each server's guard; "" where that host has no node.

    Several nodes may have one address: the embedded cluster has all its nodes on one machine.
    """
    free = [(node["NodeID"], node["NodeManagerAddress"]) for node in nodes]
    chosen = []
    for server in plan.servers:
        ip = addresses.get(server.node.ip, server.node.ip)
        found = next((one for one in free if one[1] == ip), None)
        if found is not None:
            free.remove(found)
        chosen.append(found[0] if found is not None else "")
    return tuple(chosen)


async def create_missing(gang: Gang, slots: Mapping[int, Slot]) -> None:
    """Create the agents of these servers that are missing.

    Raises:
        LaunchError: the last agent of a server keeps its name.
    """
    deadline = time.monotonic() + NAME_TAKEN_S
    while True:
        alive = gang.alive
        missing = {index: slot for index, slot in slots.items() if index not in alive}
        if not missing:
            return
        try:
            gang.create_on(missing)
        except ValueError as error:  # Ray: the name is taken
            if time.monotonic() >= deadline:
                raise LaunchError("the last agent still has its name", why=str(error)) from None
            await asyncio.sleep(NAME_POLL_S)
        else:
            return
