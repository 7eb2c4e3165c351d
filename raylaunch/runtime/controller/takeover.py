"""Taking over after the controller's own death: find the agents and the journals they keep.

Ray restarts a dead controller without its memory. Its agents keep the journals and the secrets.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from raylaunch.errors import NodeError
from raylaunch.home import home
from raylaunch.node.process.guard_socket import find_guards
from raylaunch.runtime.agent.agent_handle import find_agents
from raylaunch.runtime.agent.gang import Gang
from raylaunch.runtime.agent.probe_actor import Hello
from raylaunch.runtime.cluster import takeover_key
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.cluster.connection import all_nodes
from raylaunch.runtime.cluster.node_tasks import call_on_nodes
from raylaunch.runtime.controller import journal_store
from raylaunch.runtime.controller.changes.group_changes import GroupChanges
from raylaunch.runtime.controller.deployment_record import OWNER, DeploymentJournal
from raylaunch.runtime.controller.group.group_supervisor import GroupSupervisor
from raylaunch.runtime.controller.group.journal import Journal
from raylaunch.runtime.controller.group_set import Changes, GroupSet
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.runtime.controller.monitoring.monitor import Monitor

log = logging.getLogger(__name__)

T = TypeVar("T", Journal, DeploymentJournal)
RETRY_S = 0.5
NODES_BACK_S = 60.0
"""How long a controller that finds no journal waits for nodes whose guards may have one."""
NODES_RETRY_S = 1.0
COMPLETE_SEARCHES = 2
"""A guard that is busy may miss one question."""
GUARDS_ANSWER_S = 30.0
"""For a task on each node, whose worker process has to start first."""


@dataclass(frozen=True)
class Found:
    """The newest journals among the agents of a deployment."""

    deployment: DeploymentJournal | None
    groups: Mapping[str, Journal]
    silent_hosts: frozenset[str] = frozenset()
    """Hosts that Ray knows, also as lost ones, and that did not say what their guards keep."""

    def may_be_adopted(self, secrets_are_missing: bool) -> bool:
        """Return whether anything may have been launched.

        Without the secrets only what runs can be adopted; Ray also restarts a controller that
        `begin` has not reached yet.
        """
        journals = self.groups.values()
        if not any(journal.plan is not None for journal in journals):
            return False
        return not secrets_are_missing or any(journal.attempt > 0 for journal in journals)

    def is_complete(self, hellos: Sequence[Hello]) -> bool:
        """Return whether each group is known and each of its servers has an agent that runs it."""
        if self.deployment is None:
            return False
        journals = [self.groups.get(spec.name) for spec in self.deployment.specs]
        plans = [journal.plan for journal in journals if journal is not None]
        servers = sum(len(plan.servers) for plan in plans if plan is not None)
        running = sum(hello.attempt is not None for hello in hellos)
        return None not in plans and len(plans) == len(journals) and running >= servers

    @property
    def newest_number(self) -> int:
        """The greatest number of an event that is known."""
        numbers = [journal.number for journal in self.groups.values()]
        if self.deployment is not None:
            numbers.append(self.deployment.number)
        return max(numbers, default=0)


async def search_patiently(request: Request, clock: Clock, is_begun: Callable[[], bool]) -> Found:
    """Search, and while nothing is found wait for nodes: they come back one by one.

    Where `raylaunch start` has called `begin` it waits for the answer, and nothing was launched.
    Once every host that Ray knows has answered, as after a power cut of all of them, nothing can
    come later.
    """
    patience_s = min(NODES_BACK_S, request.loaded.recipe.health.orphan_grace_s)
    deadline = clock.monotonic() + patience_s
    complete = 0
    while True:
        found = await search(request, clock)
        complete += not found.silent_hosts
        is_over = complete >= COMPLETE_SEARCHES or clock.monotonic() >= deadline
        if found.groups or is_begun() or is_over:
            return found
        await clock.sleep(NODES_RETRY_S)


async def search(request: Request, clock: Clock) -> Found:
    """Ask all agents of a deployment for the journals they keep.

    With a grace for orphans the guards are asked too, where a server has no agent: they outlive
    their agents. A task on each node takes seconds, and every journal reaches the agents first.
    """
    deployment = request.deployment
    hellos = await _ask_agents(deployment)
    copies = [copy for hello in hellos for copy in hello.journals.items()]
    if request.loaded.recipe.fallback:
        copies += await asyncio.to_thread(journal_store.read_all, deployment, request.instance)
    found = sort_copies(copies, clock)
    may_have_guards = request.adopts or request.loaded.recipe.health.orphan_grace_s > 0
    if may_have_guards and not found.is_complete(hellos):
        kept, silent = await _ask_guards(deployment, request.instance)
        found = replace(sort_copies([*copies, *kept], clock), silent_hosts=silent)
    log.info("found %d agents and the journals of %s", len(hellos), sorted(found.groups))
    return found


def sort_copies(copies: Iterable[tuple[str, bytes]], clock: Clock) -> Found:
    """Return the newest of the journals that can be read, of each owner."""
    newest: DeploymentJournal | None = None
    groups: dict[str, Journal] = {}
    for owner, data in copies:
        try:
            if owner == OWNER:
                newest = _newer(newest, DeploymentJournal.load(data))
            else:
                groups[owner] = _newer(groups.get(owner), Journal.load(data, clock))
        except ValueError as error:
            # The other agents have copies too.
            log.warning("a copy of the journal of %r: %s", owner, error)
    return Found(newest, groups)


async def _ask_agents(deployment: str) -> list[Hello]:
    found = await asyncio.to_thread(find_agents)
    gangs = []
    for key, servers in found.items():
        if key.deployment == deployment:
            gang = Gang(key)
            gang.find(1 + max(servers))
            gangs.append(gang)
    answers = await asyncio.gather(*(gang.ask_all(lambda agent: agent.hello()) for gang in gangs))
    return [one for some in answers for one in some.values() if isinstance(one, Hello)]


async def _ask_guards(
    deployment: str, instance: str
) -> tuple[list[tuple[str, bytes]], frozenset[str]]:
    """Return the journals that the guards of one start keep, with their owners.

    Also the addresses of the nodes that Ray knows and on which nothing has answered.
    """
    nodes = await asyncio.to_thread(all_nodes)
    hosts = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}
    arguments = {node["NodeID"]: (deployment, instance) for node in nodes if node["Alive"]}
    answers, silent = await asyncio.to_thread(
        call_on_nodes, journals_of_guards, arguments, GUARDS_ANSWER_S
    )
    if silent:
        log.warning("%d nodes did not say what their guards keep", len(silent))
    heard = {hosts[node_id] for node_id in answers}
    copies = [copy for some in answers.values() for copy in some]
    return copies, frozenset(hosts.values()) - heard


def explain_nothing(found: Found) -> str:
    """Return why a controller that Ray has restarted cannot continue."""
    text = "Ray restarted the controller, and no server of the deployment was found"
    if found.silent_hosts:
        text += f"; no answer from {', '.join(sorted(found.silent_hosts))}"
    return text


def journals_of_guards(deployment: str, instance: str) -> list[tuple[str, bytes]]:
    """Return the journals that the guards of this node keep, with their owners.

    Args:
        deployment: Its name.
        instance: Id of its start; each group has one that begins with it.
    """
    found = []
    for report in find_guards(home(), deployment):
        if report.instance.startswith(f"{instance}."):
            for owner, (_, text) in report.notes.items():
                found.append((owner, base64.b64decode(text)))
    return found


def _newer(known: T | None, other: T) -> T:
    return other if known is None or other.number > known.number else known


def new_key(path: Path, note: Callable[[str, str], object]) -> str:
    """Return a new takeover key; "" after an event where it cannot be kept."""
    try:
        return takeover_key.create_key(path)
    except (OSError, NodeError) as error:
        # The service matters more. After the controller's death it cannot be relaunched.
        note("internal", f"cannot keep the takeover key: {error}")
        return ""


def known_key(adopts: bool, path: Path, note: Callable[[str, str], object]) -> str:
    """Return the key of the last controller; a new one where `start` adopts and there is none."""
    return takeover_key.read_key(path) or (new_key(path, note) if adopts else "")


async def read_secrets(groups: Iterable[GroupSupervisor]) -> Mapping[str, str]:
    """Return the secrets of the deployment, which the agents with a server keep."""
    for group in groups:
        secrets = await group.backend.read_secrets()
        if secrets:
            return secrets
    return {}


async def hand_out_late(
    groups: GroupSet, changes: Changes, work: GroupChanges, monitor: Monitor
) -> None:
    """Hand out the secrets once an agent has them that the last controller's agents had.

    Where all of them died with it, the guards keep the secrets. An agent has them when it has
    adopted a server.
    """
    await changes.until(lambda: any(group.loop.secrets for group in groups))
    secrets = next(group.loop.secrets for group in groups if group.loop.secrets)
    for group in groups:
        if not group.loop.secrets:
            group.loop.begin(secrets)
    # An upgrade that was ordered meanwhile has brought newer ones.
    work.secrets = {**secrets, **work.secrets}
    monitor.take_secrets(work.secrets)
    if work.gateway is not None:
        work.gateway.take_secrets(work.secrets)


class RepeatedCall:
    """Calls a method of this actor until the call arrives.

    Ray 2.60 may drop what a restarted actor asks of itself before the rest of the cluster knows
    that it lives (seen with real vLLM; the controller then answered no call, for ever).
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._arrived = threading.Event()

    def start(self) -> None:
        """Start to call, from a thread: the event loop does not run yet."""
        threading.Thread(target=self._repeat, daemon=True).start()

    def arrive(self) -> bool:
        """Stop to call; return whether this was the first call that arrived."""
        first = not self._arrived.is_set()
        self._arrived.set()
        return first

    def _repeat(self) -> None:
        while not self._arrived.is_set():
            self._call()
            self._arrived.wait(RETRY_S)
