"""An agent without Ray: it launches stand-in servers under their guards and observes them."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from types import SimpleNamespace

import pytest
from standin_servers import STANDIN, free_port

from raylaunch.errors import BusyError, NodeError
from raylaunch.node.process import guard_socket
from raylaunch.node.process.process_markers import find_marked
from raylaunch.plan.facts import Facts
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read
from raylaunch.runtime.agent import log_follower, server_launch
from raylaunch.runtime.agent.agent import Agent
from raylaunch.runtime.agent.api_probe import LAST_STAGE
from raylaunch.runtime.agent.guards import guard_adoption, guard_events
from raylaunch.runtime.agent.guards.guard_events import EVENT_DELAY_S
from raylaunch.runtime.agent.secret_keeper import SecretKeeper
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.cluster.task_owner import TaskFailure
from raylaunch.supervise.detect import find_unready
from raylaunch.supervise.health_config import GroupShape, HealthConfig
from raylaunch.supervise.state import Exit, History, ServerSeen

PATIENCE_S = 60.0

INSTANCE = "a1b2c3d4e5f60718"
KEY = GroupKey("test", "serve-0")
SECRETS = SecretKeeper({"SECRET": "s3cret"}, "the-key")


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A node of its own for the agents of a test: home, log folder, stand-in settings."""
    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAYLAUNCH_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("STANDIN_START_S", "0.1")
    (tmp_path / "model").mkdir()
    return tmp_path


@pytest.fixture
def plan(node):
    """Plan two servers on this machine, with the further settings of a test."""

    def build(*sets: str):
        ports = (f"network.http_port={free_port()}", f"network.rpc_port={free_port()}")
        place = Facts("127.0.0.1", interface="lo", state_dir=str(node), python="3.11.9")
        model = ("model.tiny=null", f"model.path={node / 'model'}")
        loaded = read("local-dual", (*ports, *model, *sets))
        return build_plan(loaded, [place, place], deployment=f"test-{uuid.uuid4().hex[:8]}")

    return build


@contextlib.asynccontextmanager
async def launched(plan, attempt: int = 1):
    """The agents of a plan with their servers; stopped afterwards."""
    agents = [Agent(GroupKey.of(plan), server.index, INSTANCE) for server in plan.servers]
    launches = [
        agent.launch(plan, attempt, str(STANDIN), HealthConfig(), SECRETS) for agent in agents
    ]
    try:
        await asyncio.gather(*launches)
        yield agents
    finally:
        left = await asyncio.gather(*(agent.stop(1.0) for agent in agents))
        assert left == [[]] * len(agents)
        assert find_marked(plan.deployment) == []


async def observe(agent: Agent, condition):
    """The first observation for which `condition` holds."""
    version = -1
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = await agent.next_observation(version, PATIENCE_S)
            if condition(found.seen):
                return found
            version = found.version


def is_ready(plan, seen) -> bool:
    others = [ServerSeen(server.index, pid=1) for server in plan.servers[1:]]
    return not find_unready([seen, *others], History(), gang=GroupShape.of(plan))


async def test_a_server_that_logs_no_startup_line_becomes_ready(plan):
    """With uvicorn's log level above info vLLM prints no "Application startup complete"."""
    quiet = plan("args.uvicorn-log-level=warning")
    async with launched(quiet) as (primary, _):
        found = await observe(primary, lambda seen: is_ready(quiet, seen))
        text = (await primary.read_log(None, 1000, 0.0)).text
        assert "startup complete" not in text
        assert found.seen.stage == LAST_STAGE


async def test_a_log_line_that_cannot_be_read_is_reported_and_stops_no_readiness(plan, monkeypatch):
    advance = log_follower.advance

    def fragile(progress, line):
        if "Started server process" in line:
            raise ValueError("could not convert string to float: '1.2.3'")
        return advance(progress, line)

    monkeypatch.setattr(log_follower, "advance", fragile)
    pair = plan()
    async with launched(pair) as (primary, _):
        found = await observe(primary, lambda seen: is_ready(pair, seen) and seen.agent_error)
        assert found.seen.agent_error.startswith("task log follower failed")


