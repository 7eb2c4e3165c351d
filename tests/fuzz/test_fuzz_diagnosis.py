"""Hostile logs and bundles: a diagnosis is a value or one of our errors, and it is bounded."""

from __future__ import annotations

import json
from pathlib import Path

from bounds import bounded
from hypothesis import given, settings, strategies as st

from raylaunch.errors import RaylaunchError
from raylaunch.runtime.controller.bundle_reader import diagnose_bundle
from raylaunch.supervise.diagnosis.root_cause import Diagnosis, diagnose_text
from raylaunch.supervise.diagnosis.signatures import load_signatures

RECORDED = [
    file.read_text() for file in sorted((Path(__file__).parents[1] / "data" / "vllm").glob("*.log"))
]
SAMPLES = [signature.sample for signature in load_signatures()]

prefixes = st.sampled_from(
    ["", "(APIServer pid=1) ", "\x1b[31m", "[rank0]:", "(RayWorker pid=7, ip=10.0.0.1) ", "  "]
)
lines = st.one_of(
    st.sampled_from(SAMPLES),
    st.sampled_from([line for text in RECORDED for line in text.splitlines()]),
    st.text(max_size=300),
    st.text("0123456789.:-/[]() EFW", max_size=300),
    st.sampled_from(
        ["A" * 65536, '{"a":' * 20000, " " * 65536, "Traceback (most recent call last):"]
    ),
)
logs = st.lists(st.tuples(prefixes, lines), max_size=30).map(
    lambda parts: "\n".join(prefix + line for prefix, line in parts)
)


@settings.get_profile("fuzz")
@given(logs)
def test_any_log_has_a_diagnosis_or_none(text):
    with bounded():
        found = diagnose_text(text, "log")
    assert found is None or isinstance(found, Diagnosis)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5)
    ),
    max_leaves=20,
)
GOOD = {
    "id": "killed",
    "kind": "transient",
    "root": 0,
    "line": "x",
    "line_number": 1,
    "cause": "c",
    "remedy": "r",
    "source": "s",
    "certain": True,
    "collateral": [],
}
bundles = st.one_of(
    st.binary(max_size=300),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.tuples(st.sampled_from(sorted(GOOD)), json_values).map(
        lambda change: json.dumps({**GOOD, change[0]: change[1]}).encode()
    ),
)


@settings.get_profile("fuzz")
@given(bundles)
def test_any_bundle_is_read_or_refused(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "diagnosis.json").write_bytes(content)
    refusal = ""
    found = None
    with bounded():
        try:
            found = diagnose_bundle(folder)
        except RaylaunchError as error:
            refusal = error.what
    assert found is None or isinstance(found, Diagnosis)
    assert not refusal or str(folder) in refusal


def test_the_samples_of_the_signatures_are_there():
    """The generator draws from them: without any it would test random text only."""
    assert len(SAMPLES) > 100
    assert len(RECORDED) >= 2
