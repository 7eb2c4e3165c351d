"""The hosts of a cluster file and the ports of Ray there, with the checks on both."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from raylaunch.errors import PlanError, RecipeError
from raylaunch.plan.layout import nodes_needed
from raylaunch.recipe.groups import GroupSpec, expand_groups
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.model import Recipe
from raylaunch.recipe.yaml_reader import describe_unprintable, shorten

FIXED_PORTS = {
    "port": 6379,
    "node-manager-port": 6380,
    "object-manager-port": 6381,
    "runtime-env-agent-port": 6382,
    "dashboard-agent-grpc-port": 6383,
    "dashboard-agent-listen-port": 6384,
    "metrics-export-port": 6385,
}
"""By default `ray start` picks most of these from the ephemeral range (32768-60999).

HCCL's ports are in that range too.
"""

HEAD_PORTS = {"dashboard-port": 8265, "ray-client-server-port": 10001}
METRIC_PORTS = {"AUTOSCALER_METRIC_PORT": 6386, "DASHBOARD_METRIC_PORT": 6387}
"""The two ports of the head without an option; the defaults are 44217 and 44227."""

MAX_NAME = 100
"""A cluster's name is part of file names, which have at most 255 bytes (Ray adds about 50)."""

HCCL_PORTS = 16


@dataclass(frozen=True)
class Site:
    """The hosts, and how to reach them."""

    name: str
    head: str
    workers: tuple[str, ...]
    ssh_user: str
    ssh_key: str | None
    bare: bool
    asked: tuple[str, ...]


def check_site(loaded: LoadedRecipe, site: Site) -> None:
    """Check the hosts, names and ports of a cluster file.

    Raises:
        PlanError: Too few hosts, one given twice, or a name, address or user that Ray cannot use.
        RecipeError: A port of the recipe that Ray needs.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", site.name) or len(site.name) > MAX_NAME:
        raise PlanError(
            f"{shorten(site.name)!r} is not a cluster name",
            why="it becomes part of file names and of a marker variable",
            todo=f"use letters, digits, '-', '_' and '.', at most {MAX_NAME} of them",
        )
    _check_text(site.ssh_user, "--ssh-user")
    _check_text(site.ssh_key, "--ssh-key")
    groups = expand_groups(loaded)
    _check_hosts(groups, (site.head, *site.workers))
    for group in groups:
        _check_ports(group.loaded.recipe)


def _check_text(text: str | None, option: str) -> None:
    if text is None:
        return
    problem = describe_unprintable(text)
    if not text.strip() or "\n" in text:
        problem = "it is empty, or has more than one line"
    if problem:
        raise PlanError(
            f"{option} {shorten(text)!r} cannot be written into the file",
            why=problem,
            todo="give a plain name or path",
        )


def _check_hosts(groups: Sequence[GroupSpec], hosts: Sequence[str]) -> None:
    seen: set[str] = set()
    for host in hosts:
        _check_address(host)
        if host in seen:
            raise PlanError(f"host {host} is given twice", todo="give each host once")
        seen.add(host)
    needed = nodes_needed(groups)
    if len(hosts) < needed:
        raise PlanError(
            f"the recipe needs {needed} hosts, and {len(hosts)} are given",
            todo="add --worker IP, once per further host",
        )


def _check_ports(recipe: Recipe) -> None:
    rays = {*FIXED_PORTS.values(), *HEAD_PORTS.values(), *METRIC_PORTS.values()}
    fields = recipe_ports(recipe)
    taken = fields.keys() & rays
    if taken:
        port = min(taken)
        raise RecipeError(
            f"{fields[port]}: Ray itself needs port {port}", todo="choose another port"
        )


def _check_address(host: str) -> None:
    try:
        ipaddress.IPv4Address(host)
    except ValueError as error:
        raise PlanError(
            f"{shorten(host)!r} is not an IPv4 address",
            why="Ray's local provider identifies hosts by IPv4 address "
            "(Ray 2.60, local/node_provider.py)",
            todo="give the address in the network between the hosts",
        ) from error


def recipe_ports(recipe: Recipe) -> dict[int, str]:
    """Return the ports that servers of the recipe listen on, with the field of each."""
    network = recipe.network
    first = network.hccl_base_port
    ports = dict.fromkeys(range(first, first + HCCL_PORTS), "network.hccl_base_port")
    ports[network.http_port] = "network.http_port"
    ports[network.rpc_port] = "network.rpc_port"
    return ports
