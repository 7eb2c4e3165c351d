"""Secrets in a recipe are refused without being printed; names that only look alike are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from raylaunch.checks.check_all import check_nodes, check_recipe
from raylaunch.checks.findings import Finding
from raylaunch.checks.secret_checks import check_secrets, is_secret_name
from raylaunch.plan.facts import Facts
from raylaunch.plan.known_flags import read_flags
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read, recipe_names
from raylaunch.recipe.load import recipe_from_mapping

VALUE = "hf_x7Qp2mT9aB"
CONTAINER = {"image": "quay.io/ascend/vllm-ascend", "tag": "v0.18.0", "name": "v"}


def secrets(**sections: object) -> list[Finding]:
    base = {"model": {"path": "/m", "served_name": "m"}, "hardware": {"platform": "ascend-a2"}}
    return list(check_secrets(recipe_from_mapping({**base, **sections}, "r")))


@pytest.mark.parametrize(
    ("sections", "todo"),
    [
        ({"args": {"api-key": VALUE}}, "list VLLM_API_KEY under `secrets`"),
        ({"args": {"api_key": [VALUE, "second"]}}, "list VLLM_API_KEY under `secrets`"),
        ({"args": {"hf-token": VALUE}}, "list HF_TOKEN under `secrets`"),
        ({"env": {"HF_TOKEN": VALUE}}, "list HF_TOKEN under `secrets`"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": VALUE}}, "AWS_SECRET_ACCESS_KEY"),
        ({"env": {"MODELSCOPE_API_TOKEN": VALUE}}, "MODELSCOPE_API_TOKEN"),
        ({"env": {"DB_PASSWORD": VALUE}}, "DB_PASSWORD"),
        ({"env": {"OPENAI_API_KEY": "/9f+Ab/Zq3"}}, "OPENAI_API_KEY"),
        ({"args": {"kv-transfer-config": {"extra": {"store_password": VALUE}}}}, "`secrets`"),
        ({"args": {"kv-transfer-config": f'{{"api_key": "{VALUE}"}}'}}, "`secrets`"),
        ({"args": {"kv-transfer-config.access_token": VALUE}}, "`secrets`"),
        ({"container": {**CONTAINER, "env": {"HF_TOKEN": VALUE}}}, "list HF_TOKEN"),
        ({"env": {"PLUGIN_CONFIG": f'{{"apiKey": "{VALUE}"}}'}}, "`secrets`"),
    ],
)
def test_a_secret_in_the_recipe_is_an_error_that_does_not_repeat_it(
    sections: dict[str, object], todo: str
) -> None:
    found = secrets(**sections)
    assert {(one.id, one.level) for one in found} == {("secret-in-recipe", "error")}
    for one in found:
        assert todo in one.todo
        assert one.where == "caller"
        assert VALUE not in repr(one)


@pytest.mark.parametrize(
    "sections",
    [
        {"args": {"tokenizer": "/m/tokenizer", "tokenizer-mode": "auto"}},
        {"args": {"max-num-batched-tokens": "8192", "max-num-batched-tokens-x": "many"}},
        {"args": {"kv-cache-dtype": "fp8", "key-value-cache": "on"}},
        {"args": {"ssl-keyfile": "/etc/tls/server.key"}},
        {"args": {"hf-overrides": {"eos_token": "</s>", "pad_token_id": 3, "image_token": "<i>"}}},
        {"args": {"long-prefill-token-threshold": 4096}},
        {"env": {"OPENAI_API_KEY": "EMPTY", "HF_TOKEN": ""}},
        {"env": {"HF_TOKEN_PATH": "/root/.cache/huggingface/token"}},
        {"env": {"SERVER_KEY": "/etc/tls/server.key", "DEPLOY_KEY": "~/.ssh/id"}},
        {"env": {"SSH_PUBLIC_KEY": "ssh-ed25519 AAAA", "CACHE_KEY": "v2"}},
        {"env": {"TOKENIZERS_PARALLELISM": "false", "MONKEY": "business"}},
        {"env": {"PAD_TOKEN": "151643"}},
        {"secrets": ["HF_TOKEN", "VLLM_API_KEY"]},
    ],
)
def test_what_only_looks_like_a_secret_is_accepted(sections: dict[str, object]) -> None:
    assert secrets(**sections) == []


@pytest.mark.parametrize("name", recipe_names())
def test_no_shipped_recipe_is_suspected(name: str) -> None:
    assert list(check_secrets(read(name))) == []


def test_of_vllms_own_flags_two_are_secrets() -> None:
    assert {flag for flag in read_flags() if is_secret_name(flag)} == {"api-key", "hf-token"}


def test_the_check_is_one_of_those_that_refuse_a_start() -> None:
    loaded = read("a2-dual", [f"env.HF_TOKEN={VALUE}"])
    errors = {one.id for one in check_recipe(loaded, {}) if one.level == "error"}
    assert errors == {"secret-in-recipe"}


def test_json_that_is_nested_without_end_is_no_crash() -> None:
    assert secrets(args={"kv-transfer-config": "[" * 50_000}) == []
    assert secrets(args={"kv-transfer-config": '{"a":' * 5_000}) == []


PROBED = Facts("192.0.2.10", interface="eth0", node_id="id10", clock=1.0)


def open_api(*sets: str, node: Facts = PROBED) -> list[Finding]:
    loaded = read("a2-single", list(sets))
    found = check_nodes(loaded, [node], build_plan(loaded, [node]))
    return [one for one in found if one.id == "open-api"]


def test_an_api_without_a_key_that_others_can_reach_is_reported() -> None:
    (one,) = open_api()
    assert (one.id, one.level) == ("open-api", "info")
    assert "VLLM_API_KEY" in one.todo
    assert "port" in one.what


@pytest.mark.parametrize(
    "sets", [["secrets=[VLLM_API_KEY]"], ["args.api-key=x"], ["network.host=127.0.0.1"]]
)
def test_an_api_with_a_key_or_on_loopback_is_not_open(sets: list[str]) -> None:
    assert open_api(*sets) == []


def test_an_address_that_was_only_typed_is_not_judged() -> None:
    assert open_api(node=replace(PROBED, clock=0.0)) == []
