"""Replayed observations: one row per rule of detection, of readiness and of the answer to a failure."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from raylaunch.plan.launch_plan import LaunchPlan, Place, Ports, ServerPlan
from raylaunch.supervise.diagnosis.root_cause import Diagnosis, ServerEvidence, diagnose
from raylaunch.supervise.policy import (
    BecomeReady,
    GiveUp,
    GroupShape,
    HealthConfig,
    Restart,
    Stop,
    Wait,
    decide,
    decide_on_failure,
    find_failure,
    find_unready,
    internal_failure,
    spent_restarts,
)
from raylaunch.supervise.state import (
    CanarySeen,
    Exit,
    Failure,
    History,
    HttpSeen,
    Phase,
    RankSeen,
    ServerSeen,
    move,
)

NOW = 10_000.0
HEALTH = HealthConfig()
GANG = GroupShape(ranks=((0,), (1,)), nodes=("10.0.0.1", "10.0.0.2"), holds_devices=False)
STARTED = History(started_at=NOW - 100)
RAN = History(started_at=NOW - 500, ready_at=NOW - 400)


def ranks(**of_rank_1: Any) -> tuple[RankSeen, ...]:
    moving = RankSeen(0, running=2, tokens=500, moved_at=NOW - 1, at=NOW - 1)
    return moving, replace(moving, rank=1, **of_rank_1)


def pair(
    first: dict[str, Any] | None = None, second: dict[str, Any] | None = None
) -> tuple[ServerSeen, ...]:
    """A healthy, ready pair of servers, with some observations replaced."""
    api = ServerSeen(
        0,
        pid=100,
        agent_at=NOW - 0.5,
        http=HttpSeen(200, 0.01, NOW - 1),
        ranks=ranks(),
        serves_model=True,
        canary=CanarySeen(ok=True, at=NOW - 5),
    )
    other = ServerSeen(1, pid=200, agent_at=NOW - 0.7)
    return replace(api, **(first or {})), replace(other, **(second or {}))


def deaf(since: float, **ranks_seen: Any) -> dict[str, Any]:
    return {"http": HttpSeen(None, None, NOW - 1, NOW - since), **ranks_seen}


def still(seconds: float, *which: int, at: float = NOW) -> dict[str, Any]:
    def rank(number: int) -> RankSeen:
        stuck = RankSeen(
            number, running=3, still_since=at - seconds, moved_at=at - seconds - 1, at=at
        )
        return stuck if number in which else RankSeen(number, running=1, moved_at=NOW - 1, at=at)

    return {"ranks": (rank(0), rank(1))}


IDLE = (RankSeen(0, at=NOW, moved_at=NOW - 300), RankSeen(1, at=NOW, moved_at=NOW - 300))


def mute(seconds: float, ranks_seen: tuple[RankSeen, ...] = IDLE) -> dict[str, Any]:
    asked = tuple(
        replace(rank, canary_failing_since=NOW - seconds if rank.rank else None)
        for rank in ranks_seen
    )
    return {"ranks": asked, "canary": CanarySeen(ok=False, at=NOW - 1, failing_since=NOW - seconds)}


DETECTION: list[tuple[str, Phase, tuple[ServerSeen, ...], tuple[str, int | None] | None]] = [
    ("all is well", Phase.READY, pair(), None),
    ("exit by signal", Phase.READY, pair(None, {"exit": Exit(NOW - 1, signal=9)}), ("ended", 1)),
    (
        "exit with code 0 is a failure too",
        Phase.READY,
        pair(None, {"exit": Exit(NOW - 1, code=0)}),
        ("ended", 1),
    ),
    ("exit while starting", Phase.STARTING, pair({"exit": Exit(NOW - 1, code=1)}), ("ended", 0)),
    (
        "the first to end is the root",
        Phase.READY,
        pair({"exit": Exit(NOW - 1, code=0)}, {"exit": Exit(NOW - 2, signal=9)}),
        ("ended", 1),
    ),
    ("agent died", Phase.READY, pair(None, {"agent_lost": "agent died"}), ("agent-lost", 1)),
    (
        "agent died while checking",
        Phase.CHECKING,
        pair(None, {"agent_lost": "agent died"}),
        ("agent-lost", 1),
    ),
    ("node died", Phase.READY, pair(None, {"agent_lost": "node died"}), ("node-lost", 1)),
    (
        "a lost node comes before the exits it causes",
        Phase.READY,
        pair({"exit": Exit(NOW - 1, code=0)}, {"agent_lost": "node unreachable"}),
        ("node-lost", 1),
    ),
    (
        "silent for longer than the limit",
        Phase.READY,
        pair(None, {"agent_at": NOW - 7}),
        ("node-lost", 1),
    ),
    ("silent, but not for long", Phase.READY, pair(None, {"agent_at": NOW - 5}), None),
    (
        "all silent together: perhaps it is the controller",
        Phase.READY,
        pair({"agent_at": NOW - 8}, {"agent_at": NOW - 8}),
        None,
    ),
    (
        "all silent for too long",
        Phase.READY,
        pair({"agent_at": NOW - 9.5}, {"agent_at": NOW - 9.5}),
        ("node-lost", 0),
    ),
    ("/health slow while tokens move", Phase.READY, pair(deaf(500)), None),
    ("/health failing, no token, not long enough", Phase.READY, pair(deaf(29, ranks=IDLE)), None),
    ("/health failing and no token", Phase.READY, pair(deaf(31, ranks=IDLE)), ("http-dead", 0)),
    ("/health refused while starting", Phase.STARTING, pair(deaf(99, ranks=())), None),
    ("one rank stands still", Phase.READY, pair(still(21, 1)), ("stalled", 1)),
    (
        "all ranks stand still: nobody knows whose fault",
        Phase.READY,
        pair(still(21, 0, 1)),
        ("stalled", None),
    ),
    ("a rank stands still for less", Phase.READY, pair(still(19, 1)), None),
    ("nobody looked meanwhile", Phase.READY, pair(still(5, 1, at=NOW - 40)), None),
    ("a hang line while tokens move", Phase.READY, pair(None, {"hang_lines": 3}), None),
    ("a hang line while idle", Phase.READY, pair({"ranks": IDLE, "hang_lines": 3}), None),
    (
        "a hang line and no progress",
        Phase.READY,
        pair({**still(11, 1), "hang_lines": 1}),
        ("stalled", 1),
    ),
    (
        "a rank answers no canary for as long as its patience",
        Phase.READY,
        pair(mute(16)),
        ("canary-failed", 1),
    ),
    (
        "the other rank answers its canaries",
        Phase.READY,
        pair(mute(16, (replace(IDLE[0], moved_at=NOW - 1), IDLE[1]))),
        ("canary-failed", 1),
    ),
    ("a canary behind a long prefill", Phase.READY, pair(mute(16, still(17, 1)["ranks"])), None),
    (
        "nobody looked since the canary was sent",
        Phase.READY,
        pair(mute(16, (IDLE[0], replace(IDLE[1], at=NOW - 10)))),
        None,
    ),
    ("canary fails, not for long", Phase.READY, pair(mute(10)), None),
    ("canary fails, but tokens move", Phase.READY, pair(mute(21, ranks())), None),
    (
        "ends are expected while restarting",
        Phase.RESTARTING,
        pair({"exit": Exit(NOW - 1, signal=15)}),
        None,
    ),
    (
        "ends are expected after a failure",
        Phase.FAILED,
        pair({"exit": Exit(NOW - 1, signal=15)}),
        None,
    ),
]


@pytest.mark.parametrize(
    ("phase", "servers", "expected"), [row[1:] for row in DETECTION], ids=[r[0] for r in DETECTION]
)
def test_detection(
    phase: Phase, servers: tuple[ServerSeen, ...], expected: tuple[str, int | None] | None
) -> None:
    history = RAN if phase is Phase.READY else STARTED
    seen = find_failure(phase, servers, history, HEALTH, NOW, gang=GANG)
    assert (seen and (seen.cause, seen.root)) == expected
    decision = decide(phase, servers, history, HEALTH, NOW, gang=GANG)
    assert isinstance(decision, Restart) == (expected is not None)
    assert seen is None or seen.reason


TIMES = {"at", "agent_at", "moved_at", "still_since", "canary_failing_since", "failing_since"}
TIMES |= {"started_at", "ready_at"}


def shifted(value: Any, by: float) -> Any:
    """Move every time in a value (nested dataclasses and tuples) to a clock with another origin."""
    if isinstance(value, tuple):
        return tuple(shifted(item, by) for item in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changes = {}
    for field in fields(value):
        part = getattr(value, field.name)
        is_time = field.name in TIMES and part is not None
        changes[field.name] = part + by if is_time else shifted(part, by)
    return replace(value, **changes)


@pytest.mark.parametrize("origin", [-NOW + 1, 1.7e9], ids=["a fresh boot", "the epoch"])
@pytest.mark.parametrize(
    ("phase", "servers", "expected"), [row[1:] for row in DETECTION], ids=[r[0] for r in DETECTION]
)
def test_detection_does_not_depend_on_the_origin_of_the_clock(
    phase: Phase,
    servers: tuple[ServerSeen, ...],
    expected: tuple[str, int | None] | None,
    origin: float,
) -> None:
    """A monotonic clock begins at boot: ages count, and no time may be taken for an epoch."""
    history = RAN if phase is Phase.READY else STARTED
    moved_servers, moved_history = shifted(servers, origin), shifted(history, origin)
    seen = find_failure(phase, moved_servers, moved_history, HEALTH, NOW + origin, gang=GANG)
    assert (seen and (seen.cause, seen.root)) == expected
    decision = decide(phase, moved_servers, moved_history, HEALTH, NOW + origin, gang=GANG)
    original = decide(phase, servers, history, HEALTH, NOW, gang=GANG)
    assert type(decision) is type(original)
    if isinstance(decision, Restart) and isinstance(original, Restart):
        assert decision.not_before - origin == pytest.approx(original.not_before)


def test_start_deadline_names_what_is_missing() -> None:
    history = History(started_at=NOW - HEALTH.start_s - 1)
    servers = pair({"serves_model": False}, {"pid": None})
    seen = find_failure(Phase.STARTING, servers, history, HEALTH, NOW, gang=GANG)
    assert seen is not None
    assert seen.cause == "start-deadline"
    assert "server 1: not started" in seen.reason
    assert "/v1/models" in seen.reason


def test_start_deadline_does_not_hit_what_is_ready_just_now() -> None:
    history = History(started_at=NOW - HEALTH.start_s - 1)
    assert decide(Phase.STARTING, pair(), history, HEALTH, NOW, gang=GANG) == BecomeReady()


READINESS: list[tuple[str, tuple[ServerSeen, ...], str]] = [
    ("all holds", pair(), ""),
    ("a server without a process", pair(None, {"pid": None}), "server 1: not started"),
    ("a server nobody has seen", pair()[:1], "server 1: not started"),
    ("health not 200", pair({"http": HttpSeen(503, 0.1, NOW)}), "/health"),
    ("health failing since", pair({"http": HttpSeen(200, 0.1, NOW - 9, NOW - 5)}), "/health"),
    ("model not listed", pair({"serves_model": False}), "/v1/models"),
    ("a rank without metrics", pair({"ranks": ranks()[:1]}), "no metrics of rank 1"),
    ("no completion yet", pair({"canary": None}), "no completion"),
    ("a failed completion", pair({"canary": CanarySeen(ok=False, at=NOW)}), "no completion"),
    (
        "a completion of an earlier attempt",
        pair({"canary": CanarySeen(ok=True, at=NOW - 200)}),
        "no completion",
    ),
]


@pytest.mark.parametrize(
    ("servers", "missing"), [row[1:] for row in READINESS], ids=[row[0] for row in READINESS]
)
def test_readiness(servers: tuple[ServerSeen, ...], missing: str) -> None:
    unready = find_unready(servers, STARTED, gang=GANG)
    assert len(unready) == bool(missing)
    assert missing in "".join(unready)
    decision = decide(Phase.STARTING, servers, STARTED, HEALTH, NOW, gang=GANG)
    assert isinstance(decision, Wait if missing else BecomeReady)


ENDED = pair(None, {"exit": Exit(NOW - 1, code=1)})


def found(kind: str = "transient", name: str = "port-in-use", **parts: Any) -> Diagnosis:
    return Diagnosis(
        name, kind, 1, "line", 7, "cause", "remedy", "source", (0,), node="10.0.0.2", **parts
    )  # type: ignore[arg-type]


def failed(
    ago: float, *, was_ready: bool, cause: str = "ended", kind: str = "transient", node: str = ""
) -> Failure:
    return Failure(1, NOW - ago, cause, kind, 1, was_ready=was_ready, node=node)


def after(*failures: Failure, ready_ago: float | None = None) -> History:
    ready_at = None if ready_ago is None else NOW - ready_ago
    return History(started_at=NOW - 500, ready_at=ready_at, failures=failures)


UNSURE = found(name="unknown", certain=False)
PROBABLY_A_FLAG = found("deterministic", "bad-flag", certain=False)
ANSWERS: list[tuple[str, History, Diagnosis | None, bool, type]] = [
    ("transient", after(), found(), False, Restart),
    ("not diagnosed", after(), None, False, Restart),
    ("deterministic", after(), found("deterministic", "bad-flag"), False, GiveUp),
    ("deterministic, not certain", after(), PROBABLY_A_FLAG, False, Restart),
    (
        "deterministic, not certain, again",
        after(failed(50, was_ready=False, cause="bad-flag")),
        PROBABLY_A_FLAG,
        False,
        GiveUp,
    ),
    (
        "several plausible causes are no reason to give up at once",
        after(),
        found("deterministic", "ascend-unsupported", certain=False),
        False,
        Restart,
    ),
    (
        "nor to give up the node",
        after(),
        found("device", "set-device", certain=False),
        False,
        Restart,
    ),
    (
        "deterministic, but this launch did run",
        after(ready_ago=60),
        found("deterministic", "npu-oom"),
        False,
        Restart,
    ),
    ("device, no spare node", after(), found("device", "npu-hardware"), False, GiveUp),
    ("device, with a spare node", after(), found("device", "npu-hardware"), True, Restart),
    ("unknown start failure, first time", after(), UNSURE, False, Restart),
    ("unknown again", after(failed(50, was_ready=False, cause="unknown")), UNSURE, False, GiveUp),
    (
        "unknown after another cause",
        after(failed(50, was_ready=False, cause="port-in-use")),
        UNSURE,
        False,
        Restart,
    ),
    (
        "unknown again, but it ran in between",
        after(failed(50, was_ready=True, cause="unknown")),
        UNSURE,
        False,
        Restart,
    ),
    (
        "under the cap",
        after(*[failed(100 * n, was_ready=True) for n in (2, 1)], ready_ago=60),
        found(),
        False,
        Restart,
    ),
    (
        "cap reached within the window",
        after(*[failed(100 * n, was_ready=True) for n in (3, 2, 1)], ready_ago=60),
        found(),
        False,
        GiveUp,
    ),
    (
        "the window has passed",
        after(
            *[failed(HEALTH.restart_window_s + n, was_ready=True) for n in (3, 2, 1)],
            ready_ago=4000,
        ),
        found(),
        False,
        Restart,
    ),
    (
        "slow starts outlast the window, but count in a row",
        after(*[failed(HEALTH.restart_window_s * n, was_ready=False) for n in (4, 3, 2)]),
        found(),
        False,
        GiveUp,
    ),
]


@pytest.mark.parametrize(
    ("history", "diagnosis", "spare", "answer"),
    [row[1:] for row in ANSWERS],
    ids=[row[0] for row in ANSWERS],
)
def test_answer(history: History, diagnosis: Diagnosis | None, spare: bool, answer: type) -> None:
    phase = Phase.READY if history.ready_at is not None else Phase.STARTING
    decision = decide(
        phase, ENDED, history, HEALTH, NOW, gang=replace(GANG, spare=spare), diagnosis=diagnosis
    )
    assert isinstance(decision, answer)
    assert isinstance(decision, Restart | GiveUp)
    assert decision.root == 1
    assert decision.cause == (diagnosis.id if diagnosis else "ended")
    assert decision.collateral == ((0,) if diagnosis else ())
    assert "server 1 exited (exit code 1)" in decision.reason


@pytest.mark.parametrize("name", ["no-evidence", "unknown"])
def test_evidence_that_explains_no_hang_leaves_the_detectors_word(name: str) -> None:
    servers = pair(still(25, 1))
    guess = replace(found(name=name, certain=False), root=None, node="")
    decision = decide(Phase.READY, servers, RAN, HEALTH, NOW, gang=GANG, diagnosis=guess)
    assert isinstance(decision, Restart)
    assert (decision.cause, decision.root) == ("stalled", 1)


def restart(
    history: History, gang: GroupShape = GANG, jitter: float = 0.0, **parts: Any
) -> Restart:
    phase = Phase.READY if history.ready_at is not None else Phase.STARTING
    decision = decide(phase, ENDED, history, HEALTH, NOW, gang=gang, jitter=jitter, **parts)
    assert isinstance(decision, Restart)
    return decision


def test_first_failure_of_a_service_that_ran_restarts_at_once() -> None:
    assert restart(RAN).not_before == NOW


def test_back_off_grows_to_its_maximum() -> None:
    rows = [after(*[failed(60, was_ready=False)] * n) for n in range(3)]
    assert [restart(history).not_before - NOW for history in rows] == [1, 4, 16]
    many = replace(HEALTH, max_restarts=10_000, backoff_factor=1e30)
    last = decide(
        Phase.STARTING, ENDED, after(*[failed(60, was_ready=False)] * 9999), many, NOW, gang=GANG
    )
    assert isinstance(last, Restart)
    assert last.not_before == NOW + HEALTH.backoff_max_s


def test_jitter_adds_at_most_its_share() -> None:
    assert restart(after(), jitter=1.0).not_before == pytest.approx(NOW + 1.2)


def test_devices_get_their_pause_even_on_the_first_failure() -> None:
    assert restart(RAN, replace(GANG, holds_devices=True)).not_before == NOW + HEALTH.device_pause_s


def test_device_faults_stay_excluded_for_good() -> None:
    old = failed(10 * HEALTH.restart_window_s, was_ready=True, kind="device", node="10.0.0.9")
    spare = replace(GANG, spare=True)
    history = after(old, ready_ago=60)
    assert restart(history, spare, diagnosis=found("device", "npu-lost")).excluded == (
        "10.0.0.9",
        "10.0.0.2",
    )
    assert restart(history, spare, diagnosis=found()).excluded == ("10.0.0.9",)


def test_a_lost_node_is_left_only_for_a_spare_one() -> None:
    servers = pair(None, {"agent_lost": "node died"})

    def excluded(*, spare: bool) -> tuple[str, ...]:
        decision = decide(Phase.READY, servers, RAN, HEALTH, NOW, gang=replace(GANG, spare=spare))
        assert isinstance(decision, Restart)
        return decision.excluded

    assert excluded(spare=True) == ("10.0.0.2",)
    assert excluded(spare=False) == ()


@pytest.mark.parametrize(
    "phase", [phase for phase in Phase if phase not in (Phase.STOPPING, Phase.STOPPED)]
)
def test_stop_is_obeyed_in_every_phase_and_before_everything_else(phase: Phase) -> None:
    history = replace(STARTED, stop_requested=True)
    assert decide(phase, ENDED, history, HEALTH, NOW, gang=GANG) == Stop()


@pytest.mark.parametrize("phase", [Phase.STOPPING, Phase.STOPPED])
def test_a_stop_under_way_is_not_asked_for_twice(phase: Phase) -> None:
    history = replace(STARTED, stop_requested=True)
    assert isinstance(decide(phase, ENDED, history, HEALTH, NOW, gang=GANG), Wait)


def internal(history: History, phase: Phase = Phase.STARTING, gang: GroupShape = GANG) -> object:
    seen = internal_failure("TimeoutError: agent of server 1 (hello)", 1)
    return decide_on_failure(seen, phase, history, HEALTH, NOW, gang=gang)


@pytest.mark.parametrize(
    "phase", [Phase.PENDING, Phase.CHECKING, Phase.STARTING, Phase.READY, Phase.RESTARTING]
)
def test_an_error_in_the_controller_is_retried_in_every_phase_of_an_attempt(phase: Phase) -> None:
    decision = internal(RAN if phase is Phase.READY else after(), phase)
    assert isinstance(decision, Restart)
    assert (decision.cause, decision.kind, decision.root) == ("internal", "internal", 1)
    assert "TimeoutError: agent of server 1 (hello)" in decision.reason
    assert move(phase, Phase.RESTARTING) is Phase.RESTARTING


def test_errors_in_the_controller_back_off_and_count_in_the_restart_budget() -> None:
    old = failed(60, was_ready=False, cause="internal", kind="internal")
    waits = []
    for count in range(HEALTH.max_restarts):
        decision = internal(after(*[old] * count))
        assert isinstance(decision, Restart)
        waits.append(decision.not_before - NOW)
    assert waits == [1, 4, 16]
    last = internal(after(*[old] * HEALTH.max_restarts))
    assert isinstance(last, GiveUp)
    assert last.kind == "internal"
    assert "3 restarts within 3600 s are used up" in last.reason


def test_errors_in_the_controller_share_the_budget_with_other_failures() -> None:
    crashes = [failed(100 * n, was_ready=True) for n in (3, 2, 1)]
    assert isinstance(internal(after(*crashes, ready_ago=60), Phase.READY), GiveUp)


def test_an_error_before_there_is_a_plan_is_retried_too() -> None:
    assert isinstance(internal(after(), Phase.PENDING, GroupShape((), ())), Restart)


@pytest.mark.parametrize("phase", [Phase.STOPPING, Phase.STOPPED, Phase.FAILED])
def test_an_error_in_the_controller_restarts_nothing_that_is_over(phase: Phase) -> None:
    assert isinstance(internal(after(), phase), Wait)


def test_a_requested_stop_comes_before_the_retry_of_an_error() -> None:
    assert internal(replace(STARTED, stop_requested=True)) == Stop()


def test_a_child_process_of_a_server_is_named_with_its_exit_status() -> None:
    servers = pair(None, {"exit": Exit(NOW - 1, process="VLLM::EngineCore (pid 7)")})
    seen = find_failure(Phase.READY, servers, RAN, HEALTH, NOW, gang=GANG)
    assert seen is not None
    assert seen.reason == "VLLM::EngineCore (pid 7) of server 1 exited (exit status unknown)"


def test_counters_forget_after_a_long_time_ready() -> None:
    history = after(
        *[failed(4000 + n, was_ready=False) for n in range(3)],
        ready_ago=HEALTH.restart_window_s + 1,
    )
    assert spent_restarts(history, HEALTH, NOW) == 0


def test_gang_is_taken_from_the_plan() -> None:
    def server(index: int) -> ServerPlan:
        role = "headless" if index else "primary"
        place = Place(f"10.0.0.{index + 1}", "eth0")
        return ServerPlan(
            index, (2 * index, 2 * index + 1), role, place, (0,), {}, (), Ports(1, 2), "log"
        )  # type: ignore[arg-type]

    plan = LaunchPlan("d", "r", "ascend-a2", "m", "/m", "http://x", (server(0), server(1)))
    gang = GroupShape.of(plan, spare=True)
    assert gang == GroupShape(
        ((0, 1), (2, 3)), ("10.0.0.1", "10.0.0.2"), (0,), holds_devices=True, spare=True
    )
    assert [gang.owner(rank) for rank in range(5)] == [0, 0, 1, 1, None]
    assert not GroupShape.of(replace(plan, platform="cpu")).holds_devices


def test_recipe_health_fits_the_config() -> None:
    from raylaunch.recipe.model import Health

    defaults = Health().model_dump()
    config = HealthConfig(**defaults)
    assert {name: getattr(config, name) for name in defaults} == defaults
    assert config == HEALTH


def test_a_health_that_was_never_asked_is_not_called_bad() -> None:
    unasked = replace(pair()[0], http=HttpSeen())
    refused = replace(unasked, http=HttpSeen(status=503, at=NOW))
    reasons = find_unready((unasked, pair()[1]), STARTED, gang=GANG)
    assert "server 0: /health not asked yet" in reasons
    reasons = find_unready((refused, pair()[1]), STARTED, gang=GANG)
    assert "server 0: /health is not 200" in reasons


PERMISSION = "PermissionError: [Errno 13] Permission denied: '/models/config.json'"
MISSING = "ModuleNotFoundError: No module named 'acl'"


@pytest.mark.parametrize(
    ("log", "decision"), [([PERMISSION], GiveUp), ([PERMISSION, MISSING], Restart)]
)
def test_two_possible_causes_are_tried_again_like_an_unknown_one(log, decision):
    """Each of them alone would fail the same way again."""
    evidence = [ServerEvidence(0, log_lines=log, exit=Exit(NOW - 1, code=1))]
    found = diagnose(evidence, at=NOW)
    assert found.certain == (decision is GiveUp)
    servers = pair({"exit": Exit(NOW - 1, code=1)})
    seen = find_failure(Phase.STARTING, servers, STARTED, HEALTH, NOW, gang=GANG)
    decided = decide_on_failure(
        seen, Phase.STARTING, STARTED, HEALTH, NOW, gang=GANG, diagnosis=found
    )
    assert isinstance(decided, decision), decided
    before = Failure(0, NOW - 9, found.id, found.kind, 0, was_ready=False, node="10.0.0.1")
    again = replace(STARTED, failures=(before,) * HEALTH.unknown_retries)
    decided = decide_on_failure(
        seen, Phase.STARTING, again, HEALTH, NOW, gang=GANG, diagnosis=found
    )
    assert isinstance(decided, GiveUp), "an unknown cause is not tried for ever"


@pytest.mark.parametrize("lost", ["agent died", "node unreachable"])
def test_a_start_that_loses_its_agent_again_is_no_unknown_failure(lost: str) -> None:
    """Seen on an overloaded machine: an agent was silent for 6 s in two starts in a row."""
    cause = "agent-lost" if lost == "agent died" else "node-lost"
    history = after(failed(50, was_ready=False, cause=cause))
    silent = pair(None, {"agent_lost": lost})
    nothing_found = found(name="no-evidence", certain=False)
    decision = decide(
        Phase.STARTING, silent, history, HEALTH, NOW, gang=GANG, diagnosis=nothing_found
    )
    assert isinstance(decision, Restart)
    assert decision.cause == cause
