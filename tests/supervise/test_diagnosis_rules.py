"""The layers below the signatures: how they yield to each other, and what they leave alone."""

from __future__ import annotations

import pytest

from raylaunch.supervise.diagnosis.advice import read_advice
from raylaunch.supervise.diagnosis.edges import explained_ids, load_edges
from raylaunch.supervise.diagnosis.log_lines import read_log
from raylaunch.supervise.diagnosis.root_cause import ServerEvidence, diagnose, diagnose_text
from raylaunch.supervise.diagnosis.rules.cann_blocks import find_blocks
from raylaunch.supervise.diagnosis.rules.error_codes import find_number, load_codes
from raylaunch.supervise.diagnosis.rules.network_rules import describe_address
from raylaunch.supervise.diagnosis.rules.tables.option_names import name_options
from raylaunch.supervise.diagnosis.signatures import load_signatures
from raylaunch.supervise.diagnosis.tracebacks import find_exceptions
from raylaunch.supervise.state import Exit

BLOCK = (
    "EJ0003: [PID: 159] 2025-03-26-17:01:02.816.428 Failed to bind the IP port. Reason: The IP "
    "address and port have been bound already.\n"
    "        Solution: Change the port.\n"
    "        TraceBack (most recent call last):\n"
    "        host nic listen start failed, port[60000][FUNC:Start][FILE:network.cc][LINE:1163]"
)
PREFIXES = (
    "",
    "[rank0]: ",
    "(Worker_TP0 pid=7) ERROR 10-15 16:32:16 [core.py:708] ",
    "vllm-1  | (EngineCore_DP0 pid=7) ERROR 10-15 16:32:16 [core.py:708] ",
    "\x1b[1;36m(EngineCore_DP0 pid=7)\x1b[0;0m ",
    "2026-01-02T10:00:00.123456789Z stderr F ",
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_cann_block_is_read_behind_every_prefix(prefix: str) -> None:
    lines = [prefix + line for line in BLOCK.splitlines()]
    (block,) = find_blocks(read_log(lines))
    assert block.code == "EJ0003"
    assert block.text == "Failed to bind the IP port"
    assert block.reason == "The IP address and port have been bound already"
    assert block.solution == "Change the port"
    assert block.trace == ("host nic listen start failed, port[60000]",)


def test_a_cann_block_without_newlines_is_the_same_block() -> None:
    (block,) = find_blocks(read_log([" ".join(BLOCK.split())]))
    assert block.reason == "The IP address and port have been bound already"
    assert block.solution == "Change the port"


def test_every_edge_names_something_that_can_be_found() -> None:
    """An id that no rule and no signature has is a typing mistake."""
    from pathlib import Path

    from raylaunch.supervise.diagnosis import edges

    folder = Path(edges.__file__).parent
    text = "\n".join(
        file.read_text(encoding="utf-8")
        for file in folder.rglob("*")
        if file.suffix in (".py", ".yaml") and file.name != "explains.yaml"
    )
    names = {name for edge in load_edges() for name in (*edge.causes, *edge.explain)}
    plain = {name.split("*")[0].split("?")[0] for name in names}
    unknown = {
        name for name in plain if name not in text and name.removeprefix("cann-") not in text
    }
    assert unknown == set()


def test_two_that_explain_each_other_are_both_kept() -> None:
    found = explained_ids(["transformers-too-old", "bad-config-value", "port-in-use"])
    assert found == {"bad-config-value": "transformers-too-old"}
    assert explained_ids(["hub-unreachable", "name-resolution"]) == {
        "hub-unreachable": "name-resolution"
    }


def test_codes_are_known_once_and_have_a_remedy() -> None:
    codes = load_codes()
    assert len(codes) > 90
    assert all(code.remedy and code.source for code in codes.values())


def test_a_lost_peer_yields_to_the_killed_one_of_another_server() -> None:
    servers = (
        ServerEvidence(
            0, log_lines=("[rank0]: hccl fftsplus task timeout occurred, timeout=1836s",)
        ),
        ServerEvidence(1, log_lines=("Out of memory: Killed process 42 (VLLM::Worker)",)),
    )
    found = diagnose(servers)
    assert (found.id, found.root) == ("oom-killer", 1)


def test_two_causes_at_once_are_both_named_and_neither_is_certain() -> None:
    text = (
        "OSError: [Errno 24] Too many open files\n"
        "PermissionError: [Errno 13] Permission denied: '/models/config.json'\n"
        "OSError: [Errno 28] No space left on device\n"
    )
    found = diagnose_text(text)
    assert found is not None
    assert not found.certain
    assert found.kind == "transient"
    assert "also possible: The user that runs Ray may not read" in found.detail


def test_error_lines_that_nothing_explains_are_no_all_clear() -> None:
    text = (
        "(Worker_TP0 pid=7) ERROR 10-15 16:32:16 [worker.py:8] the frobnicator is upside down\n"
        "(Worker_TP1 pid=8) ERROR 10-15 16:32:19 [worker.py:8] the frobnicator fell off\n"
    )
    found = diagnose_text(text)
    assert found is not None
    assert found.id == "unexplained-errors"
    assert not found.certain
    for word in ("2 error lines", "upside down", "fell off", "Worker_TP0", "Worker_TP1"):
        assert word in found.cause


def test_output_that_a_full_log_disk_lost_is_not_the_cause_of_a_kill() -> None:
    note = "[raylaunch] 1677 bytes of output lost: No space left on device"
    found = diagnose([ServerEvidence(0, log_lines=(note,), exit=Exit(5.0, signal=9))])
    assert (found.id, found.kind) == ("killed", "transient")
    assert diagnose_text(note) is None


def test_an_error_that_the_server_survived_is_no_failure_but_a_later_one_is() -> None:
    error = "(EngineCore_DP0 pid=7) ERROR 10-15 16:32:16 [core.py:1] ValueError: odd input\n"
    served = '(APIServer pid=1) INFO:     192.0.2.9:4 - "POST /v1/completions HTTP/1.1" 200 OK\n'
    assert diagnose_text(error + served) is None
    assert diagnose_text(served + error) is not None


def test_a_dead_engine_is_not_survived_whatever_the_api_answers() -> None:
    dead = "(APIServer pid=1) ERROR 10-15 16:32:16 [x.py:1] EngineDeadError: EngineCore died\n"
    metrics = '(APIServer pid=1) INFO:     192.0.2.9:4 - "GET /metrics HTTP/1.1" 200 OK\n'
    assert diagnose_text(dead + metrics) is not None


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("127.0.1.1", "loopback"),
        ("198.18.0.1", "tunnel"),
        ("172.17.0.2", "Docker"),
        ("169.254.3.4", "link-local"),
        ("10.0.0.7", ""),
        ("node0", ""),
    ],
)
def test_addresses_that_no_peer_can_reach_are_told_from_others(address: str, word: str) -> None:
    said = describe_address(address)
    assert word in said
    assert bool(said) == bool(word)


