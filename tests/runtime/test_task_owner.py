"""No task dies unnoticed: exceptions are logged, reported, and answered with a restart."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings

from raylaunch.runtime.cluster.task_owner import LONGEST_PAUSE_S, STEADY_S, TaskOwner


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def test_the_exception_of_a_task_is_logged_and_reported(caplog):
    failures = []

    async def work() -> None:
        raise ValueError("took 1.2.3 s")

    async def scene() -> None:
        await TaskOwner(failures.append).run_once("log follower", work)

    with caplog.at_level(logging.ERROR):
        asyncio.run(scene())
    assert [(one.name, str(one.error), one.restart_in_s) for one in failures] == [
        ("log follower", "took 1.2.3 s", None)
    ]
    assert "task log follower failed" in caplog.text
    assert "Traceback" in caplog.text


def test_a_task_that_fails_is_restarted_with_a_growing_pause_until_it_returns():
    clock, failures, runs = Clock(), [], []

    async def work() -> None:
        runs.append(clock.now)
        if len(runs) < 12:
            raise OSError("again")

    async def scene() -> None:
        owner = TaskOwner(failures.append, clock=clock, sleep=clock.sleep)
        await owner.keep_running("watch", work)
        await asyncio.sleep(0)
        assert owner.names == ()

    asyncio.run(scene())
    assert clock.slept[:4] == [0.1, 0.2, 0.4, 0.8]
    assert clock.slept[-1] == LONGEST_PAUSE_S
    assert [one.failures for one in failures] == list(range(1, 12))


def test_a_task_that_ran_for_long_starts_again_without_a_long_pause():
    clock, runs = Clock(), []

    async def work() -> None:
        runs.append(clock.now)
        if len(runs) == 5:
            clock.now += STEADY_S
        if len(runs) < 6:
            raise OSError("again")

    async def scene() -> None:
        await TaskOwner(lambda _: None, clock=clock, sleep=clock.sleep).keep_running("watch", work)

    asyncio.run(scene())
    assert clock.slept == [0.1, 0.2, 0.4, 0.8, 0.1]


def test_a_cancelled_task_is_neither_reported_nor_restarted():
    failures, runs = [], []

    async def work() -> None:
        runs.append(1)
        await asyncio.Event().wait()

    async def scene() -> None:
        owner = TaskOwner(failures.append)
        owner.keep_running("watch", work)
        owner.run_once("once", work)
        await asyncio.sleep(0)
        assert owner.names == ("watch", "once")
        await owner.cancel_and_wait()
        assert owner.names == ()

    asyncio.run(scene())
    assert (failures, len(runs)) == ([], 2)


def test_a_task_that_is_cancelled_before_its_first_step_leaves_no_coroutine_behind():
    async def work() -> None:
        raise AssertionError("it must not run")

    async def scene() -> None:
        owner = TaskOwner(lambda failure: None)
        owner.run_once("journals", work)
        owner.keep_running("log follower", work)
        await owner.cancel_and_wait()
        assert not owner.names

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        asyncio.run(scene())
        gc.collect()  # a coroutine that was never awaited warns when it is freed
    assert [str(warning.message) for warning in warned] == []
