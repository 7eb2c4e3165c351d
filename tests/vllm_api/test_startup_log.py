"""Stages from the logs of real vLLM 0.32 (dp=2 on CPU) and from the wordings of vLLM 0.23 and vllm-ascend."""

from pathlib import Path

import pytest

from raylaunch.vllm_api.startup_log import STAGES, StartupProgress, advance, advance_all, hang_lines

DATA = Path(__file__).parent.parent / "data" / "vllm"


def read_log(role):
    # newline="": the progress bars' carriage returns must reach the code as they are in the file.
    with (DATA / f"0.32-dp2-{role}.log").open(newline="") as file:
        return file.read().split("\n")


def walk(lines):
    """The (stage, detail) pairs shown, in order, without repeats."""
    progress, shown = StartupProgress(), []
    for line in lines:
        progress = advance(progress, line)
        if not shown or shown[-1] != (progress.stage, progress.detail):
            shown.append((progress.stage, progress.detail))
    return progress, shown


def test_a_real_primary_goes_through_its_stages_to_api_up():
    progress, shown = walk(read_log("primary"))
    assert progress.stage == "API up"
    assert progress.done
    assert shown == [
        ("spawned", ""),
        ("engine connected", "vLLM v0.32.0"),
        ("weights", ""),
        ("weights", "0/1 shards"),
        ("weights", "1/1 shards"),
        ("warm-up", "weights took 0.00 s"),
        ("warm-up", "KV cache for 2,097,152 tokens"),
        ("warm-up", "engine ready in 3.3 s"),
        ("API up", ""),
    ]


def test_a_real_headless_server_ends_at_engine_up():
    progress, shown = walk(read_log("headless"))
    assert shown[1] == ("engine connected", "waits for the primary at tcp://127.0.0.1:2347")
    assert shown[-1] == ("engine up", "engine ready in 3.4 s")
    assert progress.at == "11-23 20:26:56"
    assert progress.done


def test_a_headless_server_with_two_engines_waits_for_both():
    launch = "INFO 11-23 20:26:40 [serve.py:239] Launching 2 data parallel engine(s) in headless mode, with head node address tcp://192.0.2.10:2347."
    ready = "(EngineCore_DP{} pid=9) INFO 11-23 20:26:56 [core.py:402] init engine (profile, create kv cache, warmup model) took 3.40 s"
    one = advance_all(StartupProgress(), [launch, ready.format(2)])
    assert one.stage == "warm-up"
    assert advance(one, ready.format(3)).stage == "engine up"


@pytest.mark.parametrize(
    ("line", "stage", "detail"),
    [
        ("(Worker_TP0_EP0 pid=7) \rLoading safetensors checkpoint shards:   6% Completed | 3/47 [00:02<00:31,  1.38it/s]", "weights", "3/47 shards"),
        ("\rLoading safetensors checkpoint shards:   2% Completed | 1/47 [00:02<00:31]\rLoading safetensors checkpoint shards:   4% Completed | 2/47 [00:03<00:31]", "weights", "2/47 shards"),
        ("Multi-thread loading shards:  50% Completed | 4/8 [00:01<00:01]", "weights", "4/8 shards"),
        ("Loading pt checkpoint shards:  50% Completed | 1/2 [00:01<00:01]", "weights", "1/2 shards"),
        ("\x1b[1;36m(EngineCore_DP0 pid=12)\x1b[0;0m INFO 05-01 12:00:00 [core.py:97] Initializing a V1 LLM engine (v0.23.0) with config: model='x'", "engine connected", "vLLM v0.23.0"),
        ("\rCapturing ACL graphs (decode, FULL):  50%|#####     | 4/8 [00:01<00:01,  3.1it/s]", "warm-up", "4/8 graphs"),
        ("Capturing CUDA graphs (mixed prefill-decode, PIECEWISE): 100%|##########| 35/35 [00:04<00:00]", "warm-up", "35/35 graphs"),
        ("(Worker_TP0 pid=3) INFO 05-01 12:00:00 [gpu_model_runner.py:6582] Graph capturing finished in 21 secs, took 0.42 GiB", "warm-up", "graphs took 21 s"),
        ("(Worker_TP0 pid=3) INFO 05-01 12:00:00 [model_runner_v1.py:2601] Loading model weights took 57.3025 GB", "warm-up", "weights: 57.3025 GB"),
        ("(EngineCore_DP0 pid=3) INFO 05-01 12:00:00 [core.py:402] init engine (profile, create kv cache, warmup model) took 3.40 s (compilation: 1.20 s)", "warm-up", "engine ready in 3.4 s"),
        ("(APIServer pid=5) INFO:     Application startup complete.", "API up", ""),
        ("INFO:     Application startup complete.", "API up", ""),
        ("INFO 05-01 12:00:00 [utils.py:1] non-default args: {'note': 'Application startup complete'}", "spawned", ""),
        ("", "spawned", ""),
    ],
)  # fmt: skip
def test_lines(line, stage, detail):
    progress = advance(StartupProgress(), line)
    assert (progress.stage, progress.detail) == (stage, detail)


def test_a_stage_never_goes_backwards():
    log = read_log("primary")
    progress, seen = StartupProgress(), []
    for line in [*log, *log, *reversed(log)]:
        progress = advance(progress, line)
        seen.append(STAGES.index(progress.stage))
    assert seen == sorted(seen)


def test_the_slower_of_two_engines_does_not_turn_the_shard_count_back():
    bar = "Loading safetensors checkpoint shards:  10% Completed | {}/47 [00:02<00:31]"
    assert advance_all(StartupProgress(), [bar.format(5), bar.format(2)]).detail == "5/47 shards"
    assert (
        advance_all(StartupProgress(), [bar.format(47), bar.format(1).replace("/47", "/3")]).detail
        == "1/3 shards"
    )


def test_a_line_without_a_time_keeps_the_last_one():
    start = advance(
        StartupProgress(),
        "(Worker pid=1) INFO 11-23 20:26:58 [cpu_model_runner.py:68] Starting to load model m...",
    )
    bar = advance(
        start,
        "Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 365.77it/s]",
    )
    assert (bar.detail, bar.at) == ("1/1 shards", "11-23 20:26:58")


def test_hang_line():
    assert hang_lines(
        "INFO 11-23 20:26:58 [shm_broadcast.py:548] No available shared memory broadcast block found in 60 seconds."
    )
    assert not any(hang_lines(line) for line in read_log("primary"))
