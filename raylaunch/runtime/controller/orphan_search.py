"""What nobody speaks for any more, on every node of the cluster: found, named, and ended on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylaunch.node.process.orphans import Running, end_leftovers, find_leftovers, machine
from raylaunch.plan.facts import MarkedProcess
from raylaunch.runtime.cluster import local_cleanup, placement
from raylaunch.runtime.cluster.connection import NAMESPACE, alive_nodes
from raylaunch.runtime.cluster.packaging import packaged
from raylaunch.runtime.controller.port_turns import running_names
from raylaunch.supervise.deployment_status import CleanReport, Leftover

NODE_TIMEOUT_S = 60.0
_AGENT = "agent:"
_HERE = ""
"""In place of Ray's node id: this process."""


@dataclass(frozen=True)
class _Look:
    """What one node, or this process, saw. Two nodes on one machine see the same."""

    node_id: str
    machine: str
    host: str
    found: list[MarkedProcess]


def clean(home: Path, *, asked: str, deployment: str | None, end: bool) -> CleanReport:
    """Find leftovers on this machine and on every node of the connected cluster; with `end` end and remove them.

    Args:
        home: Folder of this user's raylaunch, with the records of embedded clusters.
        asked: The cluster that this process is connected to; "" for none.
        deployment: Only what is left of this one.
        end: Do it; otherwise only look.
    """
    orphaned = _find_orphans(deployment) if asked else []
    left_orphaned = [name for name in orphaned if not (end and _end_orphan(name))]
    running = Running(tuple(running_names()) if asked else (), tuple(orphaned))
    looks, silent = _look_everywhere(running, deployment) if asked else ([], [])
    looks = _one_per_machine([*looks, _look(_HERE, running, deployment)])
    left, mute = _end_everywhere(looks) if end else (looks, [])
    records = local_cleanup.stale_records(home, deployment)
    return CleanReport(
        ended=end,
        found=_flatten(looks),
        left=_flatten(left),
        records=tuple(records),
        left_records=tuple(
            name for name in records if not (end and local_cleanup.remove_record(home, name))
        ),
        undecided=tuple(local_cleanup.undecided_records(home, deployment)),
        orphaned=tuple(orphaned),
        left_orphaned=tuple(left_orphaned),
        silent=tuple(dict.fromkeys((*silent, *mute))),
        asked=asked,
    )


def _look(node_id: str, running: Running, deployment: str | None) -> _Look:
    return _Look(node_id, *machine(), find_leftovers(running, deployment))


def _look_everywhere(running: Running, deployment: str | None) -> tuple[list[_Look], list[str]]:
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in alive_nodes()}
    answers, silent = _on_nodes(
        _look, {node_id: (node_id, running, deployment) for node_id in addresses}
    )
    return list(answers.values()), [addresses[node_id] for node_id in silent]


def _one_per_machine(looks: Iterable[_Look]) -> list[_Look]:
    """Of those on one machine the one that saw most: another user's processes cannot be read."""
    best: dict[str, _Look] = {}
    for look in looks:
        if look.machine not in best or len(look.found) > len(best[look.machine].found):
            best[look.machine] = look
    return list(best.values())


def _end_everywhere(looks: list[_Look]) -> tuple[list[_Look], list[str]]:
    work = {look.node_id: (look.found,) for look in looks if look.found}
    left = {_HERE: end_leftovers(*work.pop(_HERE))} if _HERE in work else {}
    answers, silent = _on_nodes(end_leftovers, work) if work else ({}, [])
    left |= answers
    ended = [
        _Look(look.node_id, look.machine, look.host, left.get(look.node_id, [])) for look in looks
    ]
    return ended, [look.host for look in looks if look.node_id in silent]


def _on_nodes(
    function: Callable[..., Any], arguments: dict[str, tuple[Any, ...]]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Call `function` on the nodes, by id; returns the answers, and who gave none in time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(packaged(function))
    calls = {
        task.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        ).remote(*given): node_id
        for node_id, given in arguments.items()
    }
    done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=NODE_TIMEOUT_S)
    answers = {}
    for call in done:
        try:
            answers[calls[call]] = ray.get(call)
        except ray.exceptions.RayError:  # the node went away, or its worker could not start
            continue
    return answers, tuple(node_id for node_id in arguments if node_id not in answers)


def _find_orphans(deployment: str | None) -> list[str]:
    """Deployments with agents but no controller: it is made before them, so it was there and is gone."""
    agents = {name.removeprefix(_AGENT).rpartition(":")[0] for name in _agent_names()}
    own = {
        name for name in agents if " " not in name
    }  # those of a check under way have a name with spaces
    return sorted(name for name in own.difference(running_names()) if deployment in (None, name))


def _agent_names() -> list[str]:
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    names = [str(actor["name"]) for actor in actors if actor["namespace"] == NAMESPACE]
    return [name for name in names if name.startswith(_AGENT)]


def _end_orphan(deployment: str) -> bool:
    """End the agents of a deployment, whose guards then end the servers, and give the NPUs back."""
    import ray

    for name in _agent_names():
        if name.removeprefix(_AGENT).rpartition(":")[0] == deployment:
            ray.kill(ray.get_actor(name, NAMESPACE), no_restart=True)
    if (group := placement.find_group(deployment)) is not None:
        placement.release(group)
    return True


def _flatten(looks: Iterable[_Look]) -> tuple[Leftover, ...]:
    return tuple(
        Leftover(look.host, one.pid, one.deployment, one.attempt, one.age_s, one.command)
        for look in looks
        for one in look.found
    )
