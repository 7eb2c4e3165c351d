"""A group on the Ray cluster: its reservation, its agents, and the watches over them.

The only owner of the reservation: it is made here, kept over restarts, and released here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence

from raylaunch.checks.engine.engine_checks import check_engines
from raylaunch.checks.findings import Finding
from raylaunch.errors import BusyError, LaunchError, RaylaunchError, RecipeError
from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.plan.planner import plan_group
from raylaunch.runtime.agent.agent_handle import AgentHandle
from raylaunch.runtime.agent.engine_lookup import dry_run_engines
from raylaunch.runtime.agent.fault_injection import Injected
from raylaunch.runtime.agent.flag_lookup import BACKGROUND_NICENESS, LATER_S, remember_for_next
from raylaunch.runtime.agent.gang import Gang
from raylaunch.runtime.agent.probe_actor import Hello
from raylaunch.runtime.agent.secret_keeper import SecretKeeper
from raylaunch.runtime.agent.snapshot import Snapshot
from raylaunch.runtime.cluster import placement
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.cluster.placement import Slot
from raylaunch.runtime.cluster.remote_call import ActorLostError
from raylaunch.runtime.cluster.task_owner import TaskFailure, TaskOwner
from raylaunch.runtime.controller.group import orphan_stop, planning
from raylaunch.runtime.controller.group.agent_replacement import create_missing, replace_agents
from raylaunch.runtime.controller.group.agent_watch import AgentWatch
from raylaunch.runtime.controller.group.group_backend import Adopted, refuse_missing_secrets
from raylaunch.runtime.controller.launch_request import GroupRequest
from raylaunch.runtime.controller.port_turns import Turns
from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import ServerSeen

log = logging.getLogger(__name__)


class RayGroup:
    """Implements `GroupBackend` and the `Nodes` of the evidence.

    Args:
        request: The group, and what `raylaunch start` asked for.
        health: Thresholds, for the agents and the watches.
        turns: Orders the groups that choose their ports at the same moment.
        on_task_failure: Receives each exception of a watch.
    """

    def __init__(
        self,
        request: GroupRequest,
        health: HealthConfig,
        turns: Turns,
        on_task_failure: Callable[[TaskFailure], None],
    ) -> None:
        self.gang = Gang(request.key, request.instance)
        self.log_roots: dict[int, str] = {}
        """Folder of each server's logs on its node."""
        self.chosen: LaunchPlan | None = None
        """The newest plan. It is known before its checks are done: others avoid its ports."""
        self.takeover_key = ""
        """What the agents demand before they hand out the secrets."""
        self.running: dict[int, int | None] = {}
        """The attempt that each agent ran when it was found."""
        self._request = request
        self._recipe = request.spec.loaded.recipe
        self._health = health
        self._turns = turns
        self._watches: dict[int, AgentWatch] = {}
        self._tasks = TaskOwner(on_task_failure)
        self._belongs_to_others = False

    @property
    def servers(self) -> Sequence[int]:
        """The servers whose agents are not lost."""
        return tuple(self.gang.alive)

    def apply(self, request: GroupRequest, health: HealthConfig) -> None:
        """Take over settings that no server reads: for the next launch and the next watches."""
        self._request = request
        self._recipe = request.spec.loaded.recipe
        self._health = health

    # -- reservation and agents ----------------------------------------------------------------

    async def find(self) -> dict[int, Hello]:
        """Look up the reservation and the agents that a controller left; return who answers."""
        found = await asyncio.to_thread(placement.find_reservation, self._request.key)
        self.gang.reservation = found
        self.gang.find(self._recipe.parallel.servers)
        answers = await self.gang.ask_all(lambda agent: agent.hello())
        for index, answer in answers.items():
            if isinstance(answer, ActorLostError):  # Ray had not noticed its death yet
                self.gang.give_up(index)
        hellos = self._remember_log_roots(answers)
        self.running = {index: hello.attempt for index, hello in hellos.items()}
        return hellos

    async def reserve(self, excluded: Sequence[str], timeout_s: float | None) -> None:
        """Have NPUs and a living agent for each server; keep those that are there."""
        if self.gang.reservation is None:
            self.gang.reservation = await self._reserve_npus(tuple(excluded), timeout_s)
        slots = await asyncio.to_thread(placement.slots, self.gang.reservation)
        if any(not slot.ip for slot in slots):
            # The node of a bundle is dead, and Ray is looking for another: it may take for ever.
            log.warning("a reserved node of %s is dead; reserving again", self._request.key)
            self.release()
            self.gang.reservation = await self._reserve_npus(tuple(excluded), timeout_s)
            slots = await asyncio.to_thread(placement.slots, self.gang.reservation)
        await self._create_agents(planning.put_primary_first(slots, self._request.primary))

    async def _reserve_npus(self, excluded: tuple[str, ...], timeout_s: float | None) -> object:
        group = await self._request_npus(excluded, timeout_s)
        try:
            await asyncio.to_thread(
                placement.await_reserved, group, self._recipe, excluded, timeout_s
            )
        except asyncio.CancelledError:
            placement.release(group)
            raise
        return group

    async def _request_npus(self, excluded: tuple[str, ...], timeout_s: float | None) -> object:
        key = self._request.key
        work = asyncio.to_thread(placement.request, key, self._recipe, excluded, timeout_s)
        requesting = asyncio.ensure_future(work)
        try:
            return await asyncio.shield(requesting)
        except BusyError:
            self._belongs_to_others = True
            raise
        except asyncio.CancelledError:
            # The thread cannot be cancelled, and `stop` kills this process when it has released
            # everything: a group created after that would hold its NPUs for ever.
            await asyncio.wait({requesting})
            if requesting.exception() is None:
                placement.release(requesting.result())
            raise

    async def _create_agents(self, places: Sequence[Slot]) -> None:
        slots = dict(enumerate(places))
        await create_missing(self.gang, slots)
        answers = await self.gang.ask_all(lambda agent: agent.hello())
        dead = [index for index, one in answers.items() if isinstance(one, ActorLostError)]
        if dead:
            # They died since they were last called, as when a second fault hits a restart.
            log.warning("replacing the dead agents of servers %s", dead)
            for index in dead:
                self.gang.give_up(index)
            await create_missing(self.gang, slots)
            answers = await self.gang.ask_all(lambda agent: agent.hello())
        for _, answer in sorted(answers.items()):
            if isinstance(answer, RaylaunchError):
                raise answer
        self._remember_log_roots(answers)

    def _remember_log_roots(
        self, answers: Mapping[int, Hello | RaylaunchError]
    ) -> dict[int, Hello]:
        hellos = {index: one for index, one in answers.items() if isinstance(one, Hello)}
        for index, hello in hellos.items():
            self.log_roots[index] = hello.log_root
        return hellos

    def give_up(self, server: int) -> None:
        """Drop the agent of a server, which is lost."""
        self.gang.give_up(server)

    def release(self) -> None:
        """Kill the agents and release the NPUs, those that are still waited for included."""
        self._tasks.cancel()
        self.gang.kill()
        reservation = self.gang.reservation
        # A reservation of that name that was there before is another owner's.
        if reservation is None and not self._belongs_to_others:
            reservation = placement.find_reservation(self._request.key)
        if reservation is not None:
            placement.release(reservation)
        self.gang.reservation = None

    async def has_spare(self, plan: LaunchPlan, excluded: Sequence[str], servers: int) -> bool:
        """Return whether nodes that the plan does not use have the NPUs of so many servers."""
        used = tuple(server.node.node_id for server in plan.servers)
        return await asyncio.to_thread(
            placement.has_spare, self._recipe, used, tuple(excluded), servers
        )

    # -- from probe to launch ------------------------------------------------------------------

    async def probe(self) -> dict[int, Facts]:
        """Probe the node of every server."""
        return await planning.probe_nodes(self.gang, self._recipe)

    async def plan(self, facts: Mapping[int, Facts]) -> tuple[LaunchPlan, list[Finding]]:
        """Plan on these nodes around the ports of all other groups, and check the plan."""
        spec = self._request.spec
        nodes = list(facts.values())
        async with self._turns.choose(spec.name) as neighbours:
            name = self._request.key.deployment
            plan = plan_group(spec, nodes, deployment=name, others=neighbours.plans)
            self.chosen = plan
        findings = await planning.check_plan(self.gang, spec.loaded, nodes, plan, neighbours)
        return plan, findings

    async def launch(
        self,
        plan: LaunchPlan,
        attempt: int,
        facts: Mapping[int, Facts],
        secrets: Mapping[str, str],
    ) -> None:
        """Launch every server at the same moment.

        vLLM's engines wait 5 minutes for their primary, no longer.

        Raises:
            LaunchError: a server could not be launched.
            SecretsLostError: a secret of the recipe is not among `secrets`.
        """
        refuse_missing_secrets(self._recipe.secrets, secrets)
        kept = SecretKeeper(secrets, self.takeover_key)
        read_ahead = planning.read_ahead_folder(self._recipe)
        answers = await self.gang.ask_all(
            lambda agent: agent.launch(
                plan=plan,
                attempt=attempt,
                vllm=facts[agent.index].vllm_executable or "vllm",
                health=self._health,
                secrets=kept,
                read_ahead=read_ahead,
            ),
            servers=facts.keys(),
        )
        for index, answer in sorted(answers.items()):
            # A dead agent is the watch's to report: it knows whether its node died as well.
            if isinstance(answer, RaylaunchError) and not isinstance(answer, ActorLostError):
                raise LaunchError(
                    f"server {index} could not be launched",
                    why=str(answer),
                    todo=answer.todo,
                ) from answer

    async def clean_up(self) -> None:
        """Kill orphans of earlier attempts, and wait until fixed ports are free."""
        await planning.clean_up(self.gang, self._request.spec.loaded, self.chosen)

    def dry_run(
        self, plan: LaunchPlan, facts: Mapping[int, Facts], report: Callable[[list[Finding]], None]
    ) -> None:
        """Start a dry run of every server at the lowest priority, if the request wants it."""
        if not self._request.dry_run:
            return

        async def ask() -> None:
            engines = await dry_run_engines(self.gang, plan, LATER_S, niceness=BACKGROUND_NICENESS)
            nodes = list(engines.add_to(facts).values())
            loaded = self._request.spec.loaded
            report([*check_engines(loaded, nodes, plan, engines.answers)])

        self._tasks.run_once("engine dry run", ask)

    def remember_flags(self) -> None:
        """Start to ask the nodes' vLLM for its flags, for the next launch; does not wait."""
        self._tasks.run_once("flag lookup", lambda: remember_for_next(self.gang))

    # -- running servers -----------------------------------------------------------------------

    async def adopt(
        self,
        plan: LaunchPlan,
        attempt: int,
        servers: Sequence[int],
        addresses: Mapping[str, str],
    ) -> Adopted:
        """Create an agent for each of these servers, which adopts the server as it runs."""
        result = await replace_agents(
            self.gang,
            self._recipe,
            plan,
            attempt,
            servers,
            addresses=addresses,
            health=self._health,
        )
        hellos = await self.gang.ask_all(lambda agent: agent.hello(), servers=result.servers)
        self._remember_log_roots(hellos)
        return result

    def watch(
        self,
        plan: LaunchPlan,
        update: Callable[[ServerSeen], None],
        *,
        servers: Collection[int] | None = None,
    ) -> None:
        """Start to observe every server whose agent and node are alive."""
        self.chosen = plan
        nodes = {node["NodeID"]: node for node in alive_nodes()}
        for server in plan.servers:
            if servers is not None and server.index not in servers:
                continue
            agent = self.gang.alive.get(server.index)
            node = nodes.get(server.node.node_id)
            if agent is None or node is None:
                continue
            watch = AgentWatch(server.index, agent, node, self._health, update)
            self._watches[server.index] = watch
            self._tasks.keep_running(f"watch of server {server.index}", watch.run)

    async def stop_servers(self, grace_s: float) -> list[str]:
        """Stop every server, also one whose agent is lost; return what still lives."""
        self._tasks.cancel()
        answers = await self.gang.ask_all(lambda agent: agent.stop(term_timeout_s=grace_s))
        left = planning.flatten(answers)
        if self._health.orphan_grace_s > 0 and self.chosen is not None:
            stopped = [index for index, answer in answers.items() if isinstance(answer, list)]
            orphans = [one for one in self.chosen.servers if one.index not in stopped]
            left += await orphan_stop.stop_orphans(orphans, self.gang, grace_s)
        return left

    async def read_snapshots(self, lines: int, without: Collection[int]) -> dict[int, Snapshot]:
        """Return what each server left behind; servers that cannot be asked are missing."""
        servers = self.gang.alive.keys() - set(without)
        answers = await self.gang.ask_all(
            lambda agent: agent.read_snapshot(lines=lines), servers=servers
        )
        return {index: one for index, one in answers.items() if isinstance(one, Snapshot)}

    def wall_offsets(self) -> dict[int, float]:
        """Return each node's wall clock minus this one's, in seconds."""
        return {index: watch.wall_offset_s for index, watch in self._watches.items()}

    def agent_of(self, server: int) -> AgentHandle | None:
        """Return the agent of a server; None when it is lost.

        Raises:
            RecipeError: there is no such server.
        """
        count = self._recipe.parallel.servers
        if not 0 <= server < count:
            known = "server 0" if count == 1 else f"servers 0 to {count - 1}"
            raise RecipeError(
                f"{self._request.key.deployment} has no server {server}", why=f"it has {known}"
            )
        return self.gang.alive.get(server)

    def keep_journal(self, number: int, journal: bytes) -> None:
        """Give every agent a copy of the journal; one copy may be lost."""
        self.keep_copy(self._request.spec.name, number, journal)

    def keep_copy(self, owner: str, number: int, journal: bytes) -> None:
        """Give every agent a copy of any journal; see `Agent.keep_journal`."""
        for agent in self.gang.alive.values():
            agent.keep_journal(owner=owner, number=number, journal=journal)

    async def read_secrets(self) -> Mapping[str, str]:
        """Return the secrets that the agents keep; empty when the recipe has none.

        Empty, too, when no agent hands them out.
        """
        if not self._recipe.secrets:
            return {}
        answers = await self.gang.ask_all(
            lambda agent: agent.read_secrets(takeover_key=self.takeover_key)
        )
        known = (one for one in answers.values() if isinstance(one, Mapping))
        return next(known, {})

    def lacks_any(self, secrets: Mapping[str, str]) -> bool:
        """Return whether a secret that the recipe names is missing."""
        return any(name not in secrets for name in self._recipe.secrets)

    async def inject(self, server: int, fault: str, port: int) -> Injected:
        """Inject a drill's fault; `at` is on this process's monotonic clock."""
        done = await self.gang.alive[server].inject(fault=fault, port=port)
        offset_s = self._watches[server].clock_offset_s or 0.0
        return Injected(done.at - offset_s, done.what)
