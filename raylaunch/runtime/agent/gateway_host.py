"""Starts or adopts the gateway of a deployment on this node, from whichever process is here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raylaunch.gateway import gateway_client
from raylaunch.gateway.gateway_client import GatewayClient, connect_gateway, start_gateway
from raylaunch.gateway.gateway_messages import GatewayOptions, Member
from raylaunch.gateway.gateway_orphans import stop_orphans
from raylaunch.node.process.process_markers import DEPLOYMENT, EMBEDDED_IN, GROUP
from raylaunch.recipe.group_names import GATEWAY_GROUP


@dataclass(frozen=True)
class GatewayOrder:
    """The gateway that a node shall have: what it is, and who serves."""

    deployment: str
    instance: str
    """Random id of the start of the deployment."""
    options: GatewayOptions
    """The address "" stands for that of the node."""
    members: tuple[Member, ...]


def gateway_folder(home: Path, deployment: str, instance: str) -> Path:
    """Return the folder of a deployment's gateway on this node."""
    return home / "gateways" / f"{deployment[:20]}-{instance[:8]}"


def start_here(
    order: GatewayOrder, home: Path, address: str, environ: Mapping[str, str] = os.environ
) -> GatewayClient:
    """Start or adopt the gateway of this node, whose address is `address`.

    Raises:
        RaylaunchError: see `start_gateway`.
    """
    # Where this process has raylaunch from: its node may have none installed.
    code = str(Path(gateway_client.__file__).parents[2])
    path = os.pathsep.join(filter(None, (code, environ.get("PYTHONPATH", ""))))
    marks = {
        # The marker tells its processes from those that a group left behind.
        GROUP: GATEWAY_GROUP,
        EMBEDDED_IN: environ.get(DEPLOYMENT, ""),
    }
    options = order.options
    return start_gateway(
        gateway_folder(home, order.deployment, order.instance),
        options if options.address else replace(options, address=address),
        deployment=order.deployment,
        instance=order.instance,
        env={**environ, "PYTHONPATH": path, **marks},
        members=order.members,
    )


def drain_here(order: GatewayOrder, home: Path, ids: Sequence[str], timeout_s: float) -> bool:
    """Wait until members have nothing in flight at this node's gateway.

    Raises:
        NodeError: it does not answer.
    """
    folder = gateway_folder(home, order.deployment, order.instance)
    return GatewayClient(folder).drain(ids, timeout_s)


def stop_here(order: GatewayOrder, home: Path, drain_s: float) -> bool:
    """Stop this node's gateway and remove its folder; return whether all requests finished.

    Raises:
        NodeError: it does not exit.
    """
    folder = gateway_folder(home, order.deployment, order.instance)
    client = connect_gateway(folder)
    if client is not None:
        finished = client.stop(drain_s)
    else:
        # Its keeper may be dead, and the rest of it alive.
        finished = stop_orphans(folder, order.deployment, order.instance, drain_s)
    shutil.rmtree(folder, ignore_errors=True)
    return finished
