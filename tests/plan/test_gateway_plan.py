"""The plan of a gateway: its node, its port, its address."""

import pytest

from raylaunch.cli.output import Style
from raylaunch.cli.views.plan_view import plan_lines
from raylaunch.plan.deployment_plan import GatewayPlan
from raylaunch.plan.facts import Facts, Listener
from raylaunch.plan.plan_json import deployment_plan_from_dict, deployment_plan_to_dict
from raylaunch.plan.planner import build_deployment_plan
from raylaunch.recipe.catalog import read
from raylaunch.recipe.load import change_recipe
from raylaunch.render.script import render_scripts

HEAD = "192.0.2.10"


def planned(*sets, listeners=()):
    loaded = change_recipe(read("a2-dual"), ["gateway.enabled=true", *sets])
    nodes = [
        Facts(HEAD, interface="eth0", listeners=listeners),
        Facts("192.0.2.11", interface="eth0"),
    ]
    return build_deployment_plan(loaded, nodes)


def test_the_gateway_runs_on_the_head_and_its_address_is_the_deployments():
    plan = planned("gateway.policy=sticky")
    assert plan.gateway == GatewayPlan(f"http://{HEAD}:8000/v1", 8000, (HEAD,), "sticky")
    assert plan.endpoint == plan.gateway.endpoint
    assert plan.groups[0].endpoint == f"http://{HEAD}:20004/v1"
    assert planned("gateway.nodes=all").gateway.nodes == (HEAD, "192.0.2.11")
    assert planned("gateway.enabled=false").gateway is None


@pytest.mark.parametrize(
    ("wanted", "listeners", "port"),
    [
        (20004, (), 20005),  # the API of the primary
        (8000, (Listener("0.0.0.0", 8000), Listener("127.0.0.1", 8001)), 8001),
    ],
)
def test_the_gateways_port_is_the_next_one_that_is_free(wanted, listeners, port):
    assert planned(f"gateway.port={wanted}", listeners=listeners).gateway.port == port


@pytest.mark.parametrize(
    ("sets", "endpoint"),
    [
        (["gateway.host=0.0.0.0"], f"http://{HEAD}:8000/v1"),
        (["gateway.host=127.0.0.1"], "http://127.0.0.1:8000/v1"),
        (
            ["gateway.tls.certificate=/c.pem", "gateway.tls.key=/k.pem"],
            f"https://{HEAD}:8000/v1",
        ),
    ],
)
def test_the_address_is_one_that_a_client_can_use(sets, endpoint):
    assert planned(*sets).endpoint == endpoint


def test_table_scripts_and_json_name_the_gateway():
    plan = planned()
    assert list(plan_lines(plan, Style()))[1:3] == [
        f"endpoint  http://{HEAD}:8000/v1  (gateway on {HEAD}, least-loaded)",
        f"behind    http://{HEAD}:20004/v1  (model minimax25)",
    ]
    for script in render_scripts(plan).values():
        assert f"# `raylaunch start` adds a gateway: http://{HEAD}:8000/v1" in script
    assert deployment_plan_from_dict(deployment_plan_to_dict(plan)) == plan
