"""Deployments that choose their ports at the same moment: each order of asking ends with one after the other."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from raylaunch.runtime.controller.port_turns import Turns


async def choose(
    own: Turns, others: list[Turns], taken: dict[Turns, int], before=lambda: None
) -> None:
    """As a controller does: begin, ask all others for what they took, take the next free number."""
    with own.take() as ticket:
        before()
        seen = set()
        for other in others:
            await other.wait(ticket)
            seen.add(taken.get(other))
        await asyncio.sleep(0)
        taken[own] = next(number for number in itertools.count() if number not in seen)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_those_who_choose_at_once_take_different_numbers(order):
    async def run():
        turns, taken = [Turns(name) for name in "abc"], {}
        jobs = [
            choose(turns[at], [one for one in turns if one is not turns[at]], taken) for at in order
        ]
        async with asyncio.timeout(60):
            await asyncio.gather(*jobs)
        return [taken[one] for one in turns]

    assert sorted(asyncio.run(run())) == [0, 1, 2]


def test_who_began_earlier_is_waited_for_whatever_its_name(monkeypatch):
    clock = iter([5.0, 5.0])  # both begin at the same moment of the clock
    monkeypatch.setattr("raylaunch.runtime.controller.port_turns.time.time", lambda: next(clock))

    async def run():
        first, second, taken = Turns("z"), Turns("a"), {}
        with first.take() as early:
            await second.wait(early)  # asks before the other began
            late = asyncio.create_task(choose(second, [first], taken))
            await asyncio.sleep(0)
            assert second not in taken
            taken[first] = 0
        async with asyncio.timeout(60):
            await late
        return taken[second]

    assert asyncio.run(run()) == 1


def test_nobody_waits_for_one_who_does_not_choose_or_whose_choice_failed():
    async def run():
        idle, failed = Turns("idle"), Turns("failed")
        with pytest.raises(RuntimeError), failed.take():
            raise RuntimeError("no plan")
        async with asyncio.timeout(60):
            await choose(Turns("me"), [idle, failed], {})

    asyncio.run(run())
