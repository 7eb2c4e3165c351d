"""Servers that run without a controller: which start they are of, and whether it can be adopted."""

from __future__ import annotations

import base64
from dataclasses import replace
from types import SimpleNamespace

from fake_group import FakeClock, make_plan

from raylaunch.runtime.controller import guard_search
from raylaunch.runtime.controller.group.journal import Journal, seal
from raylaunch.runtime.controller.guard_search import RunningServer, sort_starts

SERVER = RunningServer("10.0.0.1", "aa.serve", "serve", 0, 1, 4711, has_owner=False)


def journal(**changes) -> bytes:
    return Journal(1.0, "serve", plan=make_plan(), attempt=1, **changes).dump(FakeClock())


def test_the_servers_of_one_start_belong_together_and_are_in_order():
    second = replace(SERVER, server=1, host="10.0.0.2")
    other = replace(SERVER, instance="bb.serve")
    found = sort_starts([second, other, SERVER], own_agents=False)
    assert [(one.instance, one.servers) for one in found] == [
        ("aa", (SERVER, second)),
        ("bb", (other,)),
    ]
    assert found[0].describe().splitlines()[1] == "10.0.0.2: server 1 of serve, pid 4711"


def test_servers_that_agents_of_another_cluster_own_are_left_alone():
    owned = replace(SERVER, has_owner=True)
    beside = replace(SERVER, server=1)
    assert sort_starts([owned, beside], own_agents=False) == []
    assert len(sort_starts([owned, beside], own_agents=True)) == 1


def test_a_start_is_adopted_only_with_a_journal_that_can_be_read():
    def may(*journals: tuple[str, bytes]) -> bool:
        (start,) = sort_starts([replace(SERVER, journals=journals)], own_agents=False)
        found = start.read_journals(FakeClock())
        return found.may_be_adopted(secrets_are_missing=True)

    assert may(("serve", journal()))
    assert may(("serve", b"damaged"), ("serve", journal()))
    assert not may()
    assert not may(("serve", b"damaged"))
    assert not may(("serve", seal("something else")))
    assert not may(("serve", Journal(1.0, "serve").dump(FakeClock()))), "nothing was launched"


def test_what_the_guards_of_a_node_keep_is_read(monkeypatch):
    note = base64.b64encode(b"a journal").decode()
    report = SimpleNamespace(
        instance="aa.serve",
        group="serve",
        server=0,
        attempt=1,
        server_pid=4711,
        owner=None,
        notes={"serve": (3, note)},
    )
    monkeypatch.setattr(guard_search, "find_guards", lambda _home, name: [report] * (name == "d"))
    wanted = replace(SERVER, journals=(("serve", b"a journal"),))
    assert guard_search.servers_here("d", "10.0.0.1") == [wanted]
    assert guard_search.servers_here("e", "10.0.0.1") == []
