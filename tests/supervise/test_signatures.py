"""The signature file: each entry is sound, matches its own sample, and is what that sample is diagnosed as."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from raylaunch.supervise.diagnosis import signatures
from raylaunch.supervise.diagnosis.root_cause import ServerEvidence, diagnose, diagnose_text
from raylaunch.supervise.diagnosis.signatures import Kind, Level, Signature, load_signatures

SIGNATURES = load_signatures()
FATAL = [signature for signature in SIGNATURES if signature.level == "fatal"]
by_id = pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: signature.id)
fatal_by_id = pytest.mark.parametrize("signature", FATAL, ids=lambda signature: signature.id)


def test_ids_are_unique() -> None:
    ids = [signature.id for signature in SIGNATURES]
    assert sorted(set(ids)) == sorted(ids)


def test_file_is_read_once() -> None:
    assert load_signatures() is SIGNATURES


def test_no_value_is_cut_off_by_a_comment_of_yaml() -> None:
    folder = Path(signatures.__file__).parent / "known"
    lines = [
        line
        for path in sorted(folder.glob("*.yaml"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert len(lines) > 1000
    assert not [line for line in lines if re.match(r"\s+\w+: [^'\"|>].* #", line)]


def test_message_that_ends_with_a_full_stop_is_quoted_without_it() -> None:
    what = "  what():  it went wrong."
    found = diagnose_text(f"terminate called after throwing an instance of 'c10::Error'\n{what}\n")
    assert found is not None
    assert found.cause == "Native code aborted the process (c10::Error): it went wrong."


@by_id
def test_entry_is_sound(signature: Signature) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[A-Za-z0-9]+)*", signature.id)
    assert signature.level in get_args(Level)
    assert signature.kind in get_args(Kind)
    assert (signature.kind == "harmless") == (signature.level in ("warning", "quality"))
    assert signature.cause
    assert signature.remedy
    assert signature.source
    assert not (signature.wrapper and signature.symptom)
    wanted = [int(number) for number in re.findall(r"\{(\d)\}", signature.cause + signature.remedy)]
    assert max(wanted, default=-1) < signature.pattern.groups


@by_id
def test_sample_is_diagnosed_as_its_own_signature(signature: Signature) -> None:
    found = diagnose_text(signature.sample, "sample.log")
    assert found is not None
    assert found.id == signature.id
    assert found.kind == signature.kind
    assert found.line_number is not None
    assert found.root == 0
    assert re.search(r"\{\d\}", found.cause) is None


@fatal_by_id
def test_sample_in_a_real_log_is_still_the_root(signature: Signature) -> None:
    """Surrounded by what vLLM prints before and after a failure, the verdict is the same."""
    found = diagnose(
        [ServerEvidence(3, log_lines=[*BANNER, *signature.sample.splitlines(), *AFTERMATH])]
    )
    assert found.root == 3
    assert found.id == signature.id


@fatal_by_id
def test_no_other_fatal_signature_takes_the_sample(signature: Signature) -> None:
    """Only wrappers, which yield, may match somebody else's sample."""
    first_hand = [other for other in FATAL if not other.wrapper or other is signature]
    takers = {other.id for other in first_hand if other.pattern.search(signature.sample)}
    assert takers == {signature.id}


def test_healthy_log_has_no_diagnosis() -> None:
    assert diagnose_text("\n".join(BANNER)) is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "zmq.error.ZMQError: Address already in use (addr='tcp://10.0.0.1:2347')",
            ("port: 2347",),
        ),
        (
            "ERROR:    [Errno 98] error while attempting to bind on address ('0.0.0.0', 8100): address already in use",
            ("port: 8100",),
        ),
        ("OSError: [Errno 98] Address already in use", ("a port that the server needs.",)),
        (
            "KeyError: 'invalid tool call parser: hermez (chose from { hermes })'",
            ("tool call parser called hermez",),
        ),
        ("vllm: error: argument --max-model-len: invalid int value: 'x'", ("--max-model-len",)),
    ],
)
def test_groups_reach_the_text(line: str, words: tuple[str, ...]) -> None:
    found = diagnose_text(line)
    assert found is not None
    assert all(word in found.cause for word in words), found.cause


def test_estimate_reaches_the_remedy() -> None:
    sample = next(signature.sample for signature in SIGNATURES if signature.id == "kv-too-small")
    found = diagnose_text(sample)
    assert found is not None
    assert "73728" in found.remedy
    assert "args.max-model-len" in found.remedy


BANNER = [
    (
        "(APIServer pid=4121) INFO 11-23 10:14:58 [utils.py:333] non-default args: {'model': '/m', "
        "'trust_remote_code': True, 'tool_call_parser': 'minimax_m2', 'enable_expert_parallel': True}"
    ),
    "(APIServer pid=4121) INFO 11-23 10:15:00 [model.py:733] Resolved architecture: MiniMaxM2ForCausalLM",
    "(APIServer pid=4121) INFO 11-23 10:15:01 [utils.py:1245] Started DP Coordinator process (PID: 21012)",
    (
        "(EngineCore_DP0 pid=4210) INFO 11-23 10:15:02 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with "
        "config: model='/m', trust_remote_code=True"
    ),
    "Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 136.61it/s]",
    "INFO:     Application startup complete.",
]
AFTERMATH = [
    "(EngineCore_DP0 pid=4210) ERROR 12-31 23:59:58 [core.py:1510] EngineCore failed to start.",
    (
        "(APIServer pid=4121) RuntimeError: Engine core initialization failed. See root cause above. "
        "Failed core proc(s): {'EngineCore_DP0': 1}"
    ),
    (
        "(APIServer pid=4121) ERROR 12-31 23:59:59 [async_llm.py:416] vllm.v1.engine.exceptions.EngineDeadError: "
        "EngineCore encountered an issue. See stack trace (above) for the root cause."
    ),
]
