"""check, tune, clean."""

from __future__ import annotations

import json

import pytest

from raylaunch.plan.facts import TuningStep
from raylaunch.plan.findings import Finding
from raylaunch.supervise.status import CleanReport, Leftover

WRONG = Finding("model-missing", "error", "no weights", "copy them", "192.0.2.11", "/opt/model")
NOTE = Finding("proxies", "info", "proxies are set")
LEFT = Leftover("node2", 4242, "a2-dual", 3, 7300.0, "VLLM::Worker_TP0")


def test_check_tells_all_findings_the_gravest_first(cli, api):
    api.findings = [NOTE, WRONG]
    result = cli("check", "a2-dual", "--address", "192.0.2.10:6379", "--set", "args.max-num-seqs=8", "--name", "prod")
    assert result.exit_code == 4
    told = result.stdout
    assert told.index("[model-missing]") < told.index("[proxies]")
    assert "(192.0.2.11)" in told
    assert "copy them" in told
    assert "1 error, 0 warnings; `start` would refuse" in result.stderr
    asked = dict(api.asked)["preflight"]
    assert asked["address"] == "192.0.2.10:6379"
    assert asked["sets"] == ["args.max-num-seqs=8"]
    assert asked["deployment"] == "prod"


def test_check_of_a_sound_recipe(cli, api):
    api.findings = [NOTE]
    result = cli("check", "a2-dual")
    assert result.exit_code == 0
    assert "nothing speaks against a start" in result.stderr
    assert cli("-q", "check", "a2-dual").output == "", "only errors with -q"


def test_check_as_json(cli, api):
    api.findings = [NOTE, WRONG]
    result = cli("check", "a2-dual", "-o", "json")
    assert result.exit_code == 4
    told = json.loads(result.stdout)
    assert told["worst"] == "error"
    assert told["hosts"] == ["192.0.2.10", "192.0.2.11"]
    assert [one["id"] for one in told["findings"]] == ["model-missing", "proxies"]


def test_a_skipped_finding_is_a_warning_with_its_reason(cli, api):
    api.findings = [WRONG]
    result = cli("check", "a2-dual", "--skip-check", "model-missing=it is being copied")
    assert result.exit_code == 0
    assert "warning: no weights (skipped: it is being copied)" in result.stdout
    assert cli("check", "a2-dual", "--skip-check", "model-missing").exit_code == 2, "no reason"


def test_clean_only_looks_without_yes(cli, api):
    api.clean_report = CleanReport(ended=False, found=(LEFT,), left=(LEFT,), records=("old",), left_records=("old",))
    result = cli("clean", "--deployment", "a2-dual")
    assert result.exit_code == 11
    assert dict(api.asked)["clean"] == {"deployment": "a2-dual", "address": None, "end": False}
    row = next(line for line in result.stdout.splitlines() if "4242" in line)
    assert row.split()[:4] == ["node2", "4242", "a2-dual", "3"]
    assert "embedded cluster of old" in result.stdout
    assert "clean --yes" in result.stderr
    assert "only this machine" in result.stderr


def test_clean_ends_what_it_found(cli, api):
    api.clean_report = CleanReport(ended=True, found=(LEFT,), asked="192.0.2.10:6379")
    result = cli("clean", "--yes")
    assert result.exit_code == 0
    assert dict(api.asked)["clean"]["end"] is True
    assert "nothing is left" in result.stderr


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (CleanReport(ended=True, found=(LEFT,), left=(LEFT,), asked="auto"), "pid 4242 on node2"),
        (CleanReport(ended=True, silent=("192.0.2.11",), asked="auto"), "the node 192.0.2.11 did not answer"),
    ],
)
def test_clean_says_what_is_left(cli, api, report, said):
    api.clean_report = report
    result = cli("clean", "--yes")
    assert result.exit_code == 11
    assert said in result.stderr
    assert json.loads(cli("clean", "--yes", "-o", "json").stdout)["is_clean"] is False


STEPS = [
    TuningStep("vm.swappiness", "0", "60", "set"),
    TuningStep("governor", "performance", "", "host", "this container has no such setting", "sudo tee ..."),
]


def test_tune_shows_wanted_and_found_and_what_only_the_host_can(cli, api):
    api.tuning_steps = STEPS
    result = cli("tune", "a2-single", "--apply")
    assert result.exit_code == 11
    assert dict(api.asked)["tune"] == {"name": "a2-single", "sets": (), "apply": True}
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines()[:3]}
    assert rows["vm.swappiness"] == ["vm.swappiness", "0", "60", "set", "now"]
    assert rows["governor"][1:] == ["performance", "not", "there", "only", "on", "the", "host"]
    assert "governor: this container has no such setting; sudo tee ..." in result.stdout
    assert json.loads(cli("tune", "a2-single", "-o", "json").stdout)[0]["outcome"] == "set"


def test_tune_alone_only_compares(cli, api):
    api.tuning_steps = [TuningStep("vm.swappiness", "0", "60", "unmet", todo="sudo sysctl -w vm.swappiness=0")]
    result = cli("tune", "a2-single")
    assert result.exit_code == 0
    assert "differs" in result.stdout
    assert "sudo sysctl -w vm.swappiness=0" in result.stdout
    api.tuning_steps = []
    assert "wants nothing" in cli("tune", "a2-dual").stderr
