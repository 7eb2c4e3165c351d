"""The programs of benchmarks/ write what they measured: tables from a stored result, sections that
leave others alone.

Nothing here measures, and nothing asserts a time.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from raylaunch.monitoring.alerts import all_alerts
from raylaunch.monitoring.exposition import write_samples
from raylaunch.monitoring.scrape import Scrape, collect
from raylaunch.plan.facts import Facts
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read
from raylaunch.runtime.cluster.ray_start import TOO_LATE
from raylaunch.supervise.deployment_status import Event, GroupStatus, ServerStatus, Status
from raylaunch.supervise.deployment_summary import summarise
from raylaunch.supervise.state import Phase, RankSeen, ServerSeen

ROOT = Path(__file__).resolve().parent.parent
STORED = Path(__file__).with_name("data") / "benchmarks" / "peers.json"


@pytest.fixture
def program(monkeypatch):
    """Import a module of benchmarks/ by name."""
    kept = list(sys.path)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    sys.path[:] = kept


@pytest.fixture
def page(program, monkeypatch, tmp_path):
    """A page of the test's own, with one section on it."""
    report = program("report")
    monkeypatch.setattr(report, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "SHORT", tmp_path / "short")
    report.publish("other", "Another", "text of another", {"value": 1})
    return tmp_path / "benchmarks.md"


def line_of(text: str, *parts: str) -> str:
    (line,) = [
        line
        for line in text.splitlines()
        if line.startswith("|") and all(part in line for part in parts)
    ]
    return line


def test_stored_results_become_sections(program, page):
    program("peers_report").publish_all(json.loads(STORED.read_text()))
    text = page.read_text()
    assert "text of another" in text
    assert line_of(text, "raylaunch start", "a Ray cluster") == (
        "| raylaunch start | a Ray cluster | 2 | 32.0 (31.0 to 33.0) | 1.05 (1.00 to 1.10) |"
    )
    assert "0.95" in line_of(text, "| 4 |", "raylaunch start")
    assert "not within 90 s" in line_of(text, "kill-engine", "bash scripts")
    assert "never: the API has exited" in line_of(
        text, "kill-engine", "--data-parallel-backend ray"
    )
    assert "35.0 (own start 30.0)" in line_of(text, "kill-engine", "raylaunch start")


def test_cpu_is_told_by_owner(program):
    runs = [
        {"peer": "scripts", "cpu_s": {"vLLM": 90.0}},
        {"peer": "raylaunch", "cpu_s": {"vLLM": 91.0, "Ray": 3.0}},
        {"peer": "raylaunch", "cpu_s": {"vLLM": 93.0, "Ray": 4.0}},
        {"peer": "serve", "error": "it did not start"},
    ]
    text = program("peers_report").cpu_shares(runs)
    assert line_of(text, "bash scripts") == (
        "| the guide's two bash scripts | 90.0 (90.0 to 90.0) | 0.0 (0.0 to 0.0) | 90.0 (90.0 to 90.0) |"
    )
    assert "| 92.0 (91.0 to 93.0) | 3.5 (3.0 to 4.0) | 95.5 (94.0 to 97.0) |" in line_of(
        text, "raylaunch start"
    )
    assert program("peers_report").cpu_shares([{"peer": "scripts"}]) == ""


@pytest.mark.parametrize(
    ("line", "owner"),
    [
        ("VLLM::EngineCore_DP0", "vLLM"),
        ("/a/raylaunch/.venv/bin/python3 /a/raylaunch/.venv/bin/vllm serve /m", "vLLM"),
        ("/a/.venv/bin/python3 /a/.venv/bin/raylaunch -q start local-dual", "raylaunch's command"),
        ("ray::Controller.wait_change", "raylaunch's controller"),
        (
            "python3 -I -S /tmp/ray/session/raylaunch/1a/raylaunch/node/process/guard.py",
            "raylaunch's agents and guards",
        ),
        (
            "/a/.venv/lib/python3.11/site-packages/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp/x",
            "Ray",
        ),
        ("python3 -m ray.util.client.server --address=10.0.0.1:6379", "Ray"),
        ("python -u /a/raylaunch/benchmarks/asking/first_token.py 10.0.0.1 20004", None),
    ],
)
def test_whose_a_process_is(program, line, owner):
    owners = program("benchmark_hosts").OWNERS
    assert next((name for name, pattern in owners if re.search(pattern, line)), None) == owner