def test_the_innermost_frame_is_of_the_same_process() -> None:
    lines = [
        '(Worker_TP0 pid=7)   File "/x/vllm_ascend/ops/moe.py", line 3, in dispatch',
        '(Worker_TP1 pid=8)   File "/x/vllm/v1/core.py", line 9, in run',
        "(Worker_TP0 pid=7) AttributeError: 'A' object has no attribute 'b'",
    ]
    (raised,) = find_exceptions(read_log(lines))
    assert raised.innermost is not None
    assert raised.innermost.module_path == "vllm_ascend/ops/moe.py"
    assert raised.innermost.function == "dispatch"


def test_lines_that_a_terminal_broke_are_joined_and_keep_their_numbers() -> None:
    width = 80
    text = "(EngineCore pid=3) " + "ValueError: No available memory for the cache blocks. " * 4
    broken = [text[at : at + width] for at in range(0, len(text), width)]
    assert len(broken) > 2
    log = read_log(["x", *broken, "y"])
    assert log.raw == ("x", text, "y")
    assert list(log.numbers) == [1, 2, 2 + len(broken)]


def test_of_several_matches_nearby_the_one_with_most_values_fills_the_text() -> None:
    found = diagnose_text(
        "DrvMngGetConsoleLogLevel failed. (g_conLogLevel=3)\n"
        "dcmi model initialized failed, because the device is used. ret is -8020\n"
    )
    assert found is not None
    assert (found.id, "-8020" in found.cause) == ("dcmi", True)


