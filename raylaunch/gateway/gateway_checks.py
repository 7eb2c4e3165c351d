"""What can be wrong with a gateway before it is started. Pure: facts in, problems out."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from raylaunch.gateway.haproxy_process import INSTALL
from raylaunch.gateway.tls_certificate import CertificateFacts
from raylaunch.recipe.gateway_settings import Gateway

EXPIRES_SOON_S = 14 * 24 * 3600.0


@dataclass(frozen=True)
class GatewayFacts:
    """What was found on the gateway's node."""

    haproxy: bool
    """An executable was found (`find_haproxy`)."""
    port_free: bool
    """The wanted port can be listened on."""
    certificate: CertificateFacts | None = None
    """None without `gateway.tls`."""


@dataclass(frozen=True)
class GatewayProblem:
    """One problem: `error` stops a start, `warning` does not."""

    id: str
    level: str
    what: str
    todo: str


def check_gateway(
    settings: Gateway,
    facts: GatewayFacts,
    secrets: Collection[str],
    now: float,
) -> Iterator[GatewayProblem]:
    """Yield every problem of an enabled gateway.

    Args:
        settings: The recipe's section.
        facts: Of the gateway's node.
        secrets: Names of the secrets that have a value.
        now: Seconds since the epoch.
    """
    if not facts.haproxy:
        yield GatewayProblem(
            "gateway-haproxy",
            "error",
            "HAProxy, the gateway's listener, is not installed on the gateway's node",
            f"{INSTALL}, or start without a gateway: --set gateway.enabled=false",
        )
    if not facts.port_free:
        yield GatewayProblem(
            "gateway-port",
            "warning",
            f"the gateway's port {settings.port} is taken: the next free one will be used",
            "choose a free port with gateway.port",
        )
    for name in settings.api_keys:
        if name not in secrets:
            yield GatewayProblem(
                "gateway-key",
                "error",
                f"the gateway's API key {name} has no value",
                f"export {name}=..., and list {name} in the recipe's `secrets`",
            )
    if facts.certificate is not None:
        yield from _check_certificate(facts.certificate, now)


def _check_certificate(found: CertificateFacts, now: float) -> Iterator[GatewayProblem]:
    if found.problem is not None:
        yield GatewayProblem(
            "gateway-certificate",
            "error",
            f"the gateway's certificate cannot be used ({found.problem}): {found.detail}",
            "correct gateway.tls.certificate and gateway.tls.key",
        )
    elif found.expires is not None and found.expires - now < EXPIRES_SOON_S:
        days = max(0.0, found.expires - now) / 86400
        yield GatewayProblem(
            "gateway-certificate",
            "warning",
            f"the gateway's certificate expires in {days:.0f} days",
            "renew it: the gateway takes the new files when its settings are sent again",
        )
