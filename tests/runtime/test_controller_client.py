"""The client of a controller names only methods that the controller has."""

from __future__ import annotations

import inspect
import re

import pytest

from raylaunch.errors import UnknownDeploymentError
from raylaunch.runtime.cluster.remote_call import ActorLostError
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
    """Answers as a controller does that Ray restarted once after it was told to stop."""

    def __init__(self, phases: list[Phase], lost: bool = False) -> None:
        self.phases, self.lost = phases, lost
        self.stops, self.killed = 0, False

    def send(self, method):
        def stop() -> None:
            self.stops += 1

        return stop

    def ask(self, method, *, timeout_s):
        def wait_change(version, timeout_s):
            if self.lost:
                raise ActorLostError("dead")
            return version + 1, Status("d", "r", self.phases.pop(0), 1, "", "", 0, 0, 0)

        def stop():
            return StopReport("d", 2, 0.1)

        return {"wait_change": wait_change, "stop": stop}[method.__name__]

    def kill(self) -> None:
        self.killed = True


def client_of(remote: FakeRemote) -> ControllerClient:
    client = ControllerClient(None, "d")
    client._remote = remote
    return client


def test_a_stop_is_repeated_until_the_controller_acts_on_it():
    remote = FakeRemote([Phase.READY, Phase.READY, Phase.STOPPING, Phase.STOPPING, Phase.STOPPED])
    shown = []
    report = client_of(remote).stop(lambda status: shown.append(status.phase))
    assert report.processes_ended == 2
    assert remote.stops == 3
    assert remote.killed
    assert shown[-1] is Phase.STOPPED


def test_a_stop_that_another_command_won_says_so():
    with pytest.raises(UnknownDeploymentError, match="by another command"):
        client_of(FakeRemote([], lost=True)).stop()
