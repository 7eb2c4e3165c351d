"""list, show, plan, render."""

from __future__ import annotations

import json

import pytest
import yaml

from raylaunch.checks.findings import Finding
from raylaunch.checks.secret_checks import check_secrets
from raylaunch.plan.plan_json import deployment_plan_from_dict
from raylaunch.plan.planner import build_deployment_plan
from raylaunch.recipe.catalog import read, recipe_names

HOSTS = ("--host", "192.0.2.20%enp67s0f0np0", "--host", "192.0.2.21%enp67s0f0np0")


def test_list_names_every_recipe_whole(cli):
    result = cli("list")
    assert result.exit_code == 0
    header, *lines = result.stdout.splitlines()
    assert header.split() == [
        "NAME",
        "MODEL",
        "HARDWARE",
        "NODES",
        "NPUS",
        "CONTEXT",
        "DESCRIPTION",
    ]
    assert [line.split()[0] for line in lines] == recipe_names()
    dual = next(line for line in lines if line.startswith("a2-dual "))
    assert dual.split()[1:5] == ["minimax25", "ascend-a2", "2", "16"]
    assert read("a2-dual").recipe.description in dual


def test_list_as_json(cli):
    recipes = {each["name"]: each for each in json.loads(cli("list", "-o", "json").stdout)}
    assert recipes["a3-long-context"]["context"] == 138000
    assert recipes["a2-dual"]["context"] is None
    assert recipes["local-dual"]["npus"] == 0


@pytest.mark.parametrize("name", recipe_names())
def test_show_can_be_read_back_as_the_same_recipe(cli, name, tmp_path):
    result = cli("show", name)
    assert result.exit_code == 0
    copy = tmp_path / "copy.yaml"
    copy.write_text(result.stdout)
    assert read(str(copy)).recipe == read(name).recipe


def test_show_says_where_each_value_is_from(cli):
    lines = cli("show", "a3-long-context", "--set", "args.max-num-seqs=8").stdout.splitlines()
    origin = {
        line.partition(":")[0].strip(): line.rpartition("# ")[2] for line in lines if "  # " in line
    }
    assert origin["max-num-seqs"] == "--set"
    assert origin["quantization"].startswith("a3-single.yaml:")
    assert origin["max-model-len"].startswith("a3-long-context.yaml:")
    assert origin["heartbeat_s"] == "default"


def test_show_as_json(cli):
    shown = json.loads(cli("show", "a2-dual", "-o", "json").stdout)
    assert shown["recipe"]["parallel"]["tensor"] == 8
    assert shown["origins"]["parallel.tensor"].startswith("recipe a2-dual.yaml:")


def test_plan_tells_common_values_once_and_own_values_per_server(cli):
    text = cli("plan", "a2-dual", *HOSTS).stdout
    same, first, second = text.partition("Same on all servers")[2].split("Only on server ")
    assert "endpoint  http://192.0.2.20:8000/v1  (gateway on 192.0.2.20, " in text
    assert "behind    http://192.0.2.20:20004/v1" in text
    assert text.count("HCCL_BUFFSIZE") == 1
    assert "HCCL_BUFFSIZE" in same
    assert "HCCL_IF_IP" not in same
    assert "192.0.2.20" in first
    assert "--headless" not in first
    assert "--headless" in second
    assert "--data-parallel-start-rank" in second


def test_plan_shows_every_value_and_origin_of_every_server(cli):
    text = " ".join(cli("plan", "a2-dual", *HOSTS).stdout.split())
    data = json.loads(cli("plan", "a2-dual", *HOSTS, "-o", "json").stdout)
    for server in deployment_plan_from_dict(data).servers:
        for flag in server.flags:
            assert " ".join(part for part in (flag.name, flag.value, flag.origin) if part) in text
        for name, value in server.env.items():
            assert f"{name} {value.value} {value.origin}" in text


def test_plan_of_one_server_has_one_block(cli):
    text = cli("plan", "a3-single").stdout
    assert "Same on all" not in text
    assert "\nServer 0 (192.0.2.10)\n" in text


def test_plan_of_several_groups_names_them(cli):
    text = cli("plan", "a2-replicas", *HOSTS).stdout
    assert "a2-replicas: 2 groups, 2 servers, 16 NPUs on ascend-a2" in text
    assert "http://192.0.2.21:8000/v1  (serve-1, model MiniMax-M2.7)" in text
    assert "\nserve-1/0  primary" in text
    assert "Only on server" not in text, "equal groups on hosts of their own differ in nothing"


