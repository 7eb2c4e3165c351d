"""Import → plan gives back what the scripts say: real bash runs the scripts, and tells what reached `vllm`."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from raylaunch.checks.check_all import check_recipe
from raylaunch.importer.import_scripts import import_scripts
from raylaunch.plan.deployment_plan import DeploymentPlan
from raylaunch.plan.facts import Facts
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.load import recipe_from_mapping
from raylaunch.render.container import docker_command
from raylaunch.render.script import render_scripts

TESTS = Path(__file__).parents[1]
SCRIPTS = TESTS / "data" / "scripts"
OF_THE_SHELL = {"PATH", "HOME", "PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"}
NIC = "enp67s0f0np0"
HOSTS = ("192.0.2.10", "192.0.2.11")

LEFT_OPEN = {
    "FIRST_IP": "192.0.2.10",
    "SECOND_IP": "192.0.2.11",
    "CARD": "eth0",
    "WEIGHTS": "${WEIGHTS}",
}
"""What a script expects of its environment; an import keeps such a name as a placeholder."""

RECORDER = """#!{python} -ISS
import json, os, sys
env = {{os.fsdecode(k): os.fsdecode(v) for k, v in os.environb.items()}}
with open({out!r}, "w") as file:
    json.dump({{"argv": sys.argv[1:], "env": env}}, file)
"""

NETWORK = {
    "HCCL_IF_IP",
    "VLLM_HOST_IP",
    "HCCL_SOCKET_IFNAME",
    "GLOO_SOCKET_IFNAME",
    "TP_SOCKET_IFNAME",
}
OURS = NETWORK | {"ASCEND_RT_VISIBLE_DEVICES"}
"""Variables that raylaunch sets for each node: their values are compared with the node, not with the script."""

PROFILER = {"VLLM_TORCH_PROFILER_DIR", "VLLM_TORCH_PROFILER_WITH_STACK"}

CASES = {
    "minimax": (["minimax-node0.sh", "minimax-node1.sh"], PROFILER),
    "deepseek": (["deepseek-node0.sh", "deepseek-node1.sh"], {"LD_LIBRARY_PATH"}),
    "kimi": (["kimi.md"], set()),
    "m3": (["m3-node0.sh", "m3-node1.sh"], {"IFNAME"}),
    "glm": (["glm-a3.sh"], {"LOCAL_IP", "NIC_NAME", "VLLM_API_KEY"}),
}
"""Files, and variables of theirs that the report explains instead of the recipe carrying them."""


@pytest.fixture
def bash(tmp_path):
    """Run a script as a shell would, with recorders in place of what it starts; what reached `vllm`."""
    out, tools = tmp_path / "seen.json", tmp_path / "bin"
    tools.mkdir()
    recorder = tools / "vllm"
    recorder.write_text(RECORDER.format(python=os.path.realpath(sys.executable), out=str(out)))
    for name in ("tee", "sysctl"):
        (tools / name).write_text("#!/bin/sh\nexec cat >/dev/null\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)

    def run(text):
        script = tmp_path / "script.sh"
        # A shell reads <NAME> as a redirection; people put an address there, so the test does.
        script.write_text(re.sub(r"<\w+>", "filled-in", text) + "\nwait\n")
        env = {
            "PATH": f"{tools}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "LOG": str(tmp_path / "log"),
            **LEFT_OPEN,
        }
        done = subprocess.run(
            ["bash", script], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert out.is_file(), done.stderr
        seen = json.loads(out.read_text())
        out.unlink()
        seen["env"] = {
            name: value
            for name, value in seen["env"].items()
            if name not in {*OF_THE_SHELL, *LEFT_OPEN, "LOG"}
        }
        return seen

    return run


def texts(names):
    return {name: (SCRIPTS / name).read_text() for name in names}


def scripts(names):
    """The scripts one by one, those of a Markdown file cut out of its fences."""
    for name, text in texts(names).items():
        blocks = (
            re.findall(r"^[ ]*```bash\n(.*?)^[ ]*```", text, re.DOTALL | re.MULTILINE)
            if name.endswith(".md")
            else [text]
        )
        yield from (textwrap.dedent(block) for block in blocks if "vllm serve" in block)


def plan_of(names):
    made = import_scripts(texts(names))
    loaded = recipe_from_mapping(made.values, made.name)
    return made, build_plan(
        loaded, [Facts(ip, interface=NIC) for ip in HOSTS[: loaded.recipe.parallel.servers]]
    )


def flags_of(words):
    """A command line as vLLM's parser understands it; JSON and dotted flags as values."""
    command = standin().Command(words)
    flags = {}
    for name, value in command.flags.items():
        head, _, rest = name.partition(".")
        parsed = as_value(value)
        flags[head] = flags.get(head, {}) | {rest: parsed} if rest else parsed
    return {"model": command.model, **flags}


