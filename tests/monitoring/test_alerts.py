"""The alerts: known metrics, one name each, the diagnosis's own words; and, by promtool, that each
fires for its failure alone, in time, and clears."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from deployments import make_scrape

from raylaunch.api import monitoring_files
from raylaunch.monitoring.alerts import alert_name, all_alerts
from raylaunch.monitoring.metric_names import BY_NAME
from raylaunch.monitoring.prometheus_files import prometheus_files
from raylaunch.monitoring.scrape import collect
from raylaunch.supervise.diagnosis.signatures import load_signatures
from raylaunch.supervise.tally import Tally

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is missing: apt-get install prometheus"
)
DRILLS = {
    "kill-engine": "killed",
    "kill-headless": "exited-zero",
    "kill-primary": "crashed",
    "lost-child": "member-ended",
    "stop-headless": "stalled",
    "stop-idle": "canary-failed",
    "stop-api": "http-dead",
    "kill-agent": "agent-lost",
    "cut-node": "node-lost",
    "steal-port": "step-failed",
    "slow-start": "start-deadline",
    "bug": "internal",
}
"""A fault -> what it is called when it is detected and diagnosed."""
FAILED_AT_S = 60
READY_AT_S = 100


def test_names_are_unique_and_every_failure_has_one():
    alerts = all_alerts()
    assert len({alert.name for alert in alerts}) == len(alerts)
    named = {alert.failure for alert in alerts}
    assert {one.id for one in load_signatures() if one.level == "fatal"} <= named
    assert set(DRILLS.values()) <= named


def test_every_alert_says_cause_remedy_and_command():
    for alert in all_alerts():
        assert alert.cause, alert.name
        assert alert.remedy, alert.name
        assert alert.command.startswith("raylaunch "), alert.name
        assert not re.search(r"\{\d\}", alert.cause + alert.remedy), alert.name


def test_the_text_is_that_of_the_diagnosis():
    by_failure = {alert.failure: alert for alert in all_alerts()}
    one = next(one for one in load_signatures() if one.id == "dp-external-dense")
    assert by_failure[one.id].cause == one.cause
    assert by_failure[one.id].remedy == one.remedy


def test_the_alerts_use_metrics_that_there_are():
    text = "".join(prometheus_files("x")["raylaunch-rules.yml"])
    expressions = re.findall(r"expr: (.*(?:\n {6,}.*)*)", text)
    for name in re.findall(r"\braylaunch_[a-z_]+", " ".join(expressions)):
        assert name in BY_NAME, name


def test_a_token_goes_to_our_own_endpoints_only():
    config = yaml.safe_load(prometheus_files("x", "/etc/token")["prometheus.yml"])
    own, others = config["scrape_configs"]
    assert own["authorization"]["credentials_file"] == "/etc/token"
    assert own["relabel_configs"][0]["regex"] == "raylaunch"
    assert "authorization" not in others
    assert others["relabel_configs"][0]["regex"] == "vllm|ray"


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, text in monitoring_files(str(tmp_path / "targets" / "*.json")).items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "d.json").write_text("[]")
    return tmp_path


def promtool(*words: str | Path) -> str:
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_the_files(folder):
    report = promtool("check", "config", folder / "prometheus.yml")
    assert "WARNING" not in report
    report = promtool("check", "rules", folder / "raylaunch-rules.yml")
    assert "duplicate" not in report


@needs_promtool
def test_promtool_accepts_the_queries_of_the_dashboards(folder):
    rules = []
    for path in sorted((folder / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                rules.append({"record": f"check:q{len(rules)}", "expr": target["expr"]})
    assert len(rules) > 25
    text = yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]})
    (folder / "queries.yml").write_text(text)
    promtool("check", "rules", folder / "queries.yml")


def series(metric: str, values: str, /, **labels: str) -> dict[str, str]:
    inner = ", ".join(f'{key}="{value}"' for key, value in labels.items())
    return {"series": f"{metric}{{{inner}}}", "values": values}


def failure(deployment: str, cause: str, *, recovers: bool = True) -> list[dict[str, str]]:
    """A failure after a minute; the group is ready again 40 s later, or never."""
    before, broken = FAILED_AT_S // 5, (READY_AT_S - FAILED_AT_S) // 5
    place = {"deployment": deployment, "group": "serve-0"}
    after = 1 if recovers else 0
    ready = f"1x{before - 1} 0x{broken - 1} {after}x200"
    down = f"0x{before - 1} 1x{broken - 1} {1 - after}x200"
    last = "raylaunch_group_last_failure_timestamp_seconds"
    labels = {**place, "cause": cause, "class": "transient"}
    return [
        series(last, f"_x{before} {FAILED_AT_S}x200", **labels),
        series("raylaunch_group_phase", ready, **place, phase="ready"),
        series("raylaunch_group_phase", down, **place, phase="restarting"),
        series("raylaunch_deployment_phase", ready, deployment=deployment, phase="ready"),
        series("raylaunch_deployment_phase", down, deployment=deployment, phase="restarting"),
        series("raylaunch_controller_took_over", "0x300", deployment=deployment),
        series("up", "1x300", job="raylaunch", deployment=deployment),
    ]


def fires_at(at_s: int, alerts: dict[str, str]) -> dict[str, object]:
    """Exactly these alerts fire, each for its deployment."""
    samples = [
        {"labels": f'{{deployment="{deployment}", alertname="{name}"}}', "value": 1}
        for deployment, name in alerts.items()
    ]
    return {
        "expr": 'count by (deployment, alertname) (ALERTS{alertstate="firing"})',
        "eval_time": f"{at_s}s",
        "exp_samples": samples,
    }


def run_rule_test(
    folder: Path, inputs: list[dict[str, str]], checks: list[dict[str, object]]
) -> None:
    test = {"interval": "5s", "input_series": inputs, "promql_expr_test": checks}
    text = {"rule_files": ["raylaunch-rules.yml"], "evaluation_interval": "5s", "tests": [test]}
    (folder / "tests.yml").write_text(yaml.safe_dump(text))
    promtool("test", "rules", folder / "tests.yml")


@needs_promtool
def test_each_fault_fires_its_own_alert_within_30_s_and_clears(folder):
    """All faults at the same time, each in a deployment of its own."""
    inputs = [one for fault, cause in DRILLS.items() for one in failure(fault, cause)]
    inputs += failure("unheard-of", "site-signature")
    inputs += failure("for-good", "killed", recovers=False)
    started = "raylaunch_controller_start_timestamp_seconds"
    inputs.append(
        series("raylaunch_controller_took_over", "0x11 1x200", deployment="kill-controller")
    )
    inputs.append(series(started, f"0x11 {FAILED_AT_S}x200", deployment="kill-controller"))
    expected = {fault: alert_name(cause) for fault, cause in DRILLS.items()}
    expected["unheard-of"] = "RaylaunchFailureOther"
    expected["for-good"] = "RaylaunchKilled"
    expected["kill-controller"] = "RaylaunchControllerRestarted"
    checks = [
        fires_at(FAILED_AT_S - 5, {}),
        fires_at(FAILED_AT_S + 30, expected),
        fires_at(FAILED_AT_S + 150, {"for-good": "RaylaunchKilled"}),
    ]
    run_rule_test(folder, inputs, checks)


@needs_promtool
def test_failures_of_different_causes_within_an_hour_fire_once_more(folder):
    place = {"deployment": "again", "group": "serve-0"}
    inputs = [series("raylaunch_group_failures_total", "0x12 1x11 2x11 3x200", **place)]
    for number, cause in enumerate(("killed", "stalled", "agent-lost")):
        # A cause that is new has a new series, which begins at 1.
        values = f"_x{12 * (number + 1)} 1x200"
        name = "raylaunch_group_restarts_total"
        inputs.append(series(name, values, **place, cause=cause, **{"class": "transient"}))
    checks = [fires_at(150, {}), fires_at(300, {"again": "RaylaunchRestartsOften"})]
    run_rule_test(folder, inputs, checks)


@needs_promtool
def test_ten_healthy_minutes_fire_nothing(folder):
    scrape = replace(make_scrape(), tallies={"serve-0": Tally()}, started_at=0.0)
    inputs = [series("up", "1x200", job="raylaunch", deployment="a2-dual")]
    for name, of_name in collect(scrape).values.items():
        names = ("deployment", *BY_NAME[name].labels)
        for labels, value in of_name:
            step = 7 if name.startswith("raylaunch_rank") and name.endswith("_total") else 0
            named = dict(zip(names, labels, strict=True))
            inputs.append(series(name, f"{value}+{step}x200", **named))
    run_rule_test(folder, inputs, [fires_at(at_s, {}) for at_s in range(30, 601, 30)])
