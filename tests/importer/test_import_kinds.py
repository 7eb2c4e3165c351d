"""The kinds of launch files that people have: what each does is in the recipe, or is reported."""

from pathlib import Path

import pytest

from raylaunch.importer.import_scripts import import_scripts

KINDS = Path(__file__).parents[1] / "data" / "scripts" / "kinds"


def made(*names):
    return import_scripts({name: (KINDS / name).read_text() for name in names})


def warned(result):
    return " ".join(f"{each.what} {each.seen}" for each in result.findings if each.level != "info")


@pytest.mark.parametrize(
    ("name", "env", "tensor"),
    [
        (
            "container-variables.sh",
            {"HCCL_BUFFSIZE": 300, "OMP_NUM_THREADS": 2, "TASK_QUEUE_ENABLE": 1},
            8,
        ),
        ("exec.sh", {"OMP_NUM_THREADS": 3, "HCCL_BUFFSIZE": 2}, 4),
        ("hosts.sh", {"HCCL_BUFFSIZE": 9}, 8),
        ("unit.service", {"A_LIST": "a b", "HCCL_BUFFSIZE": 5}, 8),
        ("compose.yaml", {"HCCL_BUFFSIZE": 6}, 4),
    ],
)
def test_variables_and_sizes_reach_the_servers(name, env, tensor):
    result = made(name)
    assert result.values["env"] == env
    assert result.values["parallel"]["tensor"] == tensor
    assert "env" not in result.values.get("container", {})


def test_hosts_of_a_loop_are_one_deployment():
    result = made("hosts.sh")
    assert result.values["parallel"]["data"] == 2
    assert not [each for each in result.findings if each.id in ("conflict", "shell")]


def test_leader_and_workers_are_one_deployment():
    result = made("lws.yaml")
    assert (result.values["parallel"]["data"], result.values["parallel"]["tensor"]) == (2, 8)
    assert result.values["env"]["HCCL_BUFFSIZE"] == 7


def test_a_placeholder_in_a_tag_is_asked_for():
    result = made("placeholder-tag.md")
    assert result.values["container"]["tag"] == "{{ release | lower }}"
    assert result.values["hardware"]["platform"] == "ascend-a3"
    assert "container.tag holds a placeholder: {{ release | lower }}" in warned(result)


def test_a_config_file_is_read_and_the_command_line_counts():
    values = made("config.sh", "serve.yml").values
    assert values["model"]["path"] == "/w/m"
    assert values["parallel"] == {"tensor": 2, "expert": True}
    assert values["args"] == {"seed": 7}


def test_a_config_file_that_is_missing_is_reported():
    assert "its values are unknown" in warned(made("config.sh"))


def test_half_a_value_is_never_kept():
    result = made("substitution.sh")
    assert result.values["env"] == {"HCCL_BUFFSIZE": 1}
    assert "args" not in result.values
    for word in ("LD_PRELOAD", "A_PATH", "$(nproc)"):
        assert word in warned(result)


def test_what_a_recipe_cannot_hold_is_named():
    assert "deploy" in warned(made("compose.yaml"))
    told = " ".join(each.seen for each in made("unit.service").findings)
    assert "Nice=-5" in told


def test_a_wrapper_that_asks_for_more_is_named():
    text = "numactl -N 0 nice -n 5 vllm serve /w/m"
    told = warned(import_scripts({"run.sh": text}))
    assert "numactl -N 0" in told
    assert "nice -n 5" in told


def test_a_single_server_with_a_connector_is_warned_of_its_address():
    text = "export VLLM_HOST_IP=192.0.2.1\nvllm serve /w/m --kv-transfer-config '{\"a\": 1}'"
    assert "raylaunch sets it only for several servers" in warned(import_scripts({"run.sh": text}))