def test_a_peer_that_did_not_run_is_named_with_its_error(program, page):
    program("peers_report").publish_all(json.loads(STORED.read_text()))
    assert (
        "Ray Serve LLM, two replicas (round 1): `RuntimeError: Deploying app failed`"
        in page.read_text()
    )


def test_missed_goals_are_stored_and_found_again(program, page):
    program("peers_report").publish_all(json.loads(STORED.read_text()))
    missed = list(program("run").shortfalls(page.parent / "results", since=0.0))
    assert missed == ["kill-engine: 5.0 s beyond the servers' own start, the goal is 3 s"]


def test_a_hang_has_goals_of_its_own(program):
    def missed(**seen):
        hang = {"fault": "stop-headless", "detection_s": 24.0, "recovery_s": 52.0, "start_s": 27.0}
        return list(program("goals").shortfalls([hang | seen]))

    assert missed() == []
    assert missed(detection_s=31.0, recovery_s=58.0) == [
        "stop-headless: noticed after 31.0 s, the goal is 30 s"
    ]
    assert missed(start_s=23.0) == [
        "stop-headless: 5.0 s beyond the servers' own start, the goal is 3 s"
    ]
    assert missed(recovery_s=None, problem="it stayed away") == [
        "stop-headless: no recovery (it stayed away)"
    ]


def test_what_the_scripts_lose_beside_an_idle_cluster_stands_beside_a_missed_goal(program):
    seconds = {"scripts": 20.0, "scripts-ray": 22.0, "raylaunch": 23.0}
    rates = {"scripts": 100.0, "scripts-ray": 85.0, "raylaunch": 80.0}
    times = dict.fromkeys(("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms"), 1.0)
    runs = [
        {"peer": peer, "round": 0, "first_token_s": seconds[peer],
         "serving": [{"concurrency": 4, "request_throughput": rates[peer], **times}]}
        for peer in seconds
    ]  # fmt: skip
    (*_, launch), (*_, serving) = program("peers_report").sections({"runs": runs})
    beside = ", which beside an idle Ray cluster is"
    assert launch == [
        f"launch: 1.15 of the bash scripts' time, the goal is 1.05{beside} 1.10 itself"
    ]
    assert serving == [
        f"serving: 0.80 of the scripts' requests/s at 4 clients, the goal is 0.9{beside} 0.85 itself"
    ]


def test_another_model_has_sections_and_files_of_its_own(program, page):
    report = program("peers_report")
    report.publish_all(json.loads(STORED.read_text()))
    report.publish_all({**json.loads(STORED.read_text()), "model": "moe"})
    results = page.parent / "results"
    assert json.loads((results / "peers-moe.json").read_text())["model"] == "moe"
    assert json.loads((results / "peers-moe-faults.json").read_text())["see"] == "peers-moe.json"
    assert json.loads((results / "peers-faults.json").read_text())["see"] == "peers.json"
    text = page.read_text()
    assert "## Launch, beside what one would pick instead\n" in text
    assert "## Launch, beside what one would pick instead, MoE with expert parallelism\n" in text
    assert (
        text.count("`python benchmarks/peers.py`")
        == text.count("`python benchmarks/peers.py --model moe`")
        == 3
    )


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_raylaunch_serves_the_model_with_the_flags_of_the_peers(program, tmp_path, kind):
    pair, contenders = program("benchmark_hosts"), program("contenders")
    model = pair.MODELS[kind]
    name, *sets = contenders.on_hosts(pair.TwoHosts((), tmp_path, model))
    hosts = [Facts(f"192.0.2.{number}", interface="eth0") for number in (1, 2)]
    plan = build_plan(read(name, tuple(word for word in sets if word != "--set")), hosts)
    assert Path(plan.model).name == Path(model.path).name
    for server in plan.servers:
        words = " ".join(server.argv)
        assert [flag for flag in _flags(model.words) if f" {flag}" not in words] == []


def _flags(words):
    """`--name value` or `--name`, each as one text."""
    return re.findall(r"--\S+(?: [^-]\S*)?", " ".join(words))


def test_writing_again_replaces_the_section_and_keeps_its_place(program, page):
    report = program("report")
    report.publish("third", "A third", "last text", {})
    report.publish("other", "Another", "new text", {"value": 2})
    text = page.read_text()
    assert "text of another" not in text
    assert text.index("new text") < text.index("last text")
    assert text.count("<!-- begin other -->") == 1


