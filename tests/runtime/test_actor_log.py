"""The log file of an actor: private, rotated, and never a reason to fail."""

from __future__ import annotations

import logging
import stat

import pytest

from raylaunch.runtime.cluster import actor_log


@pytest.fixture
def logger():
    found = logging.getLogger("raylaunch")
    handlers, level = list(found.handlers), found.level
    yield found
    for handler in found.handlers[len(handlers) :]:
        found.removeHandler(handler)
        handler.close()
    found.setLevel(level)


def test_the_log_is_below_the_state_folder_and_for_its_owner_alone(tmp_path, logger, monkeypatch):
    monkeypatch.setattr(actor_log, "MAX_BYTES", 300)
    path = actor_log.actor_log_path({"RAYLAUNCH_HOME": str(tmp_path)}, "test", "controller")
    actor_log.open_actor_log(path)
    for number in range(10):
        logging.getLogger("raylaunch.runtime.x").info("line %d %s", number, "x" * 50)
    assert path.is_relative_to(tmp_path)
    assert "line 9" in path.read_text()
    files = sorted(path.parent.iterdir())
    assert len(files) == 1 + actor_log.KEPT_FILES
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_written_is_only_a_warning(tmp_path, logger, caplog):
    (tmp_path / "file").write_text("")
    actor_log.open_actor_log(tmp_path / "file" / "controller.log")
    assert "cannot write the log file" in caplog.text
