"""The phase of a deployment is derived from those of its groups, and one group can be shown alone."""

from __future__ import annotations

import itertools

import pytest

from raylaunch.cli.exit_codes import exit_code
from raylaunch.cli.output import Style
from raylaunch.cli.views.status_view import status_lines
from raylaunch.errors import UnknownDeploymentError
from raylaunch.supervise.deployment_status import (
    Event,
    GatewayCounters,
    GatewayNode,
    GatewayReport,
    GroupStatus,
    Status,
)
from raylaunch.supervise.deployment_summary import (
    GATEWAY_ANSWER,
    behind_gateway,
    derive_phase,
    is_settled,
    narrow,
    on_fallback,
    summarise,
)
from raylaunch.supervise.state import Phase

GROUP_PHASES = sorted(set(Phase) - {Phase.DEGRADED})

DERIVED = [
    (["ready", "ready"], "ready"),
    (["ready", "restarting"], "degraded"),
    (["ready", "failed"], "degraded"),
    (["failed", "failed"], "failed"),
    (["failed", "restarting"], "restarting"),
    (["pending", "starting"], "pending"),
    (["checking", "restarting"], "checking"),
    (["starting", "restarting", "failed"], "starting"),
    (["stopped", "stopped"], "stopped"),
]


@pytest.mark.parametrize(("phases", "derived"), DERIVED)
def test_the_phase_of_a_deployment(phases, derived):
    for order in itertools.permutations(Phase(phase) for phase in phases):
        assert derive_phase(order) == derived


@pytest.mark.parametrize("phase", GROUP_PHASES)
def test_one_group_has_the_phase_of_its_deployment(phase):
    assert derive_phase([phase]) is phase


def test_a_stop_is_over_when_every_group_is_stopped():
    assert derive_phase([Phase.READY, Phase.STOPPED], stopping=True) is Phase.STOPPING
    assert derive_phase([Phase.STOPPED], stopping=True) is Phase.STOPPED


def group(name: str, phase: Phase, **changes) -> GroupStatus:
    values = {
        "attempt": 1,
        "endpoint": f"http://{name}/v1",
        "created_at": 1.0,
        "phase_since": 2.0,
        **changes,
    }
    return GroupStatus(name, "serve", phase, **values)


def status_of(*groups: GroupStatus) -> Status:
    events = [
        Event(3, 3.0, 1, "exit", "signal 9", 0, "serve-1"),
        Event(1, 1.0, 0, "command", "stop"),
        Event(2, 2.0, 1, "phase", "ready", None, "serve-0"),
    ]
    names = {"deployment": "d", "recipe": "r", "served_name": "m"}
    return summarise(groups, events, now=9.0, stopping=False, **names)


def test_several_groups_make_one_status():
    broken = group("serve-1", Phase.FAILED, attempt=3, restarts=2, error={"what": "x"})
    waiting = group("serve-2", Phase.STARTING, phase_since=5.0, waiting_for=("health",))
    status = status_of(group("serve-0", Phase.READY, ready_at=4.0), broken, waiting)
    assert status.phase is Phase.DEGRADED
    assert (status.attempt, status.restarts, status.phase_since) == (3, 2, 5.0)
    assert status.endpoint == "http://serve-0/v1"
    assert status.waiting_for == ("serve-2: health",)
    assert status.error is None, "the deployment did not fail"
    assert [event.number for event in status.events] == [1, 2, 3]
    assert not is_settled(status)
    assert is_settled(status_of(group("serve-0", Phase.READY), broken))


def test_one_group_is_shown_as_a_deployment_of_its_own():
    broken = group("serve-1", Phase.FAILED, error={"what": "x"})
    status = status_of(group("serve-0", Phase.READY), broken)
    shown = narrow(status, "serve-1")
    assert (shown.phase, shown.error, shown.groups) == (Phase.FAILED, {"what": "x"}, (broken,))
    assert [event.number for event in shown.events] == [1, 3]
    assert narrow(status, None) == status
    with pytest.raises(UnknownDeploymentError, match="no group named 'serve-7'") as refused:
        narrow(status, "serve-7")
    assert "serve-0, serve-1" in refused.value.why


def test_behind_a_gateway_the_deployment_is_ready_when_its_address_is():
    status = status_of(group("serve-0", Phase.READY))
    up = GatewayReport("http://g/v1")
    shown = behind_gateway(status, up)
    assert (shown.endpoint, shown.gateway) == ("http://g/v1", up)
    assert narrow(shown, "serve-0").gateway is None
    waiting = behind_gateway(status, GatewayReport())
    assert (waiting.phase, waiting.waiting_for) == (Phase.STARTING, ("the gateway",))
    silent = behind_gateway(status, GatewayReport("http://g/v1", is_silent=True))
    assert (silent.phase, silent.endpoint) == (Phase.READY, "http://g/v1")
    assert silent.waiting_for == (GATEWAY_ANSWER,), "it serves on without its keeper"
    failed = status_of(group("serve-0", Phase.FAILED))
    assert behind_gateway(failed, GatewayReport()).phase is Phase.FAILED


def test_the_status_of_a_gateway_counts_what_it_did_and_leaves_out_rare_zeros():
    counters = GatewayCounters(requests=12, queue=1, held=3, repeated=2, continued=1, broken=4)
    node = GatewayNode("192.0.2.10", "http://192.0.2.10:8000/v1", 7, counters)
    report = GatewayReport(node.endpoint, "sticky", (node,))
    status = behind_gateway(status_of(group("serve-0", Phase.READY)), report)
    lines = list(status_lines(status, Style()))
    assert lines[1].startswith("endpoint  http://192.0.2.10:8000/v1")
    assert lines[2] == (
        "gateway   on 192.0.2.10: 12 requests, 1 in the queue, 3 held, 2 repeated, "
        "1 stream continued, 0 failed, 4 broken"
    )


@pytest.mark.parametrize(
    ("phases", "fallback", "phase", "code"),
    [
        (["ready"], "small", "degraded", 0),
        (["ready"], "", "ready", 0),
        (["starting"], "small", "starting", 8),
        (["ready", "restarting"], "small", "degraded", 8),
        (["ready", "failed"], "", "degraded", 8),
        (["failed"], "small", "failed", 7),
    ],
)
def test_a_fallback_that_serves_is_degraded_and_its_exit_code_is_0(phases, fallback, phase, code):
    groups = [group(f"serve-{index}", Phase(one)) for index, one in enumerate(phases)]
    status = on_fallback(status_of(*groups), fallback)
    assert (status.phase, exit_code(status)) == (phase, code)
    lines = "\n".join(status_lines(status, Style()))
    warning = "warning: small serves instead of r until the lost node is back"
    assert (warning in lines) is bool(fallback)
