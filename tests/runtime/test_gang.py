"""The gang and the handles of its agents, with actors that are no Ray actors."""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace

import pytest

from raylaunch.errors import NodeError
from raylaunch.runtime.agent.agent import Agent
from raylaunch.runtime.agent.agent_handle import AgentHandle, agent_handle
from raylaunch.runtime.agent.gang import Gang
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.cluster.remote_call import ActorTimeoutError, RemoteFailureError

pytest.importorskip("ray")


class Actor:
    """Answers remote calls as Ray does: a method has `.remote`, which returns an awaitable."""

    def __init__(self, **answers):
        self.calls = []
        self.answers = answers

    def __getattr__(self, method):
        async def answer(args, kwargs):
            self.calls.append((method, args, kwargs))
            result = self.answers.get(method)
            if isinstance(result, Exception):
                raise result
            return await result() if callable(result) else result

        return SimpleNamespace(remote=lambda *args, **kwargs: answer(args, kwargs))


def gang_of(*actors) -> Gang:
    """A gang of these actors; None is a lost one."""
    agents = {
        index: None if actor is None else agent_handle(actor, index)
        for index, actor in enumerate(actors)
    }
    return Gang(GroupKey("test", "serve-0"), agents=agents)


async def test_every_live_agent_is_asked_and_answers_for_its_server():
    actors = [Actor(kill_orphans=["pid 1"]), None, Actor(kill_orphans=[])]
    answers = await gang_of(*actors).ask_all(lambda agent: agent.kill_orphans())
    assert answers == {0: ["pid 1"], 2: []}


async def test_only_the_named_servers_are_asked_with_arguments_of_their_own():
    actors = [Actor(open_listeners=()), Actor(open_listeners=())]
    wanted = {1: "192.0.2.11"}
    answers = await gang_of(*actors).demand_all(
        lambda agent: agent.open_listeners(ip=wanted[agent.index], ports={"http": 1}),
        servers=wanted,
    )
    assert answers == {1: ()}
    assert actors[0].calls == []
    assert actors[1].calls == [
        ("open_listeners", (), {"ip": "192.0.2.11", "ports": {"http": 1}}),
    ]


async def test_an_error_is_the_answer_of_its_agent_alone():
    refused = NodeError("no NPU here")
    actors = [Actor(kill_orphans=[]), Actor(kill_orphans=refused)]
    answers = await gang_of(*actors).ask_all(lambda agent: agent.kill_orphans())
    assert answers == {0: [], 1: refused}


async def test_a_late_agent_is_a_time_out_that_names_it():
    late = Actor(hello=asyncio.Event().wait)
    answers = await gang_of(Actor(hello="hello"), late).ask_all(
        lambda agent: agent.hello(timeout_s=0.05)
    )
    assert answers[0] == "hello"
    assert isinstance(answers[1], ActorTimeoutError)
    assert "the agent of server 1" in answers[1].what


async def test_a_demand_raises_the_error_of_the_first_server_that_failed():
    actors = [Actor(hello=1), Actor(hello=NodeError("first")), Actor(hello=NodeError("second"))]
    gang = gang_of(*reversed(actors[1:]), actors[0])
    with pytest.raises(NodeError, match="second"):
        await gang.demand_all(lambda agent: agent.hello())


async def test_a_bug_in_a_remote_method_is_an_answer_too():
    from ray.exceptions import RayTaskError

    bug = RayTaskError("hello", "Traceback of the agent", ZeroDivisionError())
    answers = await gang_of(Actor(hello=bug)).ask_all(lambda agent: agent.hello())
    assert isinstance(answers[0], RemoteFailureError)
    assert "ZeroDivisionError" in answers[0].why


def test_the_handle_has_each_remote_method_with_its_parameters_by_keyword():
    own = {"timeout_s"}  # of the call; the remote method may have one too
    for name, method in inspect.getmembers(Agent, inspect.iscoroutinefunction):
        if name.startswith("_"):
            continue
        remote = set(inspect.signature(method).parameters) - {"self"}
        handle = inspect.signature(getattr(AgentHandle, name)).parameters
        given = {key: one.kind for key, one in handle.items() if key != "self"}
        assert set(given) - own == remote - own, name
        assert set(given.values()) <= {inspect.Parameter.KEYWORD_ONLY}, name
