"""A class of a model is inspected in a fork: its answer, its exception, its death."""

from __future__ import annotations

import os
import signal

import pytest

from raylaunch.node.probe.fork_inspection import run_in_fork


def test_the_answer_is_that_of_another_process():
    assert run_in_fork(os.getpid) != os.getpid()
    assert run_in_fork(lambda: {"heads": (4, 2)}) == {"heads": (4, 2)}


def test_an_exception_is_told_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)Error raised in subprocess.*in wrong.*KeyError"):
        run_in_fork(wrong)


def wrong():
    raise KeyError("architectures")


@pytest.mark.parametrize("ending", [SystemExit(3), KeyboardInterrupt()])
def test_an_exit_of_the_inspected_code_ends_the_fork_alone(ending):
    def leave():
        raise ending

    with pytest.raises(RuntimeError, match=type(ending).__name__):
        run_in_fork(leave)


def test_a_fork_that_is_killed_is_told():
    with pytest.raises(RuntimeError, match="wait status 9"):
        run_in_fork(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_what_cannot_be_sent_is_told():
    with pytest.raises(RuntimeError, match=r"(?i)pickle"):
        run_in_fork(lambda: lambda: None)
