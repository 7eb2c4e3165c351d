"""The guide's commands, as the guide has them, against the plan: every difference is in the table with its reason."""

import shlex

import pytest

from raylaunch.plan.facts import Facts
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read

NIC = "enp67s0f0np0"
HOSTS = ("192.0.2.10", "192.0.2.11")

A2_ENV = """
export HCCL_IF_IP={ip}
export GLOO_SOCKET_IFNAME="{nic}"
export TP_SOCKET_IFNAME="{nic}"
export HCCL_SOCKET_IFNAME="{nic}"
export HCCL_BUFFSIZE=1024
export ASCEND_RT_VISIBLE_DEVICES=0,1,2,3,4,5,6,7
export HCCL_OP_EXPANSION_MODE="AIV"
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True
export OMP_PROC_BIND=false
export OMP_NUM_THREADS=1
export VLLM_ASCEND_ENABLE_FLASHCOMM1=1
export HCCL_INTRA_PCIE_ENABLE=1
export HCCL_INTRA_ROCE_ENABLE=0
"""

A2_PROFILING = """
export VLLM_TORCH_PROFILER_WITH_STACK=0
export VLLM_TORCH_PROFILER_DIR="{profiling_dir}"
"""

A2_SERVE = """
vllm serve /opt/data/verification/models/MiniMax-M2.5/ \\
--served-model-name "minimax25" \\
--host {ip} \\
--port 20004 {headless} \\
--tensor-parallel-size 8 \\
--data-parallel-size 2 \\
--data-parallel-size-local 1 \\
--data-parallel-start-rank {rank} \\
--data-parallel-address {primary} \\
--data-parallel-rpc-port 2347 \\
--max-num-seqs 128 \\
--max-num-batched-tokens 65536 \\
--gpu-memory-utilization 0.92 \\
--enable-expert-parallel \\
--trust-remote-code \\
--enable-auto-tool-choice \\
--tool-call-parser minimax_m2 \\
--reasoning-parser minimax_m2_append_think \\
--compilation-config '{{"cudagraph_mode": "FULL_DECODE_ONLY"}}' \\
--mm_processor_cache_type="shm" \\
--async-scheduling \\
--additional-config '{{"enable_cpu_binding":true}}'
"""

A3_ENV = """
export HCCL_OP_EXPANSION_MODE="AIV"
export HCCL_BUFFSIZE=1024
export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True
export OMP_NUM_THREADS=1
export LD_PRELOAD=/usr/lib/aarch64-linux-gnu/libjemalloc.so.2:$LD_PRELOAD
export TASK_QUEUE_ENABLE=1
export VLLM_ASCEND_ENABLE_FLASHCOMM1=1
export VLLM_ASCEND_BALANCE_SCHEDULING=1
"""

A3_SERVE = """
vllm serve /path/to/weight/MiniMax-M2.5-w8a8-QuaRot \\
--served-model-name "MiniMax-M2.5" \\
--host 0.0.0.0 \\
--port 8000 \\
--trust-remote-code \\
--quantization ascend \\
--async-scheduling \\
--compilation-config '{"cudagraph_mode": "FULL_DECODE_ONLY"}' \\
--additional-config '{"enable_cpu_binding":true}' \\
--enable-expert-parallel \\
--tensor-parallel-size 4 \\
--data-parallel-size 4 \\
--max-num-seqs 48 \\
--max-model-len 40690 \\
--max-num-batched-tokens 16384 \\
--gpu-memory-utilization 0.85 \\
--speculative_config '{"enforce_eager": true, "method": "eagle3", "model": "/path/to/weight/Eagle3/", "num_speculative_tokens": 3}'
"""

LONG_CONTEXT = """
--tensor-parallel-size 8 \\
--data-parallel-size 1 \\
--decode-context-parallel-size 1 \\
--prefill-context-parallel-size 2 \\
--cp-kv-cache-interleave-size 128 \\
--max-num-seqs 16 \\
--max-model-len 138000 \\
--max-num-batched-tokens 65536 \\
--gpu-memory-utilization 0.85 \\
--speculative_config '{"enforce_eager": true, "method": "eagle3", "model": "/path/to/weight/Eagle3/", "num_speculative_tokens": 1}'
"""