def test_a_code_without_values_is_completed_by_its_block() -> None:
    found = diagnose_text(
        "EI0001: [PID: 4210] 2026-01-15-08:12:13.114 Environment variable [HCCL_BUFFSIZE] is "
        "invalid. Reason: [Invalid value 0].\n"
    )
    assert found is not None
    assert "HCCL_BUFFSIZE" in found.cause
    assert "Invalid value 0" in found.cause


def test_lines_of_another_rank_do_not_cut_a_block() -> None:
    lines = [
        "(Worker_TP2 pid=7) EZ9999: Inner Error!",
        "(Worker_TP0 pid=5)     final_hidden_states = self.quant_method.apply(",
        "(Worker_TP2 pid=7)        MoeDispatch do tiling failed, ret is -1.[FUNC:A][FILE:b.cc]",
    ]
    (block,) = find_blocks(read_log(lines))
    assert block.lines == (0, 2)
    assert "MoeDispatch do tiling failed" in block.text


def test_words_of_the_runtime_stand_for_their_number() -> None:
    known = find_number(["rtMalloc execute failed, reason=[driver error:out of memory][FUNC:F]"])
    assert known is not None
    assert known.code == "207001"


def test_the_number_that_only_reports_a_failure_yields_to_the_other() -> None:
    known = find_number(["error code is 500001", "runtime result = 507014"])
    assert known is not None
    assert known.code == "507014"


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        ("max_num_seqs (1024) exceeds the limit", ["`args.max-num-seqs`"]),
        ("use --tensor-parallel-size 2", ["`parallel.tensor`"]),
        ("set VLLM_USE_V1=1", ["`env.VLLM_USE_V1: 1`"]),
        ("speculative decoding is not supported", ["`features.speculative`"]),
        ("the frobnicator is upside down", []),
    ],
)
def test_a_refusal_names_the_recipe_fields_of_its_message(message: str, fields: list[str]) -> None:
    assert name_options(message) == fields


def test_a_report_of_a_lost_peer_is_never_certain() -> None:
    """Its cause is in another log."""
    reports = [each for each in load_signatures() if each.symptom]
    assert len(reports) > 5
    for signature in reports:
        found = diagnose_text(signature.sample)
        assert found is not None
        assert not found.certain, signature.id


def test_error_lines_behind_the_prefix_of_a_launcher_are_no_all_clear() -> None:
    for prefix in ("gemma-server  | ", "[RAW SERVER] ", "2026-01-02T10:00:00.123456789Z stderr F "):
        found = diagnose_text(f"{prefix}AssertionError\n")
        assert found is not None, prefix
    found = diagnose_text("[ERROR] GE(17,):2025-12-25-17:14:00.937.954 [t.cc:3]1 Build: odd\n")
    assert found is not None


PREFIX = "(Worker_TP0 pid=7) ERROR 11-27 10:16:41 [multiproc_executor.py:953] "


def test_lines_that_a_copy_has_joined_are_read_one_by_one_and_keep_their_number() -> None:
    joined = " ".join(
        PREFIX + text
        for text in (
            "Traceback (most recent call last):",
            '  File "/opt/vllm/v1/worker/worker.py", line 1, in load',
            "ModuleNotFoundError: No module named 'torch_npu'",
        )
    )
    found = diagnose_text(f"first line\n{joined}\n")
    assert found is not None
    assert found.id == "module-missing"
    assert found.line_number == 2


