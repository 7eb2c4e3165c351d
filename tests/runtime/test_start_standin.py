"""`start` to `stop` on real Ray with the stand-in: the whole path, as a person at a shell walks it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import httpx
import pytest
from ray_clusters import await_true, free_ports, model_folder

from raylaunch.node.process.process_markers import find_marked
from raylaunch.plan.facts import Facts
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read

pytestmark = pytest.mark.ray


def watched(notices: Path) -> list[str]:
    """Assignments that switch on the metrics and a hook that keeps what it gets."""
    keep = ["/bin/sh", "-c", 'cat >>"$0"; echo >>"$0"', str(notices)]
    hook = json.dumps([{"command": keep, "phases": ["ready", "stopped"]}])
    [port] = free_ports(1)
    sets = ["metrics.enabled=true", f"metrics.port={port}", f"notify={hook}"]
    return [word for one in sets for word in ("--set", one)]


def check_metrics(file: Path, status: dict) -> None:
    """The targets name the endpoint and the servers, and its numbers are those of `status`."""
    targets = {}
    for entry in json.loads(file.read_text()):
        targets.setdefault(entry["labels"]["raylaunch_target"], []).extend(entry["targets"])
    assert targets["vllm"] == [status["groups"][0]["endpoint"].split("/")[2]]
    assert targets["ray"]
    [endpoint] = targets["raylaunch"]
    text = httpx.get(f"http://{endpoint}/metrics", trust_env=False, timeout=60).text
    name = 'deployment="test-local"'
    assert f'raylaunch_deployment_phase{{{name},phase="ready"}} 1.0' in text
    for server in status["servers"]:
        labels = f'{name},group="serve-0",node="127.0.0.1",role="{server["role"]}"'
        labels += f',server="{server["index"]}"'
        assert f"raylaunch_server_up{{{labels}}} 1.0" in text
        resident = (
            f'server_resident_memory_bytes{{{name},group="serve-0",server="{server["index"]}"'
        )
        assert resident in text
    for rank in (0, 1):
        assert f'raylaunch_rank_tokens_total{{{name},group="serve-0",rank="{rank}"}}' in text
    assert 'stage="spawned"' in text


def test_local_dual_from_nothing_to_nothing(user, standin, ports, short_folder):
    user.extra = standin
    notices = short_folder / "notices"
    sets = [*ports, *watched(notices)]
    started = user.run("start", "local-dual", "--name", "test-local", *sets)
    assert started.code == 0, started.out + started.err
    assert "first token" in started.out

    status = user.run("status", "test-local", "-o", "json").json()
    assert status["phase"] == "ready"
    assert [server["role"] for server in status["servers"]] == ["primary", "headless"]
    assert {rank["rank"] for rank in status["servers"][0]["seen"]["ranks"]} == {0, 1}
    targets = user.home / "monitoring" / "test-local.json"
    check_metrics(targets, status)
    frame = user.run("top", "test-local", "--frames", "1")
    assert frame.code == 0, frame.err
    assert "TOK/S" in frame.out

    answer = httpx.post(
        f"{status['endpoint']}/chat/completions",
        json={"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code == 200

    for server, role in enumerate(("Starting vLLM server", "Launching 1 data parallel engine")):
        logs = user.run("logs", "test-local", "--server", str(server), "-n", "1000")
        assert role in logs.out
        assert Path(status["servers"][server]["log"]).is_file()

    listed = user.run("list", "--running", "-o", "json")
    assert "test-local" in listed.out

    stopped = user.run("stop", "test-local", "-o", "json")
    assert stopped.code == 0, stopped.out + stopped.err
    assert stopped.json()["left"] == []
    assert stopped.json()["local_cluster_stopped"] is True
    assert find_marked("test-local") == []
    assert not [
        process for process in find_marked() if process.deployment.startswith("@test-local")
    ]
    assert user.run("status", "test-local").code == 9
    assert not targets.exists()
    got = [json.loads(line) for line in notices.read_text().splitlines()]
    assert [(one["phase"], one["group"]) for one in got] == [
        ("ready", "serve-0"),
        ("stopped", "serve-0"),
    ]


def test_what_reaches_the_server_is_the_plan(user, ray_nodes, ports, short_folder):
    """a2-dual, unchanged but for the model path and free ports."""
    model = model_folder(short_folder / "model")
    sets = ["--set", f"model.path={model}", *ports]
    user.extra = {"RAY_AUTH_MODE": "disabled"}
    started = user.run(
        "start", "a2-dual", "--name", "test-a2", "--address", ray_nodes.address, *sets
    )
    assert started.code == 0, started.out + started.err
    try:
        status = user.run("status", "test-a2", "--address", ray_nodes.address, "-o", "json").json()
        nodes = [
            Facts(server["ip"], interface=server["interface"], node_id=str(server["index"]))
            for server in status["servers"]
        ]
        plan = build_plan(read("a2-dual", sets[1::2]), nodes, deployment="test-a2")
        records = [json.loads(path.read_text()) for path in sorted(ray_nodes.record.glob("*.json"))]
        records = [
            record for record in records if record["env"]["RAYLAUNCH_DEPLOYMENT"] == "test-a2"
        ]
        assert len(records) == 2
        for server, record in zip(plan.servers, records, strict=True):
            assert tuple(record["argv"][1:]) == server.argv[1:]
            assert {name: record["env"].get(name) for name in server.environ} == server.environ
            assert not [name for name in server.unset if name in record["env"]]
            assert not [name for name in record["env"] if name.startswith("RAY_")]
            assert record["env"]["RAYLAUNCH_DEPLOYMENT"] == "test-a2"
            assert record["env"]["RAYLAUNCH_ATTEMPT"] == "1"
            assert record["env"]["ASCEND_RT_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"
            assert record["niceness"] == 0
            assert record["pgid"] == record["pid"], "its own process group"
            assert record["cwd"] == ray_nodes.env["RAYLAUNCH_HOME"]
    finally:
        stopped = user.run("stop", "test-a2", "--address", ray_nodes.address)
    assert stopped.code == 0, stopped.out + stopped.err
    assert find_marked("test-a2") == []


def test_the_last_free_nodes_go_to_one_of_two(user, ray_nodes, short_folder):
    """Two deployments at the same moment: one starts, the other is told what is missing, nothing hangs."""
    model = model_folder(short_folder / "model")
    user.extra = {"RAY_AUTH_MODE": "disabled"}
    starts = []
    for name in ("test-one", "test-two"):
        http, rpc = free_ports(2)
        words = [
            "--set",
            f"model.path={model}",
            "--set",
            f"network.http_port={http}",
            "--set",
            f"network.rpc_port={rpc}",
        ]
        starts.append(
            user.popen("start", "a2-dual", "--name", name, "--address", ray_nodes.address, *words)
        )
    outputs = [process.communicate(timeout=240)[0] for process in starts]
    codes = [process.returncode for process in starts]
    assert sorted(codes) == [0, 6], outputs
    loser = outputs[codes.index(6)]
    winner = ("test-one", "test-two")[codes.index(0)]
    assert "too few NPUs" in loser
    assert f"8 by {winner}" in loser
    assert user.run("stop", winner, "--address", ray_nodes.address).code == 0


def test_two_deployments_on_the_same_nodes_get_ports_of_their_own(user, ray_nodes, short_folder):
    """Started at the same moment, with nothing said about ports but where each API shall be."""
    user.extra = {"RAY_AUTH_MODE": "disabled"}
    small = [
        f"model.path={model_folder(short_folder / 'model')}",
        "parallel.tensor=2",
        "hardware.npus_per_server=2",
    ]
    sets = [word for one in small for word in ("--set", one)]
    at, apis = (
        ("--address", ray_nodes.address),
        dict(zip(("test-left", "test-right"), free_ports(2), strict=True)),
    )
    starts = [
        user.popen(
            "start", "a2-dual", "--name", name, *at, *sets, "--set", f"network.http_port={port}"
        )
        for name, port in apis.items()
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in starts]
        assert [process.returncode for process in starts] == [0, 0], outputs
        rpc, hccl = {}, {}
        for record in (json.loads(path.read_text()) for path in ray_nodes.record.glob("*.json")):
            name, argv = record["env"]["RAYLAUNCH_DEPLOYMENT"], record["argv"]
            if name in apis:
                rpc.setdefault(name, set()).add(argv[argv.index("--data-parallel-rpc-port") + 1])
                hccl.setdefault(name, set()).add(record["env"].get("HCCL_IF_BASE_PORT", "60000"))
        assert [len(ports) for ports in (*rpc.values(), *hccl.values())] == [1] * 4, (
            "one gang, one number"
        )
        assert rpc["test-left"] != rpc["test-right"]
        assert hccl["test-left"] != hccl["test-right"]

        found = {
            name: user.run("status", name, *at, "-o", "json").json()["findings"] for name in apis
        }
        moved = [one["what"] for name in apis for one in found[name] if one["id"] == "port-moved"]
        assert any("is used by deployment test-" in what for what in moved), moved

        wanted = f"network.http_port={apis['test-left']}"
        refused = user.run("start", "a2-dual", "--name", "test-third", *at, *sets, "--set", wanted)
        assert refused.code == 4, refused.out + refused.err
        assert "is taken by deployment test-left" in refused.err
        assert "--set network.http_port=" in refused.err
    finally:
        stopped = [user.run("stop", name, *at) for name in apis]
    assert [one.code for one in stopped] == [0, 0], [one.err for one in stopped]


def test_bad_input_is_told_apart_and_leaves_nothing(user, ray_nodes, short_folder, ports):
    model = model_folder(short_folder / "model")
    user.extra = {"RAY_AUTH_MODE": "disabled"}
    base = ["--address", ray_nodes.address, "--name", "test-bad", *ports]
    missing = user.run("start", "a2-dual", *base, "--set", "model.path=/nowhere/at/all")
    assert missing.code == 4, missing.out + missing.err
    assert "/nowhere/at/all" in missing.err

    too_big = user.run(
        "start", "a2-dual", *base, "--set", f"model.path={model}", "--set", "parallel.data=4"
    )
    assert too_big.code == 6, too_big.out + too_big.err
    assert "too few NPUs: 4 server(s) with 8 NPUs each" in too_big.err

    dead_ray = user.run(
        "start",
        "a2-dual",
        "--address",
        f"127.0.0.1:{free_ports(1)[0]}",
        "--set",
        f"model.path={model}",
    )
    assert dead_ray.code == 5, dead_ray.out + dead_ray.err
    assert "no Ray cluster answers" in dead_ray.err

    no_ray = user.run(
        "start", "a2-dual", "--set", f"model.path={model}", RAY_TMPDIR=str(short_folder)
    )
    assert no_ray.code == 5, no_ray.out + no_ray.err
    assert "there is no Ray cluster on this machine" in no_ray.err

    unknown = user.run("start", "a2-duel", *base)
    assert unknown.code == 3
    assert "did you mean 'a2-dual'" in unknown.err

    assert find_marked("test-bad") == []
    assert user.run("status", "test-bad", "--address", ray_nodes.address).code == 9


def test_a_busy_port_is_named_with_its_owner(user, ray_nodes, short_folder):
    import socket

    model = model_folder(short_folder / "model")
    user.extra = {"RAY_AUTH_MODE": "disabled"}
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["--set", f"model.path={model}", "--set", f"network.http_port={port}"]
        busy = user.run(
            "start", "a2-dual", "--name", "test-busy", "--address", ray_nodes.address, *words
        )
    assert busy.code == 4, busy.out + busy.err
    assert str(port) in busy.err
    assert str(os.getpid()) in busy.err
    assert find_marked("test-busy") == []


@pytest.mark.parametrize(
    ("fault", "told"),
    [("bad-flag", "unrecognized arguments"), ("weights-missing", "model")],
)
def test_a_server_that_exits_at_once_shows_its_last_lines(user, standin, ports, fault, told):
    user.extra = {**standin, "STANDIN_FAIL": fault}
    failed = user.run("start", "local-dual", "--name", "test-exit", *ports)
    assert failed.code == 7, failed.out + failed.err
    assert told in failed.err
    assert "next" in failed.err
    assert find_marked("test-exit") == []
    assert user.run("status", "test-exit").code == 9, "a failed start leaves no cluster either"


def test_ctrl_c_leaves_the_deployment_and_says_how_to_stop(user, standin, ports):
    user.extra = {**standin, "STANDIN_START_S": "8"}
    starting = user.popen("start", "local-dual", "--name", "test-ctrl-c", *ports)
    lines = []
    for line in starting.stdout:
        lines.append(line)
        if "spawned" in line:
            break
    os.killpg(starting.pid, signal.SIGINT)
    rest, _ = starting.communicate(timeout=60)
    assert starting.returncode == 130, "".join(lines) + rest
    assert "raylaunch stop test-ctrl-c" in rest

    def is_ready():
        return user.run("status", "test-ctrl-c").code == 0

    await_true(is_ready, "the deployment goes on without its driver", 120)
    assert user.run("stop", "test-ctrl-c").code == 0


def test_a_headless_start_does_not_wait_and_a_second_name_is_refused(user, standin, ports):
    user.extra = {**standin, "STANDIN_START_S": "4"}
    assert user.run("start", "local-dual", "--name", "test-twice", "--no-wait", *ports).code == 0
    again = user.run("start", "local-dual", "--name", "test-twice", *ports)
    assert again.code == 10, again.out + again.err
    assert "raylaunch stop test-twice" in again.err
    late = user.run("start", "local-dual", "--name", "test-twice", "--timeout", "0.1", *ports)
    assert late.code == 10
    assert user.run("stop", "test-twice").code == 0, "stop works while it starts"
    assert find_marked("test-twice") == []


MAKER_DIES = """
import os
from raylaunch.runtime.controller import controller_client as remote
def die(controller, *_, **__):
    controller.read_log_of_controller(1)
    os._exit(42)