A2_ENV_DEVIATIONS = {
    "HCCL_SOCKET_IFNAME": (
        f"={NIC}",
        "HCCL reads a bare name as a prefix: eth1 would match eth10 as well",
    ),
    "VLLM_HOST_IP": ("{ip}", "without it vLLM takes the address of the route to the internet"),
}
JSON_SPACING = '{"enable_cpu_binding": true}'
A2_FLAG_DEVIATIONS = {
    0: {
        "--data-parallel-start-rank": (
            None,
            "from vLLM 0.28 on, 0 on the primary turns on another load balancing",
        ),
        "--api-server-count": ("1", "without start-rank vLLM would start one API server per rank"),
        "--additional-config": (JSON_SPACING, "the same JSON"),
    },
    1: {"--additional-config": (JSON_SPACING, "the same JSON")},
}
A3_ENV_DEVIATIONS = {
    "LD_PRELOAD": (
        "/usr/lib/aarch64-linux-gnu/libjemalloc.so.2",
        "an inherited LD_PRELOAD is not ours to pass on",
    ),
    "ASCEND_RT_VISIBLE_DEVICES": (
        ",".join(map(str, range(16))),
        "the server's own NPUs, in ascending order",
    ),
    "VLLM_ENGINE_READY_TIMEOUT_S": (
        "3600",
        "with four API servers the 600 s of vLLM cover the loading of the weights",
    ),
}
SPECULATIVE = '{"method": "eagle3", "model": "/home/cache/Eagle3/", "num_speculative_tokens": 3, "enforce_eager": true}'
A3_FLAG_DEVIATIONS = {
    "": (
        "/home/cache/MiniMax-M2.5-w8a8-QuaRot",
        "the guide's placeholder, below its container's mount",
    ),
    "--additional-config": (JSON_SPACING, "the same JSON"),
    "--speculative-config": (
        SPECULATIVE,
        "the same JSON, and the guide's placeholder below its container's mount",
    ),
    "--api-server-count": ("4", "what vLLM takes for dp=4, said aloud"),
}


def guide_env(text):
    words = [shlex.split(line)[1] for line in text.splitlines() if line.startswith("export")]
    return dict(word.split("=", 1) for word in words)


def guide_flags(text):
    """Flag -> value (None for a bare one), in the canonical spelling; "" is the model path."""
    words = shlex.split(text.replace("\\\n", " "))
    if words[:2] == ["vllm", "serve"]:
        words = ["", *words[2:]]
    flags, name = {}, None
    for word in words:
        if word.startswith("--") or not word:
            name, _, value = word.partition("=")
            name = name.replace("_", "-")
            flags[name] = value or None
        else:
            flags[name] = word
    return flags


def deviate(values, deviations):
    """The guide's values as raylaunch means to give them; None in the table takes one away."""
    changed = values | {name: value for name, (value, _why) in deviations.items()}
    return {
        name: value
        for name, value in changed.items()
        if deviations.get(name, ("", ""))[0] is not None
    }


def planned_flags(server):
    return {flag.name: flag.value for flag in server.flags}


def plan(name, hosts=HOSTS, sets=()):
    return build_plan(read(name, sets), [Facts(ip, interface=NIC) for ip in hosts])


@pytest.mark.parametrize("index", [0, 1])
def test_a2_dual_has_the_guides_variables(index):
    ip = HOSTS[index]
    wanted = guide_env(A2_ENV.format(ip=ip, nic=NIC))
    table = {name: (value.format(ip=ip), why) for name, (value, why) in A2_ENV_DEVIATIONS.items()}
    assert plan("a2-dual").servers[index].environ == deviate(wanted, table)


@pytest.mark.parametrize("index", [0, 1])
def test_a2_dual_has_the_guides_flags(index):
    headless = "--headless" if index else ""
    text = A2_SERVE.format(ip=HOSTS[index], primary=HOSTS[0], rank=index, headless=headless)
    assert planned_flags(plan("a2-dual").servers[index]) == deviate(
        guide_flags(text), A2_FLAG_DEVIATIONS[index]
    )


def test_the_deviations_say_why_in_the_plan_itself():
    primary, headless = plan("a2-dual").servers
    flags = {flag.name: flag.origin for flag in headless.flags}
    assert "never on the primary" in flags["--data-parallel-start-rank"]
    assert "prefix" in primary.env["HCCL_SOCKET_IFNAME"].origin
    assert (
        "one API server per rank" in {f.name: f.origin for f in primary.flags}["--api-server-count"]
    )