@pytest.fixture
def full_disk(node, monkeypatch):
    """A log folder on a file system without a free byte."""
    logs = node / "full"
    logs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(logs)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        with contextlib.suppress(OSError), (logs / "ballast").open("wb", 0) as file:
            while True:
                file.write(bytes(4096))
        monkeypatch.setenv("RAYLAUNCH_LOG_DIR", str(logs))
        yield logs
    finally:
        subprocess.run(["umount", str(logs)], check=True)


async def test_a_full_log_disk_is_reported_and_stops_no_readiness(plan, full_disk):
    pair = plan()
    async with launched(pair) as (primary, _):
        found = await observe(primary, lambda seen: is_ready(pair, seen) and seen.log_error)
        assert "No space left on device" in found.seen.log_error


async def test_an_agent_reports_the_start_the_exit_and_the_evidence(plan):
    pair = plan()
    async with launched(pair) as (primary, headless):
        ready = await observe(primary, lambda seen: is_ready(pair, seen))
        assert (ready.seen.attempt, ready.seen.log_error, ready.seen.agent_error) == (1, "", "")
        assert await headless.find_orphans(attempt=1) == []
        assert len(await headless.find_orphans(attempt=2)) >= 4

        before = time.monotonic()
        await headless.inject("kill-server", 0)
        exited = await observe(headless, lambda seen: seen.exit is not None)
        assert exited.seen.exit.signal == signal.SIGKILL
        assert before <= exited.seen.exit.at <= exited.now

        snapshot = await headless.read_snapshot(1000)
        assert any("vLLM" in line or "engine" in line for line in snapshot.log_lines)
        held = await primary.await_free_ports([pair.primary.ports.http], 0.0)
        assert len(held) == 1
        assert f"port {pair.primary.ports.http} is held by" in held[0]
    assert await primary.await_free_ports([pair.primary.ports.http], PATIENCE_S) == []


async def test_an_agent_hands_the_secrets_out_for_their_key_only(plan):
    pair = plan()
    async with launched(pair) as (primary, _):
        for wrong in ("", "another-key"):
            with pytest.raises(NodeError, match="to its own controller only"):
                await primary.read_secrets(wrong)
        assert await primary.read_secrets(SECRETS.takeover_key) == {"SECRET": "s3cret"}


async def test_an_agent_that_was_given_no_key_accepts_none():
    agent = Agent(KEY, 0, INSTANCE)
    with pytest.raises(NodeError):
        await agent.read_secrets("")
    assert "s3cret" not in repr(SECRETS)
    assert SECRETS.takeover_key not in repr(SECRETS)


async def test_a_killed_engine_core_is_reported_by_name(plan):
    pair = plan()
    async with launched(pair) as (primary, headless):
        await observe(primary, lambda seen: is_ready(pair, seen))
        async with asyncio.timeout(PATIENCE_S):
            while True:  # the scan follows the log, which may lag behind the API
                with contextlib.suppress(NodeError):
                    await headless.inject("kill-engine", 0)
                    break
                headless._children.scan_soon()
                await asyncio.sleep(0.05)
        exited = await observe(headless, lambda seen: seen.exit is not None)
        assert exited.seen.exit.process.startswith("VLLM::EngineCore")
        with pytest.raises(NodeError, match="no engine core"):
            await headless.inject("kill-engine", 0)


async def test_a_server_that_cannot_be_started_says_why(plan, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "/logs/test")

    monkeypatch.setattr(server_launch, "prepare_node", full)
    pair = plan()
    agent = Agent(GroupKey.of(pair), 0, INSTANCE)
    with pytest.raises(NodeError, match="server 0 could not be started") as raised:
        await agent.launch(pair, 1, str(STANDIN), HealthConfig(), SecretKeeper())
    assert "No space left on device" in raised.value.why
    assert "free space" in raised.value.todo


