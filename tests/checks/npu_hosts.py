"""Facts of A2 hosts whose NPUs have ports on a network: NPU n of node10 has 10.20.0.n, of node11 10.20.1.n."""

from dataclasses import replace

from raylaunch.checks.check_all import check_nodes
from raylaunch.checks.ping_checks import PingResult, check_pings, choose_pings
from raylaunch.plan.facts import Facts, Interface, NpuLink
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read

KEY = "secrets=[VLLM_API_KEY]"
"""With an API key the healthy hosts below give no finding at all."""


def links(n):
    watched = {
        "link": "UP",
        "net_health": "Success",
        "netdetect": "10.20.0.254",
        "gateway": "10.20.0.254",
    }
    return tuple(
        NpuLink(
            i, ip=f"10.20.{n - 10}.{i}", **watched, tls=False, mtu=1500, lldp_port=f"400GE1/{n}/{i}"
        )
        for i in range(8)
    )


LINKS = links(10)


def ports(*npus, **changes):
    """The ports of node10, some of them spoilt."""
    return tuple(replace(link, **changes) if link.npu in npus else link for link in LINKS)


def host(n, npu_links=None):
    ip = f"192.0.2.{n}"
    return Facts(
        ip,
        hostname=f"node{n}",
        node_id=f"id{n}",
        interfaces=(Interface("eth0", (f"{ip}/24",)),),
        devices=tuple(range(8)),
        is_root=True,
        python="3.11.9",
        reserved_ports="60000-60015",
        clock=1000.0,
        vllm_executable="/usr/bin/vllm",
        npu_links=links(n) if npu_links is None else tuple(npu_links),
    )


def cabled_back_to_back(*numbers):
    """Hosts without a switch in sight."""
    return [host(n, [replace(link, lldp_port=None) for link in links(n)]) for n in numbers]


def check(first, second, sets=()):
    return list(check_nodes(*planned([first, second], sets)))


def planned(nodes, sets=()):
    loaded = read("a2-dual", [KEY, f"parallel.data={len(nodes)}", *sets])
    return loaded, nodes, build_plan(loaded, nodes)


def chosen(nodes, sets=()):
    """Every ping, by the server that has to see to it."""
    return choose_pings(*planned(nodes, sets))


def judge(nodes, answer, sets=()):
    """Findings when `answer(ping)` says how each ping ended: reached, lost or without a result, and the complaint."""
    pings = [ping for some in chosen(nodes, sets).values() for ping in some]
    return list(
        check_pings(*planned(nodes, sets), [PingResult(ping, *answer(ping)) for ping in pings])
    )