def test_the_guides_profiling_switch_becomes_the_flag_that_works():
    """The guide's two variables are unknown to vLLM 0.23 and 0.32."""
    sets = ["features.profiling.enabled=true", "features.profiling.dir=/traces"]
    server = plan("a2-dual", sets=sets).primary
    assert not set(guide_env(A2_PROFILING)) & set(server.environ)
    assert server.flag("--profiler-config") == (
        '{"profiler": "torch", "torch_profiler_dir": "/traces", "torch_profiler_with_stack": false}'
    )


def test_a3_single_has_the_guides_variables():
    found = plan("a3-single", HOSTS[:1]).primary.environ
    assert found == deviate(guide_env(A3_ENV), A3_ENV_DEVIATIONS)


def test_a3_single_has_the_guides_flags():
    found = planned_flags(plan("a3-single", HOSTS[:1]).primary)
    assert found == deviate(guide_flags(A3_SERVE), A3_FLAG_DEVIATIONS)


def test_a3_tool_calling_is_a_switch():
    wanted = {
        "--enable-auto-tool-choice": None,
        "--tool-call-parser": "minimax_m2",
        "--reasoning-parser": "minimax_m2_append_think",
    }
    found = planned_flags(
        plan("a3-single", HOSTS[:1], ["features.tool_calling.enabled=true"]).primary
    )
    assert found == planned_flags(plan("a3-single", HOSTS[:1]).primary) | wanted


def test_a3_long_context_is_the_guides_remark():
    found = plan("a3-long-context", HOSTS[:1]).primary
    wanted = guide_flags(A3_SERVE) | guide_flags(LONG_CONTEXT)
    table = A3_FLAG_DEVIATIONS | {
        "--api-server-count": (None, "with one rank there is one API server anyway"),
        "--speculative-config": (SPECULATIVE.replace(": 3", ": 1"), "the same JSON"),
    }
    assert planned_flags(found) == deviate(wanted, table)
    gone = {"VLLM_ASCEND_BALANCE_SCHEDULING", "VLLM_ENGINE_READY_TIMEOUT_S"}
    assert not gone & set(found.environ)
    assert len(found.devices) == 16


def test_a3_low_latency_is_the_guides_note():
    found = planned_flags(plan("a3-low-latency", HOSTS[:1]).primary)
    base = planned_flags(plan("a3-single", HOSTS[:1]).primary)
    note = {"--max-model-len": "32768", "--tensor-parallel-size": "16", "--data-parallel-size": "1"}
    del base["--api-server-count"]
    assert found == base | note


@pytest.mark.parametrize(
    ("name", "base", "path", "served"),
    [
        ("a2-dual-m2.7", "a2-dual", "/opt/data/verification/models/MiniMax-M2.7/", "minimax27"),
        ("a3-single-m2.7", "a3-single", "/home/cache/MiniMax-M2.7-w8a8-QuaRot", "MiniMax-M2.7"),
        (
            "a3-long-context-m2.7",
            "a3-long-context",
            "/home/cache/MiniMax-M2.7-w8a8-QuaRot",
            "MiniMax-M2.7",
        ),
    ],
)
def test_m2_7_changes_weights_and_name_and_drops_eagle3(name, base, path, served):
    hosts = HOSTS if "dual" in name else HOSTS[:1]
    wanted = planned_flags(plan(base, hosts).primary) | {"": path, "--served-model-name": served}
    wanted.pop("--speculative-config", None)
    assert planned_flags(plan(name, hosts).primary) == wanted
    assert plan(name, hosts).primary.environ == plan(base, hosts).primary.environ


def test_a2_single_is_the_newer_upstream_recipe():
    found = plan("a2-single", HOSTS[:1]).primary
    flags = planned_flags(found)
    assert {
        name: flags[name]
        for name in ("--port", "--max-num-seqs", "--max-num-batched-tokens", "--seed")
    } == {
        "--port": "8000",
        "--max-num-seqs": "32",
        "--max-num-batched-tokens": "32768",
        "--seed": "1024",
    }
    assert flags["--gpu-memory-utilization"] == "0.85"
    assert (
        flags["--model-loader-extra-config"]
        == '{"enable_multithread_load": true, "num_threads": 16}'
    )
    assert '"num_speculative_tokens": 3' in flags["--speculative-config"]
    assert (found.environ["HCCL_BUFFSIZE"], found.environ["TASK_QUEUE_ENABLE"]) == ("512", "1")
    assert "VLLM_ASCEND_ENABLE_FLASHCOMM1" not in found.environ
    assert not {"--data-parallel-address", "--mm-processor-cache-type", "--async-scheduling"} & set(
        flags
    )
    assert not [name for name in found.environ if "IFNAME" in name or name == "HCCL_IF_IP"]
