"""The typed handle of an agent: one method for each remote method, with the time-out of the call.

Nothing else calls an agent, so a renamed or changed remote method is an error that mypy reports.
Every method raises as `RemoteActor.call` does: what the agent itself raised on purpose, or an
`ActorError` when no answer came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from raylaunch.checks.ping_checks import Ping, PingResult
from raylaunch.checks.reach_checks import FailedConnection, ProbeListener
from raylaunch.node.process.log_files import Chunk, Cursor
from raylaunch.plan.engine_answer import EngineReport
from raylaunch.plan.facts import Facts, ProbeFailure
from raylaunch.plan.known_flags import KnownFlags
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.plan.node_usage import NodeUsage
from raylaunch.runtime.agent.agent import Agent, Observation
from raylaunch.runtime.agent.fault_injection import DrillLimits, Injected
from raylaunch.runtime.agent.probe_actor import Hello, RecalledFlags
from raylaunch.runtime.agent.secret_keeper import SecretKeeper
from raylaunch.runtime.agent.snapshot import Snapshot
from raylaunch.runtime.cluster.connection import NAMESPACE
from raylaunch.runtime.cluster.group_key import GroupKey
from raylaunch.runtime.cluster.remote_call import RemoteActor
from raylaunch.supervise.health_config import HealthConfig

if TYPE_CHECKING:
    from raylaunch.gateway.gateway_messages import GatewayStatus
    from raylaunch.runtime.agent.gateway_host import GatewayOrder

PREFIX = "agent:"
"""Of the Ray name of an agent."""
ANSWER_S = 60.0
"""Time-out of a call beyond the time that its own work may take. An agent that has just been
created answers only after its worker process has started and imported the code."""
GATEWAY_START_S = 120.0
"""Time-out of a start of a gateway: longer than its keeper is waited for."""
SNAPSHOT_S = 5.0
"""Time-out of a snapshot: evidence is worth a short wait, a restart must not wait longer for it."""
LATE_S = 1.0
"""A long poll may answer this much later than it was asked to."""


@dataclass(frozen=True)
class AgentHandle:
    """Calls the agent of one server.

    Args:
        remote: The Ray actor. A reservation that only probes runs a `ProbeActor`, which has the
            methods from `hello` to `close_listeners`.
        index: The server's index in the plan.
    """

    remote: RemoteActor[Agent]
    index: int

    @property
    def peer(self) -> str:
        """Who this is, for messages."""
        return self.remote.peer

    def kill(self) -> None:
        """Kill the agent process. Its guard then terminates the server."""
        self.remote.kill()

    # -- what a ProbeActor answers too ---------------------------------------------------------

    async def hello(self, *, timeout_s: float = ANSWER_S) -> Hello:
        """Call `Agent.hello`."""
        call = self.remote.call(Agent.hello, timeout_s=timeout_s)
        return await call()

    async def probe(
        self,
        *,
        tiny: Literal["qwen3", "minimax_m2"] | None,
        path: str,
        drafter: str | None,
        ports: tuple[int, ...],
        npu: bool,
        timeout_s: float,
    ) -> Facts:
        """Call `ProbeActor.probe`; `timeout_s` limits each of its probes."""
        call = self.remote.call(Agent.probe, timeout_s=timeout_s + ANSWER_S)
        return await call(
            tiny=tiny,
            path=path,
            drafter=drafter,
            ports=ports,
            npu=npu,
            timeout_s=timeout_s,
        )

    async def recall_flags(self, *, timeout_s: float = ANSWER_S) -> RecalledFlags:
        """Call `ProbeActor.recall_flags`."""
        call = self.remote.call(Agent.recall_flags, timeout_s=timeout_s)
        return await call()

    async def ask_flags(
        self, *, timeout_s: float, niceness: int
    ) -> KnownFlags | ProbeFailure | None:
        """Call `ProbeActor.ask_flags`; `timeout_s` limits the run of vLLM."""
        call = self.remote.call(Agent.ask_flags, timeout_s=timeout_s + ANSWER_S)
        return await call(timeout_s=timeout_s, niceness=niceness)

    async def dry_run_engine(
        self, *, plan: LaunchPlan, servers: tuple[int, ...], timeout_s: float, niceness: int
    ) -> EngineReport:
        """Call `ProbeActor.dry_run_engine`; `timeout_s` limits each run of vLLM."""
        limit_s = timeout_s * len(servers) + ANSWER_S
        call = self.remote.call(Agent.dry_run_engine, timeout_s=limit_s)
        return await call(plan=plan, servers=servers, timeout_s=timeout_s, niceness=niceness)

    async def open_listeners(
        self, *, ip: str, ports: Mapping[str, int], timeout_s: float = ANSWER_S
    ) -> tuple[ProbeListener, ...]:
        """Call `ProbeActor.open_listeners`."""
        call = self.remote.call(Agent.open_listeners, timeout_s=timeout_s)
        return await call(ip=ip, ports=ports)

    async def try_connections(
        self, *, source: str, listeners: Sequence[ProbeListener], connect_s: float
    ) -> list[FailedConnection]:
        """Call `ProbeActor.try_connections`; `connect_s` limits each connection."""
        call = self.remote.call(Agent.try_connections, timeout_s=connect_s + ANSWER_S)
        return await call(source=source, listeners=listeners, connect_s=connect_s)

    async def ping_npus(self, *, pings: Sequence[Ping], ping_s: float) -> list[PingResult]:
        """Call `ProbeActor.ping_npus`; `ping_s` limits all the pings together."""
        call = self.remote.call(Agent.ping_npus, timeout_s=ping_s + ANSWER_S)
        return await call(pings=pings, ping_s=ping_s)

    async def close_listeners(self, *, timeout_s: float = ANSWER_S) -> None:
        """Call `ProbeActor.close_listeners`."""
        await self.remote.call(Agent.close_listeners, timeout_s=timeout_s)()

    # -- what only an Agent answers ------------------------------------------------------------

    async def launch(
        self,
        *,
        plan: LaunchPlan,
        attempt: int,
        vllm: str,
        health: HealthConfig,
        secrets: SecretKeeper,
        read_ahead: str,
        timeout_s: float = ANSWER_S,
    ) -> int:
        """Call `Agent.launch`."""
        call = self.remote.call(Agent.launch, timeout_s=timeout_s)
        return await call(
            plan=plan,
            attempt=attempt,
            vllm=vllm,
            health=health,
            secrets=secrets,
            read_ahead=read_ahead,
        )

    async def adopt(
        self, *, plan: LaunchPlan, attempt: int, health: HealthConfig, timeout_s: float = ANSWER_S
    ) -> int:
        """Call `Agent.adopt`."""
        call = self.remote.call(Agent.adopt, timeout_s=timeout_s)
        return await call(plan=plan, attempt=attempt, health=health)

    async def next_observation(self, *, after: int, wait_s: float) -> Observation:
        """Call `Agent.next_observation`, a long poll of at most `wait_s`."""
        call = self.remote.call(Agent.next_observation, timeout_s=wait_s + LATE_S)
        return await call(after=after, wait_s=wait_s)

    async def read_log(self, *, cursor: Cursor | None, lines: int | None, wait_s: float) -> Chunk:
        """Call `Agent.read_log`, a long poll of at most `wait_s`."""
        call = self.remote.call(Agent.read_log, timeout_s=wait_s + ANSWER_S)
        return await call(cursor=cursor, lines=lines, wait_s=wait_s)

    async def read_snapshot(self, *, lines: int, timeout_s: float = SNAPSHOT_S) -> Snapshot:
        """Call `Agent.read_snapshot`."""
        call = self.remote.call(Agent.read_snapshot, timeout_s=timeout_s)
        return await call(lines=lines)

    async def read_usage(self, *, weights: str, timeout_s: float) -> NodeUsage:
        """Call `Agent.read_usage`."""
        call = self.remote.call(Agent.read_usage, timeout_s=timeout_s)
        return await call(weights=weights)

    async def stop(self, *, term_timeout_s: float) -> list[str]:
        """Call `Agent.stop`; the server has `term_timeout_s` between SIGTERM and SIGKILL."""
        call = self.remote.call(Agent.stop, timeout_s=term_timeout_s + ANSWER_S)
        return await call(term_timeout_s=term_timeout_s)

    async def kill_orphans(self, *, timeout_s: float = ANSWER_S) -> list[str]:
        """Call `Agent.kill_orphans`."""
        call = self.remote.call(Agent.kill_orphans, timeout_s=timeout_s)
        return await call()

    async def find_orphans(self, *, attempt: int, timeout_s: float = ANSWER_S) -> list[str]:
        """Call `Agent.find_orphans`."""
        call = self.remote.call(Agent.find_orphans, timeout_s=timeout_s)
        return await call(attempt=attempt)

    async def await_free_ports(self, *, ports: Sequence[int], wait_s: float) -> list[str]:
        """Call `Agent.await_free_ports`, which waits at most `wait_s`."""
        call = self.remote.call(Agent.await_free_ports, timeout_s=wait_s + ANSWER_S)
        return await call(ports=ports, wait_s=wait_s)

    async def inject(self, *, fault: str, port: int, timeout_s: float = ANSWER_S) -> Injected:
        """Call `Agent.inject`."""
        call = self.remote.call(Agent.inject, timeout_s=timeout_s)
        return await call(fault=fault, port=port)

    async def drill_limits(self, *, timeout_s: float = ANSWER_S) -> DrillLimits:
        """Call `Agent.drill_limits`."""
        call = self.remote.call(Agent.drill_limits, timeout_s=timeout_s)
        return await call()

    async def read_secrets(
        self, *, takeover_key: str, timeout_s: float = ANSWER_S
    ) -> Mapping[str, str]:
        """Call `Agent.read_secrets`."""
        call = self.remote.call(Agent.read_secrets, timeout_s=timeout_s)
        return await call(takeover_key=takeover_key)

    async def run_gateway(self, *, order: GatewayOrder) -> GatewayStatus:
        """Call `Agent.run_gateway`."""
        return await self.remote.call(Agent.run_gateway, timeout_s=GATEWAY_START_S)(order=order)

    async def drain_gateway(
        self, *, order: GatewayOrder, ids: Sequence[str], drain_s: float
    ) -> bool:
        """Call `Agent.drain_gateway`."""
        call = self.remote.call(Agent.drain_gateway, timeout_s=drain_s + ANSWER_S)
        return await call(order=order, ids=ids, drain_s=drain_s)

    async def stop_gateway(self, *, order: GatewayOrder, drain_s: float) -> bool:
        """Call `Agent.stop_gateway`."""
        call = self.remote.call(Agent.stop_gateway, timeout_s=drain_s + ANSWER_S)
        return await call(order=order, drain_s=drain_s)

    def keep_journal(self, *, owner: str, number: int, journal: bytes) -> None:
        """Send `Agent.keep_journal` without waiting: every agent has a copy, one may be lost."""
        self.remote.send(Agent.keep_journal)(owner=owner, number=number, journal=journal)


def agent_name(key: GroupKey, index: int) -> str:
    """Return the Ray name of the agent of server `index`."""
    return f"{PREFIX}{key}:{index}"


def read_agent_name(name: str) -> tuple[GroupKey, int] | None:
    """Return group and server of the agent of this Ray name; None for an actor of another kind."""
    if not name.startswith(PREFIX):
        return None
    key, _, index = name.removeprefix(PREFIX).rpartition(":")
    return GroupKey.parse(key), int(index)


def find_agents() -> dict[GroupKey, tuple[int, ...]]:
    """Return the servers that have a living agent, by group, for the whole cluster."""
    import ray

    found: dict[GroupKey, tuple[int, ...]] = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        read = read_agent_name(str(actor["name"])) if actor["namespace"] == NAMESPACE else None
        if read is not None:
            key, index = read
            found[key] = (*found.get(key, ()), index)
    return found


def agent_handle(actor: object, index: int) -> AgentHandle:
    """Wrap Ray's handle of the agent of server `index`."""
    peer = f"the agent of server {index}"
    return AgentHandle(RemoteActor(actor, peer), index)


def find_agent(key: GroupKey, index: int) -> AgentHandle | None:
    """Look the agent of server `index` up by name; None when Ray has no such actor alive."""
    import ray

    try:
        actor = ray.get_actor(agent_name(key, index), NAMESPACE)
    except ValueError:  # Ray: no actor of this name
        return None
    return agent_handle(actor, index)
