"""Damaged copies of a journal: a ValueError, so that the copies of other agents are tried."""

from __future__ import annotations

import hashlib
import pickle

import pytest
from bounds import bounded
from hypothesis import example, given, settings, strategies as st

from raylaunch.runtime.cluster.clock import SystemClock
from raylaunch.runtime.controller.group.journal import DIGEST_BYTES, Journal

CLOCK = SystemClock()


def good() -> bytes:
    journal = Journal(created_at=1.0)
    journal.note(2.0, "command", "launched attempt 1", number=1)
    return journal.dump(CLOCK)


cuts = st.integers(0, len(good()) - 1)


@settings.get_profile("fuzz")
@given(cut=cuts, at=cuts, byte=st.integers(1, 255) | st.just(0), truncated=st.booleans())
@example(cut=0, at=DIGEST_BYTES + 605, byte=0, truncated=False)  # the name of a field
def test_a_damaged_copy_is_refused(cut, at, byte, truncated):
    data = bytearray(good())
    data[at] ^= byte
    if truncated:
        del data[cut:]
    if truncated or byte:
        with bounded(), pytest.raises(ValueError, match="it is damaged"):
            Journal.load(bytes(data), CLOCK)
    else:
        assert isinstance(Journal.load(bytes(data), CLOCK), Journal)


def with_digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest() + data


@pytest.mark.parametrize(
    "data",
    [b"", b"garbage", with_digest(b"garbage"), with_digest(pickle.dumps({"number": 1}))],
)
def test_something_else_is_refused(data):
    with bounded(), pytest.raises(ValueError, match="cannot be read"):
        Journal.load(data, CLOCK)
