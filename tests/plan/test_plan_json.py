"""The plan as JSON and back: nothing is lost, whatever stands in it."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import Flag, LaunchPlan, Place, Ports, ServerPlan, Value
from raylaunch.plan.layout import nodes_needed
from raylaunch.plan.plan_json import plan_from_dict, plan_to_dict
from raylaunch.plan.planner import build_deployment_plan, build_plan
from raylaunch.recipe.catalog import read, recipe_names
from raylaunch.recipe.groups import expand_groups

text = st.text(max_size=20)
numbers = st.lists(st.integers(0, 99), max_size=4).map(tuple)
ports = st.integers(1, 65535)
values = st.dictionaries(text, st.builds(Value, text, text), max_size=3)
servers = st.builds(
    ServerPlan,
    index=st.integers(0, 999),
    ranks=numbers,
    role=st.sampled_from(["primary", "headless"]),
    node=st.builds(Place, text, text, text),
    devices=numbers,
    env=values,
    flags=st.lists(st.builds(Flag, text, st.none() | text, text), max_size=4).map(tuple),
    ports=st.builds(Ports, ports, ports, st.none() | ports),
    log=text,
    unset=values,
)
plans = st.builds(
    LaunchPlan,
    deployment=text,
    recipe=text,
    platform=text,
    served_name=text,
    model=text,
    endpoint=text,
    servers=st.lists(servers, min_size=1, max_size=3).map(tuple),
    secrets=st.lists(text, max_size=2).map(tuple),
    group=text,
    role=st.sampled_from(["serve", "prefill", "decode"]),
)


def a2_dual():
    return build_plan(
        read("a2-dual"), [Facts(f"192.0.2.{n}", interface="enp67s0f0np0") for n in (10, 11)]
    )


@given(plans)
def test_any_plan_survives_json(plan):
    assert plan_from_dict(json.loads(json.dumps(plan_to_dict(plan)))) == plan


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_survives_json(name):
    loaded = read(name)
    needed = nodes_needed(expand_groups(loaded))
    nodes = [Facts(f"192.0.2.{n}", interface="eth0") for n in range(needed)]
    for plan in build_deployment_plan(loaded, nodes).groups:
        assert plan_from_dict(json.loads(json.dumps(plan_to_dict(plan)))) == plan


def test_the_json_has_the_promised_shape():
    data = plan_to_dict(a2_dual())
    first = data["servers"][0]
    assert (data["schema"], data["deployment"], data["endpoint"]) == (
        1,
        "a2-dual",
        "http://192.0.2.10:20004/v1",
    )
    assert first["node"] == {"ip": "192.0.2.10", "interface": "enp67s0f0np0"}
    assert first["ports"] == {"http": 20004, "rpc": 2347, "hccl_base": 60000}
    assert first["devices"] == list(range(8))
    assert first["env"]["HCCL_IF_IP"] == {"value": "192.0.2.10", "origin": "node: address"}
    assert first["argv"][:3] == ["vllm", "serve", "/opt/data/verification/models/MiniMax-M2.5/"]


def test_argv_is_what_the_flags_say():
    for server in plan_to_dict(a2_dual())["servers"]:
        words = [word for f in server["flags"] for word in (f["name"], f["value"]) if word]
        assert server["argv"] == ["vllm", "serve", *words]


def test_a_plan_of_another_schema_is_refused():
    with pytest.raises(ValueError, match="schema 99"):
        plan_from_dict(plan_to_dict(replace(a2_dual(), schema=99)))
