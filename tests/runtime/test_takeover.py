"""What a restarted controller gets back: the journal, and the secrets only with their key."""

from __future__ import annotations

import stat
from dataclasses import replace

import pytest
from fake_group import FakeClock, make_plan

from raylaunch.recipe.catalog import read
from raylaunch.runtime.agent.probe_actor import Hello
from raylaunch.runtime.cluster.takeover_key import create_key, file_of, read_key, remove_key
from raylaunch.runtime.controller import takeover
from raylaunch.runtime.controller.group_backend import SecretsLostError, refuse_missing_secrets
from raylaunch.runtime.controller.journal import Journal
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.runtime.controller.port_turns import Turns
from raylaunch.runtime.controller.ray_group import RayGroup
from raylaunch.supervise.health_config import HealthConfig

HELLO = Hello("10.0.0.1", "node-0", (), 1, "a1b2c3d4e5f60718", "/logs")
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


class Found(RayGroup):
    """A group whose agents keep a journal; they hand out `kept`."""

    def __init__(self, journal: Journal, kept: dict[str, str]) -> None:
        request = Request("d", read("local-dual", ["secrets=[VLLM_API_KEY]"]))
        super().__init__(request, HealthConfig(), Turns("d"), print)
        self.journal = journal
        self.kept = kept

    async def find(self):
        return {0: replace(HELLO, journal=self.journal.dump(FakeClock()))}

    async def read_secrets(self):
        return self.kept


@pytest.fixture
def adopt(monkeypatch):
    """Take over a group whose journal has made so many attempts."""
    monkeypatch.setattr(takeover, "alive_nodes", list)

    async def run(attempt: int, kept: dict[str, str]):
        journal = Journal(created_at=1.0, attempt=attempt, plan=make_plan())
        return await takeover.adopt(Found(journal, kept), FakeClock())

    return run


async def test_a_running_group_is_adopted_even_without_its_secrets(adopt):
    assert (await adopt(1, SECRETS)).secrets == SECRETS
    assert (await adopt(1, {})).journal.attempt == 1


async def test_a_group_that_was_never_launched_is_not_adopted_without_its_secrets(adopt):
    assert await adopt(0, {}) is None
    assert (await adopt(0, SECRETS)).secrets == SECRETS


async def test_nothing_is_launched_without_a_secret_that_the_recipe_names():
    group = Found(Journal(created_at=1.0), {})
    with pytest.raises(SecretsLostError, match="VLLM_API_KEY"):
        await group.launch(make_plan(), 2, {}, {})
    refuse_missing_secrets(("VLLM_API_KEY",), SECRETS)