def test_the_short_form_leaves_the_page_alone(program, page, capsys):
    before = page.read_text()
    program("report").publish("other", "Another", "a quick look", {}, short=True)
    assert page.read_text() == before
    assert "a quick look" in capsys.readouterr().out


def test_a_rank_that_no_longer_answers_is_not_back(program):
    outlook = program("outlook")
    seen = [{"at": 10.0 + n, "done": {"0": 5.0 + n, "1": 7.0}} for n in range(60)]
    assert outlook.ranks_back_at(seen, fault_at=9.0) is None


def test_ranks_are_back_when_both_have_finished_something_after_the_outage(program):
    outlook = program("outlook")
    alive = [{"at": 10.0 + n, "done": {"0": 5.0 + n, "1": 7.0}} for n in range(5)]
    away = [{"at": 15.0 + n, "done": None} for n in range(3)]
    back = [{"at": 18.0 + n, "done": {"0": 1.0 + n, "1": 0.0 + (n > 2)}} for n in range(6)]
    assert outlook.ranks_back_at([*alive, *away, *back], fault_at=9.0) == 21.0


def serve_status(at: float, replicas: dict[str, int], proxies: list[str]) -> dict[str, object]:
    health = "HEALTHY" if set(replicas) == {"RUNNING"} else "UNHEALTHY"
    return {
        "at": at,
        "serve": {"default": "RUNNING"},
        "deployments": {"LLM": [health, replicas]},
        "proxies": proxies,
    }


def test_serve_is_back_when_it_has_noticed_and_everything_is_healthy_again(program):
    outlook = program("outlook")
    well, ill = {"RUNNING": 2}, {"RUNNING": 1, "STARTING": 1}
    seen = [
        serve_status(9.0, well, ["HEALTHY"]),
        {"at": 11.0, "ok": True},
        serve_status(30.0, ill, ["HEALTHY"]),
        {"at": 31.0, "ok": True},
        serve_status(80.0, well, ["HEALTHY"]),
        {"at": 81.0, "ok": True},
    ]
    noticed = outlook.serve_noticed(seen, fault_at=10.0)
    assert noticed is not None
    assert noticed[0] == 30.0
    assert outlook.serve_back_at(seen, fault_at=10.0) == 81.0
    assert outlook.serve_back_at(seen[:4], fault_at=10.0) is None


STORED_RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("file", STORED_RESULTS, ids=lambda file: file.name)
def test_a_stored_result_names_no_folder_of_a_machine(program, file):
    stored = json.loads(file.read_text())
    assert program("report").without_paths(stored) == stored


def test_a_result_loses_the_folders_of_the_machine_when_it_is_written(program, page):
    report = program("report")
    command = f"SIGKILL to /home/me/.venv/bin/vllm serve {ROOT}/models/tiny (pid 20)"
    data = {"faults": [{"what": command, "url": "http://10.77.0.10:8000/v1/completions"}]}
    report.publish("peers", "Peers", "text", data)
    (fault,) = json.loads((page.parent / "results" / "peers.json").read_text())["faults"]
    assert fault == {
        "what": "SIGKILL to .../vllm serve .../tiny (pid 20)",
        "url": "http://10.77.0.10:8000/v1/completions",
    }


def test_a_seed_repeats_its_rounds_and_every_kind_comes_up_before_one_is_repeated(program):
    chaos = program("chaos_draw")
    kinds, _ = chaos.possible_kinds(can_mount=True, can_preload=True)
    drawn = chaos.draw(7, 3 * len(kinds) + 2, kinds)
    assert drawn == chaos.draw(7, 3 * len(kinds) + 2, kinds)
    assert drawn != chaos.draw(8, 3 * len(kinds) + 2, kinds)
    assert [one.number for one in drawn] == list(range(3 * len(kinds) + 2))
    for first in range(0, 3 * len(kinds), len(kinds)):
        assert sorted(one.kind for one in drawn[first : first + len(kinds)]) == sorted(kinds)


@pytest.mark.parametrize("lacks", ["can_mount", "can_preload"])
def test_faults_that_a_machine_cannot_inject_are_left_out_with_the_reason(program, lacks):
    chaos = program("chaos_draw")
    impossible = {"can_mount": chaos.MOUNTING_KINDS, "can_preload": chaos.PRELOADING_KINDS}[lacks]
    able = {"can_mount": True, "can_preload": True, lacks: False}
    kinds, left_out = chaos.possible_kinds(**able)
    assert not set(kinds) & set(impossible)
    assert left_out.keys() == set(impossible)
    assert all(left_out.values())
    assert set(kinds) | set(impossible) == {*chaos.RUNNING_KINDS, *chaos.START_KINDS}