def as_value(value):
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def standin():
    spec = importlib.util.spec_from_file_location(
        "standin_flags", TESTS / "standin" / "standin_flags.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.leave = refuse
    return module


def refuse(code, text):
    raise AssertionError(f"vLLM would refuse this: {text}")


def wanted_flags(said, server, plan):
    """What the script says, with the documented differences."""
    wanted = dict(said)
    host = wanted.get("--host", "0.0.0.0")
    wanted["--host"] = host if host == "0.0.0.0" else server.node.ip
    wanted.setdefault("--port", 8000)
    wanted.setdefault("--data-parallel-rpc-port", 29550)
    wanted.pop("--data-parallel-start-rank", None)
    wanted["--data-parallel-address"] = plan.primary.node.ip
    if server.role == "primary":
        default = 1 if "--data-parallel-start-rank" in said else said["--data-parallel-size"]
        wanted.setdefault("--api-server-count", default)
    else:
        wanted["--data-parallel-start-rank"] = server.ranks[0]
    return wanted


@pytest.mark.parametrize("case", CASES)
def test_flags_come_back(case, bash):
    names, _ = CASES[case]
    _, plan = plan_of(names)
    for server, script in zip(plan.servers, scripts(names), strict=False):
        said = flags_of(bash(script)["argv"][1:])
        assert flags_of(server.argv[2:]) == wanted_flags(said, server, plan)


@pytest.mark.parametrize("case", CASES)
def test_variables_come_back(case, bash):
    names, explained = CASES[case]
    made, plan = plan_of(names)
    for server, script in zip(plan.servers, scripts(names), strict=False):
        said = bash(script)["env"]
        said = {
            name: value.removesuffix(":") for name, value in said.items()
        }  # the empty $LD_PRELOAD behind it
        wanted = {name: value for name, value in said.items() if name not in OURS | explained}
        added = (
            {"VLLM_ENGINE_READY_TIMEOUT_S"} if "VLLM_ENGINE_READY_TIMEOUT_S" not in said else set()
        )
        found = {name: value for name, value in server.environ.items() if name not in OURS | added}
        assert found == wanted
        assert server.environ["HCCL_SOCKET_IFNAME"] == f"={NIC}"
    for name in explained:
        assert any(finding.seen.startswith(f"{name}=") for finding in made.findings), name


@pytest.mark.parametrize("case", CASES)
def test_the_file_reads_back_plans_without_errors_and_renders(case, tmp_path):
    from raylaunch.recipe.catalog import read

    names, _ = CASES[case]
    made, plan = plan_of(names)
    file = tmp_path / "mine.yaml"
    file.write_text(made.yaml)
    loaded = read(str(file))
    assert loaded.recipe == recipe_from_mapping(made.values, made.name).recipe
    assert not [finding for finding in check_recipe(loaded, {}) if finding.level == "error"]
    assert len(render_scripts(DeploymentPlan(plan.deployment, plan.recipe, (plan,)))) == len(
        plan.servers
    )


def test_the_rendered_scripts_can_be_imported_again():
    _, plan = plan_of(CASES["minimax"][0])
    again = import_scripts(render_scripts(DeploymentPlan(plan.deployment, plan.recipe, (plan,))))
    loaded = recipe_from_mapping(again.values, again.name)
    replanned = build_plan(loaded, [Facts(ip, interface=NIC) for ip in HOSTS])
    for before, after in zip(plan.servers, replanned.servers, strict=True):
        assert flags_of(after.argv[2:]) == flags_of(before.argv[2:])
        assert after.environ == before.environ


def test_the_container_comes_back():
    names = ["minimax-container.sh", *CASES["minimax"][0]]
    made = import_scripts(texts(names))
    recipe = recipe_from_mapping(made.values, made.name).recipe
    words = docker_command(recipe)
    assert words[-2:] == ["registry.example:5000/ascend/vllm-ascend:v0.23.0.post1", "bash"]
    for word in (
        "-itd",
        "--ipc=host",
        "--privileged",
        "--shm-size=1g",
        "VLLM_USE_MODELSCOPE=True",
        "mm",
        "/data/:/data/",
    ):
        assert word in words
    assert [finding.what for finding in made.findings if "--cap-add" in finding.seen] == [
        "a recipe's container has no --cap-add"
    ]
