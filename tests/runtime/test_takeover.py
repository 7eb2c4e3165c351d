"""What a restarted controller gets back: the journal, and the secrets only with their key."""

from __future__ import annotations

import base64
import stat
from types import SimpleNamespace

import pytest
from fake_group import FakeClock, make_plan

from raylaunch.recipe.catalog import read
from raylaunch.recipe.groups import expand_groups
from raylaunch.runtime.cluster.clock import ClockReading
from raylaunch.runtime.cluster.takeover_key import create_key, file_of, read_key, remove_key
from raylaunch.runtime.controller import takeover
from raylaunch.runtime.controller.deployment_record import DeploymentJournal
from raylaunch.runtime.controller.group.group_backend import (
    SecretsLostError,
    refuse_missing_secrets,
)
from raylaunch.runtime.controller.group.group_supervisor import GroupSupervisor
from raylaunch.runtime.controller.group.journal import Journal, seal
from raylaunch.runtime.controller.group.ray_group import RayGroup
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.runtime.controller.port_turns import Turns
from raylaunch.supervise.degradation import Degradation
from raylaunch.supervise.health_config import HealthConfig
from raylaunch.supervise.state import Phase

SECRETS = {"VLLM_API_KEY": "k"}


def test_the_key_is_its_users_alone_and_gone_after_a_stop(tmp_path):
    path = file_of(tmp_path, "d", "a1b2c3d4e5f60718")
    key = create_key(path)
    assert read_key(path) == key
    assert len(key) == 64
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent)] == [0o600, 0o700]
    assert create_key(path) != key, "each start has a key of its own"
    remove_key(path)
    assert read_key(path) == ""


def test_two_starts_of_one_name_have_a_key_each(tmp_path):
    first, second = (file_of(tmp_path, "d", instance) for instance in ("1" * 16, "2" * 16))
    key = create_key(first)
    create_key(second)
    remove_key(second)
    assert read_key(first) == key


def test_a_key_is_not_written_through_a_symbolic_link(tmp_path):
    target = tmp_path / "target"
    path = file_of(tmp_path, "d", "1" * 16)
    path.parent.mkdir()
    path.symlink_to(target)
    create_key(path)
    assert not target.exists()


def test_the_journals_of_the_guards_of_this_start_are_found_and_of_no_other(tmp_path, monkeypatch):
    def report(instance, **notes):
        kept = {owner: (1, base64.b64encode(text).decode()) for owner, text in notes.items()}
        return SimpleNamespace(instance=instance, notes=kept)

    guards = [report("aa.serve-0", one=b"1", two=b"2"), report("ab.serve-0", one=b"other")]
    monkeypatch.setattr(takeover, "find_guards", lambda _home, name: guards if name == "d" else [])
    assert takeover.journals_of_guards("d", "aa") == [("one", b"1"), ("two", b"2")]
    assert takeover.journals_of_guards("d", "a") == []
    assert takeover.journals_of_guards("e", "aa") == []


@pytest.mark.parametrize(
    ("grace_s", "phase", "owned"),
    [
        (600.0, Phase.READY, [0]),
        (600.0, Phase.STARTING, [0, 1, 2]),
        (0.0, Phase.READY, [0, 1, 2]),
    ],
)
def test_an_agent_that_has_not_adopted_its_server_yet_does_not_own_it(grace_s, phase, owned):
    backend = SimpleNamespace(servers=(0, 1, 2), running={0: 3, 1: None, 2: 2})
    health = HealthConfig(orphan_grace_s=grace_s)
    group = SimpleNamespace(
        backend=backend, loop=SimpleNamespace(settings=SimpleNamespace(health=health))
    )
    journal = Journal(1.0, phase=phase, attempt=3)
    assert list(GroupSupervisor._owned(group, journal)) == owned


