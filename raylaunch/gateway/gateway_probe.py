"""Finds out what this machine has for a gateway."""

from __future__ import annotations

from pathlib import Path

from raylaunch.errors import NodeError
from raylaunch.gateway.haproxy_process import find_haproxy
from raylaunch.gateway.tls_certificate import read_certificate
from raylaunch.node.probe.network import read_listeners
from raylaunch.plan.facts import GatewayFacts
from raylaunch.recipe.gateway_settings import Gateway


def probe_gateway(settings: Gateway, ip: str) -> GatewayFacts:
    """Look for HAProxy, the listeners of this machine, and the certificate.

    Args:
        settings: The section `gateway` of the recipe.
        ip: The address of this machine.
    """
    certificate = None
    if settings.tls is not None:
        certificate = read_certificate(Path(settings.tls.certificate), Path(settings.tls.key))
    return GatewayFacts(
        ip=ip,
        haproxy=_has_haproxy(),
        listeners=read_listeners((settings.port,)),
        certificate=certificate,
    )


def _has_haproxy() -> bool:
    try:
        return find_haproxy().is_file()
    except NodeError:
        return False
