"""The client of a controller names only methods that the controller has."""

from __future__ import annotations

import inspect
import re

import pytest

from raylaunch.errors import RaylaunchError, UnknownDeploymentError
from raylaunch.runtime.cluster.remote_call import (
    ActorLostError,
    ActorTimeoutError,
    ActorUnavailableError,
)
from raylaunch.runtime.controller import controller_client
from raylaunch.runtime.controller.controller_client import ControllerClient
from raylaunch.supervise.deployment_status import Status, StopReport
from raylaunch.supervise.state import Phase


def test_each_method_that_is_called_exists_and_is_remote():
    pytest.importorskip("ray")
    from raylaunch.runtime.controller.controller import Controller

    called = set(re.findall(r"Controller\.(\w+)", inspect.getsource(controller_client)))
    assert len(called) > 10
    assert {name for name in called if inspect.iscoroutinefunction(getattr(Controller, name))} == (
        called
    )


class FakeRemote:
    """A controller that needs three calls of `stop` until it has stopped."""

    def __init__(self, *answers: StopReport | Exception) -> None:
        self.answers = list(answers)
        self.killed = False

    def ask(self, method, *, timeout_s):
        def wait_change(version, timeout_s):
            phase = Phase.STOPPING if self.answers else Phase.STOPPED
            return version + 1, Status("d", "r", phase, 1, "", "", 0, 0, 0)

        def stop():
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return {"wait_change": wait_change, "stop": stop}[method.__name__]

    def kill(self) -> None:
        self.killed = True


def client_of(remote: FakeRemote) -> ControllerClient:
    client = ControllerClient(None, "d")
    client._remote = remote
    return client


def test_a_stop_is_repeated_until_it_reports():
    remote = FakeRemote(
        ActorTimeoutError("under way"),
        ActorUnavailableError("Ray restarts it"),
        StopReport("d", 2, 0.1),
    )
    shown = []
    report = client_of(remote).stop(lambda status: shown.append(status.phase))
    assert report.processes_ended == 2
    assert remote.killed
    assert shown == [Phase.STOPPING] * 2


def test_a_stop_that_another_command_won_says_so():
    with pytest.raises(UnknownDeploymentError, match="by another command"):
        client_of(FakeRemote(ActorLostError("dead"))).stop()


def test_a_stop_that_fails_raises_its_error_and_keeps_the_controller():
    remote = FakeRemote(RaylaunchError("the deployment could not be stopped"))
    with pytest.raises(RaylaunchError, match="could not be stopped"):
        client_of(remote).stop()
    assert not remote.killed