remote.ControllerClient.begin = die
import raylaunch
raylaunch.deploy("local-dual", deployment="test-maker", address={address!r})
"""
"""Everything is made, and `begin` never comes.

Ray may drop an actor that has not answered when its maker dies."""


def test_a_command_that_dies_half_way_leaves_what_stop_can_end(user, ray_nodes):
    user.extra = {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ray_nodes.address}
    assert user.python(MAKER_DIES.format(address=ray_nodes.address)).code == 42
    stopped = user.run("stop", "test-maker")
    assert stopped.code == 0, stopped.out + stopped.err
    assert user.run("status", "test-maker").code == 9
    started = user.run("start", "local-dual", "--name", "test-maker")
    assert started.code == 0, "all NPUs are free again: " + started.out + started.err
    assert user.run("stop", "test-maker").code == 0


MAKER_IS_INTERRUPTED = """
from raylaunch.runtime.controller import controller_client as remote
def interrupt(*_, **__):
    raise KeyboardInterrupt
remote.ControllerClient.begin = interrupt
import raylaunch
raylaunch.deploy("local-dual", deployment="test-maker", address={address!r})
"""


def test_what_cannot_be_handed_over_is_taken_back(user, ray_nodes):
    user.extra = {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ray_nodes.address}
    assert (
        "KeyboardInterrupt"
        in user.python(MAKER_IS_INTERRUPTED.format(address=ray_nodes.address)).err
    )
    assert user.run("status", "test-maker").code == 9, "no controller"
    started = user.run("start", "local-dual", "--name", "test-maker")
    assert started.code == 0, "no agents, and all NPUs are free: " + started.out + started.err
    assert user.run("stop", "test-maker").code == 0


LEAVES = """
import time
from raylaunch.runtime.cluster.connection import connect
connect({address!r})
time.sleep = lambda seconds: print("slept", seconds)
"""


def test_a_command_does_not_wait_at_its_end_for_logs_that_nobody_shows(user, ray_nodes):
    user.extra = {"RAY_AUTH_MODE": "disabled"}
    done = user.python(LEAVES.format(address=ray_nodes.address))
    assert (done.code, done.out) == (0, ""), done.out + done.err


CONTROLLER_IS_ENDED = """
import ray
from raylaunch.runtime.controller.controller_client import find_controller
ray.init({address!r}, log_to_driver=False, namespace="raylaunch")
find_controller("test-maker").kill()
"""


def test_agents_that_an_accident_left_are_named_not_joined(user, ray_nodes):
    user.extra = {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ray_nodes.address}
    no_grace = ("--set", "health.orphan_grace_s=0")
    assert user.run("start", "local-dual", "--name", "test-maker", *no_grace).code == 0
    assert user.python(CONTROLLER_IS_ENDED.format(address=ray_nodes.address)).code == 0
    before = {process.pid for process in find_marked("test-maker")}
    again = user.run("start", "local-dual", "--name", "test-maker", *no_grace)
    assert again.code == 10, again.out + again.err
    assert "raylaunch clean --yes --deployment test-maker" in again.err
    assert {process.pid for process in find_marked("test-maker")} == before, (
        "the servers that run are not touched"
    )
    assert user.run("status", "test-maker").code == 9, "no second controller stays"
    assert user.run("clean", "--yes", "--deployment", "test-maker").code == 0
    assert find_marked("test-maker") == []
    assert user.run("start", "local-dual", "--name", "test-maker").code == 0
    # With a grace the guards have the journals, and the next start adopts what runs.
    before = {process.pid for process in find_marked("test-maker")}
    assert user.python(CONTROLLER_IS_ENDED.format(address=ray_nodes.address)).code == 0
    adopted = user.run("start", "local-dual", "--name", "test-maker")
    assert (adopted.code, "adopt" in adopted.err) == (0, True), adopted.out + adopted.err
    assert {process.pid for process in find_marked("test-maker")} == before
    assert user.run("stop", "test-maker").code == 0
    assert find_marked("test-maker") == []


def test_the_python_face(user, standin):
    http, rpc = free_ports(2)
    user.extra = standin
    program = f"""