async def test_a_stop_during_a_launch_leaves_no_server(plan, monkeypatch):
    """The stop arrives while the launch prepares the node, so there is no process yet."""
    preparing, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    prepare_node = server_launch.prepare_node

    def slow(*args, **kwargs):
        loop.call_soon_threadsafe(preparing.set)
        assert go_on.wait(PATIENCE_S)
        prepare_node(*args, **kwargs)

    monkeypatch.setattr(server_launch, "prepare_node", slow)
    pair = plan()
    agent = Agent(GroupKey.of(pair), 0, INSTANCE)
    launch = asyncio.ensure_future(
        agent.launch(pair, 1, str(STANDIN), HealthConfig(), SecretKeeper())
    )
    await preparing.wait()
    stop = asyncio.ensure_future(agent.stop(1.0))
    await asyncio.sleep(0)
    go_on.set()
    assert await stop == []
    with pytest.raises(NodeError, match="was stopped during its launch"):
        await launch
    assert find_marked(pair.deployment) == []
    assert agent._tasks.names == ()


async def test_a_stop_right_after_the_spawn_ends_the_launch(plan):
    pair = plan()
    agent = Agent(GroupKey.of(pair), 0, INSTANCE)
    launch = asyncio.ensure_future(
        agent.launch(pair, 1, str(STANDIN), HealthConfig(), SecretKeeper())
    )
    while agent._process is None:  # noqa: ASYNC110 - the moment before the guard reports
        await asyncio.sleep(0)
    assert await agent.stop(1.0) == []
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(NodeError, match="was stopped during its launch"):
            await launch
    assert find_marked(pair.deployment) == []
    assert agent._tasks.names == ()


# -- what needs no process ---------------------------------------------------------------------


def guard_event(agent: Agent, **event) -> None:
    agent._on_guard_event(event, agent._attempt, asyncio.get_running_loop().create_future())


async def test_a_log_that_cannot_be_written_is_part_of_the_observation_until_it_can():
    agent = Agent(KEY, 0, INSTANCE)
    guard_event(agent, event="log_failed", error="[Errno 28] No space left on device")
    found = await agent.next_observation(0, PATIENCE_S)
    assert found.seen.log_error == "[Errno 28] No space left on device"
    guard_event(agent, event="log_recovered")
    assert (await agent.next_observation(found.version, PATIENCE_S)).seen.log_error == ""


@pytest.mark.parametrize("step", [60.0, -60.0], ids=["forward", "backward"])
async def test_an_exit_during_a_step_of_the_wall_clock_has_a_plausible_time(monkeypatch, step):
    agent = Agent(KEY, 0, INSTANCE)
    exited_at = time.time()
    wall = time.time
    monkeypatch.setattr(guard_events.time, "time", lambda: wall() + step)
    guard_event(agent, event="exit", code=1, signal=None, at=exited_at)
    found = await agent.next_observation(0, PATIENCE_S)
    assert 0 <= found.now - found.seen.exit.at <= EVENT_DELAY_S + PATIENCE_S / 2


async def test_the_time_of_an_exit_is_that_of_the_guard():
    agent = Agent(KEY, 0, INSTANCE)
    guard_event(agent, event="exit", code=1, signal=None, at=time.time() - 2.0)
    found = await agent.next_observation(0, PATIENCE_S)
    assert 2.0 <= found.now - found.seen.exit.at < 2.0 + PATIENCE_S / 2


async def test_an_event_of_an_older_attempt_changes_nothing():
    agent = Agent(KEY, 0, INSTANCE)
    agent._attempt = 2
    spawned = asyncio.get_running_loop().create_future()
    agent._on_guard_event({"event": "exit", "code": 1, "signal": None, "at": 0.0}, 1, spawned)
    assert (await agent.next_observation(-1, 0.0)).seen == ServerSeen(0)


async def test_a_failed_task_of_the_agent_is_part_of_the_observation():
    agent = Agent(KEY, 0, INSTANCE)
    agent._on_task_failure(TaskFailure("log follower", ValueError("1.2.3"), 1, 0.1))
    found = await agent.next_observation(0, PATIENCE_S)
    assert found.seen.agent_error.startswith("task log follower failed (1 in a row)")


async def test_an_observation_is_sent_as_a_sign_of_life_when_nothing_changes():
    agent = Agent(KEY, 0, INSTANCE)
    agent._on_exit(Exit(1.0, code=1))
    newest = await agent.next_observation(0, PATIENCE_S)
    again = await agent.next_observation(newest.version, 0.01)
    assert (again.version, again.seen) == (newest.version, newest.seen)
    assert again.now > newest.now


