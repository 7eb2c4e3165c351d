"""The verb bench: what it asks for, what it prints beside the reference and earlier runs, what it refuses."""

from __future__ import annotations

import json

import fake_api
import pytest

from raylaunch.bench.bench_output import BenchProgress
from raylaunch.bench.result import Run
from raylaunch.bench.scenario import choose
from raylaunch.errors import BusyError
from raylaunch.plan.plan_json import plan_to_dict
from raylaunch.runtime.bench import bench_store

LOAD = choose("a2-190k", ("a2-190k",))
FIGURES = {
    "num_prompts": 16,
    "completed": 16,
    "failed": 0,
    "mean_ttft_ms": 3400.0,
    "output_throughput": 35.0,
}


def run_of(at, concurrency=4, **figures):
    """A run as it is kept, id run-AT."""
    _, plan, _ = fake_api.make_plan("a2-dual")
    load = LOAD.at(concurrency)
    return Run(
        id=f"run-{at:g}",
        deployment="a2-dual",
        recipe="a2-dual",
        scenario=load.name,
        description=load.description,
        args=dict(load.args),
        seed=1000,
        concurrency=concurrency,
        at=at,
        seconds=60.0,
        attempt=1,
        node="192.0.2.10",
        niceness=0,
        command=("vllm", "bench", "serve"),
        versions={"vllm": "0.23.0"},
        plan=plan_to_dict(plan.groups[0]),
        result={**FIGURES, **figures},
        reference=dict(load.reference),
    )


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def benched(api, home, monkeypatch):
    """What a benchmark was asked for; it keeps a run as the real one does."""
    asked = []
    more = {}

    def bench(self, scenario, *, concurrency, set, on_progress, on_run):  # noqa: A002
        asked.append((self.name, scenario, list(concurrency), dict(set)))
        runs = [
            run_of(2.0 + n, concurrency=count, **more) for n, count in enumerate(concurrency or [4])
        ]
        for run in runs:
            for done in range(17):
                on_progress(LOAD.at(run.concurrency), BenchProgress("running", done, 16))
            bench_store.save(home, run)
            on_run(run)
        return runs

    monkeypatch.setattr(api.Deployment, "bench", bench, raising=False)
    bench.asked, bench.more = asked, more
    return bench


def test_a_run_is_shown_beside_reference_and_the_run_before(cli, home, benched):
    bench_store.save(home, run_of(1.0, mean_ttft_ms=6800.0))
    result = cli("bench", "a2-dual", "--set", "num-prompts=8", "--scenario", "a2-190k")
    assert result.exit_code == 0, result.output
    assert benched.asked == [("a2-dual", "a2-190k", [], {"num-prompts": 8})]
    lines = result.stdout.splitlines()
    assert lines[1].split() == ["METRIC", "NOW", "REFERENCE", "RUN", "BEFORE"]
    (ttft,) = [line for line in lines if line.startswith("TTFT mean")]
    assert "3305.2 ms  (+3 %)" in ttft
    assert "6800.0 ms  (-50 %)" in ttft
    (answered,) = [line for line in lines if line.startswith("requests answered")]
    assert "%" not in answered
    assert "vLLM Ascend guide" in lines[-1]


def test_progress_is_a_few_plain_lines_beside_the_result(cli, benched):
    result = cli("bench", "a2-dual", "-o", "json")
    assert json.loads(result.stdout)[0]["figures"]["mean_ttft_ms"] == 3400.0
    told = [line for line in result.stderr.splitlines() if "running" in line]
    assert told == [
        "a2-190k, concurrency 4: running",
        *(f"a2-190k, concurrency 4: running: {done} of 16" for done in (4, 8, 12, 16)),
    ]
    assert "kept: " in result.stderr
    assert cli("bench", "a2-dual", "-q").stderr == ""


def test_several_concurrencies_are_several_tables(cli, benched):
    result = cli("bench", "a2-dual", "--concurrency", "1", "--concurrency", "8")
    assert benched.asked[0][2] == [1, 8]
    assert "a2-190k at concurrency 1," in result.stdout
    assert "a2-190k at concurrency 8," in result.stdout


def test_list_and_compare_need_no_cluster(cli, api, home):
    for at in (1.0, 2.0):
        bench_store.save(home, run_of(at))
    (home / "bench" / "a2-dual" / "strange.json").write_text("{}")
    listed = cli("bench", "a2-dual", "--list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["RUN", "run-1", "run-2"]
    assert "strange.json" in listed.stderr
    assert [
        run["id"] for run in json.loads(cli("bench", "a2-dual", "--list", "-o", "json").stdout)
    ] == [
        "run-1",
        "run-2",
    ]
    (compared,) = json.loads(cli("bench", "a2-dual", "--compare", "-o", "json").stdout)
    assert (compared["newest"], compared["earlier"]) == ("run-2", ["run-1"])
    assert "METRIC" in cli("bench", "a2-dual", "--compare").stdout
    assert (
        cli("bench", "a2-dual", "--compare", "--scenario", "short", "-o", "json").stdout == "[]\n"
    )
    assert not [name for name, _ in api.asked if name == "attach"]


def test_without_a_kept_run_it_says_what_makes_one(cli, home):
    result = cli("bench", "a2-dual", "--compare")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "`raylaunch bench a2-dual` makes one" in result.stderr


@pytest.mark.parametrize(
    "words",
    [("--list", "--compare"), ("--list", "--set", "a=1"), ("--compare", "--concurrency", "1")],
)
def test_contradictions_are_refused(cli, home, words):
    assert cli("bench", "a2-dual", *words).exit_code == 2


def test_failed_requests_are_an_error_after_the_table(cli, benched):
    benched.more |= {"completed": 13, "failed": 3}
    result = cli("bench", "a2-dual")
    assert result.exit_code == 7
    assert "METRIC" in result.stdout
    assert "3 of 16 requests failed" in result.stderr


def test_pictures(cli, home, benched, tmp_path):
    pytest.importorskip("matplotlib")
    png, html = tmp_path / "a.png", tmp_path / "a.html"
    assert cli("bench", "a2-dual", "--picture", str(png), "--picture", str(html)).exit_code == 0
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in html.read_text()
    wrong = cli("bench", "a2-dual", "--picture", "a.jpg")
    assert wrong.exit_code == 1
    assert len(benched.asked) == 1, "refused before anything ran"


def test_ctrl_c_says_that_the_servers_run_on(cli, api, home, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(api.Deployment, "bench", interrupted, raising=False)
    result = cli("bench", "a2-dual")
    assert result.exit_code == 130
    assert "a2-dual keeps running" in result.stderr


def test_what_the_runtime_refuses_has_its_exit_code(cli, api, home, monkeypatch):
    def busy(*_, **__):
        raise BusyError("a2-dual is restarting, and a benchmark needs it ready")

    monkeypatch.setattr(api.Deployment, "bench", busy, raising=False)
    assert cli("bench", "a2-dual").exit_code == 10
    assert cli("bench", "nobody").exit_code == 9