import raylaunch
ports = {{"network.http_port": {http}, "network.rpc_port": {rpc}}}
with raylaunch.deploy("local-dual", set=ports, deployment="test-py") as dep:
    assert dep.status().phase == "ready", dep.status()
    status = dep.status()
    assert status.groups[0].endpoint == "http://127.0.0.1:{http}/v1", status
    assert dep.endpoint == status.gateway.endpoint == status.gateway.nodes[0].endpoint, status
    assert "Application startup complete" in dep.logs(0, 1000)
    assert raylaunch.attach("test-py").status().attempt == 1
    assert [event.text for event in dep.events() if event.kind == "phase"][-1] == "ready"
try:
    raylaunch.attach("test-py")
except raylaunch.RaylaunchError as error:
    print("gone:", type(error).__name__)
"""
    done = user.python(program)
    assert done.code == 0, done.out + done.err
    assert "gone: UnknownDeploymentError" in done.out
    assert find_marked("test-py") == []


ANOTHER_DRIVER = """
import os, signal, time
from raylaunch import api
from raylaunch.errors import NodeError
from raylaunch.runtime.agent.agent import Agent
from raylaunch.runtime.agent.agent_handle import find_agent
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.controller.controller_client import find_controller

handle = api.attach("test-secret")
agent = find_agent(GroupKey("test-secret", "serve-0"), 0)
for key in ("", "0" * 64):
    try:
        agent.remote.ask(Agent.read_secrets, timeout_s=60)(takeover_key=key)
    except NodeError:
        print("refused")

