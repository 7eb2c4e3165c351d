"""The metrics of one deployment: its endpoint, and the file of targets for Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from raylaunch.home import home
from raylaunch.monitoring.exposition import write_samples
from raylaunch.monitoring.scrape import Scrape, collect
from raylaunch.monitoring.targets import Target, join_address, vllm_targets, write_targets
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.monitoring_settings import Metrics
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.cluster.connection import alive_nodes
from raylaunch.runtime.controller.group_set import Changes, GroupSet
from raylaunch.runtime.controller.monitoring.metrics_server import (
    MAX_CONNECTIONS,
    TRIED_PORTS,
    MetricsServer,
)

log = logging.getLogger(__name__)

NOTE = "metrics"
"""Kind of the events about it."""
CACHED_S = 1.0
"""Scrapes within this time share one answer."""
TARGETS_PERIOD_S = 15.0
"""Ray's nodes come and go without a change of the deployment."""


class MetricsEndpoint:
    """Serves the metrics and keeps the file of targets true.

    Args:
        deployment: Its name.
        groups: Its groups.
        changes: Of the deployment.
        scrape: Reads what a scrape shows.
        note: Adds an event, by kind and text.
        clock: Of this process.
    """

    def __init__(
        self,
        deployment: str,
        groups: GroupSet,
        changes: Changes,
        scrape: Callable[[], Awaitable[Scrape]],
        note: Callable[[str, str], object],
        clock: Clock,
    ) -> None:
        self._deployment = deployment
        self._groups = groups
        self._changes = changes
        self._scrape = scrape
        self._note = note
        self._clock = clock
        self._file = home() / "monitoring" / f"{deployment}.json"
        self._settings = Metrics(enabled=False)
        self._own_ports: frozenset[int] = frozenset()
        self._secrets: Mapping[str, str] = {}
        self._server: MetricsServer | None = None
        self._may_open = False
        """The port has not been tried with these settings and secrets."""
        self.address = ""
        """Where it listens, `host:port`; "" while it does not."""
        self._plans: Sequence[LaunchPlan] = ()
        self._of_ray: Sequence[Target] = ()
        self._nodes_at = float("-inf")
        self._written = ""
        self._answer: tuple[bytes, str] = (b"", "")
        self._answer_key: tuple[str, float] = ("", float("-inf"))
        self._lock_of_answer = asyncio.Lock()
        self._lock_of_server = asyncio.Lock()
        """What had begun before `close` (to listen, to write the targets) shall not follow it."""

    def use(self, loaded: LoadedRecipe, secrets: Mapping[str, str]) -> None:
        """Serve as this recipe says from now on; close what serves as another one says first."""
        self._settings = loaded.recipe.metrics
        self._own_ports = own_ports(loaded)
        self.take_secrets(secrets)

    def take_secrets(self, secrets: Mapping[str, str]) -> None:
        """Take the value of the token; an endpoint that lacked it is tried again."""
        self._secrets = secrets
        self._may_open = True
        # A value that is missing now must not open what asked for a token.
        if self._server is not None and self._token:
            self._server.token = self._token

    @property
    def _token(self) -> str:
        wanted = self._settings.token
        return self._secrets.get(wanted, "") if wanted else ""

    async def run(self) -> None:
        """Open the endpoint and keep the targets true until the task is cancelled."""
        while True:
            version = self._changes.version
            async with self._lock_of_server:
                if self._settings.enabled and self._server is None and self._may_open:
                    await self._open()
            if self._server is not None:
                await self._write_targets()
            await self._changes.wait(version, TARGETS_PERIOD_S)

    async def close(self) -> None:
        """Stop listening and remove the targets."""
        async with self._lock_of_server:
            self._may_open = False
            if self._server is None:
                return
            self._server.close()
            self._server = None
            self.address = ""
            self._written = ""
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)

    async def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics; see `MetricsServer`."""
        async with self._lock_of_answer:
            kind, made_at = self._answer_key
            now = self._clock.monotonic()
            if kind != accept or now - made_at >= CACHED_S:
                scrape = await self._scrape()
                self._answer = await asyncio.to_thread(_write, scrape, accept)
                self._answer_key = (accept, now)
            return self._answer

    async def _open(self) -> None:
        import ray

        wanted = self._settings
        self._may_open = False
        if wanted.token and not self._token:
            self._note(NOTE, f"no metrics: the token {wanted.token} has no value")
            return
        host = "127.0.0.1" if wanted.host == "loopback" else wanted.host
        if host == "node":
            host = str(ray.util.get_node_ip_address())
        server = MetricsServer(self.render, self._token, self._note_full)
        try:
            await server.open(host, wanted.port, avoided=self._own_ports)
        except OSError as error:
            self._note(NOTE, _explain(error, host, wanted.port))
            return
        self._server = server
        self.address = join_address(host, server.port)
        if server.port != wanted.port:
            text = f"port {wanted.port} is taken: the metrics are on {self.address}"
            self._note(NOTE, text)
        log.info("metrics on http://%s/metrics", self.address)

    def _note_full(self) -> None:
        text = (
            f"more than {MAX_CONNECTIONS} connections to {self.address} are open: further ones are "
            "closed; find the client with `ss -tnp`"
        )
        self._note(NOTE, text)

    async def _write_targets(self) -> None:
        # Each observation of a server is a change; a question to Ray for each would cost more
        # than everything else here.
        plans = self._groups.plans()
        is_old = self._clock.monotonic() - self._nodes_at >= TARGETS_PERIOD_S
        if self._written and plans == self._plans and not is_old:
            return
        self._plans = plans
        if is_old:
            await self._read_nodes()
        own = Target(self.address, "raylaunch")
        targets = [own, *vllm_targets(plans), *self._of_ray]
        text = write_targets(self._deployment, targets)
        async with self._lock_of_server:
            if text == self._written or self._server is None:
                return
            try:
                await asyncio.to_thread(_replace, self._file, text)
            except OSError as error:
                log.warning("the targets for Prometheus cannot be written: %s", error)
                return
            self._written = text

    async def _read_nodes(self) -> None:
        import ray

        self._nodes_at = self._clock.monotonic()
        try:
            nodes = await asyncio.to_thread(alive_nodes)
        except ray.exceptions.RayError as error:
            log.warning("the nodes for Prometheus cannot be read: %s", error)
            return
        targets = []
        for node in nodes:
            port = int(node.get("MetricsExportPort") or 0)
            if port:
                address = join_address(str(node["NodeManagerAddress"]), port)
                targets.append(Target(address, "ray"))
        self._of_ray = targets


def own_ports(loaded: LoadedRecipe) -> frozenset[int]:
    """Return the ports that servers and gateway of a recipe want: the metrics leave them alone."""
    specs = expand_groups(loaded)
    found = {loaded.recipe.gateway.port}
    for spec in specs:
        network = spec.loaded.recipe.network
        found.add(network.rpc_port)
        # The servers of further groups on a node take the next ones.
        found.update(range(network.http_port, network.http_port + len(specs)))
    return frozenset(found)


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        last = port + TRIED_PORTS - 1
        return f"no metrics: the ports {port} to {last} of {host} are in use"
    return f"no metrics on {join_address(host, port)}: {error.strerror or error}"


def _write(scrape: Scrape, accept: str) -> tuple[bytes, str]:
    return write_samples(collect(scrape), accept)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
