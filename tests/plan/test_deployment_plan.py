"""The plans of several groups: each as if it were alone, and never two for one port, NPU or log."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from raylaunch.checks.check_all import check_deployment
from raylaunch.errors import PlanError
from raylaunch.plan.deployment_plan import DeploymentPlan, GatewayPlan
from raylaunch.plan.facts import Facts, Listener
from raylaunch.plan.layout import nodes_needed
from raylaunch.plan.plan_json import (
    deployment_plan_from_dict,
    deployment_plan_to_dict,
    plan_to_dict,
)
from raylaunch.plan.planner import build_deployment_plan, build_plan, plan_group
from raylaunch.plan.ports import wanted_ports
from raylaunch.recipe.catalog import read, recipe_names
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.load import recipe_from_mapping

BASE = {
    "model": {"path": "/m", "served_name": "m"},
    "hardware": {"platform": "ascend-a3"},
    "parallel": {"tensor": 8},
}


def hosts(count, **parts):
    return [Facts(f"192.0.2.{10 + n}", interface="eth0", **parts) for n in range(count)]


def plan(count, recipe=None, **parts):
    loaded = recipe_from_mapping({**BASE, **parts}, "r") if recipe is None else recipe
    return build_deployment_plan(loaded, hosts(count))


def holdings(deployment):
    """Yield what each server has for itself: its node with an NPU, a port or a log."""
    for group in deployment.groups:
        for server in group.servers:
            yield from ((server.node.ip, "npu", device) for device in server.devices)
            yield from ((server.node.ip, "port", port) for _, port, _ in wanted_ports(server))
            yield (server.node.ip, "log", server.log)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_of_one_group_is_planned_as_it_was(name):
    loaded = read(name)
    groups = expand_groups(loaded)
    nodes = hosts(nodes_needed(groups))
    deployment = build_deployment_plan(loaded, nodes)
    assert deployment.endpoint == deployment.gateway.endpoint
    assert deployment.endpoint not in [group.endpoint for group in deployment.groups]
    if len(groups) == 1:
        assert deployment.groups == (build_plan(loaded, nodes),)
        assert deployment.groups[0].is_alone
        assert deployment.primary.log == f"{name}/attempt-{{attempt}}/server-0.log"


def test_two_independent_servers_on_two_nodes_are_planned_like_one_each():
    deployment = build_deployment_plan(read("a2-replicas"), hosts(2))
    alone = build_plan(read("a2-single"), hosts(1)).primary
    assert [group.group for group in deployment.groups] == ["serve-0", "serve-1"]
    for group, ip in zip(deployment.groups, ("192.0.2.10", "192.0.2.11"), strict=True):
        assert group.primary.argv == alone.argv
        assert group.primary.environ == alone.environ
        assert group.endpoint == f"http://{ip}:8000/v1"
        assert group.primary.log == f"a2-replicas/{group.group}/attempt-{{attempt}}/server-0.log"
        assert not group.is_alone


def test_two_groups_on_one_node_share_nothing():
    deployment = plan(1, parallel={"tensor": 8, "replicas": 2})
    first, second = (group.primary for group in deployment.groups)
    assert (first.devices, second.devices) == (tuple(range(8)), tuple(range(8, 16)))
    assert (first.ports.http, second.ports.http) == (8000, 8001)
    assert (first.ports.hccl_base, second.ports.hccl_base) == (60000, 60016)
    assert second.env["HCCL_IF_BASE_PORT"].origin == "raylaunch: 60000 is used by group serve-0"
    assert second.flag("--port") == "8001"
    assert deployment.groups[1].endpoint == "http://192.0.2.10:8001/v1"


def test_groups_of_several_servers_get_their_own_handshake():
    deployment = plan(2, parallel={"tensor": 4, "data": 2, "data_local": 1, "replicas": 2})
    ports = [group.primary.ports.rpc for group in deployment.groups]
    assert ports == [29550, 29551]
    for group, port in zip(deployment.groups, ports, strict=True):
        assert {one.flag("--data-parallel-rpc-port") for one in group.servers} == {str(port)}
        assert {one.node.ip for one in group.servers} == {"192.0.2.10", "192.0.2.11"}


def test_a_port_that_was_set_is_the_first_of_the_groups():
    loaded = recipe_from_mapping({**BASE, "parallel": {"tensor": 4, "replicas": 3}}, "r")
    loaded.origins["network.http_port"] = "--set"  # type: ignore[index]
    ports = [group.primary.ports.http for group in plan(1, loaded).groups]
    assert ports == [8000, 8001, 8002]


def test_the_port_of_the_api_stays_where_only_a_stranger_uses_it():
    node = Facts("192.0.2.10", interface="eth0", listeners=(Listener("0.0.0.0", 8001, 7, "x"),))
    loaded = recipe_from_mapping({**BASE, "parallel": {"tensor": 4, "replicas": 2}}, "r")
    ports = [group.primary.ports.http for group in build_deployment_plan(loaded, [node]).groups]
    assert ports == [8000, 8002], "the second avoids the first and the stranger"
    node = Facts("192.0.2.10", interface="eth0", listeners=(Listener("0.0.0.0", 8000, 7, "x"),))
    assert build_deployment_plan(loaded, [node]).groups[0].primary.ports.http == 8000, "as asked"


def test_a_restarted_group_keeps_its_place_among_the_others():
    loaded = recipe_from_mapping({**BASE, "parallel": {"tensor": 4, "replicas": 3}}, "r")
    before = build_deployment_plan(loaded, hosts(1))
    for spec, group in zip(expand_groups(loaded), before.groups, strict=True):
        siblings = [one for one in before.groups if one is not group]
        again = plan_group(spec, hosts(1), others=siblings)
        assert again.primary.devices == group.primary.devices
        ports = [port for _, port, _ in wanted_ports(again.primary)]
        assert len(ports) == len(set(ports))
        assert not {port for one in siblings for _, port, _ in wanted_ports(one.primary)} & {*ports}


def test_spare_hosts_keep_the_groups_apart_and_few_hosts_bring_them_together():
    nodes = {
        count: [
            group.primary.node.ip
            for group in plan(count, parallel={"tensor": 4, "replicas": 3}).groups
        ]
        for count in (1, 2, 5)
    }
    assert nodes[1] == ["192.0.2.10"] * 3
    assert nodes[2] == ["192.0.2.10", "192.0.2.11", "192.0.2.10"]
    assert nodes[5] == ["192.0.2.10", "192.0.2.11", "192.0.2.12"]


def test_groups_are_packed_where_they_fit_in_no_other_way():
    groups = [
        {"name": f"g{number}", "parallel": {"tensor": tensor}}
        for number, tensor in enumerate((4, 4, 8, 8, 8))
    ]
    nodes = [group.primary.node.ip[-2:] for group in plan(2, groups=groups).groups]
    assert nodes == ["10", "10", "10", "11", "11"]


def test_the_primary_is_that_of_the_first_group():
    loaded = recipe_from_mapping({**BASE, "parallel": {"tensor": 8, "replicas": 2}}, "r")
    deployment = build_deployment_plan(loaded, hosts(2), primary="192.0.2.11")
    assert [one.primary.node.ip for one in deployment.groups] == ["192.0.2.11", "192.0.2.10"]
    with pytest.raises(PlanError, match="is not among"):
        build_deployment_plan(loaded, hosts(2), primary="192.0.2.99")


def test_too_few_nodes_for_the_groups_name_the_group():
    with pytest.raises(PlanError, match=r"group serve-2 does not fit on the 1 node") as refused:
        plan(1, parallel={"tensor": 8, "replicas": 3})
    assert "3 give each server its own" in str(refused.value)


def test_one_group_cannot_be_planned_where_there_are_several():
    with pytest.raises(PlanError, match="has 2 groups"):
        build_plan(read("a2-replicas"), hosts(2))


def test_the_groups_of_other_deployments_are_avoided_too():
    loaded = recipe_from_mapping({**BASE, "parallel": {"tensor": 4, "replicas": 2}}, "r")
    other = build_deployment_plan(loaded, hosts(1), deployment="other")
    mine = build_deployment_plan(loaded, hosts(1), deployment="mine", others=other.groups)
    assert [one.primary.ports.hccl_base for one in mine.groups] == [60032, 60048]
    assert mine.groups[0].primary.ports.http == 8000, "the checks refuse it: it is not a sibling's"


def test_plans_of_groups_that_share_a_node_pass_the_checks():
    loaded = recipe_from_mapping({**BASE, "parallel": {"tensor": 8, "replicas": 2}}, "r")
    nodes = hosts(1, clock=1.0, reserved_ports="60000-60031")
    findings = list(check_deployment(loaded, nodes, build_deployment_plan(loaded, nodes)))
    assert not [one for one in findings if one.id.startswith(("port", "hccl", "devices"))]


def test_ports_to_reserve_are_those_of_all_groups_on_the_node():
    loaded = recipe_from_mapping({**BASE, "parallel": {"tensor": 8, "replicas": 2}}, "r")
    nodes = hosts(1, clock=1.0)
    findings = list(check_deployment(loaded, nodes, build_deployment_plan(loaded, nodes)))
    (reserve,) = [one for one in findings if one.id == "hccl-ports-not-reserved"]
    assert reserve.todo == "sysctl -w net.ipv4.ip_local_reserved_ports=60000-60031 on the host"


def test_more_npus_than_a_node_has_are_found_in_sum():
    loaded = recipe_from_mapping({**BASE, "parallel": {"tensor": 16, "replicas": 2}}, "r")
    nodes = [*hosts(1), *hosts(1)]
    findings = list(check_deployment(loaded, nodes, build_deployment_plan(loaded, nodes)))
    (found,) = [one for one in findings if one.id == "devices-too-few"]
    assert "take 32 NPUs and it has 16" in found.what


def test_what_equal_groups_share_is_reported_once_and_one_group_can_be_asked_alone():
    loaded = read("a2-replicas", ["args.max-num-sqs=1"])
    deployment = build_deployment_plan(loaded, hosts(2))
    findings = list(check_deployment(loaded, hosts(2), deployment))
    assert Counter(one.id for one in findings)["unknown-flag"] == 1
    differing = recipe_from_mapping(
        {**BASE, "groups": [{"name": "a"}, {"name": "b", "args": {"max-num-sqs": 1}}]}, "r"
    )
    both = build_deployment_plan(differing, hosts(1))
    ids = {
        only: {one.id for one in check_deployment(differing, hosts(1), both, only=only)}
        for only in (None, "a-0", "b-0")
    }
    assert "unknown-flag" in ids[None]
    assert "unknown-flag" in ids["b-0"]
    assert "unknown-flag" not in ids["a-0"]


sizes = st.sampled_from([1, 2, 4, 8])
kinds = st.lists(
    st.fixed_dictionaries(
        {
            "replicas": st.integers(1, 3),
            "tensor": sizes,
            "servers": st.integers(1, 2),
            "spread": st.booleans(),
            "http": st.sampled_from([8000, 8001, 29551]),
        }
    ),
    min_size=1,
    max_size=3,
)


@given(kinds, st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_no_two_servers_share_a_port_an_npu_or_a_log(kinds, spare):
    groups = [
        {
            "name": f"g{number}",
            "replicas": kind["replicas"],
            "parallel": {"tensor": kind["tensor"], "data": kind["servers"], "data_local": 1},
            "hardware": {"spread": kind["spread"]},
            "network": {"http_port": kind["http"]},
        }
        for number, kind in enumerate(kinds)
    ]
    loaded = recipe_from_mapping({**BASE, "groups": groups}, "r")
    specs = expand_groups(loaded)
    deployment = build_deployment_plan(loaded, hosts(nodes_needed(specs) + spare))
    twice = {held: count for held, count in Counter(holdings(deployment)).items() if count > 1}
    assert not twice
    for spec, group in zip(specs, deployment.groups, strict=True):
        assert len(group.servers) == spec.loaded.recipe.parallel.servers
        assert all(max(one.devices) < 16 for one in group.servers)
        nodes = {one.node.ip for one in group.servers}
        assert len(nodes) == len(group.servers) or not spec.loaded.recipe.hardware.spread


@pytest.mark.parametrize(
    "gateway", [None, GatewayPlan("http://192.0.2.10:80/v1", 80, ("192.0.2.10",), "sticky")]
)
def test_the_plan_of_a_deployment_survives_json(gateway):
    made = build_deployment_plan(read("a2-replicas"), hosts(2))
    deployment = DeploymentPlan(made.deployment, made.recipe, made.groups, gateway)
    data = json.loads(json.dumps(deployment_plan_to_dict(deployment)))
    assert deployment_plan_from_dict(data) == deployment
    assert (data["schema"], data["endpoint"]) == (2, deployment.endpoint)
    assert [group["group"] for group in data["groups"]] == ["serve-0", "serve-1"]
    assert data["groups"][0]["servers"][0]["ports"]["http"] == 8000


def test_a_plan_of_schema_1_is_that_of_the_only_group():
    only = build_plan(read("a2-dual"), hosts(2))
    old = plan_to_dict(only)
    del old["group"], old["role"]
    assert deployment_plan_from_dict(old) == DeploymentPlan("a2-dual", "a2-dual", (only,))
    with pytest.raises(ValueError, match="schema 3"):
        deployment_plan_from_dict({**old, "schema": 3})


def test_one_group_is_picked_by_name():
    deployment = build_deployment_plan(read("a2-replicas"), hosts(2))
    assert deployment.only("serve-1").groups == deployment.groups[1:]
    with pytest.raises(KeyError):
        deployment.only("serve-9")
