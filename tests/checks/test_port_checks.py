"""Two deployments on the same hosts do not collide: what moves, what stays and is refused, and what is told."""

from __future__ import annotations

import pytest

from raylaunch.checks.check_all import check_nodes
from raylaunch.checks.port_checks import check_silent_neighbours
from raylaunch.plan.facts import Facts, Listener, MarkedProcess
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read
from raylaunch.recipe.load import recipe_from_mapping

HALF = ["secrets=[VLLM_API_KEY]", "parallel.tensor=4", "hardware.npus_per_server=4"]
HTTP = ["network.http_port=20005"]


def host(n, *, ports=(), **parts):
    listeners = tuple(Listener("0.0.0.0", port, 4711, "redis") for port in ports)
    return Facts(f"192.0.2.{n}", interface="eth1", node_id=f"id{n}", listeners=listeners, **parts)


HOSTS = [host(10), host(11)]


def plan(sets=(), nodes=HOSTS, others=(), name="one", recipe="a2-dual"):
    return build_plan(read(recipe, [*HALF, *sets]), nodes, deployment=name, others=others)


def findings(sets=(), nodes=HOSTS, others=(), name="two", recipe="a2-dual"):
    loaded = read(recipe, [*HALF, *sets])
    made = build_plan(loaded, nodes, deployment=name, others=others)
    return list(check_nodes(loaded, nodes, made, others))


def numbers(made):
    return [
        (server.ports.http, server.ports.rpc, server.ports.hccl_base) for server in made.servers
    ]


def test_alone_a_deployment_has_the_ports_of_its_recipe():
    assert numbers(plan()) == [(20004, 2347, 60000)] * 2
    assert "HCCL_IF_BASE_PORT" not in plan().primary.env


def test_a_second_deployment_goes_around_the_first():
    made = plan(HTTP, others=[plan()], name="two")
    assert numbers(made) == [(20005, 2348, 60016)] * 2
    for server in made.servers:
        assert server.flag("--data-parallel-rpc-port") == "2348"
        assert server.environ["HCCL_IF_BASE_PORT"] == "60016"
        assert (
            server.env["HCCL_IF_BASE_PORT"].origin == "raylaunch: 60000 is used by deployment one"
        )
    rpc = next(flag for flag in made.primary.flags if flag.name == "--data-parallel-rpc-port")
    assert rpc.origin == "raylaunch: 2347 is used by deployment one"


def test_a_third_goes_around_both():
    first, second = plan(), plan(HTTP, others=[plan()], name="two")
    assert numbers(plan(["network.http_port=20006"], others=[first, second]))[0] == (
        20006,
        2349,
        60032,
    )


def test_what_was_moved_is_told():
    told = {one.what: one for one in findings(HTTP, others=[plan()])}
    rpc, hccl = (one for one in told.values() if one.id == "port-moved")
    assert {one.level for one in told.values()} == {"info"}
    assert rpc.what == "network.rpc_port is 2348 instead of 2347: 2347 is used by deployment one"
    assert "--set network.rpc_port=2348" in rpc.todo
    assert (
        hccl.what
        == "network.hccl_base_port is 60016 instead of 60000: 60000 is used by deployment one"
    )


def test_the_port_of_the_api_is_what_the_user_said_and_its_owner_is_named():
    (busy,) = (one for one in findings(others=[plan()]) if one.level == "error")
    assert busy.id == "port-busy"
    assert "port 20004 on node 192.0.2.10 is taken by deployment one" in busy.what
    assert "--set network.http_port=20005" in busy.todo
    assert "raylaunch stop one" in busy.todo


def test_the_port_that_is_offered_is_free():
    (busy,) = (
        one
        for one in findings(nodes=[host(10, ports=[20004, 20005]), host(11)])
        if one.level == "error"
    )
    assert "--set network.http_port=20006" in busy.todo


def test_a_listener_that_belongs_to_a_deployment_of_another_cluster_is_named_so():
    mark = MarkedProcess(4711, "elsewhere", 1, 60.0, "vllm serve")
    (busy,) = findings(nodes=[host(10, ports=[20004], marked=(mark,)), host(11)])
    assert "deployment elsewhere" in busy.what


