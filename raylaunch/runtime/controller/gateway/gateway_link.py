"""Starts or adopts the deployment's gateway on the controller's node, and tells it who serves.

The gateway's keeper outlives the controller. A controller that takes over finds it by its folder.
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
from raylaunch.gateway.gateway_client import GatewayClient, connect_gateway, gateway_options
from raylaunch.gateway.gateway_messages import GatewayOptions, GatewayStatus, Member
from raylaunch.gateway.gateway_probe import probe_gateway
from raylaunch.home import home
from raylaunch.plan.gateway_plan import choose_gateway_port, gateway_url, planned_ports
from raylaunch.recipe.gateway_settings import Gateway
from raylaunch.runtime.agent.gateway_host import GatewayOrder, gateway_folder, start_here
from raylaunch.runtime.cluster.clock import Clock
from raylaunch.runtime.controller.gateway.gateway_preflight import check_gateway
from raylaunch.runtime.controller.gateway.membership import members_of
from raylaunch.runtime.controller.gateway.node_gateways import GatewayAgent, NodeGateways
from raylaunch.runtime.controller.group.planning import refuse_errors
from raylaunch.runtime.controller.group_set import GroupSet
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.supervise.deployment_status import GatewayCounters, GatewayNode, GatewayReport
from raylaunch.supervise.state import Phase

log = logging.getLogger(__name__)

SIGN_S = 1.0
"""The keeper hears from its owner at least this often: the owner also notices its death."""
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
        self._settings = settings
        self._groups = groups
        self._home = home
        self._folder = gateway_folder(home, request.deployment, request.instance)
        self._address = address
        self._clock = clock
        self._on_change = on_change
        self._secrets: Mapping[str, str] = {}
        self._key_hashes: Mapping[str, str] = {}
        self._client: GatewayClient | None = None
        self._status: GatewayStatus | None = None
        self._draining: set[str] = set()
        self._dirty = asyncio.Event()
        self._pushed: tuple[Member, ...] = ()
        self._pushed_at = 0.0
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
        policy = self._settings.policy
        if self._status is None:
            return GatewayReport(policy=policy)
        node = _node_report(self._settings, self._address, self._status)
        others = self._nodes.statuses if self._nodes is not None else []
        reports = (_node_report(self._settings, one.address, one) for one in others)
        return GatewayReport(node.endpoint, policy, (node, *reports))

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
        self._secrets = secrets
        self.was_up = was_up

    async def check(self, secrets: Mapping[str, str]) -> None:
        """Check this node and the API keys; where the gateway cannot start, let all groups fail.

        Nothing has been launched yet.
        """
        loaded = self._request.loaded
        found = await asyncio.to_thread(probe_gateway, self._settings, self._address)
        valued = [name for name, value in secrets.items() if value]
        findings = check_gateway(loaded, [found], valued)
        self.findings = tuple(waive(findings, self._request.skipped or {}))
        try:
            refuse_errors(self.findings)
        except ChecksFailedError as error:
            for group in self._groups:
                group.loop.abandon(error)

    def adopt(self, settings: Gateway, key_hashes: Mapping[str, str]) -> None:
        """Take what an upgrade and `raylaunch keys` have changed since the start, before `run`."""
        self._settings = settings
        self._key_hashes = key_hashes

    async def replace_keys(self, key_hashes: Mapping[str, str]) -> None:
        """Accept other API keys instead of those of their names (SHA-256 -> name).

        Raises:
            RaylaunchError: the gateway does not take them; the old ones stay.
        """
        previous, self._key_hashes = self._key_hashes, key_hashes
        try:
            await self._configure()
        except RaylaunchError:
            self._key_hashes = previous
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
            await self._clock.wait(self._dirty, self._pause_s())
            self._dirty.clear()

    async def drain(self, group: str) -> bool:
        """Send a group no new request, and wait for its running ones for `gateway.drain_s`.

        Return whether all of them have finished.
        """
        self._draining.add(group)
        client = self._client
        if client is None:
            return True
        await self._push()
        ids = [member.id for member in self._pushed if member.id.startswith(f"{group}/")]
        drain_s = self._settings.drain_s
        work = [self._drain_here(client, ids)]
        if self._nodes is not None:
            work.append(self._nodes.drain(self._order(), ids, drain_s))
        return all(await asyncio.gather(*work))

    async def _drain_here(self, client: GatewayClient, ids: list[str]) -> bool:
        try:
            return await asyncio.to_thread(client.drain, ids, self._settings.drain_s)
        except NodeError as error:
            # The keeper died, and with it every connection: nothing is left to wait for.
            log.warning("the gateway was lost while %s were drained: %s", ids, error)
            return False

    def hold_back(self, group: str) -> None:
        """Send a group no request yet, also when it is ready; `undrain` ends that."""
        self._draining.add(group)
        self._dirty.set()

    def undrain(self, group: str) -> None:
        """Let a group have requests again, as soon as it is ready."""
        self._draining.discard(group)
        self._dirty.set()

    async def apply(self, settings: Gateway, secrets: Mapping[str, str]) -> None:
        """Change the settings of the running gateway. `secrets` has the values of its API keys.

        Raises:
            RaylaunchError: they are refused; the old ones stay.
        """
        previous, self._settings = self._settings, settings
        self._secrets = secrets
        try:
            await self._configure()
        except RaylaunchError:
            self._settings = previous
            raise

    async def _configure(self) -> None:
        if self._client is not None:
            options = self._options()
            options = replace(options, address=options.address or self._address)
            await asyncio.to_thread(self._client.configure, None, options)
        if self._nodes is not None:
            self._nodes.push(self._order())

    async def stop(self) -> None:
        """Refuse new requests, let running ones finish for `gateway.drain_s`, and stop it."""
        self._is_stopping = True
        self._dirty.set()
        async with self._lock:
            client, self._client = self._client, None
            if client is None:
                # Another controller started it.
                client = await asyncio.to_thread(connect_gateway, self._folder)
        if client is None:
            return
        work = [self._stop_here(client)]
        if self._nodes is not None:
            work.append(self._nodes.stop(self._order(), self._settings.drain_s))
        finished = all(await asyncio.gather(*work))
        log.info("the gateway stopped; all requests finished: %s", finished)
        self._status = None
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder)
        self._on_change()

    async def _stop_here(self, client: GatewayClient) -> bool:
        try:
            return await asyncio.to_thread(client.stop, self._settings.drain_s)
        except NodeError as error:
            log.warning("the gateway could not be stopped in order: %s", error)
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
            order = self._order()
            client = await asyncio.to_thread(start_here, order, self._home, self._address)
            self._client = client
            self._status = await asyncio.to_thread(client.status)
        if self._nodes is not None:
            await self._nodes.start(order)
        self.was_up = True
        log.info("the gateway is up: %s", self._status.url)
        self._on_change()

    def _order(self) -> GatewayOrder:
        """Return what every gateway of the deployment shall be, as of now."""
        request = self._request
        members = members_of(self._groups, self._draining)
        return GatewayOrder(request.deployment, request.instance, self._options(), members)

    def _options(self) -> GatewayOptions:
        settings = self._settings
        if self._status is not None:
            # A gateway that runs keeps its port.
            settings = settings.model_copy(update={"port": self._status.port})
        else:
            settings = settings.model_copy(update={"port": self._choose_port()})
        server_key = self._secrets.get("VLLM_API_KEY", "")
        # "" stands for the address of each node.
        options = gateway_options(settings, "", self._secrets, server_key)
        return replace(options, key_hashes=replaced(options.key_hashes, self._key_hashes))

    def _choose_port(self) -> int:
        """Return the first port from the wanted one on that no server of the deployment wants."""
        return choose_gateway_port(self._settings.port, planned_ports(self._groups.plans()))

    def _is_due(self) -> bool:
        members = members_of(self._groups, self._draining)
        if _without_load(members) != _without_load(self._pushed):
            return True
        return self._clock.monotonic() - self._pushed_at >= LOAD_PERIOD_S

    def _pause_s(self) -> float:
        if self._client is None:
            return SIGN_S
        return max(0.01, self._pushed_at + SIGN_S - self._clock.monotonic())

    async def _push(self) -> None:
        assert self._client is not None
        members = members_of(self._groups, self._draining)
        if self._nodes is not None:
            self._nodes.push(self._order())
        try:
            await asyncio.to_thread(self._client.configure, members)
        except NodeError as error:
            # The keeper is dead: the next round starts another one on the same port.
            log.warning("the gateway is lost: %s", error)
            self._client = None
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


def _node_report(settings: Gateway, ip: str, status: GatewayStatus) -> GatewayNode:
    seen = status.counters
    counters = GatewayCounters(
        requests=seen.requests,
        queue=seen.held,
        held=seen.held_total,
        held_s=seen.held_s,
        repeated=seen.retries,
        continued=seen.continued,
        broken=seen.broken,
        failed=seen.failed,
        rejected=seen.rejected,
        cancelled=seen.cancelled,
    )
    return GatewayNode(
        ip=ip,
        endpoint=f"{gateway_url(settings, ip, status.port)}/v1",
        keeper_pid=status.keeper_pid,
        counters=counters,
        haproxy_starts=status.haproxy_starts,
        relay_starts=status.relay_starts,
    )


def replaced(hashes: Mapping[str, str], newer: Mapping[str, str]) -> dict[str, str]:
    """Return the hashes with the newer ones in the place of those of the same names."""
    names = set(hashes.values())
    kept = {digest: name for digest, name in hashes.items() if name not in newer.values()}
    return kept | {digest: name for digest, name in newer.items() if name in names}


def _without_load(members: tuple[Member, ...]) -> list[tuple[str, str, str]]:
    return [(member.id, member.url, member.state) for member in members]
