"""benchmarks/power_cut.py without hosts: units as systemd reads them, rounds, shortfalls."""

from __future__ import annotations

import importlib
import signal
import sys
from pathlib import Path

import pytest

from raylaunch.recipe.catalog import read
from raylaunch.recipe.cluster_yaml import read_cluster_file
from raylaunch.render.cluster_service import ServiceOrder, render_cluster_service
from raylaunch.render.ray_cluster import render_cluster

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
HEAD, WORKER = "192.0.2.10", "192.0.2.11"


@pytest.fixture
def program(monkeypatch):
    """Import a program of benchmarks/ by name."""
    kept = list(sys.path)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "asking"))
    yield importlib.import_module
    sys.path[:] = kept


@pytest.fixture
def units(program, tmp_path):
    """The units of the head as the player reads them: Ray's and the deployment's."""
    cluster = render_cluster(
        read("a2-dual"), head=HEAD, workers=[WORKER], ssh_user="root", bare=True
    )
    order = ServiceOrder("prod", "a2-dual", {})
    head, _ = render_cluster_service(read("a2-dual"), order, read_cluster_file(cluster, "c.yaml"))
    found = []
    for file in head.files:
        if file.path.endswith(".service"):
            path = tmp_path / Path(file.path).name
            path.write_text(file.text)
            found.append(program("play_units").read_unit(path))
    return found


def test_the_command_lines_are_those_of_the_units(units):
    scripts = [unit.command for unit in units]
    shell = ["/bin/bash", "--login", "-i"]
    assert scripts == [
        [*shell, "/etc/raylaunch/clusters/a2-dual/ray.sh"],
        [*shell, "/etc/raylaunch/deployments/prod/follow.sh"],
    ]


@pytest.mark.parametrize(
    ("status", "of_ray", "of_deployment"),
    [
        (0, True, False),
        (1, True, True),
        (5, True, True),
        (7, True, False),
        (9, True, False),
        (130, True, False),
        (-signal.SIGTERM, True, False),
        (-signal.SIGKILL, True, True),
        (-signal.SIGABRT, True, True),
    ],
)
def test_an_exit_is_followed_by_a_start_as_systemd_would(units, status, of_ray, of_deployment):
    assert [unit.restarts(status) for unit in units] == [of_ray, of_deployment]


def test_words_of_a_unit_lose_what_systemd_takes_out_of_them(program, tmp_path):
    path = tmp_path / "one.service"
    path.write_text(
        "# a comment\n[Unit]\nExecStart=no\n[Service]\n"
        'ExecStart=/bin/x "a b" $$HOME 100%%\nEnvironment=A=1 "B=2 3%%"\nEnvironment=A=4\n'
    )
    unit = program("play_units").read_unit(path)
    assert unit.command == ["/bin/x", "a b", "$HOME", "100%"]
    assert unit.environment() == {"A": "4", "B": "2 3%"}


def test_a_specifier_that_nothing_here_expands_is_refused(program, tmp_path):
    path = tmp_path / "one.service"
    path.write_text("[Service]\nExecStart=/bin/x %n\n")
    with pytest.raises(ValueError, match="specifier"):
        _ = program("play_units").read_unit(path).command


def test_a_seed_repeats_its_pauses_and_each_order_has_its_own(program):
    power = program("power_cut")
    drawn = {order: power.draw_pauses(15, order) for order in power.ORDERS}
    assert drawn == {order: power.draw_pauses(15, order) for order in power.ORDERS}
    assert drawn != {order: power.draw_pauses(16, order) for order in power.ORDERS}
    assert len({tuple(pauses) for pauses in drawn.values()}) == len(power.ORDERS) == 6
    assert all(0 <= pause <= power.PAUSE_S for pauses in drawn.values() for pause in pauses)


def test_only_a_host_that_is_waited_for_counts_as_named(program):
    named = program("power_cut").is_waiting
    assert named("STATUS=waiting for 10.77.0.12 to join the Ray cluster", "10.77.0.12")
    assert not named("STATUS=waiting for 10.77.0.12 to join the Ray cluster", "10.77.0.1")
    assert not named("STATUS=power is starting; 10.77.0.12 answers", "10.77.0.12")


def round_of(program, order, **changes):
    power = program("power_cut")
    values = {"ready_s": 130.0, "after_last_s": 40.0, "named_s": {"10.77.0.12": 35.0}}
    ray = {"10.77.0.10": 1, "10.77.0.11": 3, "10.77.0.12": 1}
    return power.Round(order, [50.0, 40.0], ray_starts=ray, follow_starts=2, **values | changes)


def test_six_good_orders_meet_every_goal(program):
    power = program("power_cut")
    assert list(power.missed_goals([round_of(program, one) for one in power.ORDERS])) == []


def test_what_was_not_ready_not_named_or_not_measured_is_a_missed_goal(program):
    power = program("power_cut")
    rounds = [round_of(program, one) for one in power.ORDERS[:-2]]
    rounds[0].problems.append("not ready within 420 s")
    rounds[1].named_s["10.77.0.12"] = None
    rounds[2].named_s["10.77.0.12"] = 75.0
    assert list(power.missed_goals(rounds)) == [
        "power cut, order 012: not ready within 420 s",
        "power cut, order 021: 10.77.0.12 was missing and named never, the goal is 45 s",
        "power cut, order 102: 10.77.0.12 was missing and named after 75 s, the goal is 45 s",
        "power cut, order 201: not measured",
        "power cut, order 210: not measured",
    ]


def test_rounds_become_a_section_and_are_read_again(program, monkeypatch, tmp_path):
    report, power = program("report"), program("power_cut")
    monkeypatch.setattr(report, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    rounds = [round_of(program, one) for one in power.ORDERS]
    assert power.publish_rounds(rounds, 15, short=False) == []
    assert power.stored_rounds(tmp_path) == rounds
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| h1, h2, h0 | 50 and 40 | 130 | 40 | 10.77.0.12 after 35 | 1 + 3 + 1 | 2 |" in text
    assert "Ready without a person: 6 of 6." in text
    assert "Every goal was met." in text
