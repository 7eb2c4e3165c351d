"""Whole failures, replayed: which server is named as the root, and which as collateral."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from raylaunch.supervise.diagnosis.exit_reasons import name_exit
from raylaunch.supervise.diagnosis.root_cause import (
    Diagnosis,
    ServerEvidence,
    diagnose,
    diagnose_text,
)
from raylaunch.supervise.state import Exit


def at(clock: str, day: str = "2026-11-23") -> float:
    return datetime.fromisoformat(f"{day}T{clock}").replace(tzinfo=UTC).timestamp()


def error(clock: str, text: str, process: str = "EngineCore_DP0 pid=7", day: str = "11-23") -> str:
    return f"\x1b[1;36m({process})\x1b[0;0m ERROR {day} {clock} [core.py:1510] {text}"


def info(
    clock: str, text: str = "Engine 000: Avg prompt throughput: 0.0 tokens/s", day: str = "11-23"
) -> str:
    return f"(APIServer pid=5) INFO {day} {clock} [loggers.py:271] {text}"


ENGINE_DEAD = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above)"
INIT_FAILED = (
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
)
GLOO = "RuntimeError: [../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.77.0.2]:38112"
EI0006 = "EI0006: [PID: 749] 2026-11-23-10:20:00.787.356 Getting socket times out. Reason: Remote Rank did not send"


def primary(*lines: str, **parts: object) -> ServerEvidence:
    return ServerEvidence(0, "primary", (0,), "10.77.0.1", lines, **parts)  # type: ignore[arg-type]


def headless(*lines: str, index: int = 1, **parts: object) -> ServerEvidence:
    return ServerEvidence(index, "headless", (index,), f"10.77.0.{index + 1}", lines, **parts)  # type: ignore[arg-type]


CASES: list[tuple[str, tuple[ServerEvidence, ...], tuple[str, int | None, tuple[int, ...]]]] = [
    (
        "the earliest first-hand failure wins over the later one of a lower index",
        (
            primary(error("10:16:45", "OSError: [Errno 24] Too many open files")),
            headless(
                error("10:16:41", "RuntimeError: Cannot find any model weights with `/opt/m`")
            ),
        ),
        ("weights-missing", 1, (0,)),
    ),
    (
        "a wrapper yields to a cause on another server, even to a later one",
        (
            primary(error("10:16:40", INIT_FAILED), exit=Exit(at("10:16:41"), code=1)),
            headless(error("10:16:42", "ValueError: No available memory for the cache blocks.")),
        ),
        ("kv-none", 1, (0,)),
    ),
    (
        "a wrapper alone is the root",
        (
            primary(error("10:16:40", INIT_FAILED), exit=Exit(at("10:16:41"), code=1)),
            headless(info("10:16:00")),
        ),
        ("engine-init-failed", 0, ()),
    ),
    (
        "an exception that is read by its words stands behind its wrapper",
        (
            primary(
                error("10:16:39", "Traceback (most recent call last):"),
                error("10:16:39", '  File "model.py", line 3, in forward'),
                error("10:16:39", "IndexError: index 7 is out of bounds"),
                error("10:16:40", INIT_FAILED),
            ),
        ),
        ("tensor-shapes", 0, ()),
    ),
    (
        "a server killed by a signal nobody sent beats its peers' complaints",
        (
            primary(
                error("11:02:09", GLOO),
                error("11:02:09", ENGINE_DEAD),
                exit=Exit(at("11:02:11"), code=0),
            ),
            headless(info("11:02:00"), exit=Exit(at("11:02:08.3"), signal=9)),
        ),
        ("killed", 1, (0,)),
    ),
    (
        "a server that ended first, with code 0 and without a word, is the suspect of the others' time-outs",
        (
            primary(error("10:20:00", EI0006)),
            headless(info("10:17:00"), exit=Exit(at("10:18:00"), code=0)),
            headless(error("10:20:01", EI0006), index=2),
        ),
        ("exited-zero", 1, (0, 2)),
    ),
    (
        "one that ended after the complaint is not",
        (primary(error("10:20:00", EI0006)), headless(exit=Exit(at("10:25:00"), code=0))),
        ("hccl-socket-EI0006", 0, (1,)),
    ),
    (
        "the log that stops first, without an error, marks the suspect",
        (
            primary(info("10:19:59"), error("10:20:00", EI0006)),
            headless(info("10:17:31")),
            headless(info("10:17:55"), error("10:20:02", EI0006), index=2),
        ),
        ("hccl-socket-EI0006", 1, (0, 2)),
    ),
    (
        "a worker that vanished earlier is the suspect too",
        (
            primary(error("11:02:10", GLOO)),
            headless(
                error(
                    "11:02:09",
                    "Worker proc VllmWorker-3 died unexpectedly (exit code: -9), shutting down",
                )
            ),
        ),
        ("worker-died", 1, (0,)),
    ),
    (
        "everybody exits 0: the first one",
        (
            primary(exit=Exit(at("11:02:01.7"), code=0)),
            headless(exit=Exit(at("11:02:02.9"), code=0)),
        ),
        ("exited-zero", 0, (1,)),
    ),
    (
        "a lost node explains the complaints of the rest",
        (primary(error("11:02:09", GLOO)), headless(agent_lost="node unreachable")),
        ("node-lost", 1, (0,)),
    ),
    ("a lost agent", (primary(), headless(agent_lost="agent died")), ("agent-lost", 1, ())),
    (
        "wrong usage without a known line",
        (primary("usage: vllm", exit=Exit(5.0, code=2)),),
        ("bad-usage", 0, ()),
    ),
    ("a shell's word for signal 9", (primary(exit=Exit(5.0, code=137)),), ("killed", 0, ())),
    ("a crash in native code", (primary(exit=Exit(5.0, signal=11)),), ("crashed", 0, ())),
    ("nothing at all", (primary(), headless()), ("no-evidence", None, ())),
    (
        "a hang line counts when nothing else is found",
        (
            primary(
                info(
                    "10:16:00",
                    "No available shared memory broadcast block found in 60 seconds. This typically",
                ),
            ),
            headless(),
        ),
        ("shm-broadcast-hang", 0, ()),
    ),
    (
        "a warning is never the root of a failure",
        (
            primary("sysctl: setting key", exit=Exit(5.0, signal=9)),
            headless("Failed to detect NPU type"),
        ),
        ("killed", 0, ()),
    ),
    (
        "an old exception of one request does not explain a group that breaks an hour later",
        (
            primary(
                error("10:02:09", "ValueError: the prompt is longer than the model allows"),
                info("11:02:00"),
                error("11:02:09", GLOO),
            ),
            headless(info("11:02:01"), exit=Exit(at("11:02:08"), code=0)),
        ),
        ("exited-zero", 1, (0,)),
    ),
    (
        "a known failure that the server survived for long does not explain its end",
        (
            primary(
                error("10:02:09", "MemoryError"),
                info("11:02:00"),
                exit=Exit(at("11:02:08"), signal=9),
            ),
        ),
        ("killed", 0, ()),
    ),
]


@pytest.mark.parametrize(
    ("evidence", "expected"), [row[1:] for row in CASES], ids=[row[0] for row in CASES]
)
def test_root(
    evidence: tuple[ServerEvidence, ...], expected: tuple[str, int | None, tuple[int, ...]]
) -> None:
    found = diagnose(evidence)
    assert (found.id, found.root, found.collateral) == expected
    assert found.cause
    assert found.remedy


def test_clocks_are_aligned_before_they_are_compared() -> None:
    """Server 1 stamps in another zone, an hour and a bit ahead; its failure was the first one."""
    servers = (
        primary(error("10:16:42", "OSError: [Errno 24] Too many open files")),
        headless(
            error("11:16:50", "ValueError: No available memory for the cache blocks."),
            utc_offset_s=3600.0,
            clock_offset_s=10.0,
        ),
    )
    assert diagnose(servers).root == 1


def test_new_year_does_not_turn_the_order() -> None:
    servers = (
        primary(error("00:00:01", "OSError: [Errno 24] Too many open files", day="01-01")),
        headless(
            error("23:59:59", "ValueError: No available memory for the cache blocks.", day="12-31")
        ),
    )
    assert diagnose(servers, at=at("00:00:10", "2027-01-01")).root == 1


def test_lines_without_a_stamp_inherit_the_last_one() -> None:
    servers = (
        primary(info("10:16:30"), "OSError: [Errno 24] Too many open files", info("10:17:00")),
        headless(error("10:16:40", "ValueError: No available memory for the cache blocks.")),
    )
    assert diagnose(servers).root == 0


def test_an_echoed_command_line_is_no_failure() -> None:
    echo = info(
        "10:14:58",
        "non-default args: {'headline': 'Address already in use', 'x': 'EI0006 EngineDeadError'}",
    )
    assert diagnose_text(echo) is None
    assert diagnose((primary(echo, exit=Exit(5.0, signal=9)),)).id == "killed"


def test_the_line_is_named_by_its_number_in_the_file() -> None:
    lines = (
        info("10:16:30"),
        error("10:16:40", "ValueError: No available memory for the cache blocks."),
    )
    found = diagnose((primary(*lines, first_line=901),))
    assert found.line_number == 902
    assert "cache blocks" in found.line
    assert "\x1b" not in found.line


def test_a_device_fault_names_node_and_device() -> None:
    lines = (
        error("10:16:40", "RuntimeError: c10_npu::SetDevice(device_id_), error code is 507033"),
        error(
            "10:16:40",
            "[ERROR] 2026-11-23-10:16:40 (PID:114020, Device:5, RankID:1) ERR00100 PTA call acl api failed",
        ),
    )
    found = diagnose((primary(), headless(*lines)))
    assert (found.id, found.kind, found.node, found.device) == (
        "set-device",
        "device",
        "10.77.0.2",
        5,
    )


def test_certainty_tells_known_causes_from_guesses() -> None:
    def certain(*lines: str) -> bool:
        return diagnose((primary(*lines, exit=Exit(at("10:16:41"), code=1)),)).certain

    assert certain(error("10:16:40", "OSError: [Errno 24] Too many open files"))
    assert not certain(error("10:16:40", INIT_FAILED))
    assert not certain(error("10:16:40", "IndexError: 7"))
    assert not certain()


def test_unknown_shows_the_exception() -> None:
    found = diagnose(
        (
            primary(
                error("10:16:40", "my.module.OddError: it broke"), exit=Exit(at("10:16:41"), code=1)
            ),
        )
    )
    assert found.id == "unknown"
    assert "my.module.OddError: it broke" in found.cause
    assert found.kind == "transient"


def test_bare_text_carries_its_name() -> None:
    found = diagnose_text(
        "torch\r\nRuntimeError: operator torchvision::nms does not exist\r\n", "node0.log"
    )
    assert isinstance(found, Diagnosis)
    assert (found.id, found.line_number, found.detail) == ("torchvision-nms", 2, "node0.log")


@pytest.mark.parametrize(
    ("ended", "name"),
    [
        (Exit(0.0, code=0), "exited-zero"),
        (Exit(0.0, code=1), "unknown"),
        (Exit(0.0, code=2), "bad-usage"),
        (Exit(0.0, code=127), "not-executable"),
        (Exit(0.0, code=-9), "killed"),
        (Exit(0.0, code=143), "killed"),
        (Exit(0.0, signal=15), "killed"),
        (Exit(0.0, signal=6), "crashed"),
    ],
)
def test_exits_have_names(ended: Exit, name: str) -> None:
    assert name_exit(ended)[0] == name
