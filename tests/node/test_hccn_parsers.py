"""The forms in which releases of hccn_tool print the same answer, and answers that are unreadable."""

import pytest

from raylaunch.node.probe import hccn_parsers
from raylaunch.node.probe.hccn_parsers import NpuPing, parse_hccn_ping

SENT = "3 packets transmitted, 3 received, "


@pytest.mark.parametrize(
    ("form", "percent"),
    [
        ("0% packet loss", 0.0),
        ("0.00% packet loss", 0.0),
        ("00.00 % loss", 0.0),
        ("00.00 % packet loss", 0.0),
        ("0,00% packet loss", 0.0),
        ("0.00%packet loss", 0.0),
        ("0.00  %  Packet  Loss", 0.0),
        ("packet loss: 0.00 %", 0.0),
        ("LOSS RATE = 0%", 0.0),
        ("33.33% packet loss", 33.33),
        ("100% packets loss", 100.0),
        ("100.000000% packet loss, time 2003ms", 100.0),
    ],
)
def test_every_form_of_a_packet_loss_is_read(form, percent):
    assert parse_hccn_ping(SENT + form) == NpuPing(percent)
    assert parse_hccn_ping(SENT + form).reached == (percent == 0)


@pytest.mark.parametrize(
    "form",
    ["0.0.0% packet loss", "..% packet loss", "% packet loss", "nan% packet loss", "101% loss"],
)
def test_an_unreadable_packet_loss_is_no_result_and_is_quoted(form):
    ping = parse_hccn_ping(f"device 0 PING 11.12.165.80\n{SENT}{form}")
    assert ping == NpuPing(None, f"unreadable packet loss: {SENT}{form}")
    assert not ping.counted


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (hccn_parsers.parse_hccn_ip, "ipaddr : 11.12.165.80", "11.12.165.80"),
        (hccn_parsers.parse_hccn_ip, "ipaddr:2001:db8::1", "2001:db8::1"),
        (hccn_parsers.parse_hccn_ip, "ipaddr:11.12.165.80.1", None),
        (hccn_parsers.parse_hccn_ip, "ipaddr:\nnetmask:255.255.255.0", None),
        (hccn_parsers.parse_hccn_link, "Link Status:up", "UP"),
        (hccn_parsers.parse_hccn_net_health, "net health status : SUCCESS", "Success"),
        (hccn_parsers.parse_hccn_net_health, "net health status: Detect IP set", "Detect IP set"),
        (hccn_parsers.parse_hccn_netdetect, "netdetect address:0.0.0.0", "0.0.0.0"),
        (hccn_parsers.parse_hccn_gateway, "default gateway :fd00::1, Iface:eth0", "fd00::1"),
        (hccn_parsers.parse_hccn_tls, "tls switch [ 1 ](0:disable, 1:enable)", True),
        (hccn_parsers.parse_hccn_tls, "tls switch[2]", None),
        (hccn_parsers.parse_hccn_mtu, "MTU : 4200", 4200),
        (hccn_parsers.parse_hccn_mtu, "mtu:" + "9" * 5000, None),
        (hccn_parsers.parse_hccn_lldp, "Ifname : 400GE1/1/5:1", "400GE1/1/5:1"),
    ],
)
def test_spacing_and_case_do_not_matter_and_nonsense_is_no_value(parse, text, expected):
    assert parse(text) == expected
