"""Checks of the gateway: API keys of the recipe; listener, port and certificate of its nodes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from raylaunch.checks.findings import Finding, Level
from raylaunch.plan.facts import CertificateFacts, GatewayFacts
from raylaunch.plan.gateway_plan import listen_address
from raylaunch.plan.ports import collide, describe_holder
from raylaunch.recipe.gateway_settings import INSTALL_HAPROXY
from raylaunch.recipe.load import LoadedRecipe

EXPIRES_SOON_S = 14 * 24 * 3600.0
NO_GATEWAY = "start without a gateway: --set gateway.enabled=false"


def check_gateway_keys(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find API keys of the gateway that are not among the recipe's secrets: they have no value."""
    gateway = loaded.recipe.gateway
    for name in gateway.api_keys if gateway.enabled else ():
        if name not in loaded.recipe.secrets:
            yield _without_value(loaded, name, f"list {name} in the recipe's `secrets`")


def check_key_values(loaded: LoadedRecipe, secrets: Collection[str]) -> Iterator[Finding]:
    """Find API keys of the gateway whose secret is empty.

    Args:
        loaded: The recipe.
        secrets: Names of the secrets that have a value.
    """
    for name in loaded.recipe.gateway.api_keys:
        if name in loaded.recipe.secrets and name not in secrets:
            yield _without_value(loaded, name, f"export {name}=... before `raylaunch start`")


def check_gateway_nodes(
    loaded: LoadedRecipe, nodes: Sequence[GatewayFacts], now: float
) -> Iterator[Finding]:
    """Find what a gateway lacks on each node that shall run one.

    Args:
        loaded: The recipe.
        nodes: What was found on these nodes.
        now: Seconds since the epoch.
    """
    for facts in nodes:
        if not facts.haproxy:
            yield Finding(
                id="gateway-haproxy",
                level="error",
                what=f"HAProxy, the gateway's listener, is not installed on node {facts.ip}",
                todo=f"{INSTALL_HAPROXY} in the Python that runs Ray there, or {NO_GATEWAY}",
                where=facts.ip,
            )
        yield from _check_port(loaded, facts)
        if facts.certificate is not None:
            yield from _check_certificate(facts.ip, facts.certificate, now)


def _without_value(loaded: LoadedRecipe, name: str, todo: str) -> Finding:
    return Finding(
        id="gateway-key",
        level="error",
        what=f"the gateway's API key {name} has no value",
        todo=todo,
        where=loaded.origin("gateway.api_keys"),
    )


def _check_port(loaded: LoadedRecipe, facts: GatewayFacts) -> Iterator[Finding]:
    settings = loaded.recipe.gateway
    address = listen_address(settings, facts.ip)
    holders = [
        one
        for one in facts.listeners
        if one.port == settings.port and collide(one.address, address)
    ]
    if not holders:
        return
    # The default is "8000 or the next free one"; a port that was written down is expected.
    level: Level = "warning" if "gateway.port" in loaded.origins else "info"
    yield Finding(
        id="gateway-port",
        level=level,
        what=(
            f"the gateway's port {settings.port} on node {facts.ip} is taken by "
            f"{describe_holder(holders[0], {})}: the next free one is used"
        ),
        todo="`raylaunch status` shows the address; choose a free port with gateway.port",
        where=facts.ip,
        seen=f"{holders[0].address}:{settings.port}",
    )


def _check_certificate(ip: str, found: CertificateFacts, now: float) -> Iterator[Finding]:
    if found.problem is not None:
        yield Finding(
            id="gateway-certificate",
            level="error",
            what=f"the gateway's certificate on node {ip} cannot be used: {found.problem}",
            todo="correct gateway.tls.certificate and gateway.tls.key: both are files on that node",
            where=ip,
            seen=found.detail,
        )
    elif found.expires is not None and found.expires - now < EXPIRES_SOON_S:
        days = max(0.0, found.expires - now) / 86400
        yield Finding(
            id="gateway-certificate",
            level="warning",
            what=f"the gateway's certificate on node {ip} expires in {days:.0f} days",
            todo="renew it: `raylaunch upgrade` with any gateway setting makes it read again",
            where=ip,
        )
