"""Reads the machine's network from the kernel: interfaces, listening sockets, the own host name."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from pathlib import Path

import psutil

from raylaunch.node.probe import tool_text
from raylaunch.plan.facts import Interface, Listener

# Values of /sys/class/net/*/type (linux/if_arp.h).
_ARPHRD_ETHER = "1"
_ARPHRD_LOOPBACK = "772"
_TUNNEL_TYPES = frozenset(
    {
        "768",  # ipip
        "769",  # ip6ip6
        "776",  # sit
        "778",  # gre
        "823",  # ip6gre
        "65534",  # none (tun)
    }
)
_TUNNEL_DEVTYPES = frozenset({"vxlan", "geneve", "gretap", "wireguard"})


def read_interfaces(root: Path = Path("/")) -> tuple[Interface, ...]:
    """Read all interfaces with their IPv4 and IPv6 addresses, sorted by name."""
    states = psutil.net_if_stats()
    addresses = _addresses_by_device()
    interfaces = []
    for name in sorted({*states, *addresses}):
        state = states.get(name)
        interface = Interface(
            name,
            addresses=tuple(addresses.get(name, ())),
            up=state is not None and state.isup,
            kind=interface_kind(name, root),
            mtu=None if state is None else state.mtu,
        )
        interfaces.append(interface)
    return tuple(interfaces)


def interface_kind(name: str, root: Path = Path("/")) -> str:
    """Classify an interface by what /sys/class/net shows of it.

    "other" where the kernel gives no sign: dummy, macvlan, an interface that is gone.
    """
    device = root / "sys/class/net" / name
    devtype = parse_devtype(_read(device / "uevent"))
    hardware = _read(device / "type")
    if hardware == _ARPHRD_LOOPBACK:
        return "loopback"
    if (device / "bridge").is_dir():
        return "bridge"
    if (device / "bonding").is_dir():
        return "bond"
    # Older kernels name no devtype for a VLAN.
    listed_as_vlan = (root / "proc/net/vlan" / name).exists()
    if devtype == "vlan" or listed_as_vlan:
        return "vlan"
    is_tun = (device / "tun_flags").exists()
    if is_tun or devtype in _TUNNEL_DEVTYPES or hardware in _TUNNEL_TYPES:
        return "tunnel"
    if (device / "device").exists():
        return "physical"
    is_plain_ethernet = not devtype and hardware == _ARPHRD_ETHER
    if is_plain_ethernet and _has_peer(device):
        return "veth"
    return "other"


def read_listeners(ports: Collection[int] = ()) -> tuple[Listener, ...]:
    """Read all listening TCP sockets, IPv4 and IPv6.

    The list of listeners is the only sound test for a free port: with SO_REUSEPORT a second bind
    succeeds. Without privileges the sockets of other users have pid None. Process names are read
    for `ports`, or for every port when none is named.
    """
    listening: set[tuple[int, str, int]] = set()
    for row in psutil.net_connections(kind="tcp"):
        if row.status == psutil.CONN_LISTEN and row.laddr:
            listening.add((row.laddr.port, row.laddr.ip, row.pid or 0))
    listeners = []
    for port, address, number in sorted(listening):
        pid = number or None
        is_wanted = not ports or port in ports
        process = _process_name(pid) if is_wanted else None
        listeners.append(Listener(address, port, pid, process))
    return tuple(listeners)


def resolve_hostname() -> tuple[str, ...]:
    """Resolve this machine's own host name to its addresses.

    It may block on DNS, so call it with a deadline.

    Raises:
        OSError: The name does not resolve.
    """
    rows = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    addresses = [str(row[4][0]) for row in rows]
    return tuple(dict.fromkeys(addresses))


def with_prefix(address: str, netmask: str | None) -> str | None:
    """Write an address with the prefix length of its netmask: "192.0.2.9/24".

    Without a readable netmask it is a single address (/32, /128). None for text that is no address.
    """
    # Link-local addresses carry their interface: "fe80::1%eth0".
    plain = address.partition("%")[0]
    try:
        bare = ipaddress.ip_address(plain)
    except ValueError:
        return None
    try:
        bits = int(ipaddress.ip_address(netmask or "")).bit_count()
    except ValueError:
        bits = bare.max_prefixlen
    return f"{bare}/{bits}"


def parse_devtype(uevent: str) -> str:
    """Read the DEVTYPE of an interface from its uevent file; "" where it has none."""
    for line in uevent.splitlines():
        if line.startswith("DEVTYPE="):
            return line.removeprefix("DEVTYPE=")
    return ""


def _addresses_by_device() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for label, entries in psutil.net_if_addrs().items():
        # getifaddrs names an alias "eth0:1"; the interface is eth0.
        device = label.partition(":")[0]
        for entry in entries:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            address = with_prefix(entry.address, entry.netmask)
            if address:
                found.setdefault(device, []).append(address)
    return found


def _has_peer(device: Path) -> bool:
    """Return whether an interface is one of the two interfaces of a veth pair.

    The iflink of a veth is its other end. That of a macvlan is the device below it, which it also
    names as lower_*.
    """
    own = _read(device / "ifindex")
    peer = _read(device / "iflink")
    has_other_end = bool(own) and bool(peer) and own != peer
    has_lower = any(device.glob("lower_*"))
    return has_other_end and not has_lower


def _process_name(pid: int | None) -> str | None:
    if not pid:
        return None
    try:
        # A process may give itself any name.
        return tool_text.one_line(psutil.Process(pid).name())
    except psutil.Error:  # it has exited meanwhile, or belongs to another user
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
