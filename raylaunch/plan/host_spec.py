"""Hosts as a user types them (`--host ADDRESS%INTERFACE`), and the example hosts of a plan without any.

Pure: host names are refused, because resolving them needs the network and two machines may resolve one differently.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from raylaunch.errors import PlanError
from raylaunch.plan.facts import Facts

MAX_INTERFACE_BYTES = 15
"""Linux keeps an interface name in 16 bytes, the last is NUL (IFNAMSIZ, linux/if.h)."""

EXAMPLE_NETWORK = ipaddress.IPv4Network("192.0.2.0/24")
"""Addresses for documentation (RFC 5737)."""

FIRST_EXAMPLE = 10

_SHOWN = 60
_FORM = "write --host ADDRESS%INTERFACE, e.g. --host 192.0.2.10%eth0"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_hosts(texts: Sequence[str], *, shared: bool) -> list[Facts]:
    """Parse the `--host` values of one command.

    Args:
        texts: The values, one per server or node.
        shared: Several servers may run on one host, so a host may be given once per server.

    Raises:
        PlanError: A value is malformed, or a host that is not shared is given twice.
    """
    hosts = [parse_host(text) for text in texts]
    seen: set[str] = set()
    for host in hosts:
        if host.ip in seen and not shared:
            raise PlanError(
                f"host {host.ip} is given twice",
                why="the recipe places every server on a node of its own (hardware.spread)",
                todo="give each host once, or set hardware.spread=false",
            )
        seen.add(host.ip)
    return hosts


def parse_host(text: str) -> Facts:
    """Parse one `ADDRESS[%INTERFACE]`; the address is returned in its canonical spelling.

    Raises:
        PlanError: Not an IPv4 or IPv6 address of a host, or not a name that Linux gives an interface.
    """
    address, percent, interface = text.partition("%")
    parsed = _parse_address(address, text)
    _refuse_unusable(parsed, text)
    if not percent:
        return Facts(str(parsed))
    if problem := _interface_problem(interface):
        raise _malformed(text, problem, "`ip -br link` on that host shows its interfaces")
    return Facts(str(parsed), interface=interface)


def example_hosts(count: int, interface: str) -> list[Facts]:
    """Return `count` hosts with addresses for documentation, for a plan without given hosts.

    Raises:
        PlanError: More hosts than the documentation network has addresses (245).
    """
    available = EXAMPLE_NETWORK.num_addresses - 1 - FIRST_EXAMPLE
    if count > available:
        raise PlanError(
            f"{count} servers need their hosts to be given",
            why=f"without --host a plan uses example addresses, and there are {available} of them",
            todo=f"give --host ADDRESS%INTERFACE {count} times, or lower parallel.data",
        )
    addresses = [EXAMPLE_NETWORK[FIRST_EXAMPLE + index] for index in range(count)]
    return [Facts(str(address), interface=interface) for address in addresses]


def _parse_address(address: str, text: str) -> Address:
    try:
        return ipaddress.ip_address(address)
    except ValueError as error:
        why, todo = _explain(address, str(error))
        raise _malformed(text, why, todo) from error


def _explain(address: str, reason: str) -> tuple[str, str]:
    """Say why `address` is refused and what to type instead, by the usual mistakes."""
    if not address:
        return "the address is missing", _FORM
    if address != address.strip():
        return "it has blanks around the address", "remove the blanks"
    if not address.isascii():
        return "it holds characters that are not ASCII, e.g. full-width digits", _FORM
    if re.fullmatch(r"\[.*\](:\d+)?", address):
        return "brackets belong into URLs only", "write the IPv6 address without brackets and port"
    if re.fullmatch(r"[^:]*:\d+", address):
        ports = "the ports are the recipe's: network.http_port, network.rpc_port"
        return f"it has a port; {ports}", "leave out the port"
    if re.fullmatch(r"[0-9.]+", address):
        return _explain_ipv4(address, reason)
    if ":" not in address and re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?\.?", address):
        why = "it is a host name; a plan needs the address, which each host may resolve differently"
        return why, f"`getent hosts {_printable(address)}` shows the address: give that"
    return _printable(reason), _FORM


def _explain_ipv4(address: str, reason: str) -> tuple[str, str]:
    parts = address.split(".")
    if any(len(part) > 1 and part.startswith("0") for part in parts):
        why = "a number with a leading zero is octal to some programs and decimal to others"
        return why, "write the numbers without leading zeros"
    return _printable(reason), "an IPv4 address is four numbers from 0 to 255"


def _refuse_unusable(address: Address, text: str) -> None:
    """Refuse addresses that no server could give to the others as its own."""
    if address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255":
        raise _malformed(text, "it is not the address of one host", _FORM)
    # vLLM's and HCCL's flags and variables carry no zone, and a link-local IPv6 address needs one.
    if address.version == 6 and address.is_link_local:
        why = "a link-local IPv6 address is valid on one link only, and vLLM and HCCL cannot name the link"
        raise _malformed(text, why, "give a global or unique local address of the host")


def _interface_problem(name: str) -> str:
    """Return why Linux, HCCL or Gloo would refuse the interface name; "" when it is valid.

    Linux: dev_valid_name in net/core/dev.c. HCCL and Gloo read a comma as the separator of a list.
    """
    if not name:
        return "the interface after % is missing"
    if len(name.encode("utf-8", "surrogatepass")) > MAX_INTERFACE_BYTES:
        return f"an interface name has at most {MAX_INTERFACE_BYTES} bytes"
    if name in (".", ".."):
        return "'.' and '..' are not interface names"
    if not name.isprintable() or any(char.isspace() for char in name):
        return "an interface name has no blanks or unprintable characters"
    if forbidden := set(name) & set("/:%,"):
        return f"an interface name has no {min(forbidden)!r}"
    return ""


def _malformed(text: str, why: str, todo: str) -> PlanError:
    return PlanError(f"--host {_printable(text)!r} is not ADDRESS%INTERFACE", why=why, todo=todo)


def _printable(text: str) -> str:
    shown = text[:_SHOWN] + ("..." if len(text) > _SHOWN else "")
    return "".join(char if char.isprintable() else "?" for char in shown)