def test_plan_of_one_of_the_groups_shows_no_other(cli, api):
    text = cli("plan", "a2-replicas", *HOSTS, "--group", "serve-1").stdout
    assert api.asked[0][1]["group"] == "serve-1"
    assert [line for line in text.splitlines() if "192.0.2.20" in line] == [
        "endpoint  http://192.0.2.20:8001/v1  (gateway on 192.0.2.20, least-loaded)"
    ]
    assert "\nServer serve-1/0 (192.0.2.21)\n" in text


def test_groups_that_differ_show_what_each_has(cli, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "extends: a3-single\nparallel: {data: 2}\n"
        "groups: [{name: a}, {name: b, role: decode, args: {max-num-seqs: 7}}]\n"
    )
    text = cli("plan", str(file)).stdout
    assert "mine: 2 groups, 2 servers, 16 NPUs on ascend-a3" in text
    assert "http://192.0.2.10:8001/v1  (b-0, decode, model MiniMax-M2.5)" in text
    _, _, second = text.partition("Only on server b-0/0 (primary, 192.0.2.10)")
    rows = [" ".join(line.split()) for line in second.splitlines()]
    assert "--max-num-seqs 7 recipe mine.yaml:3" in rows
    assert "--port 8001 raylaunch: 8000 is used by group a-0" in rows


