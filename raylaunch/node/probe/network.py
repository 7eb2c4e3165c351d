"""The machine's network as the kernel shows it: interfaces, listening sockets, what its own name resolves to."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from pathlib import Path

import psutil

from raylaunch.plan.facts import Interface, Listener

_ARPHRD_ETHER = "1"
_ARPHRD_LOOPBACK = "772"
_TUNNEL_TYPES = frozenset(
    {"768", "769", "776", "778", "823", "65534"}
)  # ipip, ip6ip6, sit, gre, ip6gre, none (tun)
_TUNNEL_DEVTYPES = frozenset({"vxlan", "geneve", "gretap", "wireguard"})


def read_interfaces(root: Path = Path("/")) -> tuple[Interface, ...]:
    """All interfaces with their IPv4 and IPv6 addresses, by name."""
    states = psutil.net_if_stats()
    addresses = _addresses_by_device()
    return tuple(
        Interface(
            name,
            addresses=tuple(addresses.get(name, ())),
            up=name in states and states[name].isup,
            kind=interface_kind(name, root),
            mtu=states[name].mtu if name in states else None,
        )
        for name in sorted({*states, *addresses})
    )


def interface_kind(name: str, root: Path = Path("/")) -> str:
    """What an interface is, from /sys/class/net; "other" where the kernel gives no sign (dummy, macvlan, gone)."""
    device = root / "sys/class/net" / name
    devtype = _devtype(device)
    hardware = _read(device / "type")
    if hardware == _ARPHRD_LOOPBACK:
        return "loopback"
    if (device / "bridge").is_dir():
        return "bridge"
    if (device / "bonding").is_dir():
        return "bond"
    if devtype == "vlan" or (root / "proc/net/vlan" / name).exists():
        return "vlan"
    if devtype in _TUNNEL_DEVTYPES or hardware in _TUNNEL_TYPES or (device / "tun_flags").exists():
        return "tunnel"
    if (device / "device").exists():
        return "physical"
    return "veth" if not devtype and hardware == _ARPHRD_ETHER and _has_peer(device) else "other"


def read_listeners(ports: Collection[int] = ()) -> tuple[Listener, ...]:
    """All listening TCP sockets, IPv4 and IPv6. Without privileges other users' sockets have pid None.

    Looking at listeners is the only sound test for a free port: with SO_REUSEPORT a second bind succeeds.
    Process names are looked up for `ports`, or for every port when none is named.
    """
    listening = {
        (row.laddr.ip, row.laddr.port, row.pid)
        for row in psutil.net_connections(kind="tcp")
        if row.status == psutil.CONN_LISTEN and row.laddr
    }
    return tuple(
        Listener(address, port, pid, _process_name(pid) if not ports or port in ports else None)
        for address, port, pid in sorted(listening, key=lambda row: (row[1], row[0], row[2] or 0))
    )


def resolve_hostname() -> tuple[str, ...]:
    """The addresses that this machine's own name resolves to; may block on DNS, so call it with a deadline.

    Raises:
        OSError: The name does not resolve.
    """
    found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def _addresses_by_device() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for label, entries in psutil.net_if_addrs().items():
        device = label.partition(":")[
            0
        ]  # getifaddrs names an alias "eth0:1"; the interface is eth0
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                found.setdefault(device, []).append(_with_prefix(entry.address, entry.netmask))
    return found


def _with_prefix(address: str, netmask: str | None) -> str:
    bare = ipaddress.ip_address(address.partition("%")[0])  # link-local addresses carry "%eth0"
    bits = int(ipaddress.ip_address(netmask)).bit_count() if netmask else bare.max_prefixlen
    return f"{bare}/{bits}"


def _devtype(device: Path) -> str:
    lines = _read(device / "uevent").splitlines()
    return next(
        (line.removeprefix("DEVTYPE=") for line in lines if line.startswith("DEVTYPE=")), ""
    )


def _has_peer(device: Path) -> bool:
    """A veth's iflink is its other end. A macvlan's is the device it stands on, which it names as lower_*."""
    own, peer = _read(device / "ifindex"), _read(device / "iflink")
    return bool(own) and bool(peer) and own != peer and not any(device.glob("lower_*"))


def _process_name(pid: int | None) -> str | None:
    try:
        return psutil.Process(pid).name() if pid else None
    except psutil.Error:  # gone in the meantime, or not ours to see
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
