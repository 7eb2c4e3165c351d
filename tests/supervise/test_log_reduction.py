"""A log that was reduced to the lines that matter has the diagnosis of the whole log."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from raylaunch.supervise.diagnosis.inputs.bounded_lines import BoundedLines, Piece
from raylaunch.supervise.diagnosis.inputs.carried_lines import split_lines
from raylaunch.supervise.diagnosis.inputs.log_blocks import LONG_LINE_BYTES, split_blocks
from raylaunch.supervise.diagnosis.inputs.log_reduction import ReducedLog, reduce_log
from raylaunch.supervise.diagnosis.inputs.server_evidence import ServerEvidence
from raylaunch.supervise.diagnosis.log_lines import LEFT_OUT, read_log
from raylaunch.supervise.diagnosis.root_cause import Diagnosis, diagnose_logs, find_anchors
from raylaunch.supervise.diagnosis.rules import hang_rules, network_rules, ray_rules
from raylaunch.supervise.diagnosis.signatures import load_signatures
from raylaunch.supervise.diagnosis.survival import ANSWERED, PROGRESSED, SERVED, STOPPED

# More of them: RAYLAUNCH_FUZZ_EXAMPLES=10000.
EXAMPLES = int(os.environ.get("RAYLAUNCH_FUZZ_EXAMPLES", "0"))
fuzz = settings(
    max_examples=EXAMPLES or 60,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
DATA = Path(__file__).parent.parent / "data"
CASES = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["log"]
    for path in sorted((DATA / "diagnose").glob("*.yaml"))
}
SAMPLES = [signature.sample for signature in load_signatures()]
# Longer than a terminal is wide: a log that a terminal broke is joined, a serving log is not.
ARGUMENTS = "(APIServer pid=1) INFO 11-22 08:00:00 [utils.py:2] args: " + "x" * 500
ACCESS = '(APIServer pid=1) INFO:     192.0.2.7:4{0:03} - "GET /health HTTP/1.1" 503 Unavailable'
THROUGHPUT = (
    "(APIServer pid=1) INFO 11-22 08:{0:02}:00 [loggers.py:257] Engine 000: Avg prompt throughput: "
    "1.0 tokens/s, Avg generation throughput: 0.0 tokens/s, Running: 1 reqs, Waiting: 0 reqs"
)
DEBUG = "\x1b[36m(EngineCore_DP0 pid=9)\x1b[0m DEBUG 11-22 08:00:09 [core.py:7] step, {0} requests"
PLOG = "[INFO] HCCL(9,python3):2026-11-22-08:00:01.070.463 [a.cc:3]step {0}"


def filler(lines: int) -> str:
    """Return lines that report nothing; two of three have no time."""
    kinds = (ACCESS, ACCESS, THROUGHPUT, DEBUG, ACCESS, PLOG)
    return "".join(kinds[n % len(kinds)].format(n % 60) + "\n" for n in range(lines))


def reduced(text: str, block: int = 997, max_bytes: int = 1 << 30) -> ReducedLog:
    data = text.encode("utf-8", "replace")
    chunks = [data[at : at + block] for at in range(0, len(data), block)]
    return reduce_log(chunks, anchors=find_anchors(), max_bytes=max_bytes)


def both_ways(text: str, block: int = 997) -> tuple[Diagnosis | None, Diagnosis | None]:
    text = text.encode("utf-8", "replace").decode("utf-8", "replace")
    lines, numbers = split_lines(text)
    few = reduced(text, block)
    return (
        diagnose_logs([ServerEvidence(0, log_lines=lines, line_numbers=numbers)], "log"),
        diagnose_logs([ServerEvidence(0, log_lines=few.lines, line_numbers=few.numbers)], "log"),
    )


@pytest.mark.parametrize("name", CASES)
def test_a_case_inside_a_serving_log_has_the_same_diagnosis_both_ways(name: str) -> None:
    log = CASES[name].removesuffix("\n")
    text = f"{ARGUMENTS}\n{filler(130)}{log}\n{filler(130)}"
    whole, few = both_ways(text)
    assert few == whole
    assert len(reduced(text).lines) < text.count("\n") or "INFO" not in text


quiet = st.sampled_from([ACCESS, THROUGHPUT, DEBUG, PLOG]).flatmap(
    lambda kind: st.integers(0, 59).map(kind.format)
)
alive = st.sampled_from(
    [
        '(APIServer pid=1) INFO:     192.0.2.7:1 - "POST /v1/completions HTTP/1.1" 200 OK',
        "(APIServer pid=1) INFO 11-22 08:00:00 [loggers.py:1] Avg generation throughput: 7.1 tokens/s",
        "Capturing CUDA graphs: 100%| 67/67 [00:12<00:00, 5.2it/s]",
        "(APIServer pid=1) INFO 11-22 08:00:00 [core.py:1] init engine (profile) took 7.1 seconds",
        "(APIServer pid=1) INFO 11-22 08:00:00 [launcher.py:1] Received signal 15",
        "^C",
        (
            "(W pid=3) INFO 11-22 08:00:00 [x.py:1] Waiting for creating a placement group of specs "
            "for 10 seconds. specs=[{'NPU': 1.0}]"
        ),
    ]
)
loud = st.one_of(
    st.sampled_from(SAMPLES),
    st.sampled_from([line for log in CASES.values() for line in log.splitlines()]),
    st.sampled_from(list(CASES.values())),
    st.text(max_size=60),
    st.text("()[]pid=0123456789 INFOWARNERDBUG:\r-,.", max_size=60),
)
parts = st.one_of(
    st.lists(quiet, min_size=1, max_size=60).map("\n".join), alive, loud.map(lambda part: part)
)


@fuzz
@given(st.lists(parts, max_size=14), st.sampled_from([13, 997, 1 << 20]))
def test_any_log_has_the_same_diagnosis_both_ways(some: list[str], block: int) -> None:
    whole, few = both_ways("\n".join([ARGUMENTS, *some]), block)
    assert few == whole


@fuzz
@given(st.lists(parts, max_size=8), st.sampled_from([13, 997]))
def test_no_line_of_an_error_or_a_warning_is_left_out(some: list[str], block: int) -> None:
    text = "\n".join([ARGUMENTS, *some]).encode("utf-8", "replace").decode()
    lines, numbers = split_lines(text)
    few = reduced(text, block)
    left = read_log(few.lines, numbers=few.numbers)
    whole = read_log([*lines, LEFT_OUT], numbers=[*numbers, 0])  # the mark: nothing is joined
    assert left.warnings.text == whole.warnings.text
    assert left.errors.text == whole.errors.text
    assert few.total == max(numbers)


@pytest.mark.parametrize("sign", [SERVED, PROGRESSED, ANSWERED, STOPPED], ids=str)
def test_a_sign_of_life_has_one_of_its_words(sign) -> None:
    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(st.from_regex(sign.pattern))
    def holds(text: str) -> None:
        found = sign.pattern.search(text)
        assert found is not None
        assert any(word in found[0] for word, _ in sign.words)
        assert any(word in found[0] and also in found[0] for word, also in sign.words)

    holds()


def test_what_is_searched_in_every_level_has_an_anchor() -> None:
    anchors = find_anchors()
    assert ray_rules.WAITING_ANCHOR in anchors
    patterns = [ray_rules._WAITING, hang_rules._NOTICE, network_rules._ECHOED_HOST]
    patterns += [each.pattern for each in load_signatures() if each.anchor]
    for pattern in patterns:
        assert any(anchor in pattern.pattern for anchor in anchors), pattern


def test_numbers_are_those_of_the_file() -> None:
    text = filler(5000) + "OSError: [Errno 98] Address already in use\n" + filler(3000)
    found = both_ways(text, 1 << 14)[1]
    assert found is not None
    assert found.line_number == 5001
    assert len(reduced(text, 1 << 14).lines) < 200


def test_a_line_without_a_time_gets_that_of_the_lines_left_out_before_it() -> None:
    access = "".join(ACCESS.format(n % 60) + "\n" for n in range(300))
    text = THROUGHPUT.format(7) + "\n" + access + "OSError: [Errno 98] Address already in use\n"
    few = reduced(text)
    log = read_log(few.lines, numbers=few.numbers)
    assert log.times[-1] == log.times[1] is not None
    assert len(few.lines) < 100


def test_of_too_many_error_lines_the_first_and_the_last_are_kept() -> None:
    text = "".join(f"line {n} of something without a level\n" for n in range(20_000))
    few = reduced(text, 1 << 14, max_bytes=100_000)
    assert few.numbers[0] == 1
    assert few.numbers[-1] == few.total == 20_000
    assert sum(map(len, few.lines)) < 150_000
    assert few.unread + len([line for line in few.lines if line != LEFT_OUT]) >= 20_000


def test_between_the_first_and_the_last_the_lines_with_an_error_word_are_kept() -> None:
    store = BoundedLines(1000)
    for number in range(1, 101):
        words = "an error" if number == 50 else "nothing"
        store.add(Piece(number, f"{words} {'x' * 40}\n".encode()))
    kept = {piece.number for piece in store.pieces()}
    assert {1, 50, 100} <= kept
    assert store.dropped == 100 - len(kept)


@given(st.lists(st.binary(max_size=50), max_size=20))
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
def test_blocks_are_the_same_bytes_in_whole_lines(chunks: list[bytes]) -> None:
    blocks = list(split_blocks(chunks))
    text = b"".join(chunks)
    assert all(block.endswith(b"\n") for block in blocks)
    assert b"".join(blocks) == (text if text.endswith(b"\n") or not text else text + b"\n")


def test_a_line_that_never_ends_is_shortened_while_it_grows() -> None:
    (block,) = split_blocks([b"head"] + [b"\0" * (1 << 20)] * 50 + [b"tail"])
    assert len(block) < LONG_LINE_BYTES + 20
    assert block.startswith(b"head\0")
    assert block.endswith(b"\0tail\n")
