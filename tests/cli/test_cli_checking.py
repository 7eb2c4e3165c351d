"""check, tune, clean."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.main import get_command

from raylaunch.checks.check_all import check_nodes
from raylaunch.checks.findings import CHECK_IDS, Finding
from raylaunch.cli.app import app
from raylaunch.node.probe import tuning
from raylaunch.plan.facts import Facts, TuningStep
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read
from raylaunch.supervise.deployment_status import CleanReport, Leftover

DOCS = Path(__file__).resolve().parents[2] / "docs"
HELP = "\n".join(verb.epilog for verb in get_command(app).commands.values())  # type: ignore[attr-defined]
WRONG = Finding("model-missing", "error", "no weights", "copy them", "192.0.2.11", "/opt/model")
ODD = Finding("clock-skew", "warning", "the clocks differ")
NOTE = Finding("proxies", "info", "proxies are set")
LEFT = Leftover("node2", 4242, "a2-dual", 3, 7300.0, "VLLM::Worker_TP0")


def test_check_tells_all_findings_the_gravest_first(cli, api):
    api.findings = [NOTE, WRONG]
    result = cli(
        "check",
        "a2-dual",
        "--address",
        "192.0.2.10:6379",
        "--set",
        "args.max-num-seqs=8",
        "--name",
        "prod",
    )
    assert result.exit_code == 4
    told = result.stdout
    assert told.index("[model-missing]") < told.index("[proxies]")
    assert "(192.0.2.11)" in told
    assert "copy them" in told
    assert "1 error, 0 warnings; `start` would fail" in result.stderr
    asked = dict(api.asked)["preflight"]
    assert asked["address"] == "192.0.2.10:6379"
    assert asked["set"] == ["args.max-num-seqs=8"]
    assert asked["deployment"] == "prod"


def test_check_of_a_sound_recipe(cli, api):
    api.findings = [NOTE]
    result = cli("check", "a2-dual")
    assert result.exit_code == 0
    assert "ready to start" in result.stderr
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


@pytest.mark.parametrize("finding", [ODD, NOTE])
def test_the_reason_stays_with_what_is_no_error(cli, api, finding):
    api.findings = [finding]
    told = cli("check", "a2-dual", "--skip-check", f"{finding.id}=known").stdout
    assert f"{finding.level}: {finding.what} (skipped: known)" in told


@pytest.mark.parametrize(
    ("finding", "code", "strictly"),
    [(WRONG, 4, 4), (ODD, 0, 4), (NOTE, 0, 0), (None, 0, 0)],
    ids=str,
)
def test_the_worst_finding_gives_the_exit_code(cli, api, finding, code, strictly):
    api.findings = [finding] if finding else []
    assert cli("check", "a2-dual").exit_code == code
    assert cli("check", "a2-dual", "--strict").exit_code == strictly


def test_strict_says_what_it_refuses_and_lets_pass_what_is_skipped(cli, api):
    api.findings = [WRONG, ODD]
    skipped = ("check", "a2-dual", "--strict", "--skip-check", "model-missing=known")
    refused = cli(*skipped)
    assert refused.exit_code == 4
    assert "--strict refuses a warning" in refused.stderr
    assert cli(*skipped, "--skip-check", "clock-skew=known").exit_code == 0


def test_examples_skip_checks_that_there_are_and_that_refuse():
    pages = [HELP, *(page.read_text() for page in sorted(DOCS.glob("*.md")))]
    skipped = {name for page in pages for name in re.findall(r"--skip-check ([^\s=`]+)=", page)} - {
        "ID"
    }
    assert skipped
    assert skipped <= CHECK_IDS
    refused = (DOCS / "refusals.md").read_text().partition("## Warned of")[0]
    assert [name for name in skipped if f"| `{name}` | error" not in refused] == []


def test_clean_only_looks_without_yes(cli, api):
    api.clean_report = CleanReport(
        ended=False, found=(LEFT,), left=(LEFT,), records=("old",), left_records=("old",)
    )
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
        (
            CleanReport(ended=True, silent=("192.0.2.11",), asked="auto"),
            "the node 192.0.2.11 did not answer",
        ),
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
    TuningStep(
        "governor", "performance", "", "host", "this container has no such setting", "sudo tee ..."
    ),
]


def test_tune_shows_wanted_and_found_and_what_only_the_host_can(cli, api):
    api.tuning_steps = STEPS
    result = cli("tune", "a2-single", "--apply")
    assert result.exit_code == 11
    assert dict(api.asked)["tune"] == {"name": "a2-single", "set": (), "apply": True}
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines()[:3]}
    assert rows["vm.swappiness"] == ["vm.swappiness", "0", "60", "set", "now"]
    assert rows["governor"][1:] == ["performance", "not", "there", "only", "on", "the", "host"]
    assert "governor: this container has no such setting; sudo tee ..." in result.stdout
    assert json.loads(cli("tune", "a2-single", "-o", "json").stdout)[0]["outcome"] == "set"


def test_tune_alone_only_compares(cli, api):
    api.tuning_steps = [
        TuningStep("vm.swappiness", "0", "60", "unmet", todo="sudo sysctl -w vm.swappiness=0")
    ]
    result = cli("tune", "a2-single")
    assert result.exit_code == 0
    assert "differs" in result.stdout
    assert "sudo sysctl -w vm.swappiness=0" in result.stdout
    api.tuning_steps = []
    assert "wants no host settings" in cli("tune", "a2-dual").stderr


@pytest.mark.parametrize("page", ["the help", "before-a-start.md"])
def test_examples_tune_what_has_something_to_tune(page):
    text = HELP if page == "the help" else (DOCS / page).read_text()
    names = set(re.findall(r"^.*raylaunch tune ([\w-]+)", text, flags=re.MULTILINE))
    assert names
    for name in names:
        wanted = read(name).recipe.tuning
        assert wanted.sysctl or wanted.governor or wanted.jemalloc, name


def test_a_host_without_raylaunch_is_told_the_commands_that_tune_would_tell(tmp_path):
    loaded = read("a3-single")
    wanted = loaded.recipe.tuning
    untuned = {"governor": "powersave", **dict.fromkeys(wanted.sysctl, "7"), "jemalloc": ""}
    nodes = [Facts("192.0.2.10", interface="eth0", clock=1.0, tuning=untuned)]
    (found,) = [
        one for one in check_nodes(loaded, nodes, build_plan(loaded, nodes)) if one.id == "tuning"
    ]
    steps = tuning.compare(
        {"governor": wanted.governor, **wanted.sysctl, "jemalloc": True}, root=tmp_path
    )
    assert len(steps) == 5
    assert [step.todo for step in steps if step.todo not in found.todo] == []
    (commands,) = re.findall("`(.*?)`", found.todo)
    assert "raylaunch" not in commands
