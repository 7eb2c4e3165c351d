"""Finds orphaned raylaunch processes on every node and, on request, kills them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from raylaunch.errors import RaylaunchError
from raylaunch.node.process.orphans import (
    KnownDeployments,
    find_orphans,
    machine_identity,
    terminate_orphans,
)
from raylaunch.plan.facts import MarkedProcess
from raylaunch.runtime.agent.agent import Agent
from raylaunch.runtime.agent.agent_handle import AgentHandle, find_agent, find_agents
from raylaunch.runtime.cluster import local_cleanup, placement
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.cluster.node_tasks import call_on_nodes
from raylaunch.runtime.controller.port_turns import running_names
from raylaunch.supervise.deployment_status import CleanReport, Leftover

AGENT_ANSWER_S = 5.0
"""Within which an orphaned agent must name its instance."""
_THIS_PROCESS = ""
"""In place of Ray's node id."""


@dataclass(frozen=True)
class _Orphans:
    """The orphans that one node, or this process, sees; nodes of one machine see the same."""

    node_id: str
    machine: str
    host: str
    processes: list[MarkedProcess]


def clean(home: Path, *, asked: str, deployment: str | None, end: bool) -> CleanReport:
    """Find orphans on this machine and on every node of the connected cluster.

    Args:
        home: Folder of this user's raylaunch, with the records of embedded clusters.
        asked: The cluster that this process is connected to; "" for none.
        deployment: Only the orphans of this one.
        end: Kill and remove them; otherwise only report.
    """
    headless = _find_headless(deployment) if asked else []
    left_headless = [] if end else headless
    # Asked before the agents are killed: afterwards nothing knows whose servers these were.
    instances = _instances_of(headless)
    if end:
        for name in headless:
            kill_agents(name)
    running = KnownDeployments(
        deployments=tuple(running_names()) if asked else (),
        orphaned=tuple(headless),
        orphaned_instances=instances,
    )
    found, silent = _search_everywhere(running, deployment) if asked else ([], [])
    found = _one_per_machine([*found, _search(_THIS_PROCESS, running, deployment)])
    left, silent_at_kill = _kill_everywhere(found) if end else (found, [])
    records = local_cleanup.judge_records(home, deployment)
    left_records = [
        name for name in records.stale if not (end and local_cleanup.remove_record(home, name))
    ]
    return CleanReport(
        ended=end,
        found=_flatten(found),
        left=_flatten(left),
        records=records.stale,
        left_records=tuple(left_records),
        undecided=records.undecided,
        orphaned=tuple(headless),
        left_orphaned=tuple(left_headless),
        silent=tuple(dict.fromkeys((*silent, *silent_at_kill))),
        asked=asked,
    )


def _search(node_id: str, running: KnownDeployments, deployment: str | None) -> _Orphans:
    return _Orphans(node_id, *machine_identity(), find_orphans(running, deployment))


def _search_everywhere(
    running: KnownDeployments, deployment: str | None
) -> tuple[list[_Orphans], list[str]]:
    """Search on every node; return what was found, and the addresses that did not answer."""
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in alive_nodes()}
    arguments = {node_id: (node_id, running, deployment) for node_id in addresses}
    answers, silent = call_on_nodes(_search, arguments)
    return list(answers.values()), [addresses[node_id] for node_id in silent]


def _one_per_machine(found: Iterable[_Orphans]) -> list[_Orphans]:
    """Of those on one machine return the one that saw most.

    Another user's processes cannot be read.
    """
    best: dict[str, _Orphans] = {}
    for one in found:
        known = best.get(one.machine)
        if known is None or len(one.processes) > len(known.processes):
            best[one.machine] = one
    return list(best.values())


def _kill_everywhere(found: list[_Orphans]) -> tuple[list[_Orphans], list[str]]:
    """Kill the orphans; return those that are left, and the hosts that did not answer."""
    work = {one.node_id: (one.processes,) for one in found if one.processes}
    left: dict[str, list[MarkedProcess]] = {}
    if _THIS_PROCESS in work:
        left[_THIS_PROCESS] = terminate_orphans(*work.pop(_THIS_PROCESS))
    silent: tuple[str, ...] = ()
    if work:
        answers, silent = call_on_nodes(terminate_orphans, work)
        left |= answers
    after = [
        _Orphans(one.node_id, one.machine, one.host, left.get(one.node_id, [])) for one in found
    ]
    return after, [one.host for one in found if one.node_id in silent]


def _find_headless(deployment: str | None) -> list[str]:
    """Find deployments with agents but without a controller.

    A controller is created before its agents, so it was there and is gone.
    """
    names = {key.deployment for key in find_agents()}
    # Those of a check that runs have a name with spaces.
    deployments = {name for name in names if " " not in name}
    headless = deployments.difference(running_names())
    return sorted(name for name in headless if deployment in (None, name))


def _instances_of(deployments: Iterable[str]) -> tuple[str, ...]:
    """Return the instances of the agents of these deployments; silent agents are left out."""
    agents = _agents_of(set(deployments))
    instances = set()
    for agent in agents:
        with contextlib.suppress(RaylaunchError):
            hello = agent.remote.ask(Agent.hello, timeout_s=AGENT_ANSWER_S)()
            instances.add(hello.instance)
    return tuple(sorted(instances))


def _agents_of(deployments: Collection[str]) -> list[AgentHandle]:
    """Return the living agents of all groups of these deployments."""
    if not deployments:
        # Without a connection Ray would start a cluster of its own to answer.
        return []
    agents = []
    for key, servers in find_agents().items():
        if key.deployment in deployments:
            agents += [find_agent(key, index) for index in servers]
    return [agent for agent in agents if agent is not None]


def kill_agents(deployment: str) -> None:
    """Kill the agents of a deployment and release its NPUs.

    Its servers run on until their guards have waited for `health.orphan_grace_s`.
    """
    for agent in _agents_of([deployment]):
        agent.kill()
    for key in placement.reserved_groups(deployment):
        reservation = placement.find_reservation(key)
        if reservation is not None:
            placement.release(reservation)


def _flatten(found: Iterable[_Orphans]) -> tuple[Leftover, ...]:
    return tuple(
        Leftover(
            one.host,
            process.pid,
            process.deployment,
            process.attempt,
            process.age_s,
            process.command,
        )
        for one in found
        for process in one.processes
    )
