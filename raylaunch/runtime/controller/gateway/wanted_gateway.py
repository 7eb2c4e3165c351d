"""What every gateway of a deployment shall be: settings, API keys, members."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from raylaunch.gateway.gateway_client import gateway_options
from raylaunch.gateway.gateway_messages import GatewayOptions, Member
from raylaunch.plan.gateway_plan import choose_gateway_port, planned_ports
from raylaunch.recipe.gateway_settings import Gateway
from raylaunch.runtime.agent.gateway_host import GatewayOrder
from raylaunch.runtime.controller.gateway.membership import members_of
from raylaunch.runtime.controller.group_set import GroupSet
from raylaunch.runtime.controller.launch_request import Request

SERVER_KEY = "VLLM_API_KEY"


class WantedGateway:
    """Makes the orders for the gateways of one deployment.

    Args:
        request: Names the deployment and its instance.
        settings: The section `gateway` of the recipe.
        groups: Those of the deployment.
    """

    def __init__(self, request: Request, settings: Gateway, groups: GroupSet) -> None:
        self.settings = settings
        self.secrets: Mapping[str, str] = {}
        self.key_hashes: Mapping[str, str] = {}
        """API keys that replace those of the same names: SHA-256 -> name."""
        self.draining: set[str] = set()
        """Groups that get no new request."""
        self.port: int | None = None
        """That of the gateway that runs: it keeps it."""
        self._request = request
        self._groups = groups

    @property
    def lacks_secrets(self) -> bool:
        """Whether a secret that the gateway needs is not known, as after a takeover."""
        if not self.settings.api_keys:
            return False
        needed = set(self.settings.api_keys)
        if SERVER_KEY in self._request.loaded.recipe.secrets:
            needed.add(SERVER_KEY)
        return not needed <= self.secrets.keys()

    def members(self) -> tuple[Member, ...]:
        """Return who is behind the gateway, as of now."""
        return members_of(self._groups, self.draining)

    def order(self) -> GatewayOrder:
        """Return what every gateway shall be, as of now.

        Raises:
            NodeError: An API key has no value.
        """
        request = self._request
        return GatewayOrder(request.deployment, request.instance, self.options(), self.members())

    def stop_order(self) -> GatewayOrder:
        """Return what names the gateways, for a stop: it needs no secrets."""
        return GatewayOrder(self._request.deployment, self._request.instance, GatewayOptions(), ())

    def options(self) -> GatewayOptions:
        """Return the options; the address "" stands for that of each node.

        Raises:
            NodeError: An API key has no value.
        """
        port = self._choose_port() if self.port is None else self.port
        settings = self.settings.model_copy(update={"port": port})
        options = gateway_options(settings, "", self.secrets, self.secrets.get(SERVER_KEY, ""))
        return replace(options, key_hashes=replaced(options.key_hashes, self.key_hashes))

    def _choose_port(self) -> int:
        """Return the first port from the wanted one on that no server of the deployment wants."""
        return choose_gateway_port(self.settings.port, planned_ports(self._groups.plans()))


def replaced(hashes: Mapping[str, str], newer: Mapping[str, str]) -> dict[str, str]:
    """Return the hashes with the newer ones in the place of those of the same names."""
    names = set(hashes.values())
    kept = {digest: name for digest, name in hashes.items() if name not in newer.values()}
    return kept | {digest: name for digest, name in newer.items() if name in names}
