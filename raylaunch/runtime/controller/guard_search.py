"""Finds servers of a deployment that run without its controller, on all nodes, and stops them.

Their guards outlived Ray, or its tables. `raylaunch start` adopts them: the guards keep the
journals of the last controller.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from raylaunch.home import home
from raylaunch.node.process.guard_socket import find_guards
from raylaunch.node.process.process_markers import terminate_marked
from raylaunch.runtime.agent.agent_handle import find_agents
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.cluster.node_tasks import call_on_nodes
from raylaunch.runtime.controller.takeover import Found, sort_copies

log = logging.getLogger(__name__)

STOP_GRACE_S = 10.0
"""SIGTERM to SIGKILL, as `health` has no value for servers without a controller."""
STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class RunningServer:
    """A server whose guard lives."""

    host: str
    instance: str
    """Of its group."""
    group: str
    server: int
    attempt: int
    pid: int | None
    has_owner: bool
    """An agent owns it: of this cluster, or of another one."""
    journals: tuple[tuple[str, bytes], ...] = ()
    """What its guard keeps for the next controller."""

    def __str__(self) -> str:
        return f"{self.host}: server {self.server} of {self.group}, pid {self.pid}"


@dataclass(frozen=True)
class EarlierStart:
    """The servers that one start of the deployment has left running."""

    instance: str
    servers: tuple[RunningServer, ...]

    def read_journals(self, clock: Clock) -> Found:
        """Return the newest journals that this version of raylaunch can read."""
        copies = [copy for server in self.servers for copy in server.journals]
        return sort_copies(copies, clock)

    def describe(self) -> str:
        """Return a line for each server."""
        return "\n".join(str(server) for server in self.servers)


def find_earlier_starts(deployment: str) -> list[EarlierStart]:
    """Return the starts of a deployment without a controller whose servers run.

    Servers that an agent owns count only if the agents are of the connected cluster: another one
    may run a deployment of that name.
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in alive_nodes()}
    arguments = {node_id: (deployment, address) for node_id, address in nodes.items()}
    answers, silent = call_on_nodes(servers_here, arguments)
    for node_id in silent:
        log.warning("%s did not answer what runs there", nodes[node_id])
    # Two Ray nodes of one machine see the same guards.
    found = {(one.instance, one.server): one for some in answers.values() for one in some}
    own_agents = any(key.deployment == deployment for key in find_agents())
    return sort_starts(list(found.values()), own_agents=own_agents)


def servers_here(deployment: str, address: str) -> list[RunningServer]:
    """Return the servers of a deployment on this node, whose address in Ray is given."""
    found = []
    for report in find_guards(home(), deployment):
        journals = [(owner, base64.b64decode(text)) for owner, (_, text) in report.notes.items()]
        server = RunningServer(
            host=address,
            instance=report.instance,
            group=report.group,
            server=report.server,
            attempt=report.attempt,
            pid=report.server_pid,
            has_owner=report.owner is not None,
            journals=tuple(journals),
        )
        found.append(server)
    return found


def sort_starts(servers: Sequence[RunningServer], *, own_agents: bool) -> list[EarlierStart]:
    """Sort servers by start; leave out those that agents of another cluster own."""
    starts: dict[str, list[RunningServer]] = {}
    for server in servers:
        starts.setdefault(server.instance.partition(".")[0], []).append(server)
    found = []
    for instance, own in sorted(starts.items()):
        if own_agents or not any(server.has_owner for server in own):
            own.sort(key=lambda server: (server.group, server.server))
            found.append(EarlierStart(instance, tuple(own)))
    return found


def stop_earlier_start(deployment: str, start: EarlierStart) -> list[str]:
    """Stop the servers and the gateway of an earlier start on all nodes; return what still lives.

    A node that does not answer is among what may still live.
    """
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in alive_nodes()}
    instances = (start.instance, *sorted({server.instance for server in start.servers}))
    arguments = dict.fromkeys(nodes, (deployment, instances))
    answers, silent = call_on_nodes(_stop_here, arguments, STOP_TIMEOUT_S)
    left = [f"{nodes[node_id]} did not answer" for node_id in silent]
    for node_id, lines in answers.items():
        left += [f"{nodes[node_id]}: {line}" for line in lines]
    return left


def _stop_here(deployment: str, instances: tuple[str, ...]) -> list[str]:
    left = []
    for instance in instances:
        left += terminate_marked(deployment, instance=instance, grace_s=STOP_GRACE_S)
    return [f"pid {process.pid} {process.command}" for process in left]
