"""Shows one deployment to the outside: metrics, targets for Prometheus, notices, traces.

Whatever fails here is an event, or a line in the log. It never reaches the groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from raylaunch.checks.findings import Finding
from raylaunch.errors import RaylaunchError
from raylaunch.home import home
from raylaunch.monitoring.exposition import write_samples
from raylaunch.monitoring.notices import make_notice, phase_events, wants
from raylaunch.monitoring.scrape import Scrape, collect
from raylaunch.monitoring.targets import Target, join_address, vllm_targets, write_targets
from raylaunch.plan.node_usage import NodeUsage
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.monitoring_settings import Metrics
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.cluster.task_owner import TaskOwner
from raylaunch.runtime.controller.deployment_record import DeploymentRecord
from raylaunch.runtime.controller.gateway.gateway_link import GatewayLink
from raylaunch.runtime.controller.group.group_supervisor import GroupSupervisor
from raylaunch.runtime.controller.group_set import Changes, GroupSet
from raylaunch.runtime.controller.monitoring.metrics_server import MetricsServer
from raylaunch.runtime.controller.monitoring.notifier import Notifier
from raylaunch.runtime.controller.monitoring.tracer import Tracer
from raylaunch.supervise.deployment_status import Event, Status

log = logging.getLogger(__name__)

AGENT_S = 1.0
"""How long a scrape waits for the agents: Prometheus itself gives up after 10 s."""
CACHED_S = 1.0
"""Scrapes within this time share one answer."""
TARGETS_PERIOD_S = 15.0
"""Ray's nodes come and go without a change of the deployment."""
FLUSH_S = 2.0
"""How long `stop` waits for the last notices and spans."""


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
        self._file = home() / "monitoring" / f"{deployment}.json"
        context = ray.get_runtime_context()
        self._took_over = bool(context.was_current_actor_reconstructed)
        self._started_at = clock.wall()
        self._gateway: GatewayLink | None = None
        self._metrics = Metrics()
        self._server: MetricsServer | None = None
        self._notifier: Notifier | None = None
        self._tracer: Tracer | None = None
        self._secrets: Mapping[str, str] = {}
        self._may_open = True
        """The metrics have not been tried with these secrets."""
        self._address = ""
        self._notified = 0
        self._written = ""
        self._answer: tuple[bytes, str] = (b"", "")
        self._answer_key: tuple[str, float] = ("", float("-inf"))
        self._lock = asyncio.Lock()
        self._file_lock = asyncio.Lock()
        """A write of the targets that had begun shall not follow their removal."""

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
        recipe = loaded.recipe
        self._gateway = gateway
        self._secrets = secrets
        self._metrics = recipe.metrics
        self._notified = max((event.number for event in self._groups.events()), default=0)
        if recipe.notify:
            self._notifier = Notifier(recipe.notify, secrets, self._clock, self._report_hook)
            self._notifier.start(tasks)
        if recipe.tracing.endpoint is not None:
            self._tracer = Tracer(self._deployment, loaded, self._clock, self._record.note)
            self._tracer.start(self._groups, secrets, tasks)
        if recipe.metrics.enabled or recipe.notify or self._tracer is not None:
            tasks.keep_running("monitoring", self._run)

    def take_secrets(self, secrets: Mapping[str, str]) -> None:
        """Take the secrets later than `begin`; what lacked its token is tried again."""
        self._secrets = secrets
        self._may_open = True
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
        self._notify_hooks()
        waiting = [] if self._notifier is None else [self._notifier.flush(FLUSH_S)]
        if self._tracer is not None:
            self._tracer.take(self._groups)
            waiting.append(self._tracer.flush(FLUSH_S))
        await asyncio.gather(*waiting)
        async with self._file_lock:
            if self._server is not None:
                self._server.close()
                self._server = None
                with contextlib.suppress(OSError):
                    self._file.unlink(missing_ok=True)

    # -- metrics -------------------------------------------------------------------------------

    async def _open(self, wanted: Metrics) -> None:
        import ray

        node = str(ray.util.get_node_ip_address())
        host = {"loopback": "127.0.0.1", "node": node}.get(wanted.host, wanted.host)
        self._may_open = False
        token = self._secrets.get(wanted.token, "") if wanted.token else ""
        if wanted.token and not token:
            self._record.note("metrics", f"no metrics: the token {wanted.token} has no value")
            return
        server = MetricsServer(self.render, token)
        try:
            await server.open(host, wanted.port)
        except OSError as error:
            place = join_address(host, wanted.port)
            self._record.note("metrics", f"no metrics on {place}: {error.strerror or error}")
            return
        self._server = server
        self._address = join_address(host, server.port)
        if server.port != wanted.port:
            text = f"port {wanted.port} is in use: the metrics are on {self._address}"
            self._record.note("metrics", text)
        log.info("metrics on http://%s/metrics", self._address)

    async def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics; see `MetricsServer`."""
        async with self._lock:
            kind, made_at = self._answer_key
            now = self._clock.monotonic()
            if kind != accept or now - made_at >= CACHED_S:
                scrape = await self._scrape()
                self._answer = await asyncio.to_thread(_write, scrape, accept)
                self._answer_key = (accept, now)
            return self._answer

    async def _scrape(self) -> Scrape:
        groups = list(self._groups)
        answers = await asyncio.gather(*(_usage_of(group) for group in groups))
        usage: dict[tuple[str, int], NodeUsage] = {}
        for group, of_group in zip(groups, answers, strict=True):
            for server, one in of_group.items():
                usage[group.name, server] = one
        gateway_up = None if self._gateway is None else await self._gateway.refresh()
        return Scrape(
            status=self._status(),
            tallies={group.name: group.journal.tally for group in groups},
            usage=usage,
            started_at=self._started_at,
            took_over=self._took_over,
            gateway_up=gateway_up,
        )

    # -- targets and notices -------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            version = self._changes.version
            if self._metrics.enabled and self._server is None and self._may_open:
                await self._open(self._metrics)
            self._notify_hooks()
            if self._tracer is not None:
                self._tracer.take(self._groups)
            if self._server is not None:
                await self._write_targets()
            await self._changes.wait(version, TARGETS_PERIOD_S)

    async def _write_targets(self) -> None:
        targets = [Target(self._address, "raylaunch"), *vllm_targets(self._groups.plans())]
        for node in await asyncio.to_thread(alive_nodes):
            port = int(node.get("MetricsExportPort") or 0)
            if port:
                address = join_address(str(node["NodeManagerAddress"]), port)
                targets.append(Target(address, "ray"))
        text = write_targets(self._deployment, targets)
        async with self._file_lock:
            if text == self._written or self._server is None:
                return
            try:
                await asyncio.to_thread(_replace, self._file, text)
            except OSError as error:
                log.warning("the targets for Prometheus cannot be written: %s", error)
                return
            self._written = text

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


def _write(scrape: Scrape, accept: str) -> tuple[bytes, str]:
    return write_samples(collect(scrape), accept)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
