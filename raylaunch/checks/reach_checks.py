"""Judges failed connections between hosts: one finding per direction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raylaunch.checks.findings import Finding


@dataclass(frozen=True)
class ProbeListener:
    """A port opened on a host so that the others can try to connect. `name`: its later use."""

    host: str
    name: str
    port: int
    greeting: str
    """What the listener sends; a peer that receives anything else has reached another process."""


@dataclass(frozen=True)
class FailedConnection:
    """A listener that could not be reached from `source`, and why."""

    source: str
    listener: ProbeListener
    reason: str


def check_reach(missed: Sequence[FailedConnection], nics: Mapping[str, str]) -> Iterator[Finding]:
    """Yield one finding per direction in which a host does not reach another.

    Each host connects to every other, from its own address, on the ports the servers will use.

    Args:
        missed: The failed connections.
        nics: Address -> the interface it was chosen on.
    """
    directions = dict.fromkeys((one.source, one.listener.host) for one in missed)
    for source, target in directions:
        failed = [one for one in missed if (one.source, one.listener.host) == (source, target)]
        ports = ", ".join(f"{one.listener.port} ({one.listener.name})" for one in failed)
        reasons = dict.fromkeys(one.reason for one in failed)
        yield Finding(
            id="unreachable",
            level="error",
            what=(
                f"{source} → {target} ({nics[source]} → {nics[target]}): "
                f"no TCP connection to port {ports}"
            ),
            todo=(
                f"open TCP from {source} to {target} (firewall, security group, VLAN), "
                f"also for ephemeral ports; or set network.interface to the network that joins "
                f"the hosts"
            ),
            where=source,
            seen="; ".join(reasons),
        )
