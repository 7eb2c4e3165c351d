"""Real listeners and real connections, between addresses of the loopback network."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

from raylaunch.checks.reach_checks import ProbeListener
from raylaunch.node.probe.reachability import knock, open_doors

ONE, OTHER = "127.0.0.2", "127.0.0.3"


@contextlib.asynccontextmanager
async def doors_at(ip: str, **ports: int) -> AsyncIterator[tuple[ProbeListener, ...]]:
    servers, doors = await open_doors(ip, ports or {"rpc": 0, "any": 0})
    try:
        yield doors
    finally:
        for server in servers:
            server.close()


def test_open_doors_are_reached_from_the_address_that_was_named():
    async def look():
        async with doors_at(ONE) as here, doors_at(OTHER) as there:
            assert [door.name for door in here] == ["rpc", "any"]
            assert len({door.greeting for door in (*here, *there)}) == 4
            return await knock(ONE, (*here, *there), 10), await knock(OTHER, (*here, *there), 10)

    assert asyncio.run(look()) == ([], [])


def test_a_closed_door_is_named_with_its_reason():
    async def look():
        async with doors_at(OTHER, rpc=0) as doors:
            pass
        return doors, await knock(ONE, doors, 10)

    (door,), (missed,) = asyncio.run(look())
    assert (missed.source, missed.listener) == (ONE, door)
    assert "refused" in missed.reason


def test_somebody_else_behind_the_address_is_not_taken_for_the_host():
    async def look():
        async with doors_at(OTHER, rpc=0) as (door,):
            return await knock(ONE, [replace(door, greeting="another host's")], 10)

    assert asyncio.run(look())[0].reason == f"something else answers at {OTHER}"


def test_a_host_that_swallows_everything_costs_only_the_time_that_was_given():
    """A listener whose queue nobody empties takes the connection and says nothing, as a firewall's proxy does."""
    with socket.create_server((OTHER, 0)) as silent:
        door = ProbeListener(OTHER, "http", silent.getsockname()[1], "hello")
        (missed,) = asyncio.run(knock(ONE, [door], 0.2))
    assert missed.reason == "no answer in 0.2 s"


def test_an_address_that_is_not_of_this_host_is_said_to_be_so():
    async def look():
        async with doors_at(OTHER, rpc=0) as doors:
            return await knock("192.0.2.1", doors, 10)

    assert len(asyncio.run(look())) == 1


def test_a_port_in_use_is_left_to_the_check_of_ports():
    async def look(port):
        async with doors_at(ONE, http=port, any=0) as doors:
            return doors

    with socket.create_server((ONE, 0)) as taken:
        doors = asyncio.run(look(taken.getsockname()[1]))
    assert [door.name for door in doors] == ["any"]


def test_the_ports_are_free_again_at_once():
    """A server must not find TIME_WAIT on the port that was tried a moment ago."""

    async def look():
        async with doors_at(OTHER, rpc=0) as doors:
            assert await knock(ONE, doors, 10) == []
        return doors[0].port

    port = asyncio.run(look())
    with socket.socket() as plain:
        plain.bind((OTHER, port))