async def test_each_waiter_gets_each_change():
    agent = Agent(KEY, 0, INSTANCE)
    waiters = [asyncio.ensure_future(agent.next_observation(0, PATIENCE_S)) for _ in range(3)]
    await asyncio.sleep(0)
    agent._on_exit(Exit(1.0, code=1))
    async with asyncio.timeout(PATIENCE_S / 2):
        found = await asyncio.gather(*waiters)
    assert [one.version for one in found] == [1, 1, 1]


async def test_an_older_journal_never_replaces_a_newer_one():
    agent = Agent(KEY, 0, INSTANCE)
    await agent.keep_journal("serve-0", 2, b"two")
    await agent.keep_journal("serve-0", 1, b"one")
    await agent.keep_journal("", 1, b"of the deployment")
    journals = agent._notes.journals
    assert journals == {"serve-0": b"two", "": b"of the deployment"}


OWNER = """
import asyncio, pickle, sys
from raylaunch.runtime.agent.agent import Agent
from raylaunch.runtime.cluster.group_key import GroupKey
plan, standin, health, secrets, instance = pickle.load(sys.stdin.buffer)
async def own():
    agents = [Agent(GroupKey.of(plan), server.index, instance) for server in plan.servers]
    await asyncio.gather(*(agent.launch(plan, 4, standin, health, secrets) for agent in agents))
    for agent in agents:
        await agent.keep_journal("serve-0", 7, b"seven")
        while not agent._notes.is_saved: await asyncio.sleep(0.01)
    print(*(agent._seen.pid for agent in agents), flush=True)
    await asyncio.Event().wait()
asyncio.run(own())
"""


async def test_the_next_agents_adopt_servers_journals_and_secrets_of_killed_ones(plan, monkeypatch):
    monkeypatch.setattr(guard_adoption, "OWNER_GONE_S", 1.0)
    pair = plan()
    health = HealthConfig(orphan_grace_s=600.0)
    words = pickle.dumps((pair, str(STANDIN), health, SECRETS, INSTANCE))
    owner = subprocess.Popen(  # noqa: ASYNC220 - it starts in milliseconds
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with owner:
        owner.stdin.write(words)
        owner.stdin.close()
        line = await asyncio.to_thread(owner.stdout.readline)
        pids = [int(word) for word in line.split()]
        owner.kill()
    agents = [Agent(GroupKey.of(pair), server.index, INSTANCE) for server in pair.servers]
    primary, headless = agents
    try:
        with pytest.raises(NodeError, match="runs attempt 4, not 5"):
            await primary.adopt(pair, 5, health)
        assert await asyncio.gather(*(agent.adopt(pair, 4, health) for agent in agents)) == pids
        assert await primary.read_secrets(SECRETS.takeover_key) == {"SECRET": "s3cret"}
        assert headless._notes.journals == {"serve-0": b"seven"}
        found = await observe(primary, lambda seen: is_ready(pair, seen))
        assert (found.seen.attempt, found.seen.pid) == (4, pids[0])
        with pytest.raises(BusyError, match="has an owner"):
            await Agent(GroupKey.of(pair), 0, INSTANCE).adopt(pair, 4, health)
        await headless.inject("kill-server", 0)
        exited = await observe(headless, lambda seen: seen.exit is not None)
        assert exited.seen.exit.signal == signal.SIGKILL
    finally:
        left = await asyncio.gather(*(agent.stop(1.0) for agent in agents))
        assert left == [[], []]
        assert find_marked(pair.deployment) == []


async def test_a_guard_that_stops_its_server_is_not_waited_for(monkeypatch, tmp_path):
    report = SimpleNamespace(name="server 0", attempt=4, phase="stopping", pid=7)
    monkeypatch.setattr(guard_socket, "describe", lambda _: report)
    with pytest.raises(NodeError, match="cannot be adopted") as refused:
        await guard_adoption.take_guard(tmp_path, 4, print)
    assert refused.value.why == "its guard, pid 7, is stopping"


async def test_an_agent_that_launched_nothing_has_nothing_to_hit():
    with pytest.raises(NodeError, match="server 3 does not run"):
        await Agent(KEY, 3, INSTANCE).inject("kill-server", 0)
    assert (await Agent(KEY, 3, INSTANCE).read_log(None, 10, 0.0)).text == ""
