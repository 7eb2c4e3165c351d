"""Shows one deployment to the outside: metrics, targets for Prometheus, notices, traces.

Whatever fails here is an event, or a line in the log. It never reaches the groups.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from raylaunch.checks.findings import Finding
from raylaunch.errors import RaylaunchError
from raylaunch.monitoring.notices import make_notice, phase_events, wants
from raylaunch.monitoring.scrape import Scrape
from raylaunch.plan.node_usage import NodeUsage
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.cluster.task_owner import TaskOwner
from raylaunch.runtime.controller.deployment_record import DeploymentRecord
from raylaunch.runtime.controller.gateway.gateway_link import GatewayLink
from raylaunch.runtime.controller.group.group_supervisor import GroupSupervisor
from raylaunch.runtime.controller.group_set import Changes, GroupSet
from raylaunch.runtime.controller.monitoring.metrics_endpoint import MetricsEndpoint
from raylaunch.runtime.controller.monitoring.notifier import Notifier
from raylaunch.runtime.controller.monitoring.tracer import Tracer
from raylaunch.supervise.deployment_status import Event, Status

log = logging.getLogger(__name__)

AGENT_S = 1.0
"""How long a scrape waits for the agents: Prometheus itself gives up after 10 s."""
PERIOD_S = 15.0
"""Longest time without a step; each change of the deployment is one."""
FLUSH_S = 2.0
"""How long a stop, or an upgrade that replaces them, waits for the last notices and spans."""


class Monitor:
    """Metrics, hooks and traces of one deployment.

    Args:
        deployment: Its name.
        groups: Its groups.
        record: Takes the events.
        changes: Of the deployment.
        status: Makes its status.
        clock: Of this process.
    """

    def __init__(
        self,
        deployment: str,
        groups: GroupSet,
        record: DeploymentRecord,
        changes: Changes,
        status: Callable[[], Status],
        clock: Clock,
    ) -> None:
        import ray

        self._deployment = deployment
        self._groups = groups
        self._record = record
        self._changes = changes
        self._status = status
        self._clock = clock
        context = ray.get_runtime_context()
        self._took_over = bool(context.was_current_actor_reconstructed)
        self._started_at = clock.wall()
        self._gateway: GatewayLink | None = None
        self._tasks: TaskOwner | None = None
        self._running: LoadedRecipe | None = None
        """The recipe that is carried out here."""
        self._secrets: Mapping[str, str] = {}
        note = record.note
        self._metrics = MetricsEndpoint(deployment, groups, changes, self._scrape, note, clock)
        self._notifier: Notifier | None = None
        self._tracer: Tracer | None = None
        self._notified = 0

    def begin(
        self,
        loaded: LoadedRecipe,
        secrets: Mapping[str, str],
        gateway: GatewayLink | None,
        tasks: TaskOwner,
    ) -> None:
        """Run what the recipe asks for.

        Args:
            loaded: The recipe of the deployment.
            secrets: Values by name.
            gateway: None without one.
            tasks: Owns the tasks.
        """
        self._gateway = gateway
        self._secrets = secrets
        self._tasks = tasks
        self._running = loaded
        self._notified = self._newest
        self._metrics.use(loaded, secrets)
        self._start_notifier(loaded)
        self._start_tracer(loaded)
        tasks.keep_running("metrics", self._metrics.run)
        tasks.keep_running("monitoring", self._run)

    def take_secrets(self, secrets: Mapping[str, str]) -> None:
        """Take the secrets later than `begin`; what lacked its token is tried again."""
        self._secrets = secrets
        self._metrics.take_secrets(secrets)
        if self._notifier is not None:
            self._notifier.take_secrets(secrets)
        if self._tracer is not None:
            self._tracer.take_secrets(secrets)
        self._changes.note()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the recipe asks for, and this node cannot do."""
        return () if self._tracer is None else self._tracer.findings

    async def stop(self) -> None:
        """Deliver the last notices and spans for a short time, and take everything down."""
        await asyncio.gather(self._stop_notifier(), self._stop_tracer())
        await self._metrics.close()

    # -- parts ---------------------------------------------------------------------------------

    def _start_notifier(self, loaded: LoadedRecipe) -> None:
        assert self._tasks is not None
        if loaded.recipe.notify:
            hooks = loaded.recipe.notify
            self._notifier = Notifier(hooks, self._secrets, self._clock, self._report_hook)
            self._notifier.start(self._tasks)

    async def _stop_notifier(self) -> None:
        self._notify_hooks()
        if self._notifier is not None:
            await self._notifier.stop(FLUSH_S)
            self._notifier = None

    def _start_tracer(self, loaded: LoadedRecipe) -> None:
        assert self._tasks is not None
        if loaded.recipe.tracing.endpoint is not None:
            self._tracer = Tracer(self._deployment, loaded, self._clock, self._record.note)
            self._tracer.start(self._groups, self._secrets, self._tasks)

    async def _stop_tracer(self) -> None:
        if self._tracer is not None:
            self._tracer.take(self._groups)
            await self._tracer.stop(FLUSH_S)
            self._tracer = None

    async def _replace_parts(self, wanted: LoadedRecipe) -> None:
        """Replace what an upgrade has changed; the rest runs on: a hook keeps what waits for it."""
        assert self._running is not None
        old, new = self._running.recipe, wanted.recipe
        self._running = wanted
        changed = []
        if old.metrics != new.metrics:
            changed.append("metrics")
            await self._metrics.close()
            self._metrics.use(wanted, self._secrets)
        if old.notify != new.notify:
            changed.append("notify")
            if self._notifier is None:
                # The first hooks get what happens from now on, not what happened before.
                self._notified = self._newest
            await self._stop_notifier()
            self._start_notifier(wanted)
        if old.tracing != new.tracing:
            changed.append("tracing")
            await self._stop_tracer()
            self._start_tracer(wanted)
        if changed:
            self._record.note("command", f"applied to the controller: {', '.join(changed)}")

    # -- work ----------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            version = self._changes.version
            if self._record.journal.loaded is not self._running:
                await self._replace_parts(self._record.journal.loaded)
            self._notify_hooks()
            if self._tracer is not None:
                self._tracer.take(self._groups)
            await self._changes.wait(version, PERIOD_S)

    async def _scrape(self) -> Scrape:
        groups = list(self._groups)
        gateway_up = None if self._gateway is None else await self._gateway.refresh()
        return Scrape(
            usage=await self.usage(),
            status=self._status(),
            tallies={group.name: group.journal.tally for group in groups},
            started_at=self._started_at,
            took_over=self._took_over,
            gateway_up=gateway_up,
        )

    async def usage(self) -> dict[tuple[str, int], NodeUsage]:
        """Return what servers and nodes use, by group and server; silent agents are left out."""
        groups = list(self._groups)
        answers = await asyncio.gather(*(_usage_of(group) for group in groups))
        usage: dict[tuple[str, int], NodeUsage] = {}
        for group, of_group in zip(groups, answers, strict=True):
            for server, one in of_group.items():
                usage[group.name, server] = one
        return usage

    @property
    def _newest(self) -> int:
        """The number of the newest event of a group."""
        return max((event.number for event in self._groups.events()), default=0)

    def _notify_hooks(self) -> None:
        if self._notifier is None:
            return
        fresh = phase_events(self._groups.events(), self._notified)
        for event in fresh:
            self._notified = max(self._notified, event.number)
            self._send(event)

    def _send(self, event: Event) -> None:
        assert self._notifier is not None
        group = self._groups.by_name.get(event.group)
        diagnosis = None if group is None else group.journal.diagnosis
        notice = make_notice(event, self._status(), diagnosis, self._secrets.values())
        self._notifier.send(lambda hook: wants(hook, event), notice)

    def _report_hook(self, problem: str) -> None:
        self._record.note("notify-failed", problem)


async def _usage_of(group: GroupSupervisor) -> dict[int, NodeUsage]:
    plan = group.journal.plan
    if plan is None:
        return {}
    model = plan.model
    answers = await group.backend.gang.ask_all(
        lambda agent: agent.read_usage(weights=model, timeout_s=AGENT_S)
    )
    return {
        server: answer
        for server, answer in answers.items()
        if not isinstance(answer, RaylaunchError)
    }
