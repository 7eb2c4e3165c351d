"""Holds the stand-in for vLLM against what real vLLM 0.32 was measured to do with dp=2, one rank per server."""

import json
import os
import signal
import socket
import threading
from pathlib import Path

import httpx
import pytest
from standin_servers import STANDIN, free_port, wait_until
from stopping import stop

from raylaunch.vllm_api.startup_log import StartupProgress, advance_all
from raylaunch.vllm_api.vllm_metrics import read_ranks

HANG_S = 0.7  # how long an answer may stay away, after all expected ones came, before it counts as hanging


def count_answers(server, requests, expected):
    """Send `requests` at once, wait for `expected` answers, give the rest a little more; return how many came."""
    sent = [in_background(lambda: ask_quietly(server)) for _ in range(requests)]
    came = lambda: sum(bool(results) for _, results in sent)  # noqa: E731
    wait_until(lambda: came() >= expected, f"{expected} answers of {requests}")
    silent = [thread for thread, results in sent if not results]
    if silent:
        silent[0].join(HANG_S)
    return came()


def ask_quietly(server):
    try:
        return server.ask().status_code
    except httpx.HTTPError as error:  # the end of the test ends the server under a hanging request
        return error


def ranks(server):
    return read_ranks(server.get("/metrics").text)


def in_background(call):
    """Run `call` in a thread; the list gets its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    return thread, results


# The command line


def test_version(servers):
    server = servers.start("--version")
    assert server.exit_code() == 0
    assert server.log == "0.32.0\n"


def test_unknown_flags_are_refused_as_argparse_does(servers):
    server = servers.start("serve", "m", "--foo", "bar", "--port", "1", "--calculate-kv-scales")
    assert server.exit_code() == 2
    assert "vllm: error: unrecognized arguments: --foo bar --calculate-kv-scales\n" in server.log


def test_a_wrong_number_and_a_missing_value_are_refused(servers):
    wrong, missing = (
        servers.start("serve", "m", "--port", "many"),
        servers.start("serve", "m", "--port"),
    )
    assert (wrong.exit_code(), missing.exit_code()) == (2, 2)
    assert "vllm serve: error: argument --port: invalid int value: 'many'" in wrong.log
    assert "error: argument --port: expected one argument" in missing.log


def test_all_ways_to_write_a_flag_are_accepted(servers):
    servers.serve(
        *(
            "--mm_processor_cache_type",
            "shm",
            "--speculative_config",
            '{"method": "eagle3"}',
            "-tp",
            "8",
            "-O3",
        ),
        *(
            "--profiler-config.torch_profiler_dir=/tmp/x",
            "--compilation-config={}",
            "--no-enable-prefix-caching",
        ),
    )


def test_a_model_that_does_not_exist(servers):
    online = servers.start("serve", "/no/such/model")
    offline = servers.start("serve", "/no/such/model", environ={"HF_HUB_OFFLINE": "1"})
    assert (online.exit_code(), offline.exit_code()) == (1, 1)
    assert "Invalid repository ID or local directory specified: '/no/such/model'" in online.log
    assert (
        "Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/no/such/model'"
        in offline.log
    )


# Starting


def test_a_pair_serves_both_ranks_in_turn(servers):
    primary, headless = servers.pair()
    assert {primary.ask().json()["choices"][0]["text"] for _ in range(6)} == {
        primary.ask().json()["choices"][0]["text"]
    }
    primary.ask()
    seen = ranks(primary)
    assert {rank: seen[rank].finished for rank in seen} == {0: 4, 1: 4}
    assert seen[1].generation_tokens == 8
    assert primary.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert advance_all(StartupProgress(), primary.log.split("\n")).stage == "API up"
    assert advance_all(StartupProgress(), headless.log.split("\n")).stage == "engine up"


def test_the_handshake_port_is_closed_after_the_start(servers):
    primary, _ = servers.pair()
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", primary.rpc)) != 0


def test_a_server_is_one_process_group_of_main_engine_and_workers(servers):
    primary, headless = servers.pair(WORKERS=2)
    names = {"VLLM::EngineCore_DP0", "VLLM::DPCoordinator", "VLLM::Worker_TP0", "VLLM::Worker_TP1"}
    assert set(primary.tree()) == names
    assert set(headless.tree()) == (names - {"VLLM::EngineCore_DP0", "VLLM::DPCoordinator"}) | {
        "VLLM::EngineCore_DP1"
    }


def test_a_primary_waits_without_a_word_for_its_headless_server(servers):
    primary = servers.primary()
    primary.says(r"init engine \(")
    before = primary.log
    with pytest.raises(httpx.ConnectError):
        primary.get("/health")
    assert primary.process.poll() is None
    assert primary.log == before
    servers.headless(primary)
    primary.says("Application startup complete")


def test_a_headless_server_may_start_first_and_gives_up_with_code_0(servers):
    lonely = servers.primary()
    lonely.end()
    headless = servers.headless(lonely, HANDSHAKE_S=0.2)
    assert headless.exit_code() == 0
    assert "Did not receive response from front-end process within 5 minutes" in headless.log


def test_a_taken_http_port(servers):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        server = servers.start(
            "serve", str(servers.model), "--host", "127.0.0.1", "--port", str(port)
        )
        assert server.exit_code() == 1
    assert "OSError: [Errno 98] Address already in use" in server.log


def test_a_taken_handshake_port(servers):
    first = servers.primary()
    first.says("Started DP Coordinator")
    words = servers._words(free_port(), first.rpc)
    second = servers.start(*words)
    assert second.exit_code() == 1
    assert (
        f"zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:{first.rpc}')"
        in second.log
    )


@pytest.mark.parametrize(
    ("primary_flags", "headless_flags", "text"),
    [
        (("--enable-expert-parallel",), (), "Configuration mismatch detected for engine 1"),
        (
            ("--data-parallel-start-rank", "0"),
            (),
            "Remote engine 1 must not use --headless in external or hybrid dp lb",
        ),
        (
            (),
            ("--data-parallel-start-rank", "2"),
            "Message from engine with unexpected data parallel rank: 2",
        ),
        (
            (),
            ("--data-parallel-start-rank", "0"),
            "HELLO message from remote engine 0, expected it to be local",
        ),
    ],
)
def test_a_group_that_does_not_fit_together_ends_the_primary(
    servers, primary_flags, headless_flags, text
):
    primary = servers.primary(*primary_flags)
    servers.headless(primary, *headless_flags)
    assert primary.exit_code() == 1
    assert text in primary.log
    wait_until(lambda: not primary.tree(), "the end of the primary's children")


def test_api_server_count_and_headless_exclude_each_other(servers):
    server = servers.start("serve", str(servers.model), "--headless", "--api-server-count", "1")
    assert server.exit_code() == 1
    assert "ValueError: api_server_count can't be set in headless mode" in server.log


# Dying


def test_killed_headless_main_leaves_an_orphan_that_keeps_serving(servers):
    primary, headless = servers.pair()
    os.kill(headless.pid, signal.SIGKILL)
    headless.exit_code()
    for _ in range(4):
        assert primary.ask().status_code == 200
    assert ranks(primary)[1].finished == 2
    assert "VLLM::EngineCore_DP1" in headless.tree()


def test_killed_headless_engine_is_noticed_by_its_main_only(servers):
    primary, headless = servers.pair()
    os.kill(headless.pid_of("VLLM::EngineCore_DP1"), signal.SIGKILL)
    assert headless.exit_code() == 0
    assert count_answers(primary, 2, expected=1) == 1
    assert primary.get("/health").status_code == 200
    wait_until(lambda: not headless.tree(), "the end of the dead engine's worker")


def test_a_restarted_headless_server_never_rejoins(servers):
    primary, headless = servers.pair()
    headless.end()
    again = servers.headless(primary, HANDSHAKE_S=0.3)
    assert again.exit_code() == 0
    assert "Did not receive response" in again.log
    assert count_answers(primary, 2, expected=1) == 1


def test_killed_primary_main_leaves_orphans_and_a_headless_server_that_does_not_know(servers):
    primary, headless = servers.pair()
    os.kill(primary.pid, signal.SIGKILL)
    primary.exit_code()
    assert {"VLLM::EngineCore_DP0", "VLLM::DPCoordinator", "VLLM::Worker"} <= set(primary.tree())
    assert headless.process.poll() is None
    with pytest.raises(httpx.ConnectError):
        primary.ask()


def test_killed_local_engine_ends_the_primary_with_code_0(servers):
    primary, _ = servers.pair()
    os.kill(primary.pid_of("VLLM::EngineCore_DP0"), signal.SIGKILL)
    assert primary.exit_code() == 0
    assert "Engine core proc EngineCore_DP0 died unexpectedly" in primary.log


def test_killed_worker_takes_its_engine_and_then_the_primary_along(servers):
    primary, headless = servers.pair()
    os.kill(headless.pid_of("VLLM::Worker"), signal.SIGKILL)
    headless.says(r"Worker proc VllmWorker-0 died unexpectedly \(exit code: -9\)")
    assert headless.exit_code() == 0
    assert primary.exit_code() == 0


def test_sigterm_ends_the_primary_and_all_its_children_but_not_the_headless_server(servers):
    primary, headless = servers.pair()
    os.kill(primary.pid, signal.SIGTERM)
    assert primary.exit_code() == 0
    wait_until(lambda: not primary.tree(), "the end of the primary's children")
    assert headless.process.poll() is None
    headless.process.terminate()
    assert headless.exit_code() == 0
    assert "Shutting down." in headless.log


def test_shutdown_timeout_lets_requests_finish(servers):
    server = servers.serve("--shutdown-timeout", "60", TOKEN_S=0.01)
    thread, answers = in_background(lambda: server.ask(tokens=50).status_code)
    wait_until(lambda: ranks(server)[0].running, "the request to run")
    server.process.terminate()
    server.says("shutdown triggered")
    assert server.exit_code() == 0
    thread.join(30)
    assert answers == [200]


def test_a_server_can_be_deaf_to_sigterm(servers):
    server = servers.serve(IGNORE_TERM=1)
    server.kill(signal.SIGTERM)
    assert server.ask().status_code == 200


# Hanging


def test_stopped_headless_server_hangs_its_rank_and_comes_back(servers):
    primary, headless = servers.pair()
    headless.stop()
    threads = [in_background(lambda: primary.ask().status_code) for _ in range(2)]
    wait_until(lambda: ranks(primary)[0].finished == 1, "rank 0's answer")
    assert primary.get("/health").status_code == 200
    assert sum(len(results) for _, results in threads) <= 1
    assert ranks(primary)[1].generation_tokens == 0
    headless.kill(signal.SIGCONT)
    for thread, _ in threads:
        thread.join(30)
    assert [results for _, results in threads] == [[200], [200]]


def test_a_stopped_main_process_alone_changes_nothing_unless_asked_to(servers):
    primary, headless = servers.pair()
    stop(headless.pid)
    assert count_answers(primary, 2, expected=2) == 2


def test_follow_main_hangs_the_rank_of_a_stopped_main_process(servers):
    primary, headless = servers.pair(FOLLOW_MAIN=1)
    stop(headless.pid)
    assert count_answers(primary, 2, expected=1) == 1
    os.kill(headless.pid, signal.SIGCONT)
    assert count_answers(primary, 2, expected=2) == 2


def test_least_loaded_routing_steers_away_from_a_stuck_rank(servers):
    primary, headless = servers.pair(ROUTE="least")
    headless.stop()
    assert count_answers(primary, 2, expected=1) == 1
    # One after the other: of several at once, one may find rank 0 as loaded as the stuck rank.
    assert [primary.ask().status_code for _ in range(3)] == [200] * 3


def test_expert_parallel_hangs_as_a_whole(servers):
    primary, headless = servers.pair("--enable-expert-parallel")
    assert count_answers(primary, 2, expected=2) == 2
    headless.stop()
    assert count_answers(primary, 2, expected=0) == 0
    assert primary.get("/health").status_code == 200
    headless.kill(signal.SIGCONT)
    assert count_answers(primary, 2, expected=2) == 2


def test_expert_parallel_ends_at_the_next_request_after_a_death(servers):
    primary, headless = servers.pair("--enable-expert-parallel")
    os.kill(headless.pid_of("VLLM::EngineCore_DP1"), signal.SIGKILL)
    assert headless.exit_code() == 0
    assert primary.get("/health").status_code == 200
    assert primary.ask().status_code == 500
    assert primary.exit_code() == 0


def test_expert_parallel_fails_what_is_in_flight_at_a_death(servers):
    primary, headless = servers.pair("--enable-expert-parallel", TOKEN_S=0.02)
    thread, answers = in_background(lambda: primary.ask(tokens=10_000).status_code)
    wait_until(lambda: any(rank.running for rank in ranks(primary).values()), "the request to run")
    os.kill(headless.pid_of("VLLM::EngineCore_DP1"), signal.SIGKILL)
    thread.join(30)
    assert answers == [500]
    assert primary.exit_code() == 0


def test_expert_parallel_headless_server_goes_after_an_orderly_end_of_the_primary(servers):
    primary, headless = servers.pair("--enable-expert-parallel")
    primary.process.terminate()
    assert (primary.exit_code(), headless.exit_code()) == (0, 0)


# Faults on demand


@pytest.mark.parametrize(
    ("fault", "code", "text"),
    [
        ("exit-at-once", 1, "told to exit at once"),
        ("exit-zero", 0, ""),
        ("bad-flag", 2, "vllm: error: unrecognized arguments: --calculate-kv-scales"),
        ("eaddrinuse", 1, "Address already in use"),
        ("bad-weights", 1, "Cannot find any model weights with"),
        ("oom", 1, "NPU out of memory. Tried to allocate"),
        ("kv-none", 1, "No available memory for the cache blocks"),
        ("oom-killer", 1, r"Worker proc VllmWorker-0 died unexpectedly (exit code: -9)"),
        ("segfault", 1, "Failed core proc(s): {'EngineCore': -11}"),
    ],
)
def test_faults_while_starting(servers, fault, code, text):
    server = servers.start(
        "serve", str(servers.model), "--host", "127.0.0.1", "--port", str(free_port()), FAIL=fault
    )
    assert server.exit_code() == code
    assert text in server.log
    assert "startup complete" not in server.log
    wait_until(lambda: not server.tree(), "the end of its children")


def test_a_fault_in_an_engine_is_followed_by_the_wrapper_of_the_main_process(servers):
    server = servers.start("serve", str(servers.model), "--port", str(free_port()), FAIL="oom")
    assert server.exit_code() == 1
    cause, wrapper = (
        server.log.index("NPU out of memory"),
        server.log.index("Engine core initialization failed"),
    )
    assert cause < wrapper


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("acl-stream-sync", "ACL stream synchronize failed"),
        ("server-exits", ""),
        ("engine-exits", ""),
    ],
)
def test_faults_of_a_running_server_end_it_with_code_0(servers, fault, text):
    server = servers.serve(FAIL=fault, FAIL_AFTER_S=0.01)
    assert server.exit_code() == 0
    assert text in server.log


def test_the_hang_fault_prints_vllms_line_and_answers_nothing(servers):
    server = servers.serve(FAIL="shm-broadcast-hang", FAIL_AFTER_S=0)
    server.says("No available shared memory broadcast block found in 60 seconds")
    assert count_answers(server, 1, expected=0) == 0
    assert server.get("/health").status_code == 200


def test_a_start_can_hang_at_its_weights(servers):
    words = ("serve", str(servers.model), "--port", str(free_port()))
    server = servers.start(*words, FAIL="hang-at-weights")
    server.says("Loading safetensors checkpoint shards:  25% Completed")
    server.process.terminate()
    assert server.exit_code() == 0
    assert "Loading weights took" not in server.log


def test_a_fault_strikes_only_the_named_servers_and_attempts(servers):
    def run(server, attempt):
        environ = {"RAYLAUNCH_SERVER": server, "RAYLAUNCH_ATTEMPT": attempt}
        filters = {"FAIL": "exit-at-once", "FAIL_SERVERS": "1", "FAIL_ATTEMPTS": "1,2"}
        words = ("serve", "/no/such/model")
        run = servers.start(*words, environ=environ, **filters)
        run.exit_code()
        return "told to exit at once" in run.log

    assert [run("1", "1"), run("1", "2"), run("1", "3"), run("0", "1")] == [
        True,
        True,
        False,
        False,
    ]


def test_every_fault_of_the_file_has_a_known_place():
    faults = json.loads((STANDIN.parent.parent / "faults.json").read_text())
    places = {("main", at) for at in ("start", "bind", "connect", "up", "answer")}
    places |= {("engine", at) for at in ("connect", "weights", "warm-up", "up", "answer")} | {
        ("worker", "weights")
    }
    assert {(fault["where"], fault["at"]) for fault in faults.values()} <= places


# What reached it, and what it answers


def test_it_records_what_reached_it(servers, tmp_path):
    server = servers.serve(RECORD=tmp_path, environ={"HCCL_IF_IP": "192.0.2.10"})
    seen = json.loads(next(tmp_path.glob("server-0-*.json")).read_text())
    assert seen["argv"][:3] == ["vllm", "serve", str(servers.model)]
    assert seen["env"]["HCCL_IF_IP"] == "192.0.2.10"
    assert (seen["pid"], seen["pgid"], seen["sid"], seen["ppid"]) == (
        server.pid,
        server.pid,
        server.pid,
        os.getpid(),
    )
    assert (seen["cwd"], seen["niceness"]) == (str(Path.cwd()), os.nice(0))
    assert seen["children"] == {"EngineCore": server.pid_of("VLLM::EngineCore")}


def test_text_depends_on_the_prompt_alone(servers):
    server = servers.serve()
    texts = [
        server.post("/v1/completions", {"prompt": p, "max_tokens": 9}).json()
        for p in ("a", "b", "a")
    ]
    a, b, again = (text["choices"][0]["text"] for text in texts)
    assert a == again != b
    assert len(a.split()) == 9


def test_chat_streams_and_calls_tools(servers):
    server = servers.serve("--enable-auto-tool-choice", "--tool-call-parser", "minimax_m2")
    messages = [{"role": "user", "content": "weather?"}]
    plain = {"messages": messages, "max_tokens": 3}
    whole = server.post("/v1/chat/completions", plain).json()["choices"][0]["message"]["content"]
    lines = server.post("/v1/chat/completions", {**plain, "stream": True}).text.split("\n\n")
    assert lines[-2] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == whole
    tool = {
        "type": "function",
        "function": {"name": "get_weather", "parameters": {"required": ["city"]}},
    }
    choice = server.post("/v1/chat/completions", {**plain, "tools": [tool]}).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]["function"]
    assert call["name"] == "get_weather"
    assert list(json.loads(call["arguments"])) == ["city"]


def test_bench_serve_sends_requests_and_saves_vllms_keys(servers):
    server = servers.serve("--served-model-name", "tiny")
    words = ("--model", "tiny", "--port", server.url.rpartition(":")[2], "--num-prompts", "3")
    saving = (
        "--save-result",
        "--result-dir",
        str(servers.folder),
        "--result-filename",
        "bench.json",
    )
    run = servers.start("bench", "serve", *words, *saving)
    assert run.exit_code() == 0
    result = json.loads((servers.folder / "bench.json").read_text())
    assert (result["completed"], result["failed"], result["total_output_tokens"]) == (3, 0, 48)
    assert {
        "request_throughput",
        "output_throughput",
        "mean_ttft_ms",
        "median_tpot_ms",
        "p99_itl_ms",
    } <= set(result)
    assert ranks(server)[0].finished == 3


def test_tools_need_the_flag(servers):
    tool = {"type": "function", "function": {"name": "f"}}
    body = {"messages": [{"role": "user", "content": "x"}], "tools": [tool]}
    answer = servers.serve().post("/v1/chat/completions", body)
    assert answer.status_code == 400
    assert "--enable-auto-tool-choice" in answer.text
