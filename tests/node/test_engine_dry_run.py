"""The dry run of a plan's servers on this machine: asked, cached, refused, or failed with a reason."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raylaunch.node.model.tiny_model import ensure_tiny_model
from raylaunch.node.probe import vllm_flags
from raylaunch.node.probe.engine_dry_run import FOLDER, PROBE, dry_run
from raylaunch.node.probe.vllm_question import find
from raylaunch.plan.engine_answer import EngineAnswer
from raylaunch.plan.facts import Facts, ProbeFailure
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read

STANDIN = Path(__file__).parents[1] / "standin" / "bin" / "vllm"
PATIENCE_S = 60


@pytest.fixture
def env(tmp_path):
    return {
        "PATH": os.environ["PATH"],
        "RAYLAUNCH_VLLM": str(STANDIN),
        "STANDIN_PYTHON": sys.executable,
        "STANDIN_ASKED": str(tmp_path / "asked"),
    }


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def plan_of(model, *sets):
    loaded = read("a2-dual", [f"model.path={model}", *sets])
    nodes = [Facts(f"192.0.2.{10 + number}", interface="eth0") for number in range(2)]
    return build_plan(loaded, nodes)


def asked(env):
    file = Path(env["STANDIN_ASKED"])
    return len(file.read_text().splitlines()) if file.exists() else 0


def run(plan, env, tmp_path, servers=(0,), timeout_s=PATIENCE_S):
    return dry_run(plan, servers, env, tmp_path / "state", timeout_s=timeout_s)


def test_one_question_gives_names_and_configuration_and_both_are_remembered(env, model, tmp_path):
    plan = plan_of(model, "args.max-model-len=1024")
    first = run(plan, env, tmp_path)
    assert first.answers[0].became["max_model_len"] == "1024"
    assert first.known_flags.flags["headless"].takes == "none"
    assert run(plan, env, tmp_path) == first
    assert asked(env) == 1


def test_what_the_answer_depends_on_makes_it_outdated(env, model, tmp_path):
    run(plan_of(model), env, tmp_path)
    run(plan_of(model, "args.max-num-seqs=7"), env, tmp_path)
    assert asked(env) == 2, "another command line"
    run(plan_of(model, "env.HCCL_BUFFSIZE=7"), env, tmp_path)
    assert asked(env) == 3, "another environment"
    (model / "config.json").write_text('{"hidden_size": 1}')
    run(plan_of(model), env, tmp_path)
    assert asked(env) == 4, "another model"
    run(plan_of(model), env | {"PWD": "/elsewhere", "RAY_JOB_ID": "7"}, tmp_path)
    assert asked(env) == 4, "the caller's folder and Ray's job change nothing"


def test_servers_with_one_environment_share_one_process(env, model, tmp_path):
    plan = plan_of(model)
    report = run(plan, env, tmp_path, servers=(0, 1))
    assert report.answers.keys() == {0, 1}
    assert asked(env) == 2, "two addresses are two environments"
    alike = replace(plan.servers[1], env=plan.servers[0].env)
    same = replace(plan, servers=(plan.servers[0], alike))
    other = plan_of(model, "args.max-num-seqs=7")
    both = replace(same, servers=(other.servers[0], replace(other.servers[1], env=alike.env)))
    assert run(both, env, tmp_path, servers=(0, 1)).answers.keys() == {0, 1}
    assert asked(env) == 3


def test_a_refusal_is_returned_and_not_remembered(env, model, tmp_path):
    plan = plan_of(model)
    refusing = env | {"STANDIN_REFUSE": "The expert_map is not exist."}
    assert run(plan, refusing, tmp_path).answers[0].refusal.words == "The expert_map is not exist."
    assert not (tmp_path / "state" / FOLDER).exists(), "the file that is missing may come"


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("crash", "libascend_hal.so"), ("babble", "cannot be read"), ("die", "Segmentation fault")],
)
def test_a_vllm_that_fails_is_a_failure_with_its_reason(env, model, tmp_path, fault, reason):
    report = run(plan_of(model), env | {"STANDIN_ASK": fault}, tmp_path)
    failure = report.answers[0]
    assert isinstance(failure, ProbeFailure)
    assert failure.probe == PROBE
    assert reason in failure.reason
    assert (report.known_flags is not None) == (fault == "die"), "what came before is kept"


def test_a_vllm_that_hangs_is_given_up(env, model, tmp_path):
    report = run(plan_of(model), env | {"STANDIN_ASK": "hang"}, tmp_path, timeout_s=0.5)
    assert report.answers[0].reason == "no answer in 0.5 s"


def test_without_the_model_only_the_names_are_asked(env, tmp_path):
    report = run(plan_of("/does/not/exist"), env, tmp_path)
    assert report.answers == {}
    assert report.known_flags.flags


def test_without_a_vllm_nothing_is_asked(tmp_path, model, monkeypatch):
    monkeypatch.setattr("raylaunch.node.probe.engine_dry_run.find", lambda *_: None)
    assert run(plan_of(model), {"PATH": ""}, tmp_path).answers == {}


def test_the_environment_has_no_marker_of_the_deployment(env, model, tmp_path, monkeypatch):
    """A search for orphans kills marked processes of other attempts."""
    seen = []
    monkeypatch.setattr(
        "raylaunch.node.probe.vllm_question._run",
        lambda command, question, env, *rest: seen.append(env) or ("", "nothing"),
    )
    run(plan_of(model), env | {"ASCEND_RT_VISIBLE_DEVICES": "7,3", "VLLM_PORT": "1"}, tmp_path)
    [given] = seen
    assert not [name for name in given if name.startswith(("RAYLAUNCH_DEPLOYMENT", "RAY_"))]
    assert given["ASCEND_RT_VISIBLE_DEVICES"] == "0,1,2,3,4,5,6,7"
    assert "VLLM_PORT" not in given
    assert given["PATH"].startswith(f"{STANDIN.parent}:")


@pytest.mark.vllm
def test_the_installed_vllm_accepts_refuses_and_warns(tmp_path):
    """One import of the real vLLM on CPU for three command lines."""
    folder = tmp_path / "tiny"
    ensure_tiny_model("qwen3", folder)
    sets = ["model.tiny=null", f"model.path={folder}"]

    def plan(*more):
        loaded = read("local-dual", [*sets, *more])
        return build_plan(loaded, [Facts("127.0.0.1", interface="lo")] * 2)

    good, bad, wrong = (
        plan(),
        plan("args.max-num-seqs=0"),
        plan('args.compilation-config={"cudagraph_mode":"FULL_DECODE"}'),
    )
    servers = [
        good.servers[0],
        *(replace(one.servers[0], index=i) for i, one in ((1, bad), (2, wrong))),
    ]
    env = servers[0].env
    one = replace(good, servers=tuple(replace(server, env=env) for server in servers))
    report = dry_run(one, (0, 1, 2), {**os.environ}, tmp_path / "state", timeout_s=600)
    accepted, refused, typo = (report.answers[index] for index in range(3))
    assert isinstance(accepted, EngineAnswer)
    assert accepted.became["data_parallel"] == "2"
    assert accepted.became["executor"]
    assert int(accepted.became["kv_block_size"]) > 0
    assert "max_num_seqs" in refused.refusal.fields
    assert "greater than or equal to 1" in refused.refusal.words
    assert typo.refusal.words == "FULL_DECODE"
    modes = typo.refusal.choices["compilation-config"]["cudagraph_mode"]
    assert "FULL_DECODE_ONLY" in modes
    assert "VLLM_HOST_IP" in report.known_flags.variables
    vllm = find(os.environ, tmp_path / "state")
    assert vllm_flags.recall(vllm) == report.known_flags
    again = dry_run(one, (0,), {**os.environ}, tmp_path / "state", timeout_s=0.001)
    assert again.answers[0] == accepted, "remembered: there is no time to ask"
    assert json.dumps(dict(accepted.became))
