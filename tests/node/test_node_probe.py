import os
import platform
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raylaunch.checks.node_checks import BY_HAND
from raylaunch.errors import NodeError
from raylaunch.node.probe import engine_dry_run, node_probe as room, vllm_flags
from raylaunch.node.probe.node_probe import probe
from raylaunch.plan.facts import Facts, MarkedProcess, ProbeFailure
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read

DATA = Path(__file__).parents[1] / "data"
IP = "192.0.2.10"


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch):
    """Other tests' servers and this machine's name service are none of ours."""
    monkeypatch.setattr(room, "_ask_marked", lambda: {"marked": ()})
    monkeypatch.setattr(room.network, "resolve_hostname", lambda: (IP,))


def bare(**more) -> Facts:
    return probe(IP, env={"PATH": os.environ["PATH"]}, npu=False, **more)


def test_a_machine_without_npus_answers_everything():
    facts = bare()
    assert facts.failures == ()
    assert (facts.ip, facts.hostname, facts.arch) == (IP, socket.gethostname(), platform.machine())
    assert facts.python == platform.python_version()
    assert facts.is_root == (os.geteuid() == 0)
    assert facts.niceness == os.nice(0)
    assert "lo" in {interface.name for interface in facts.interfaces}
    assert facts.versions["ray"]
    assert facts.memory_total >= facts.memory_available > 0
    assert facts.shm_total >= facts.shm_free >= 0
    assert facts.open_files_limit > 0
    assert facts.tuning["vm.swappiness"]
    assert facts.resolves_to == (IP,)
    assert facts.clock > 1.7e9
    assert facts.vllm_executable == str(Path(sys.executable).parent / "vllm")


def test_what_the_caller_knows_is_left_to_the_caller():
    facts = bare()
    assert (facts.node_id, facts.interface, facts.devices, facts.weights) == ("", None, None, None)


