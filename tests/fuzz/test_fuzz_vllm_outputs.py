"""Hostile outputs of vLLM: log lines and metrics give a value or their documented error."""

import pytest
from bounds import bounded
from hypothesis import example, given, settings, strategies as st

from raylaunch.vllm_api import startup_log
from raylaunch.vllm_api.startup_log import StartupProgress, advance
from raylaunch.vllm_api.vllm_metrics import read_ranks

fuzz = settings.get_profile("fuzz-costly")
MARKS = [
    "Loading weights took ",
    "init engine (profile) took ",
    "Loading model weights took ",
    "Model loading took 1 GiB and ",
    "(EngineCore_DP0 pid=1) ",
    "INFO 11-23 20:26:51 [a.py:1] ",
    "1.2.3 s",
    "1.2.3 seconds",
    "9" * 400 + " s",
    "Graph capturing finished in ",
    "Launching 2 data parallel engine(s) ",
    "\x1b[0m",
    "\r",
    "| 3/47 [",
]


@fuzz
@given(parts=st.lists(st.sampled_from(MARKS) | st.text(max_size=20), max_size=8))
@example(parts=["init engine (profile, create kv cache) took 1.2.3 s"])
@example(parts=["Loading weights took 1.2.3 seconds"])
def test_every_log_line_has_a_progress(parts):
    with bounded():
        assert advance(StartupProgress(), "".join(parts)).stage in startup_log.STAGES


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("filling", ["a", " ", "(", "1", "1.", "0/", "\x1b[", "(a pid=1) ", "\r"])
def test_a_line_of_64_kb_takes_no_time(mark, filling):
    line = mark + filling * (65_536 // len(filling))
    with bounded():
        advance(StartupProgress(), line)


@pytest.mark.parametrize("number", ["1.2.3", "1..2", ".", "1.2.3.4"])
def test_a_number_that_is_none_changes_nothing(number):
    before = StartupProgress()
    for line in (f"init engine (x) took {number} s", f"Loading weights took {number} seconds"):
        assert advance(before, line) == before


series = st.builds(
    "{}{{{}}} {}".format,
    st.sampled_from(["vllm:num_requests_running", "vllm:prompt_tokens_total", "other"]),
    st.sampled_from(['engine="0"', 'engine="x"', 'engine="\\""', "", 'a="', "engine=0"]),
    st.sampled_from(["1", "1e3", "nan", "+Inf", "-", "", "1 2 3", "9" * 400]),
)


@fuzz
@given(text=st.lists(series | st.text(max_size=30), max_size=8).map("\n".join))
def test_metrics_give_counters_or_a_value_error(text):
    with bounded():
        try:
            ranks = read_ranks(text)
        except ValueError:
            return
    assert all(isinstance(rank, int) for rank in ranks)
