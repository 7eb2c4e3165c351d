"""Real listeners and real connections, between addresses of the loopback network."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

from raylaunch.checks.reach_checks import ProbeListener
from raylaunch.node.probe.reachability import connect_to_all, open_listeners

ONE, OTHER = "127.0.0.2", "127.0.0.3"


@contextlib.asynccontextmanager
async def doors_at(ip: str, **ports: int) -> AsyncIterator[tuple[ProbeListener, ...]]:
    servers, doors = await open_listeners(ip, ports or {"rpc": 0, "any": 0})
    try:
        yield doors
    finally:
        for server in servers:
            server.close()


def test_listeners_are_reached_from_the_given_source_address():
    async def look():
        async with doors_at(ONE) as here, doors_at(OTHER) as there:
            assert [door.name for door in here] == ["rpc", "any"]
            assert len({door.greeting for door in (*here, *there)}) == 4
            return await connect_to_all(ONE, (*here, *there), 10), await connect_to_all(
                OTHER, (*here, *there), 10
            )

    assert asyncio.run(look()) == ([], [])


def test_a_closed_listener_is_reported_with_its_reason():
    async def look():
        async with doors_at(OTHER, rpc=0) as doors:
            pass
        return doors, await connect_to_all(ONE, doors, 10)

    (door,), (missed,) = asyncio.run(look())
    assert (missed.source, missed.listener) == (ONE, door)
    assert "refused" in missed.reason


def test_another_host_behind_the_address_is_not_mistaken_for_it():
    async def look():
        async with doors_at(OTHER, rpc=0) as (door,):
            return await connect_to_all(ONE, [replace(door, greeting="another host's")], 10)

    assert asyncio.run(look())[0].reason == f"something else answers at {OTHER}"


def test_a_host_that_swallows_everything_costs_only_the_time_that_was_given():
    """The kernel accepts for a listener that never calls accept, as a firewall's proxy does."""
    with socket.create_server((OTHER, 0)) as silent:
        door = ProbeListener(OTHER, "http", silent.getsockname()[1], "hello")
        (missed,) = asyncio.run(connect_to_all(ONE, [door], 0.2))
    assert missed.reason == "no answer in 0.2 s"


def test_an_endless_line_in_place_of_the_greeting_is_another_program():
    async def flood(_, writer):
        writer.write(b"x" * 200_000)
        writer.close()

    async def attempt():
        server = await asyncio.start_server(flood, OTHER, 0)
        door = ProbeListener(OTHER, "http", server.sockets[0].getsockname()[1], "hello")
        try:
            return await connect_to_all(ONE, [door], 10)
        finally:
            server.close()

    assert asyncio.run(attempt())[0].reason == f"something else answers at {OTHER}"


def test_an_address_that_this_host_does_not_have_reaches_no_host():
    async def look():
        async with doors_at(OTHER, rpc=0) as doors:
            return await connect_to_all("192.0.2.1", doors, 10)

    assert len(asyncio.run(look())) == 1


def test_a_port_in_use_is_left_to_the_check_of_ports():
    async def look(port):
        async with doors_at(ONE, http=port, any=0) as doors:
            return doors

    with socket.create_server((ONE, 0)) as taken:
        doors = asyncio.run(look(taken.getsockname()[1]))
    assert [door.name for door in doors] == ["any"]


def test_the_ports_are_free_again_immediately():
    """A server must not find TIME_WAIT on the port that was tried a moment ago."""

    async def look():
        async with doors_at(OTHER, rpc=0) as doors:
            assert await connect_to_all(ONE, doors, 10) == []
        return doors[0].port

    port = asyncio.run(look())
    with socket.socket() as plain:
        plain.bind((OTHER, port))
