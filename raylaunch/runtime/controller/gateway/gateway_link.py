"""Starts or adopts the deployment's gateway on the controller's node, and tells it who serves.

The gateway's keeper outlives the controller, and HAProxy and relay outlive the keeper. A controller
that takes over finds them by their folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from raylaunch.checks.findings import Finding, waive
from raylaunch.errors import ChecksFailedError, NodeError, RaylaunchError
from raylaunch.gateway.gateway_client import GatewayClient, connect_gateway
from raylaunch.gateway.gateway_messages import GatewayStatus, Member
from raylaunch.gateway.gateway_orphans import stop_orphans
from raylaunch.gateway.gateway_probe import probe_gateway
from raylaunch.home import home
from raylaunch.recipe.gateway_settings import Gateway
from raylaunch.runtime.agent.gateway_host import gateway_folder, start_here
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.controller.deployment_record import DeploymentJournal
from raylaunch.runtime.controller.gateway.gateway_preflight import check_gateway
from raylaunch.runtime.controller.gateway.gateway_report import node_report
from raylaunch.runtime.controller.gateway.node_gateways import GatewayAgent, NodeGateways
from raylaunch.runtime.controller.gateway.wanted_gateway import WantedGateway
from raylaunch.runtime.controller.group.planning import refuse_errors
from raylaunch.runtime.controller.group_set import GroupSet
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.supervise.deployment_status import GatewayReport
from raylaunch.supervise.state import Phase

log = logging.getLogger(__name__)

SIGN_S = 1.0
"""The keeper hears from its owner at least this often. The owner learns of its death earlier, from
the connection that the kernel closes."""
LOAD_PERIOD_S = 1.0
"""Least time between two messages that only have new counters."""
PLANNED = (Phase.STARTING, Phase.READY, Phase.RESTARTING)
"""Phases of a group whose ports are chosen: the gateway's port avoids them."""


