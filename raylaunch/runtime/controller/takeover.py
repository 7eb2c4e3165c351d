"""Taking over after the controller's own death: find agents and journal, adopt what runs.

Ray restarts a dead controller without its memory. Its agents keep the journal and the secrets.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.controller.journal import Journal
from raylaunch.runtime.controller.ray_group import RayGroup
from raylaunch.supervise.state import ServerSeen

log = logging.getLogger(__name__)

RETRY_S = 0.5


@dataclass(frozen=True)
class Adopted:
    """What a controller that takes over continues with."""

    journal: Journal
    secrets: Mapping[str, str]
    seen: Mapping[int, ServerSeen]


async def adopt(group: RayGroup, clock: Clock) -> Adopted | None:
    """Find the agents and the newest journal among them; None when no agent has one."""
    hellos = await group.find()
    journals = []
    for index, hello in hellos.items():
        if not hello.journal:
            continue
        try:
            journals.append(Journal.load(hello.journal, clock))
        except ValueError as error:
            # The other agents have copies too.
            log.warning("the copy of the agent of server %d: %s", index, error)
    newest = max(journals, key=lambda journal: journal.number, default=None)
    if newest is None or newest.plan is None:
        log.warning("found %d agents and no journal", len(hellos))
        return None
    secrets = await group.read_secrets()
    if newest.attempt == 0 and group.lacks_any(secrets):
        log.warning("found %d agents that were not given the secrets yet", len(hellos))
        return None
    newest.skip_lost()
    seen = last_known(newest.plan, newest.attempt, group.servers)
    log.info("adopting attempt %d (%s) with %d agents", newest.attempt, newest.phase, len(hellos))
    return Adopted(newest, secrets, seen)


def last_known(plan: LaunchPlan, attempt: int, alive: Collection[int]) -> dict[int, ServerSeen]:
    """Return what is known of the servers of a running attempt; `alive` are those with an agent."""
    nodes = {node["NodeID"] for node in alive_nodes()}
    found = {}
    for server in plan.servers:
        lost = None
        if server.index not in alive:
            lost = "agent died" if server.node.node_id in nodes else "node died"
        found[server.index] = ServerSeen(server.index, attempt=attempt, agent_lost=lost)
    return found


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
