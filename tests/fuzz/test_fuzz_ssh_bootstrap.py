"""Hostile input of the head side of `--cluster`: refused with a ValueError, before anything runs."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from bounds import bounded
from hypothesis import given, settings, strategies as st

from raylaunch.runtime.ssh.ssh_bootstrap import MAX_PACKAGE_BYTES, read_request

REQUEST = {
    "mark": "a1b2",
    "words": ["list"],
    "env": {"NO_COLOR": "1"},
    "needs": ["ray"],
    "file": "a2.yaml",
}


def packed(**files: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return sink.getvalue()


def message(package: bytes, **changes: object) -> bytes:
    line = json.dumps({**REQUEST, "size": len(package), **changes})
    return line.encode() + b"\n" + package


def test_a_message_is_read():
    request, archive = read_request(io.BytesIO(message(packed(a="text"))))
    assert request["words"] == ["list"]
    assert archive.namelist() == ["a"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
names = st.sampled_from([*REQUEST, "size"])
messages = st.one_of(
    st.binary(max_size=400),
    st.tuples(names, json_values).map(lambda one: message(packed(a="x"), **{one[0]: one[1]})),
    st.binary(max_size=400).map(lambda data: message(packed(a="x"))[:-20] + data),
    st.binary(max_size=400).map(message),
)


@settings.get_profile("fuzz")
@given(messages)
def test_any_stream_is_read_or_refused(data):
    with bounded():
        try:
            request, archive = read_request(io.BytesIO(data))
        except ValueError:
            return
    assert all(isinstance(word, str) for word in request["words"])
    assert archive.testzip() is None or archive.namelist()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "Expecting value"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[]\n", "not a JSON object"),
        (message(b"x", size=MAX_PACKAGE_BYTES + 1), "bytes"),
        (message(packed(a="x"), size=True), "True bytes"),
        (message(packed(a="x"))[:-5], "the stream ended"),
        (message(b"no zip"), "no zip file"),
        (message(packed(a="x"), words=[1]), "not text"),
        (message(packed(a="x"), env={"A": "b\0c"}), "not text"),
    ],
)
def test_a_bad_stream_is_refused_with_its_reason(data, why):
    with pytest.raises(ValueError, match=why):
        read_request(io.BytesIO(data))
