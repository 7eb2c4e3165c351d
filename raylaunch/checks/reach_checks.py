"""What it means that one host did not reach another: a finding per direction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raylaunch.checks.findings import Finding


@dataclass(frozen=True)
class Door:
    """A port that was opened on a host so that the others can try it. `name` says what will use it."""

    host: str
    name: str
    port: int
    greeting: str
    """What answers there; something else that answers in its place is not this host."""


@dataclass(frozen=True)
class Unreached:
    """A door that could not be reached from `source`, and why."""

    source: str
    door: Door
    reason: str


def check_reach(missed: Sequence[Unreached], nics: Mapping[str, str]) -> Iterator[Finding]:
    """Each host connects to every other, from its own address, on the ports the servers will use.

    `nics` names the interface that each address was chosen on.
    """
    ways = dict.fromkeys((one.source, one.door.host) for one in missed)
    for source, target in ways:
        here = [one for one in missed if (one.source, one.door.host) == (source, target)]
        ports = ", ".join(f"{one.door.port} ({one.door.name})" for one in here)
        yield Finding(
            "unreachable",
            "error",
            f"{source} → {target} ({nics[source]} → {nics[target]}): no TCP connection to port {ports}",
            f"open TCP from {source} to {target} (firewall, security group, VLAN), also for the ports that the system "
            "chooses; or name the network that joins the hosts in network.interface",
            source,
            "; ".join(dict.fromkeys(one.reason for one in here)),
        )
