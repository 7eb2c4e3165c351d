"""start, status, stop, logs, events, diagnose, against a scripted api."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
from fake_api import CREATED, look, ready

from raylaunch.checks.findings import Finding
from raylaunch.errors import ClusterError, LaunchError, NotReadyError, PlacementError
from raylaunch.supervise.state import Exit, HttpSeen, Phase, ServerSeen


def test_start_in_a_pipe_prints_one_line_per_change(cli):
    result = cli("start", "a2-dual")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[: lines.index("")] == [
        "[  0.3s] checking",
        "[  2.0s] starting",
        "[  2.0s] server 0 192.0.2.10 spawned",
        "[  2.0s] server 1 192.0.2.11 spawned",
        "[ 12.3s] server 1 192.0.2.11 weights 3/47 shards",
        "[ 41.2s] server 0 192.0.2.10 first token",
        "[ 41.2s] server 1 192.0.2.11 engine up",
        "[ 41.2s] ready",
    ]


def test_start_ends_with_what_a_person_needs_next(cli):
    text = cli("start", "a2-dual", "--address", "192.0.2.10:6379").stdout
    assert "a2-dual is ready after 41.2 s" in text
    assert "endpoint  http://192.0.2.10:20004/v1" in text
    assert "raylaunch stop a2-dual --address 192.0.2.10:6379" in text
    words = shlex.split(
        next(line for line in text.splitlines() if "curl" in line).split(maxsplit=2)[2]
    )
    assert words[:3] == ["curl", "-s", "http://192.0.2.10:20004/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == "minimax25"


def test_start_passes_on_what_was_asked(cli, api):
    words = (
        "--name",
        "prod",
        "--set",
        "args.max-num-seqs=64",
        "--timeout",
        "5",
        "--skip-check",
        "tuning=by the site = ours",
    )
    cli("start", "a2-dual", *words, "--no-wait", "--primary", "192.0.2.11")
    name, asked = api.asked[0]
    assert name == "deploy"
    assert asked["name"] == "a2-dual"
    assert asked["deployment"] == "prod"
    assert asked["timeout"] == 5
    assert asked["wait"] is False
    assert asked["primary"] == "192.0.2.11"
    assert list(asked["set"]) == ["args.max-num-seqs=64"]
    assert asked["skip_checks"] == {"tuning": "by the site = ours"}


@pytest.mark.parametrize("skip", ["tuning", "tuning=", "tuning=  ", "=reason"])
def test_a_skipped_check_wants_a_reason(cli, api, skip):
    result = cli("start", "a2-dual", "--skip-check", skip)
    assert result.exit_code == 2
    assert "reason" in result.stderr
    assert api.asked == []


@pytest.mark.parametrize(
    ("skip", "told"),
    [
        ("tuning.governor=ours", "did you mean tuning?"),
        ("model-mising=it comes later", "did you mean model-missing?"),
        ("clock=late", "did you mean clock-skew?"),
        ("q=1", "gives the id of each finding"),
    ],
)
@pytest.mark.parametrize("verb", ["start", "check"])
def test_a_skipped_check_must_be_one(cli, api, verb, skip, told):
    result = cli(verb, "a2-dual", "--skip-check", skip)
    assert result.exit_code == 2
    words = " ".join(result.stderr.replace("│", " ").split())
    assert f"no check has the id '{skip.partition('=')[0]}'" in words
    assert told in words
    assert api.asked == []


def test_start_without_waiting_says_how_to_follow(cli, api):
    api.script[:] = [look(0.1, Phase.PENDING)]
    result = cli("start", "a2-dual", "--no-wait")
    assert result.exit_code == 0
    assert "a2-dual is pending; follow it with  raylaunch status a2-dual" in result.stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LaunchError("it failed"), 7),
        (NotReadyError("not yet"), 8),
        (PlacementError("no NPUs"), 6),
        (ClusterError("no"), 5),
    ],
)
def test_start_fails_with_the_code_of_the_error(cli, api, error, code):
    api.error = error
    api.script.pop()
    result = cli("start", "a2-dual")
    assert result.exit_code == code
    assert f"error: {error.what}" in result.stderr
    assert "is ready" not in result.stdout


def test_start_that_ends_unready_without_an_error_is_not_a_success(cli, api):
    api.script[:] = [look(3, Phase.FAILED)]
    assert cli("start", "a2-dual").exit_code == 7


def test_start_tells_of_findings_ends_and_restarts_once(cli, api):
    weak = Finding("weak", "warning", "swap is on")
    gone = ServerSeen(1, exit=Exit(CREATED + 4, signal=9))
    api.script[:] = [
        look(1, Phase.CHECKING, findings=(weak,)),
        look(4, Phase.STARTING, gone, findings=(weak,), events=(api.EVENTS[1],)),
        look(5, Phase.RESTARTING, gone, findings=(weak,), events=tuple(api.EVENTS[1:])),
        look(6, Phase.STARTING, ServerSeen(1, stage="spawned"), findings=(weak,), attempt=2),
        ready(),
    ]
    lines = cli("start", "a2-dual").stdout.splitlines()
    assert lines.count("[  1.0s] warning: swap is on") == 1
    assert len([line for line in lines if "swap" in line]) == 1
    assert lines.count("[  4.0s] server 1 192.0.2.11 exited: signal 9") == 1
    assert lines.count("[  4.0s] server 1: signal 9") == 1
    assert lines.count("[  5.0s] attempt 2 in 1.0 s") == 1
    assert "[  6.0s] starting, attempt 2" in lines


def test_start_quiet_prints_the_endpoint_only(cli):
    result = cli("-q", "start", "a2-dual")
    assert (result.stdout, result.stderr) == ("http://192.0.2.10:20004/v1\n", "")


def test_start_as_json_keeps_stdout_for_the_result(cli):
    result = cli("start", "a2-dual", "-o", "json")
    assert json.loads(result.stdout)["phase"] == "ready"
    assert "weights 3/47 shards" in result.stderr


@pytest.mark.parametrize(
    ("phase", "code"),
    [
        (Phase.READY, 0),
        (Phase.PENDING, 8),
        (Phase.CHECKING, 8),
        (Phase.STARTING, 8),
        (Phase.RESTARTING, 8),
        (Phase.STOPPING, 8),
        (Phase.FAILED, 7),
        (Phase.STOPPED, 9),
    ],
)
def test_status_tells_scripts_apart(cli, api, phase, code):
    api.script[:] = [look(1, phase)]
    result = cli("status", "a2-dual")
    assert result.exit_code == code
    assert f"a2-dual  {phase.value} for" in result.stdout
    quiet = cli("status", "a2-dual", "-q")
    assert (quiet.exit_code, quiet.stdout) == (code, f"{phase.value}\n")


def test_status_of_nobody(cli):
    result = cli("status", "nobody")
    assert result.exit_code == 9
    assert "there is no deployment named 'nobody'" in result.stderr
    assert "next" in result.stderr


def test_status_shows_the_last_observation_of_each_kind(cli):
    text = " ".join(cli("status", "a2-dual").stdout.split())
    for part in (
        "0 primary 192.0.2.10 enp67s0f0np0 0 0-7 11 /var/log/raylaunch/a2-dual/attempt-1/server-0.log",
        "0 first token 0.4 s ago 200 in 0.004 s, 1.2 s ago ok in 0.050 s, 3.0 s ago",
        "1 engine up 0.5 s ago - -",
        "0 3 0 12345678 9 ok",
        "1 0 2 0 0 still for 7.0 s",
        "server 1: 2 hang lines in the log",
    ):
        assert part in text


def test_status_of_a_failure_shows_the_diagnosis(cli, api):
    cause = LaunchError(
        "server 1 ran out of memory",
        why="too little HBM",
        todo="lower max-num-seqs",
        evidence="line 812",
    )
    dead = ServerSeen(
        0, agent_lost="node died", http=HttpSeen(at=CREATED, failing_since=CREATED - 9)
    )
    api.script[:] = [look(60, Phase.FAILED, dead, error=cause.as_dict(), events=tuple(api.EVENTS))]
    text = cli("status", "a2-dual").stdout
    assert "lost: node died" in text
    assert "no answer, 1 min 00 s ago, failing for 1 min 09 s" in text
    assert "error: server 1 ran out of memory" in text
    assert "lower max-num-seqs" in text
    assert "server 1: signal 9" in text


def test_status_as_json_is_the_whole_value(cli):
    shown = json.loads(cli("status", "a2-dual", "-o", "json").stdout)
    assert shown["phase"] == "ready"
    assert shown["servers"][0]["seen"]["http"]["status"] == 200
    assert shown["servers"][0]["seen"]["ranks"][1]["waiting"] == 2


@pytest.mark.parametrize("words", [("status",), ("list", "--running")])
def test_all_deployments(cli, api, words):
    result = cli(*words)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split()[:2] == ["a2-dual", "ready"]
    assert json.loads(cli(*words, "-o", "json").stdout)[0]["deployment"] == "a2-dual"
    api.script.clear()
    none = cli(*words)
    assert (none.exit_code, none.stdout) == (0, "")
    assert "no deployment runs" in none.stderr


def test_stop_reports_what_was_ended(cli):
    result = cli("stop", "a2-dual")
    assert result.exit_code == 0
    last = "a2-dual stopped in 3.2 s: 7 processes stopped, nothing left; the local Ray cluster was stopped too"
    assert result.stdout.splitlines()[-1] == last
    assert "stopping" in result.stdout
    report = json.loads(cli("stop", "a2-dual", "-o", "json").stdout)
    assert report["processes_ended"] == 7
    assert report["left"] == []


def test_stop_that_leaves_something_names_it(cli, api, monkeypatch):
    monkeypatch.setattr(api, "left", ("192.0.2.11: pid 4711, port 20004",))
    result = cli("stop", "a2-dual")
    assert result.exit_code == 11
    assert "pid 4711" in result.stderr
    result = cli("stop", "a2-dual", "-o", "json")
    assert result.exit_code == 11
    assert json.loads(result.stdout)["left"] == ["192.0.2.11: pid 4711, port 20004"]


def test_logs(cli):
    assert cli("logs", "a2-dual", "-n", "2").stdout == "server 0 line 0\nserver 0 line 1\n"
    assert (
        cli("logs", "a2-dual", "--server", "1", "-n", "1", "-f").stdout
        == "server 1 line 0\nserver 1 more\nand more\n"
    )
    assert cli("logs", "a2-dual", "-n", "0").stdout == ""
    assert cli("logs", "a2-dual", "-n", "-1").exit_code == 2


def test_events_in_order_and_each_once(cli):
    lines = cli("events", "a2-dual").stdout.splitlines()
    assert [line.split()[3] for line in lines] == ["phase", "exit"]
    assert lines[1].endswith("server 1: signal 9")
    followed = cli("events", "a2-dual", "-f", "-o", "json").stdout.splitlines()
    assert [json.loads(line)["number"] for line in followed] == [1, 2, 3]


def test_diagnose_a_deployment(cli):
    text = cli("diagnose", "a2-dual").stdout
    for part in (
        "server 1",
        "RuntimeError: NPU out of memory  (line 812)",
        "lower it",
        "collateral  server 0",
    ):
        assert part in text
    assert json.loads(cli("diagnose", "a2-dual", "-o", "json").stdout)["root"] == 1
    assert cli("diagnose", "nobody").exit_code == 9


def test_diagnose_a_file_and_stdin(cli, tmp_path):
    log = tmp_path / "vllm.log"
    log.write_text("torch.OutOfMemoryError: CUDA out of memory\n")
    from_file = json.loads(cli("diagnose", str(log), "-o", "json").stdout)
    from_stdin = json.loads(cli("diagnose", "-", "-o", "json", input=log.read_text()).stdout)
    assert "OutOfMemoryError" in from_file["line"]
    assert from_stdin["id"] == from_file["id"]
    log.write_text("INFO all is well\n")
    assert "no known failure signature matched" in cli("diagnose", str(log)).stdout
    assert cli("diagnose", str(log), "-o", "json").stdout == "null\n"


def test_the_live_table_counts_on_between_two_looks():
    from raylaunch.cli.output import Style
    from raylaunch.cli.views.status_view import progress_lines

    status = replace(
        look(10, Phase.STARTING, ServerSeen(0, pid=4, stage="weights", stage_detail="3/47 shards")),
        waiting_for=("x",),
    )
    head, _, row, waiting = progress_lines(status, {("", 0): CREATED + 8}, CREATED + 75, Style())
    assert head == "a2-dual  starting  attempt 1  1 min 15 s"
    assert row.split() == [
        "0",
        "192.0.2.10",
        "4",
        "weights",
        "1",
        "min",
        "07",
        "s",
        "3/47",
        "shards",
    ]
    assert waiting == "  waiting for x"


@pytest.mark.parametrize(
    ("words", "asked"), [((), None), (("--adopt",), True), (("--fresh",), False)]
)
def test_start_asks_to_adopt_or_to_begin_fresh(cli, api, words, asked):
    assert cli("start", "a2-dual", *words).exit_code == 0
    ((_, given),) = api.asked
    assert given["adopt"] is asked


def test_an_adopted_deployment_is_said(cli, api):
    assert "adopted" not in cli("start", "a2-dual").stderr
    api.adopted = True
    assert "adopted: a2-dual was running; no server was started" in cli("start", "a2-dual").stderr