class GatewayLink:
    """The gateway of one deployment.

    Args:
        request: Names the deployment and its instance.
        settings: The section `gateway` of the recipe.
        groups: Those of the deployment.
        home: Holds the folders of gateways.
        address: Of this node.
        clock: Of this process.
        on_change: Called when the gateway is up or gone.
    """

    def __init__(
        self,
        request: Request,
        settings: Gateway,
        groups: GroupSet,
        home: Path,
        address: str,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self._request = request
        self._wanted = WantedGateway(request, settings, groups)
        self._groups = groups
        self._home = home
        self._folder = gateway_folder(home, request.deployment, request.instance)
        self._address = address
        self._clock = clock
        self._on_change = on_change
        self._client: GatewayClient | None = None
        self._status: GatewayStatus | None = None
        self._dirty = asyncio.Event()
        self._up = asyncio.Event()
        """A keeper answers."""
        self._watch: asyncio.Task[None] | None = None
        self._pushed: tuple[Member, ...] = ()
        self._pushed_at = 0.0
        self._owes_options = False
        """The keeper was found while the secrets were not known."""
        self._known_endpoint = ""
        """Where a gateway was up under the last controller."""
        self._is_stopping = False
        self._lock = asyncio.Lock()
        """A stop waits for a start that is under way: it would leave a gateway behind."""
        self._nodes: NodeGateways | None = None
        if settings.nodes == "all":
            self._nodes = NodeGateways(self._find_agents)
        self.was_up = False
        """Whether it served at any time: an error then is no reason to stop the groups."""
        self.findings: tuple[Finding, ...] = ()
        """Of the check before the start."""

    def report(self) -> GatewayReport:
        """Return where the gateway is, and its counters as of the last `refresh`."""
        settings = self._wanted.settings
        if self._status is None:
            return GatewayReport(self._known_endpoint, settings.policy, is_silent=True)
        node = node_report(settings, self._address, self._status)
        others = self._nodes.statuses if self._nodes is not None else []
        reports = (node_report(settings, one.address, one) for one in others)
        is_silent = self._client is None
        return GatewayReport(node.endpoint, settings.policy, (node, *reports), is_silent)

    async def refresh(self) -> bool:
        """Read the counters; return whether the gateway answered."""
        if self._client is None:
            return False
        try:
            self._status = await asyncio.to_thread(self._client.status)
        except NodeError as error:
            # `run` notices too, and starts another one on the same port.
            log.warning("the gateway does not answer: %s", error)
            return False
        return True

    def begin(self, secrets: Mapping[str, str], *, was_up: bool) -> None:
        """Hand over the secrets, and whether a gateway of this deployment served, before `run`."""
        self._wanted.secrets = secrets
        self.was_up = was_up

    def take_secrets(self, secrets: Mapping[str, str]) -> None:
        """Take the secrets later than `begin`: no agent could hand them out before."""
        self._wanted.secrets = secrets
        self._dirty.set()

    async def check(self, secrets: Mapping[str, str]) -> None:
        """Check this node and the API keys; where the gateway cannot start, let all groups fail.

        Nothing has been launched yet.
        """
        loaded = self._request.loaded
        found = await asyncio.to_thread(probe_gateway, self._wanted.settings, self._address)
        valued = [name for name, value in secrets.items() if value]
        findings = check_gateway(loaded, [found], valued)
        self.findings = tuple(waive(findings, self._request.skipped or {}))
        try:
            refuse_errors(self.findings)
        except ChecksFailedError as error:
            for group in self._groups:
                group.loop.abandon(error)

    def adopt(self, journal: DeploymentJournal) -> None:
        """Take what the last controller knew, before `run`; `upgrade` and `keys` change it."""
        self._wanted.settings = journal.loaded.recipe.gateway
        self._wanted.key_hashes = journal.key_hashes
        self._known_endpoint = journal.endpoint

    async def replace_keys(self, key_hashes: Mapping[str, str]) -> None:
        """Accept other API keys instead of those of their names (SHA-256 -> name).

        Raises:
            RaylaunchError: the gateway does not take them; the old ones stay.
        """
        previous, self._wanted.key_hashes = self._wanted.key_hashes, key_hashes
        try:
            await self._configure()
        except RaylaunchError:
            self._wanted.key_hashes = previous
            raise

    def mark_changed(self) -> None:
        """Note that a group changed: what the gateway must know is sent without delay."""
        self._dirty.set()

    async def run(self) -> None:
        """Start the gateway once ports are chosen, then keep its membership until `stop`.

        Raises:
            RaylaunchError: it cannot be started.
        """
        while not self._is_stopping:
            if self._client is None and self._ports_are_chosen():
                await self._start()
            if self._client is not None and self._is_due():
                await self._push()
            if self._owes_options and not self._wanted.lacks_secrets:
                await self._send_owed_options()
            await self._clock.wait(self._dirty, self._pause_s())
            self._dirty.clear()

    async def drain(self, group: str) -> bool:
        """Send a group no new request, and wait for its running ones for `gateway.drain_s`.

        Return whether all of them have finished.
        """
        self._wanted.draining.add(group)
        if self._status is None:
            return True  # no gateway has been up yet
        ids = [one.id for one in self._wanted.members() if one.id.startswith(f"{group}/")]
        drain_s = self._wanted.settings.drain_s
        work = [self._drain_here(ids, self._clock.monotonic() + drain_s)]
        if self._nodes is not None and not self._wanted.lacks_secrets:
            work.append(self._nodes.drain(self._wanted.order(), ids, drain_s))
        return all(await asyncio.gather(*work))

    async def _drain_here(self, ids: list[str], deadline: float) -> bool:
        """Drain on this node. A keeper that dies meanwhile cuts nothing: the next one is asked."""
        while not self._is_stopping:
            if self._client is not None:
                await self._push()
            client = self._client
            remaining_s = max(0.0, deadline - self._clock.monotonic())
            if client is None:
                if not await self._clock.wait(self._up, remaining_s):
                    return False
                continue
            try:
                return await asyncio.to_thread(client.drain, ids, remaining_s)
            except NodeError as error:
                log.warning("the gateway's keeper was lost during a drain: %s", error)
                self._lose(client)
        return False

    def hold_back(self, group: str) -> None:
        """Send a group no request yet, also when it is ready; `undrain` ends that."""
        self._wanted.draining.add(group)
        self._dirty.set()

    def undrain(self, group: str) -> None:
        """Let a group have requests again, as soon as it is ready."""
        self._wanted.draining.discard(group)
        self._dirty.set()

    async def apply(self, settings: Gateway, secrets: Mapping[str, str]) -> None:
        """Change the settings of the running gateway. `secrets` has the values of its API keys.

        Raises:
            RaylaunchError: they are refused; the old ones stay.
        """
        previous, self._wanted.settings = self._wanted.settings, settings
        self._wanted.secrets = secrets
        try:
            await self._configure()
        except RaylaunchError:
            self._wanted.settings = previous
            raise

    async def _configure(self) -> None:
        if self._client is not None:
            options = self._wanted.options()
            options = replace(options, address=options.address or self._address)
            await asyncio.to_thread(self._client.configure, None, options)
        if self._nodes is not None:
            self._nodes.push(self._wanted.order())

    async def _send_owed_options(self) -> None:
        self._owes_options = False
        try:
            await self._configure()
        except RaylaunchError as error:
            # It serves on with those that it has.
            log.warning("the gateway does not take its settings: %s", error)

    async def stop(self) -> None:
        """Refuse new requests, let running ones finish for `gateway.drain_s`, and stop it."""
        self._is_stopping = True
        self._dirty.set()
        self._up.set()
        async with self._lock:
            client, self._client = self._client, None
            if self._watch is not None:
                self._watch.cancel()
            if client is None:
                # Another controller started it, or its keeper is dead.
                client = await asyncio.to_thread(connect_gateway, self._folder)
        if client is None and not self._folder.exists():
            return
        drain_s = self._wanted.settings.drain_s
        work = [self._stop_here(client, drain_s)]
        if self._nodes is not None:
            work.append(self._nodes.stop(self._wanted.stop_order(), drain_s))
        finished = all(await asyncio.gather(*work))
        log.info("the gateway stopped; all requests finished: %s", finished)
        self._status = None
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder)
        self._on_change()

    async def _stop_here(self, client: GatewayClient | None, drain_s: float) -> bool:
        deployment, instance = self._request.deployment, self._request.instance
        try:
            if client is not None:
                return await asyncio.to_thread(client.stop, drain_s)
        except NodeError as error:
            log.warning("the gateway's keeper could not stop it: %s", error)
        try:
            return await asyncio.to_thread(
                stop_orphans, self._folder, deployment, instance, drain_s
            )
        except NodeError as error:
            log.warning("the gateway could not be stopped: %s", error)
            return False

    def _find_agents(self) -> dict[str, GatewayAgent]:
        """Return an agent of every node of the deployment but this one, by the node's id."""
        import ray

        here = ray.get_runtime_context().get_node_id()
        found: dict[str, GatewayAgent] = {}
        for group in self._groups:
            found |= group.agents_by_node()
        found.pop(here, None)
        return found

    def _ports_are_chosen(self) -> bool:
        return any(group.journal.phase in PLANNED for group in self._groups)

    async def _start(self) -> None:
        async with self._lock:
            if self._is_stopping:
                return
            client = await self._find_or_start()
            if client is None:
                return
            self._status = await asyncio.to_thread(client.status)
            self._wanted.port = self._status.port
            self._client = client
            self._up.set()
            if self._watch is not None:
                self._watch.cancel()
            self._watch = asyncio.create_task(self._watch_keeper(client))
        if self._nodes is not None and not self._owes_options:
            await self._nodes.start(self._wanted.order())
        self.was_up = True
        log.info("the gateway is up: %s", self._status.url)
        self._on_change()

    async def _find_or_start(self) -> GatewayClient | None:
        """Return the gateway that runs, else one that is started; None if it must wait."""
        self._owes_options = self._wanted.lacks_secrets
        if self._owes_options:
            # Without API keys it would serve every client. One that runs has them.
            return await asyncio.to_thread(connect_gateway, self._folder)
        order = self._wanted.order()
        return await asyncio.to_thread(start_here, order, self._home, self._address)

    async def _watch_keeper(self, client: GatewayClient) -> None:
        await client.wait_exit()
        if not self._is_stopping:
            log.warning("the gateway's keeper has exited: starting another")
            self._lose(client)

    def _lose(self, client: GatewayClient) -> None:
        """Forget a keeper that is dead: `run` starts another on the same port."""
        if self._client is client:
            self._client = None
            self._up.clear()
            self._on_change()

    def _is_due(self) -> bool:
        if _without_load(self._wanted.members()) != _without_load(self._pushed):
            return True
        return self._clock.monotonic() - self._pushed_at >= LOAD_PERIOD_S

    def _pause_s(self) -> float:
        if self._client is None:
            return SIGN_S
        return max(0.01, self._pushed_at + SIGN_S - self._clock.monotonic())

    async def _push(self) -> None:
        client = self._client
        assert client is not None
        members = self._wanted.members()
        if self._nodes is not None and not self._owes_options:
            self._nodes.push(self._wanted.order())
        try:
            await asyncio.to_thread(client.configure, members)
        except NodeError as error:
            log.warning("the gateway's keeper is lost: %s", error)
            self._lose(client)
            return
        self._pushed = members
        self._pushed_at = self._clock.monotonic()


def make_gateway(
    request: Request, groups: GroupSet, clock: Clock, on_change: Callable[[], None]
) -> GatewayLink | None:
    """Return the gateway of a deployment on this node; None when its recipe has none."""
    import ray

    settings = request.loaded.recipe.gateway
    if not settings.enabled:
        return None
    address = str(ray.util.get_node_ip_address())
    return GatewayLink(request, settings, groups, home(), address, clock, on_change)


def _without_load(members: tuple[Member, ...]) -> list[tuple[str, str, str]]:
    return [(member.id, member.url, member.state) for member in members]