def await_true(ask):
    deadline = time.monotonic() + 120
    while not (answer := ask()):
        assert time.monotonic() < deadline, handle.events()
        time.sleep(0.1)
    return answer

def await_event(kind, text=""):
    await_true(lambda: [one for one in handle.events() if one.kind == kind and text in one.text])

find_controller("test-secret").crash()
await_event("adopted")
# The new controller knows the pid with the agent's next report.
os.kill(await_true(lambda: handle.status().servers[1].seen.pid), signal.SIGKILL)
await_event("command", "attempt 2")
handle.wait_ready(120)
print("attempt", handle.status().attempt)
"""
"""A driver with the cluster's token and no key; then the controller and a server are killed."""


def test_secrets_reach_the_servers_and_nothing_else(user, standin, ports, short_folder):
    secret = "s3cr3t-" + "x9" * 8
    recipe = short_folder / "guarded.yaml"
    recipe.write_text("extends: local-dual\nsecrets: [VLLM_API_KEY]\n")
    user.extra = standin
    refused = user.run("start", str(recipe), "--name", "test-secret", *ports)
    assert refused.code == 3
    assert "export VLLM_API_KEY" in refused.err

    user.extra = {**standin, "VLLM_API_KEY": secret}
    started = user.run("start", str(recipe), "--name", "test-secret", *ports)
    assert started.code == 0, started.out + started.err
    shown = [
        user.run(*words).out
        for words in (["status", "test-secret", "-o", "json"], ["events", "test-secret"])
    ]
    ray_folder = Path(
        json.loads((user.home / "clusters" / "test-secret.json").read_text())["folder"]
    )
    written = [
        path for root in (user.home, ray_folder) for path in root.rglob("*") if path.is_file()
    ]
    assert len(written) > 20
    assert not [path for path in written if secret.encode() in path.read_bytes()]
    assert not [text for text in (started.out, started.err, *shown) if secret in text]
    records = [
        json.loads(path.read_text()) for path in Path(standin["STANDIN_RECORD"]).glob("*.json")
    ]
    assert [record["env"]["VLLM_API_KEY"] for record in records] == [secret, secret]

    (key_file,) = (user.home / "takeover").iterdir()
    assert key_file.stat().st_mode & 0o777 == 0o600
    asked = user.python(ANOTHER_DRIVER)
    assert asked.code == 0, asked.out + asked.err
    assert asked.out.split() == ["refused", "refused", "attempt", "2"]
    records = [
        json.loads(path.read_text()) for path in Path(standin["STANDIN_RECORD"]).glob("*.json")
    ]
    assert [record["env"]["VLLM_API_KEY"] for record in records] == [secret] * 4
    assert user.run("stop", "test-secret").code == 0
    assert list((user.home / "takeover").iterdir()) == []