def test_a_round_that_went_wrong_is_in_the_table_and_among_the_missed_goals(program):
    chaos = program("chaos")
    well = chaos.Outcome(0, "kill-agent", "SIGKILL to the agent", 4.0, ())
    wrong = chaos.Outcome(1, "kill-agent", "", 9.5, ("failed for good", "left:\n | pid 7"))
    other = chaos.Outcome(2, "kill-engine", "SIGKILL to the engine", 3.0, ())
    assert chaos.rows([well, wrong, other]) == [
        ["kill-agent", "2", "1", "9.5", r"round 1: failed for good; left: \| pid 7"],
        ["kill-engine", "1", "1", "3.0", "-"],
    ]
    assert chaos.missed_goals([well, wrong, other], seed=5) == [
        "chaos: seed 5, round 1, kill-agent: failed for good",
        "chaos: seed 5, round 1, kill-agent: left:\n | pid 7",
    ]


@pytest.mark.parametrize(
    ("kind", "code", "number", "is_documented"),
    [
        ("stop-during-start", 7, 0, True),
        ("stop-during-start", 1, 0, False),
        ("signal-during-start", 130, 15, True),
        ("signal-during-start", -15, 15, True),
        ("signal-during-start", -1, 15, False),
        ("start-with-256-files", 5, 0, True),
        ("start-with-256-files", -9, 0, False),
    ],
)
def test_which_exit_status_of_a_start_is_documented(program, kind, code, number, is_documented):
    problem = program("chaos_draw").start_exit_problem(kind, code, number)
    assert (problem == "") is is_documented


def test_a_chaos_run_goes_on_behind_the_rounds_that_were_right(program, tmp_path):
    chaos = program("chaos")
    right = [chaos.Outcome(number, "kill-agent", "killed", 4.0, ()) for number in range(2)]
    wrong = chaos.Outcome(2, "kill-engine", "", 9.0, ("not ready",))
    file = tmp_path / "outcomes.jsonl"
    assert chaos._kept(file) == []
    for outcome in (*right, wrong, right[0]):
        chaos._keep(file, outcome)
    assert chaos._kept(file) == right
    assert len(file.read_text().splitlines()) == 2, "what follows is run again"


@pytest.mark.parametrize(("code", "is_right"), [(5, True), (7, False), (0, False), (-15, False)])
def test_a_machine_too_busy_for_ray_has_one_exit_status(program, code, is_right):
    draw = program("chaos_draw")
    text = f"error: {TOO_LATE} 90 s"
    for kind in draw.START_KINDS:
        assert (draw.start_exit_problem(kind, code, 15, text) == "") is is_right


def request(kind="plain", result="ok", seconds=0.5):
    return {"kind": kind, "result": result, "s": seconds}


def test_a_round_counts_what_clients_without_retries_saw(program):
    one = program("availability_rounds").Round("replicas", "kill-engine")
    one.count(
        [
            request(seconds=3.0),
            request(result="refused: [Errno 111]"),
            request(result="empty 200"),
            request("stream"),
            request("stream", "error event: broken"),
        ]
    )
    assert (one.plain, one.plain_failed, one.streams, one.streams_failed) == (3, 2, 2, 1)
    assert (one.refused, one.empty, one.slowest_s) == (1, 1, 3.0)
    assert one.problems == [
        "plain: empty 200",
        "plain: refused: [Errno 111]",
        "stream: error event: broken",
    ]


def test_rounds_of_one_kind_add_up_and_missed_goals_are_named(program, page):
    rounds, availability = program("availability_rounds"), program("availability")
    good = rounds.Round("replicas", "stop-primary", recovery_s=35.0, start_s=2.0, detection_s=31.0)
    good.count([request()])
    slow = rounds.Round("replicas", "kill-agent", recovery_s=9.0, start_s=2.0)
    bad = rounds.Round("replicas", "kill-agent", problems=["plain: cut"])
    stored = json.loads(json.dumps([one.as_json() for one in (good, slow, bad)]))
    again = [rounds.Round(**one) for one in stored]
    missed = availability.publish_rounds("availability", again, standin=False, short=False)
    assert missed == [
        "availability: replicas, kill-agent, round 2: 7.0 s beyond the servers' own start",
        "availability: replicas, kill-agent, round 3: plain: cut",
    ]
    text = page.read_text()
    assert "| two groups | stop-primary | 1 | 0 of 1 |" in text
    assert "| two groups | kill-agent | 2 |" in text
    assert availability.stored_rounds("availability", short=False) == again


