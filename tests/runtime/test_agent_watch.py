"""What the watch over an agent reports when Ray calls the agent dead."""

from __future__ import annotations

import asyncio

import pytest

from raylaunch.runtime.cluster.remote_call import ActorLostError
from raylaunch.runtime.controller.group import agent_watch
from raylaunch.runtime.controller.group.agent_watch import AgentWatch
from raylaunch.supervise.health_config import HealthConfig

NODE = {"NodeID": "a1", "NodeManagerAddress": "10.0.0.1", "NodeManagerPort": 1}


class DeadAgent:
    peer = "the agent of server 0"

    async def next_observation(self, after, wait_s):
        raise ActorLostError("dead")


@pytest.mark.parametrize(
    ("alive_in_ray", "raylet", "reported"),
    [
        (True, "alive", "agent died"),
        (True, "refused", "node died"),
        (True, "silent", "node unreachable"),
        (False, "alive", "node died"),
        (False, "refused", "node died"),
        (False, "silent", "node unreachable"),
    ],
)
def test_a_dead_raylet_is_told_from_a_lost_host_whatever_ray_has_noticed(
    monkeypatch, alive_in_ray, raylet, reported
):
    seen = []
    monkeypatch.setattr(agent_watch, "alive_nodes", lambda: [NODE] if alive_in_ray else [])
    monkeypatch.setattr(agent_watch, "probe_raylet", lambda _: raylet)
    watch = AgentWatch(0, DeadAgent(), NODE, HealthConfig(), seen.append)
    asyncio.run(asyncio.wait_for(watch.run(), 60))
    assert [one.agent_lost for one in seen] == [reported]