@pytest.mark.parametrize(("form", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_plan_as_data_is_the_plan(cli, form, parse):
    result = cli("plan", "a2-dual", *HOSTS, "-o", form)
    given = deployment_plan_from_dict(parse(result.stdout))
    assert given.primary.node.ip == "192.0.2.20"
    assert given.servers[1].flag("--headless") == ""


def test_plan_passes_on_what_was_asked(cli, api):
    cli(
        "plan",
        "a2-dual",
        *HOSTS,
        "--primary",
        "192.0.2.21",
        "--set",
        "args.max-num-seqs=64",
        "--name",
        "prod",
    )
    name, asked = api.asked[0]
    assert name == "make_plan"
    assert list(asked["hosts"]) == [HOSTS[1], HOSTS[3]]
    assert asked["primary"] == "192.0.2.21"
    assert list(asked["set"]) == ["args.max-num-seqs=64"]
    assert asked["deployment"] == "prod"


def test_plan_without_hosts_says_that_the_addresses_are_examples(cli):
    assert "example addresses" in cli("plan", "a2-dual").stderr
    assert "example addresses" not in cli("plan", "a2-dual", *HOSTS).stderr
    assert cli("plan", "a2-dual", "-q").stderr == ""


def test_findings_go_to_stderr_and_an_error_decides_the_exit_code(cli, api):
    warning = Finding("flashcomm", "warning", "EP without FLASHCOMM1", "set it", "env", "unset")
    api.findings.append(warning)
    result = cli("plan", "a2-dual", *HOSTS, "-o", "json")
    assert result.exit_code == 0
    assert "warning: EP without FLASHCOMM1 (env) [flashcomm]" in result.stderr
    json.loads(result.stdout)
    api.findings.append(
        Finding("cross-node-tp", "error", "tensor parallelism across nodes", "tp=8")
    )
    result = cli("-q", "plan", "a2-dual", *HOSTS)
    assert result.exit_code == 4
    assert "error: tensor parallelism across nodes [cross-node-tp]" in result.stderr
    assert "flashcomm" not in result.stderr


def test_render_writes_runnable_scripts(cli, tmp_path):
    result = cli("render", "a2-dual", "--as", "bash", "--out", str(tmp_path / "new"), *HOSTS)
    assert result.exit_code == 0
    written = sorted((tmp_path / "new").iterdir())
    assert [str(path) for path in written] == sorted(result.stdout.splitlines())
    assert len(written) == 2
    assert all(path.stat().st_mode & 0o777 == 0o755 for path in written)
    assert "--headless" in written[1].read_text()


def test_render_docker_brings_the_scripts_the_containers_run(cli, tmp_path):
    cli("render", "a2-dual", "--as", "docker", "--out", str(tmp_path), *HOSTS)
    texts = [path.read_text() for path in tmp_path.iterdir()]
    assert len([text for text in texts if "docker run" in text]) == 2
    assert len([text for text in texts if "exec vllm serve" in text]) == 2


def test_render_json_is_the_plan(cli, tmp_path):
    cli("render", "a2-dual", "--as", "json", "--out", str(tmp_path))
    plan = deployment_plan_from_dict(json.loads((tmp_path / "plan.json").read_text()))
    assert plan.recipe == "a2-dual"
    assert (tmp_path / "plan.json").stat().st_mode & 0o111 == 0


@pytest.mark.parametrize("form", ["bash", "docker", "json"])
def test_render_again_replaces_its_own_files(cli, tmp_path, form):
    words = ("render", "a2-dual", "--as", form, "--out", str(tmp_path), *HOSTS)
    assert cli(*words).exit_code == 0
    again = cli(*words, "--set", "args.max-num-seqs=99")
    assert again.exit_code == 0, again.stderr
    assert any("99" in path.read_text() for path in tmp_path.iterdir()) or form == "docker"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_render_leaves_foreign_files_alone(cli, tmp_path):
    name = "server-1-192.0.2.21.sh"
    (tmp_path / name).write_text("#!/bin/sh\necho mine\n")
    words = ("render", "a2-dual", "--as", "bash", "--out", str(tmp_path), *HOSTS)
    result = cli(*words)
    assert result.exit_code == 11
    assert name in result.stderr
    assert "--force" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name], "all or none"
    assert "mine" in (tmp_path / name).read_text()
    assert cli(*words, "--force").exit_code == 0
    assert "mine" not in (tmp_path / name).read_text()


def test_a_failed_write_leaves_the_old_file_whole(cli, tmp_path, monkeypatch):
    words = ("render", "a2-dual", "--as", "json", "--out", str(tmp_path))
    cli(*words)
    before = (tmp_path / "plan.json").read_text()

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    result = cli(*words, "--set", "args.max-num-seqs=99")
    assert result.exit_code == 11
    assert "No space left" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert (tmp_path / "plan.json").read_text() == before


def test_a_thousand_servers_are_laid_out():
    from raylaunch.cli.output import Style
    from raylaunch.cli.views.plan_view import plan_lines
    from raylaunch.plan.facts import Facts

    nodes = [Facts(f"10.0.{n // 250}.{n % 250 + 1}", interface="eth0") for n in range(1000)]
    text = "\n".join(
        plan_lines(build_deployment_plan(read("a2-dual", ["parallel.data=1000"]), nodes), Style())
    )
    assert text.count("HCCL_BUFFSIZE") == 1
    assert text.count("Only on server ") == 1000


SECRETS = (
    "args.api-key=sk-verysecret1",
    "args.api_key=sk-verysecret2",
    "env.MY_TOKEN=tok-verysecret3",
    'args.kv-transfer-config={"extra": {"password": "pw-verysecret4"}}',
    "container.env.HF_TOKEN=hf-verysecret5",
)
WITH_SECRETS = [word for setting in SECRETS for word in ("--set", setting)]
MASK = "(not shown: it looks like a secret)"


@pytest.mark.parametrize(
    ("verb", "output"),
    [*(("plan", form) for form in ("table", "json", "yaml")), ("show", "yaml"), ("show", "json")],
)
def test_a_secret_in_the_recipe_is_not_printed(cli, verb, output):
    result = cli(verb, "a2-dual", *WITH_SECRETS, "-o", output)
    assert "verysecret" not in result.output
    assert result.stdout.count(MASK) >= 3


def test_a_secret_of_a_group_is_not_shown(cli, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "extends: a2-single\n"
        "groups:\n"
        "  - {name: one, args: {api-key: sk-verysecret}, env: {DB_PASSWORD: verysecret}}\n"
    )
    for form in ("yaml", "json"):
        result = cli("show", str(recipe), "-o", form)
        assert result.exit_code == 0
        assert "verysecret" not in result.output
        assert result.stdout.count(MASK) == 2


@pytest.mark.parametrize("form", ["bash", "docker", "json"])
def test_a_recipe_with_a_secret_is_not_rendered(cli, api, form, tmp_path):
    api.findings += check_secrets(read("a2-dual", WITH_SECRETS[1::2]))
    result = cli("render", "a2-dual", *WITH_SECRETS, "--as", form, "--out", str(tmp_path / "out"))
    assert result.exit_code == 4
    assert "[secret-in-recipe]" in result.stderr
    assert "verysecret" not in result.output
    assert not (tmp_path / "out").exists()
