"""Damaged copies of a journal: a ValueError, so that the copies of other agents are tried."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings, strategies as st

from raylaunch.runtime.cluster.clock import SystemClock
from raylaunch.runtime.controller.group.journal import Journal

CLOCK = SystemClock()


def good() -> bytes:
    journal = Journal(created_at=1.0)
    journal.note(2.0, "command", "launched attempt 1", number=1)
    return journal.dump(CLOCK)


cuts = st.integers(0, len(good()) - 1)


@settings.get_profile("fuzz")
@given(cut=cuts, at=cuts, byte=st.integers(0, 255), truncated=st.booleans())
def test_a_damaged_copy_is_refused_or_still_a_journal(cut, at, byte, truncated):
    data = bytearray(good())
    data[at] = byte
    if truncated:
        del data[cut:]
    try:
        journal = Journal.load(bytes(data), CLOCK)
    except ValueError:
        return
    assert isinstance(journal, Journal)


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps({"number": 1})])
def test_something_else_is_refused(data):
    with pytest.raises(ValueError, match="cannot be read"):
        Journal.load(data, CLOCK)