@pytest.mark.parametrize("field", ["rpc_port=2347", "hccl_base_port=60000"])
def test_what_was_given_on_the_command_line_is_not_moved_but_refused(field):
    sets = [*HTTP, f"network.{field}"]
    assert numbers(plan(sets, others=[plan()], name="two"))[0] in [
        (20005, 2347, 60016),
        (20005, 2348, 60000),
    ]
    errors = {one.what for one in findings(sets, others=[plan()]) if one.level == "error"}
    assert errors
    assert all("taken by deployment one" in what for what in errors)


def test_a_listener_is_gone_around_too():
    made = plan(nodes=[host(10, ports=[2347, 2348, 60003, 60020]), host(11)])
    assert numbers(made) == [(20004, 2349, 60032)] * 2
    assert (
        made.primary.env["HCCL_IF_BASE_PORT"].origin
        == "raylaunch: 60003 is used by pid 4711 (redis)"
    )


def test_hccl_has_one_base_on_all_nodes_and_the_handshake_is_the_primarys():
    made = plan(nodes=[host(10), host(11, ports=[2347, 60001])])
    assert numbers(made) == [(20004, 2347, 60016)] * 2


def test_a_neighbour_on_other_nodes_is_no_neighbour():
    assert numbers(plan(HTTP, nodes=[host(12), host(13)], others=[plan()]))[0] == (
        20005,
        2347,
        60000,
    )


def test_only_a_primary_has_a_handshake_to_be_gone_around():
    """One node is shared: there the other deployment has a headless server, which listens on HCCL's ports alone."""
    assert numbers(plan(nodes=[host(11), host(12)], others=[plan()]))[0] == (20004, 2347, 60016)


def test_two_ray_nodes_of_one_machine_are_one_machine():
    other = [Facts("192.0.2.10", interface="eth1", node_id=one) for one in ("x", "y")]
    assert numbers(plan(HTTP, nodes=other, others=[plan()]))[0] == (20005, 2348, 60016)


def test_nothing_is_moved_into_the_ports_of_rays_workers():
    first = plan(recipe="qwen3-235b-a2-dual")
    assert first.primary.ports.rpc == 13389
    assert plan(HTTP, others=[first], recipe="qwen3-235b-a2-dual").primary.ports.rpc == 20000


def test_several_servers_on_a_node_move_together():
    loaded = recipe_from_mapping(
        {
            "model": {"path": "/m", "served_name": "m"},
            "hardware": {"platform": "ascend-a2", "spread": False},
            "parallel": {"tensor": 2, "data": 4, "data_local": 1},
        },
        "r",
    )
    nodes = [host(10, ports=[60040])]
    bases = [server.ports.hccl_base for server in build_plan(loaded, nodes).servers]
    assert bases == [60048, 60064, 60080, 60096]


def test_hccl_stays_where_it_is_when_no_block_is_free():
    nodes = [host(10, ports=range(60000, 65536, 16)), host(11)]
    assert numbers(plan(nodes=nodes))[0] == (20004, 2347, 60000)
    assert {one.id for one in findings(nodes=nodes) if one.level == "error"} == {"port-busy"}


def test_a_server_that_is_alone_is_told_its_ports_too():
    one = plan(nodes=[host(10)], recipe="a2-single")
    two = plan(["network.http_port=8001"], nodes=[host(10)], others=[one], recipe="a2-single")
    assert len(two.servers) == 1
    assert two.primary.environ["HCCL_IF_BASE_PORT"] == "60016"


def test_on_cpu_there_is_no_hccl():
    nodes = [host(10), host(11)]
    first = build_plan(read("local-dual"), nodes, deployment="one")
    second = build_plan(read("local-dual"), nodes, deployment="two", others=[first])
    assert [server.ports.rpc for server in second.servers] == [2348, 2348]
    assert second.primary.ports.hccl_base is None
    assert "HCCL_IF_BASE_PORT" not in second.primary.env


def test_a_neighbour_that_does_not_answer_is_told():
    (one,) = check_silent_neighbours(["mute"])
    assert (one.id, one.level) == ("neighbour-silent", "info")
    assert "mute" in one.what
    assert not list(check_silent_neighbours([]))


def test_the_kernel_keeps_what_it_kept_before():
    nodes = [host(10, reserved_ports="8472", clock=1.0), host(11)]
    (one,) = (each for each in findings(nodes=nodes) if each.id == "hccl-ports-not-reserved")
    assert "ip_local_reserved_ports=8472,60000-60015" in one.todo
