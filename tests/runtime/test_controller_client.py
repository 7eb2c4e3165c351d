"""The client of a controller names only methods that the controller has."""

from __future__ import annotations

import inspect
import re

import pytest

from raylaunch.errors import RaylaunchError, UnknownDeploymentError
from raylaunch.runtime.cluster.remote_call import (
    ActorKilledError,
    ActorLostError,
    ActorTimeoutError,
    ActorUnavailableError,
    RemoteActor,
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
            if self.killed:
                raise ActorKilledError("dead")
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


def test_a_command_that_waits_while_another_one_stops_the_deployment_says_so():
    remote = FakeRemote()
    remote.kill()
    with pytest.raises(UnknownDeploymentError, match="d was stopped by another command"):
        client_of(remote).wait_change(0, 1)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("The actor is dead because it was killed by `ray.kill`.", ActorKilledError),
        ("The actor is dead because its node has died.", ActorLostError),
    ],
)
def test_rays_reason_tells_an_actor_that_was_ended_from_one_that_died(reason, kind):
    exceptions = pytest.importorskip("ray.exceptions")
    died = exceptions.RayActorError("ab", f"The actor died unexpectedly.\n\tpid: 7\n{reason}")

    class Handle:
        class wait_change:  # noqa: N801 - a method of an actor
            @staticmethod
            def remote():
                raise died

    async def wait_change(_: object) -> None: ...

    with pytest.raises(ActorLostError) as raised:
        RemoteActor(Handle, "the controller of d").ask(wait_change, timeout_s=1)()
    assert type(raised.value) is kind


def test_a_stop_that_fails_raises_its_error_and_keeps_the_controller():
    remote = FakeRemote(RaylaunchError("the deployment could not be stopped"))
    with pytest.raises(RaylaunchError, match="could not be stopped"):
        client_of(remote).stop()
    assert not remote.killed