def test_neither_vllm_nor_torch_nor_ray_is_imported_for_it():
    script = (
        "import os, sys\n"
        "from raylaunch.node.probe.node_probe import probe\n"
        "probe('192.0.2.1', env=os.environ)\n"
        "print({'vllm', 'torch', 'ray', 'torchvision'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "set()\n"


def test_the_weights_are_inspected_when_a_path_is_given(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "minimax_m2"}')
    seen = bare(model_path=str(tmp_path), drafter_path=str(tmp_path / "none"))
    assert seen.drafter is not None
    assert not seen.drafter.exists
    weights = seen.weights
    assert weights is not None
    assert weights.model_type == "minimax_m2"


def test_proxies_are_named_and_never_quoted():
    env = {
        "PATH": "",
        "https_proxy": "http://user:secret@x",
        "HTTP_PROXY": "",
        "no_proxy": "x",
        "ALL_PROXY": "socks",
    }
    facts = probe(IP, env=env, npu=False)
    assert facts.proxies == ("ALL_PROXY", "https_proxy")
    assert "secret" not in repr(facts)


def test_every_proxy_that_is_reported_is_unset_for_the_servers():
    lower = ("http_proxy", "https_proxy", "all_proxy")
    env = {"PATH": ""} | dict.fromkeys((*lower, *map(str.upper, lower)), "http://p")
    facts = probe(IP, env=env, npu=False)
    assert set(facts.proxies) == env.keys() - {"PATH"}
    unset = build_plan(
        read("a2-dual"), [Facts(ip, interface="eth0") for ip in (IP, "192.0.2.11")]
    ).primary.unset
    assert set(facts.proxies) <= unset.keys()


def test_for_every_question_there_is_a_way_to_ask_by_hand():
    questions = room._questions({}, {"weights": "/m", "drafter": "/d"}, (), True, 1.0, Path("/"))
    names = {question.name for question in questions} - {
        "weights",
        "drafter",
    }  # these need the path
    tools = {"npu-smi", "npu-smi info -m", "npu-smi info -t board", "hccn_tool"}
    assert BY_HAND.keys() == names | tools | {vllm_flags.PROBE, engine_dry_run.PROBE}


def test_weights_that_hang_time_out_and_those_that_fail_report_why(monkeypatch):
    answered = threading.Event()

    def look(path):
        if path == "/nfs":
            answered.wait(300)
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(room.weight_files, "inspect_weights", look)
    try:
        facts = bare(model_path="/nfs", drafter_path="/locked", timeout_s=1)
    finally:
        answered.set()
    failed = {failure.probe: failure.reason for failure in facts.failures}
    assert failed["weights"] == "no answer in 1 s"
    assert failed["drafter"] == "PermissionError: [Errno 13] Permission denied: '/locked'"
    assert (facts.weights, facts.drafter) == (None, None)


def test_a_listener_on_a_wanted_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = [listener for listener in bare(ports=[port]).listeners if listener.port == port]
    assert [(listener.pid, bool(listener.process)) for listener in found] == [(os.getpid(), True)]


def test_marked_processes_are_passed_on(monkeypatch):
    leftover = MarkedProcess(1234, "a2-dual", 3, 5.0, "vllm serve")
    monkeypatch.setattr(room, "_ask_marked", lambda: {"marked": (leftover,)})
    assert bare().marked == (leftover,)


def npu_host(root: Path, table: str) -> dict[str, str]:
    """An environment whose npu-smi and hccn_tool give recorded answers."""
    (root / "bin").mkdir()
    recorded = DATA / "npu-smi"
    scripts = {
        "npu-smi": f'case "$*" in info) cat {recorded}/{table}.txt;;'
        f" *board*) cat {recorded}/board.txt;; esac",
        "hccn_tool": f"cat {DATA}/hccn/${{3#-}}.txt",
    }
    for name, script in scripts.items():
        (root / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
        (root / "bin" / name).chmod(0o755)
    return {"PATH": f"{root}/bin:{os.environ['PATH']}"}


def test_an_npu_host_is_seen_whole(tmp_path):
    facts = probe(IP, env=npu_host(tmp_path, "a2_busy"), timeout_s=120)
    assert facts.failures == ()
    assert [npu.id for npu in facts.npus] == list(range(8))
    assert {row.pid for row in facts.npu_processes} == {3755935, 3755936, 3755939, 1333928}
    assert {link.link for link in facts.npu_links} == {"UP"}
    assert facts.versions["driver"] == "25.5.1"
    assert facts.versions["firmware"] == "7.8.0.5.216"


def test_the_drivers_own_file_wins_over_npu_smi(monkeypatch, tmp_path):
    monkeypatch.setattr(room, "_ask_versions", lambda *_: {"versions": {"driver": "25.3.rc1"}})
    facts = probe(IP, env=npu_host(tmp_path, "a2_idle"), timeout_s=120)
    assert facts.versions == {"driver": "25.3.rc1", "firmware": "7.8.0.5.216"}


def test_an_absent_npu_smi_is_a_failure_where_npus_are_expected(tmp_path):
    facts = probe(IP, env={"PATH": str(tmp_path)})
    assert facts.failures == (ProbeFailure("npu-smi", "not found on PATH"),)
    assert facts.npus == ()


def test_a_hanging_npu_smi_costs_its_own_answer_only(tmp_path):
    env = npu_host(tmp_path, "a2_idle")
    (tmp_path / "bin/npu-smi").write_text("#!/bin/bash\nexec /bin/sleep 1000\n")
    facts = probe(IP, env=env, timeout_s=3)
    assert facts.failures == (ProbeFailure("npu-smi", "no answer in 3 s: npu-smi info", hung=True),)
    assert facts.memory_total > 0
    assert "ray" in facts.versions


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error"),
        (ValueError("odd"), "ValueError: odd"),
        (NodeError("no such device", todo="look"), "no such device"),
        (ImportError("no module"), "ImportError: no module"),
    ],
)
def test_a_question_that_fails_leaves_the_others_their_answers(monkeypatch, error, reason):
    def fail(*_):
        raise error

    monkeypatch.setattr(room, "_ask_interfaces", fail)
    facts = bare()
    assert facts.failures == (ProbeFailure("interfaces", reason),)
    assert facts.interfaces == ()
    assert facts.memory_total > 0


def test_a_name_service_that_does_not_answer_is_not_waited_for(monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(room, "_HOSTNAME_TIMEOUT_S", 0.1)
    monkeypatch.setattr(
        room.network, "resolve_hostname", lambda: answered.wait(300) and ("192.0.2.1",)
    )
    try:
        facts = bare()
    finally:
        answered.set()
    assert facts.failures == (ProbeFailure("hostname", "no answer in 0.1 s"),)
    assert facts.resolves_to == ()
    assert facts.interfaces


def test_a_bug_in_a_question_reaches_the_log_and_costs_no_other_answer(monkeypatch):
    def mistake(*_):
        raise TypeError("ours")

    shown = []
    monkeypatch.setattr(room, "_ask_tuning", mistake)
    monkeypatch.setattr(threading, "excepthook", shown.append)
    facts = bare()
    assert facts.failures == (
        ProbeFailure("tuning", "no answer because of an internal error, see the log"),
    )
    assert [str(seen.exc_value) for seen in shown] == ["ours"]
    assert facts.interfaces