def test_the_source_line_of_a_raise_is_no_message() -> None:
    raises = '    raise KeyError(f"invalid tool call parser: {name} (chose from x)")'
    said = "KeyError: 'invalid tool call parser: minimax_m9 (chose from x)'"
    found = diagnose_text("\n".join(PREFIX + text for text in (raises, said)))
    assert found is not None
    assert "minimax_m9" in found.cause


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("Warmup failed. Please try to decrease `maxTokens` in config.json.", "`maxTokens`"),
        ("Cannot bind. See stack trace for the root cause.", ""),
        ("x failed. Please set the environment variable ASCEND_LAUNCH_BLOCKING=1.", ""),
        ("No room. Consider setting --block-size to 64", "--block-size to 64"),
    ],
)
def test_a_message_advises_what_it_says_and_not_where_to_read_on(message: str, advice: str) -> None:
    said = read_advice(message)
    assert advice in said
    assert bool(said) == bool(advice)


def test_a_worker_that_exits_after_an_ordered_stop_has_not_failed() -> None:
    died = (
        "ERROR 11-27 10:16:42 multiproc_worker_utils.py:120] Worker W pid 12 died, exit code: -15"
    )
    assert diagnose_text(f"KeyboardInterrupt\n{died}") is None
    assert diagnose_text(died) is not None


def test_an_exception_that_the_engine_passed_on_is_read_itself() -> None:
    found = diagnose_text(
        f"{PREFIX}RuntimeError: Worker failed with error 'AttributeError: 'AscendRotary' object has "
        "no attribute 'cos'', please check the stack trace above for the root cause"
    )
    assert found is not None
    assert found.id == "attribute-missing"
    assert "AscendRotary" in found.cause


def test_a_number_of_cann_that_no_table_has_is_read_by_its_range() -> None:
    found = diagnose_text(
        f"{PREFIX}RuntimeError: NPU function error: aclrtFoo, error code is 207999"
    )
    assert found is not None
    assert "207999" in found.cause
    assert not found.certain


_GLOO = "RuntimeError: [enforce fail at gloo/transport/tcp/device.cc:1] "
_REQUEST = "ERROR 11-23 10:16:41 [qwen3coder_tool_parser.py:257] "
_UNREACHED = (
    "2026-11-23 10:16:41,678 WARNING utils.py:1446 -- Unable to connect to GCS at 192.0.2.4:"
)
_DONE = "NCCL WARN NET/IB: Got completion from peer 192.0.2.31<43007> with status=IBV_WC_"


@pytest.mark.parametrize(
    ("log", "id_", "words"),
    [
        (f"{_GLOO}rp != nullptr. Unable to find address for: node-9", "gloo-host-name", "node-9"),
        (f"{_GLOO}ifa != nullptr. Unable to find address for: eth9", "gloo-interface", "eth9"),
        (f"{_UNREACHED}8265. Check that", "ray-gcs", "dashboard"),
        (f"{_UNREACHED}6379. Check that", "ray-gcs", "192.0.2.4:6379"),
        (f"{_DONE}RETRY_EXC_ERR(12) opcode=1 hca mlx5_0", "nccl-error", "mlx5_0"),
        ("Worker proc W died unexpectedly, exit code: -8", "worker-died", "SIGFPE"),
        (
            "ValueError: needs 4 NPUs, but only 2 NPUs are available in the Ray cluster.",
            "ray-",
            "4",
        ),
        ("RuntimeError: CUDA driver error: device not ready", "cuda-error", "not ready"),
    ],
)
def test_a_class_of_messages_is_read_in_other_words_too(log: str, id_: str, words: str) -> None:
    found = diagnose_text(log)
    assert found is not None
    assert found.id.startswith(id_)
    assert words in found.cause


def test_an_error_of_one_answer_is_no_failure_unless_the_engine_died() -> None:
    answer = f"{_REQUEST}Error in extracting tool call.\n{_REQUEST}IndexError: out of range"
    assert diagnose_text(answer) is None
    assert diagnose_text(f"{answer}\n{PREFIX}EngineDeadError: EngineCore encountered an issue")
