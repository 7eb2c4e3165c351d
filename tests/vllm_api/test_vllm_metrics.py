"""Counters per rank from a real /metrics text of vLLM 0.32, dp=2."""

from pathlib import Path

import pytest

from raylaunch.vllm_api.vllm_metrics import RankCounters, read_ranks

TEXT = (Path(__file__).parent.parent / "data" / "vllm" / "0.32-dp2-metrics.txt").read_text()


def test_real_metrics_give_one_entry_per_rank():
    ranks = read_ranks(TEXT)
    assert list(ranks) == [0, 1]
    assert ranks[0] == RankCounters(
        prompt_tokens=10, generation_tokens=16, finished=2, prefix_queries=10
    )
    assert ranks[1].finished == 2


def test_running_waiting_and_cache_use_are_read():
    text = (
        'vllm:num_requests_running{engine="3",model_name="a \\"b\\" } c"} 7.0\n'
        'vllm:num_requests_waiting{engine="3",model_name="m"} 2.0\n'
        'vllm:num_requests_waiting_by_reason{engine="3",model_name="m",reason="capacity"} 99.0\n'
        'vllm:kv_cache_usage_perc{engine="3",model_name="m"} 0.25\n'
    )
    assert read_ranks(text) == {3: RankCounters(running=7, waiting=2, kv_usage=0.25)}


def test_finished_counts_all_reasons():
    text = "".join(
        f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="m"}} {n}\n'
        for reason, n in (("stop", 1.0), ("length", 2.0), ("abort", 4.0), ("error", 8.0))
    )
    assert read_ranks(text)[0].finished == 15


def test_a_text_without_vllm_has_no_ranks():
    assert read_ranks("# HELP up up\nup 1\n") == {}
    assert read_ranks("") == {}


def test_a_broken_series_is_an_error():
    with pytest.raises(ValueError, match=r".*"):
        read_ranks('vllm:num_requests_running{engine="0"} many\n')