def test_the_cost_of_the_gateway_is_compared_pair_by_pair(program):
    gateway = program("gateway")

    def pair(rate: float, p50: float):
        direct = gateway.Load(100, 1.0, [10.0])
        return direct, gateway.Load(int(100 * rate), 1.0, [p50])

    found = {1: [pair(0.99, 11.0), pair(0.98, 11.5)], 4: [pair(0.9, 13.0)]}
    assert list(gateway.shortfalls(found)) == [
        "gateway: 4 clients: 10.0 % fewer requests/s, the goal is 3 %",
        "gateway: 4 clients: 3.0 ms more at the median, the goal is 2 ms",
    ]
    assert gateway.rows(found)[0][3] == "0.98 (0.98 to 0.99)"


def test_an_alert_fires_from_its_first_poll_to_its_last(program):
    prometheus = program("alerts_prometheus")
    labels = {"deployment": "a", "group": "serve-0", "alertname": "RaylaunchKilled"}
    alert = {"labels": labels, "state": "firing"}
    waiting = {"labels": {"deployment": "a", "alertname": "RaylaunchDegraded"}, "state": "pending"}
    firing = prometheus.firing_in({"data": {"alerts": [alert, waiting]}})
    assert firing == [("a", "serve-0", "RaylaunchKilled")]
    log = prometheus.AlertLog()
    for now in (10.0, 11.0, 12.0):
        log.take(firing, now)
    log.take([], 13.0)
    assert log.firing, "one poll may miss it"
    log.take([], 15.0)
    assert not log.firing
    log.take(firing, 20.0)
    assert [(one.first, one.last) for one in log.since(0.0)] == [(10.0, 12.0), (20.0, 20.0)]
    assert [one.first for one in log.since(15.0)] == [20.0]


def failure_events(cause: str, at: float) -> list[Event]:
    return [
        Event(1, at, 1, "phase", "ready", None, "serve-0"),
        Event(2, at + 5, 1, "failure", "server 0 exited", 0, "serve-0"),
        Event(3, at + 5, 1, "restart", f"{cause}: server 0 exited", 0, "serve-0"),
        Event(4, at + 7, 2, "phase", "starting", None, "serve-0"),
        Event(5, at + 8, 1, "failure", "another group failed too", 0, "serve-1"),
        Event(6, at + 9, 2, "phase", "ready", None, "serve-0"),
    ]


def test_an_alert_is_judged_by_what_the_deployment_itself_reports(program):
    rounds, alerts = program("alerts_rounds"), program("alerts")
    fired = program("alerts_prometheus").Fired
    found = failure_events("hccl-socket-EI0006", 100.0)
    failed, ready_at = rounds.read_failure("a", "serve-0", found)
    assert (failed.at, failed.alert, ready_at) == (105.0, "RaylaunchHcclSocketEI0006", 109.0)
    with pytest.raises(program("availability_service").AwaitedError):
        rounds.read_failure("a", "serve-0", failure_events("killed", 100.0)[:1])
    good, late, wrong = (rounds.Round(name) for name in ("good", "late", "wrong"))
    own, of_all = (failed.alert, "serve-0"), ("RaylaunchNotReady", "")
    elsewhere = fired("a", "RaylaunchKilled", 112.0, 230.0, "serve-1")
    rounds.judge(good, failed, ready_at, [fired("a", own[0], 112.0, 230.0, own[1]), elsewhere])
    rounds.judge(late, failed, ready_at, [fired("a", own[0], 140.0, 300.0, own[1])])
    rounds.judge(wrong, failed, ready_at, [fired("a", of_all[0], 112.0, 230.0)])
    assert (good.fired_s, good.cleared_s, good.others) == (7.0, 121.0, [])
    nothing = rounds.Failed("a", "serve-0", 105.0, alert="")
    adopted, disturbed = rounds.Round("adopted"), rounds.Round("disturbed")
    rounds.judge(adopted, nothing, 105.0, [elsewhere])
    rounds.judge(disturbed, nothing, 105.0, [fired("a", own[0], 112.0, 230.0, own[1])])
    assert (adopted.others, disturbed.others) == ([], [f"a: {own[0]}"])
    other = fired("b", "RaylaunchMemoryLow", 112.0, 230.0)
    beside = rounds.strays([good, late, wrong], [elsewhere, other])
    assert beside == ["a: RaylaunchKilled", "b: RaylaunchMemoryLow"]
    missed = alerts.shortfalls(
        {
            "rounds": [vars(one) for one in (good, late, wrong, adopted)],
            "healthy": ["RaylaunchMemoryLow"],
            "strays": beside[1:],
            "disagree": [],
        }
    )
    assert missed == [
        "alerts: healthy, and RaylaunchMemoryLow fired",
        "alerts: b: RaylaunchMemoryLow fired beside the faults",
        "alerts: late: RaylaunchHcclSocketEI0006 fired after 35 s",
        "alerts: late: RaylaunchHcclSocketEI0006 cleared after 191 s",
        "alerts: wrong: a: RaylaunchNotReady fired too",
        "alerts: wrong: RaylaunchHcclSocketEI0006 did not fire",
    ]