@pytest.mark.parametrize(
    ("attempts", "known", "asks"),
    [
        ([1, 1], True, False),
        ([1, None], True, True),
        ([1], True, True),
        ([1, 1], False, True),
        ([], False, True),
    ],
    ids=["all", "one-runs-none", "one-lost", "no-journal", "none"],
)
async def test_guards_are_asked_where_a_server_has_no_agent(monkeypatch, attempts, known, asks):
    """A task on each node takes seconds, also when nothing but the controller has died."""
    asked = []
    request = request_with(600.0)
    (spec,) = expand_groups(request.loaded)
    journals = {
        "": seal(DeploymentJournal(request.loaded, (spec,))),
        spec.name: Journal(1.0, attempt=1, plan=make_plan()).dump(FakeClock()),
    }

    async def ask_agents(_):
        kept = journals if known else {}
        return [SimpleNamespace(attempt=attempt, journals=kept) for attempt in attempts]

    async def ask_guards(*_):
        asked.append(True)
        return list(journals.items()), frozenset()

    monkeypatch.setattr(takeover, "_ask_agents", ask_agents)
    monkeypatch.setattr(takeover, "_ask_guards", ask_guards)
    result = await takeover.search(request, FakeClock())
    assert bool(asked) is asks
    assert (result.deployment is not None, list(result.groups)) == (True, [spec.name])


def found(attempt: int) -> takeover.Found:
    journal = Journal(1.0, attempt=attempt, plan=make_plan())
    return takeover.Found(None, {"serve-0": journal})


def test_a_running_group_is_adopted_even_without_its_secrets():
    assert found(1).may_be_adopted(secrets_are_missing=False)
    assert found(1).may_be_adopted(secrets_are_missing=True)


def test_a_group_that_was_never_launched_is_not_adopted_without_its_secrets():
    assert not found(0).may_be_adopted(secrets_are_missing=True)
    assert found(0).may_be_adopted(secrets_are_missing=False)
    assert not takeover.Found(None, {}).may_be_adopted(secrets_are_missing=False)


async def test_nothing_is_launched_without_a_secret_that_the_recipe_names():
    loaded = read("local-dual", ["secrets=[VLLM_API_KEY]"])
    request = Request("d", loaded).of_group(expand_groups(loaded)[0])
    group = RayGroup(request, HealthConfig(), Turns("d"), print)
    assert group.lacks_any({})
    assert not group.lacks_any(SECRETS)
    with pytest.raises(SecretsLostError, match="VLLM_API_KEY"):
        await group.launch(make_plan(), 2, {}, {})
    refuse_missing_secrets(("VLLM_API_KEY",), SECRETS)


def request_with(grace_s: float, **given) -> Request:
    return Request("d", read("local-dual", [f"health.orphan_grace_s={grace_s}"]), **given)


NOTHING = takeover.Found(None, {}, frozenset({"192.0.2.11"}))


@pytest.mark.parametrize(
    ("grace_s", "is_begun", "tries"), [(600.0, False, 3), (600.0, True, 1), (0.0, False, 1)]
)
async def test_journals_of_nodes_that_come_back_late_are_found(
    monkeypatch, grace_s, is_begun, tries
):
    """Without a grace, and where `start` waits, nothing can come later."""
    answers = [NOTHING, NOTHING, found(1)]
    asked = []

    async def search(*_):
        asked.append(1)
        return answers[len(asked) - 1]

    monkeypatch.setattr(takeover, "search", search)
    clock = FakeClock()
    result = await takeover.search_patiently(request_with(grace_s), clock, lambda: is_begun)
    assert len(asked) == tries
    assert bool(result.groups) == (tries == 3)


async def test_nodes_are_not_awaited_for_ever(monkeypatch):
    async def search(*_):
        return NOTHING

    monkeypatch.setattr(takeover, "search", search)
    clock = FakeClock()
    began = clock.now
    result = await takeover.search_patiently(request_with(600.0), clock, lambda: False)
    assert not result.groups
    assert clock.now - began == pytest.approx(takeover.NODES_BACK_S, abs=2)


async def test_when_all_hosts_have_answered_twice_no_node_is_awaited(monkeypatch):
    """After a power cut of all hosts there is nothing to find."""
    whole = takeover.Found(None, {})
    answers = [NOTHING, whole, NOTHING, whole]

    async def search(*_):
        return answers.pop(0)

    monkeypatch.setattr(takeover, "search", search)
    clock = FakeClock()
    result = await takeover.search_patiently(request_with(600.0), clock, lambda: False)
    assert result == whole
    assert answers == []


