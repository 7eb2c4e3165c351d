"""Parsers for the output of hccn_tool, which reports the NPUs' own network ports.

No parser raises: text that it cannot read is None.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from raylaunch.node.probe.tool_text import first_line

_NETWORK_COMPLAINT = re.compile(r"recv time out|Destination Host Unreachable|Message too long")
# Every run of digits below has an upper bound: int() raises ValueError above 4300 digits, and an
# unbounded run makes a search quadratic (104 s measured for one line of 64 kB).
_PERCENT = r"(?<![\d.,])(\d{1,3}(?:[.,]\d{1,6})?)\s{0,3}%"
# "0.00% packet loss" is what recorded releases print; the other forms differ in words and blanks.
_LOSS_FORMS = (
    re.compile(_PERCENT + r"\s{0,3}(?:packets?\s{1,3})?loss", re.IGNORECASE | re.ASCII),
    re.compile(r"loss(?:\s{1,3}rate)?\s{0,3}[:=]?\s{0,3}" + _PERCENT, re.IGNORECASE | re.ASCII),
)


@dataclass(frozen=True)
class NpuPing:
    """Answer of `hccn_tool -ping`.

    `loss_percent` is None when the tool counted no packets. `complaint` quotes the tool.
    """

    loss_percent: float | None
    complaint: str = ""

    @property
    def reached(self) -> bool:
        """Whether every packet came back."""
        return self.loss_percent == 0

    @property
    def counted(self) -> bool:
        """Whether the tool sent packets, or gave the network's reason for not sending them."""
        if self.loss_percent is not None:
            return True
        return _NETWORK_COMPLAINT.fullmatch(self.complaint) is not None


def parse_hccn_ip(text: str) -> str | None:
    """Read the device's own address from `-ip -g`; without one it cannot talk to other hosts."""
    return _address("ipaddr", text)


def parse_hccn_link(text: str) -> str | None:
    """Read UP or DOWN from `-link -g`."""
    status = _first(r"link status[ \t]*:[ \t]*(\w{1,40})", text)
    return None if status is None else status.upper()


def parse_hccn_net_health(text: str) -> str | None:
    """Read Success, Fault, Init ... from `-net_health -g`."""
    status = _first(r"net health status[ \t]*:[ \t]*(\w{1,40}(?: \w{1,40}){0,8})", text)
    if status is not None and status.casefold() == "success":
        return "Success"
    return status


def parse_hccn_netdetect(text: str) -> str | None:
    """Read the address that the device watches from `-netdetect -g`; 0.0.0.0 means none is set."""
    return _address("netdetect address", text)


def parse_hccn_gateway(text: str) -> str | None:
    """Read the device's gateway from `-gateway -g`; None is fine inside one subnet."""
    return _address("gateway", text)


def parse_hccn_tls(text: str) -> bool | None:
    """Read whether TLS is on from `-tls -g`; it has to be equal on all devices (HCCL: EI0016)."""
    switch = _first(r"tls switch\s*\[\s*([01])\s*\]", text)
    return None if switch is None else switch == "1"


def parse_hccn_mtu(text: str) -> int | None:
    """Read the MTU of the device's port, in bytes, from `-mtu -g`."""
    mtu = _first(r"\bmtu[ \t]*:[ \t]*(\d{1,9})(?!\d)", text)
    return None if mtu is None else int(mtu)


def parse_hccn_lldp(text: str) -> str | None:
    """Read the switch port at the other end from `-lldp -g`.

    None: no LLDP, or two hosts that are cabled back to back.
    """
    return _first(r"Ifname[ \t]*:[ \t]*(\S{1,200})", text)


def parse_hccn_ping(text: str) -> NpuPing:
    """Read `-ping -g address X`; any loss above 0 counts as unreachable.

    The loss is accepted as "0%", "0.00% packet loss", "00.00 % loss" or "packet loss: 0.00 %", in
    any case. A loss that is none of these is unreadable: `loss_percent` is None and `complaint`
    quotes the line.
    """
    loss = _loss_percent(text)
    network_complaint = _NETWORK_COMPLAINT.search(text)
    if network_complaint:
        return NpuPing(loss, network_complaint.group())
    if loss is not None:
        return NpuPing(loss)
    for line in text.splitlines():
        if "loss" in line.lower():
            return NpuPing(None, f"unreadable packet loss: {first_line(line)}")
    return NpuPing(None, first_line(text))


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text, re.IGNORECASE | re.ASCII)
    return found.group(1) if found else None


def _address(label: str, text: str) -> str | None:
    """Read the IPv4 or IPv6 address after `label:`; None where there is none, or no valid one."""
    word = _first(label + r"[ \t]*:[ \t]*([\da-f.:]{2,45})", text)
    if word is None:
        return None
    try:
        ipaddress.ip_address(word)
    except ValueError:
        return None
    return word


def _loss_percent(text: str) -> float | None:
    for form in _LOSS_FORMS:
        found = form.search(text)
        if found:
            # float() knows no decimal comma.
            percent = float(found.group(1).replace(",", "."))
            return percent if percent <= 100 else None
    return None