def found_by_alerts(program) -> dict:
    one = program("alerts_rounds").Round("kill-engine", "RaylaunchKilled", 8.0, 121.0)
    return {
        "rounds": [vars(one)],
        "strays": [],
        "healthy": [],
        "healthy_s": 600.0,
        "disagree": [],
        "load": 1.0,
        "rest": [0.06, 0.07, 0.06],
        "scrape_s": [0.04, 0.05, 0.06],
        "many": [0.1, 0.3, 0.25],
        "pages": [0.4, 1.5, 1.2],
        "top": 0.035,
    }


def test_alerts_and_what_it_costs_to_watch_become_a_section(program, page):
    missed = program("alerts").publish_alerts(found_by_alerts(program), short=False)
    assert missed == [
        "alerts: the metrics take 1.0 % of a core",
        "alerts: 250 ms for 64 servers",
        "alerts: 1.2 s until the page of 64 servers is drawn",
        "alerts: top takes 3.5 % of a core",
    ]
    text = page.read_text()
    assert "| kill-engine | RaylaunchKilled | 8 | 121 | none |" in text
    assert "10 healthy minutes fired no alert" in text
    assert "1.00 % of a core for one scrape every 5 s" in text


def test_a_part_of_the_alerts_that_is_measured_again_leaves_the_others(program, page):
    alerts, rounds = program("alerts"), program("alerts_rounds")
    alerts.publish_alerts(found_by_alerts(program), short=False)
    again = [vars(rounds.Round(fault, "X", 1.0, 1.0)) for fault in ("stop-primary", "kill-guard")]
    merged = alerts.with_stored({"rounds": again}, short=False)
    faults = [one["fault"] for one in merged["rounds"]]
    assert faults == ["kill-engine", "kill-guard", "stop-primary"]
    assert merged["top"] == 0.035


def test_metrics_agree_with_a_status_that_moved_on_meanwhile(program):
    views = program("alerts_views")
    before, after = (make_status(tokens, Phase.READY) for tokens in (1000.0, 1200.0))
    for tokens, wrong in ((1000.0, 0), (1100.0, 0), (1300.0, 2), (900.0, 2)):
        scrape = Scrape(make_status(tokens, Phase.READY), {}, {}, 0.0)
        text, _ = write_samples(collect(scrape), "text/plain")
        samples = views.read_samples(text.decode())
        assert len(views.disagreements(before, samples, after)) == wrong
    restarting = make_status(1100.0, Phase.RESTARTING)
    text, _ = write_samples(collect(Scrape(restarting, {}, {}, 0.0)), "text/plain")
    found = views.disagreements(before, views.read_samples(text.decode()), after)
    assert [line.split("{")[0] for line in found] == [
        "raylaunch_deployment_phase",
        "raylaunch_group_phase",
    ]


def make_status(tokens: float, phase: Phase) -> Status:
    ranks = tuple(RankSeen(number, tokens=tokens, at=1.0) for number in range(2))
    server = ServerStatus(
        0, "primary", (0, 1), "10.0.0.1", "lo", (), "/log", ServerSeen(0, ranks=ranks), "serve-0"
    )
    group = GroupStatus("serve-0", "serve", phase, 1, "", 0.0, 0.0, servers=(server,))
    return summarise(
        [group], [], deployment="a", recipe="a", served_name="m", now=2.0, stopping=False
    )


def test_every_fault_of_the_alerts_has_an_alert_of_its_own(program):
    rounds = program("alerts_rounds")
    assert len(rounds.FAULTS) == 13, "twelve, and an agent that is replaced"
    names = {alert.failure for alert in all_alerts()}
    assert set(rounds.AT_START) <= names