async def test_a_host_that_ray_has_lost_or_that_does_not_answer_is_silent(monkeypatch):
    nodes = [
        {"NodeID": "old", "NodeManagerAddress": "192.0.2.10", "Alive": False},
        {"NodeID": "new", "NodeManagerAddress": "192.0.2.10", "Alive": True},
        {"NodeID": "lost", "NodeManagerAddress": "192.0.2.11", "Alive": False},
        {"NodeID": "stale", "NodeManagerAddress": "192.0.2.12", "Alive": True},
    ]
    asked = []

    def call(_function, arguments, _timeout_s):
        asked.extend(arguments)
        return {"new": []}, ("stale",)

    async def no_agents(_):
        return []

    monkeypatch.setattr(takeover, "all_nodes", lambda: nodes)
    monkeypatch.setattr(takeover, "call_on_nodes", call)
    monkeypatch.setattr(takeover, "_ask_agents", no_agents)
    result = await takeover.search(request_with(600.0), FakeClock())
    assert asked == ["new", "stale"]
    assert result.silent_hosts == {"192.0.2.11", "192.0.2.12"}
    assert takeover.explain_nothing(result).endswith("no answer from 192.0.2.11, 192.0.2.12")
    assert "no answer" not in takeover.explain_nothing(takeover.Found(None, {}))


def test_start_makes_a_key_where_the_old_one_is_lost_and_a_restarted_controller_does_not(tmp_path):
    path = file_of(tmp_path, "d", "1" * 16)
    assert takeover.known_key(False, path, print) == ""
    key = takeover.known_key(True, path, print)
    assert len(key) == 64
    assert takeover.known_key(True, path, print) == key == takeover.known_key(False, path, print)


def test_a_journal_of_an_earlier_version_gets_the_fields_that_it_lacks():
    clock = FakeClock()
    old = Journal(1.0, "serve", attempt=3)
    for name in ("versions", "served"):  # with a factory, and with a value
        del old.__dict__[name]
    journal = Journal.load(old.dump(clock), clock)
    assert (journal.attempt, journal.versions, journal.served) == (3, {}, False)
    deployment = DeploymentJournal(read("local-dual"), ())
    del deployment.__dict__["key_hashes"]
    assert DeploymentJournal.load(seal(deployment)).key_hashes == {}


def test_a_journal_without_a_field_that_has_no_default_cannot_be_read():
    clock = FakeClock()
    old = Journal(1.0)
    del old.__dict__["created_at"]
    with pytest.raises(ValueError, match="it has no created_at"):
        Journal.load(old.dump(clock), clock)


@pytest.mark.parametrize("owner", ["a group", "the deployment"])
def test_a_journal_from_before_fallbacks_is_read_with_their_defaults(owner):
    clock = FakeClock()
    if owner == "a group":
        older = Journal(1.0, saved_at=ClockReading.of(clock))
        del older.waiting_since
        assert Journal.load(seal(older), clock).waiting_since is None
    else:
        loaded = read("local-dual")
        journal = DeploymentJournal(loaded, expand_groups(loaded))
        del journal.degradation
        object.__delattr__(loaded, "fallbacks")
        restored = DeploymentJournal.load(seal(journal))
        assert restored.degradation == Degradation()
        assert restored.loaded.fallbacks == ()


def test_the_time_since_when_a_group_waits_is_moved_to_the_clock_of_another_boot(monkeypatch):
    from raylaunch.runtime.cluster import clock as clocks

    clock = FakeClock()
    data = Journal(1.0, waiting_since=clock.now - 30).dump(clock)
    monkeypatch.setattr(clocks, "_boot_id", lambda: "another boot")
    wall = clock.wall()
    clock.now = 5.0
    clock.stepped = wall - 1.7e9 - 5.0
    waiting_since = Journal.load(data, clock).waiting_since
    assert clock.now - waiting_since == pytest.approx(30)
