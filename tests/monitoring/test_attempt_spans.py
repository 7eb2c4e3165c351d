"""Attempts as traces: which spans there are, when they are complete, and what is in them."""

from __future__ import annotations

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from raylaunch.monitoring.attempt_spans import GroupHistory, complete_pieces, without_secrets
from raylaunch.monitoring.otlp import (
    describe_receiver,
    encode_spans,
    is_installed,
    read_rejection,
    trace_url,
)
from raylaunch.supervise.deployment_status import Event

BEGAN = 1_700_000_000.0
GROUP = "serve-0"
ROWS = [
    (1, 0, "phase", "checking", None),
    (4, 0, "phase", "starting", None),
    (4.5, 1, "command", "launched attempt 1", None),
    (5, 1, "stage", "spawned", 0),
    (5, 1, "stage", "spawned", 1),
    (11, 1, "stage", "weights 1/3 shards", 1),
    (30, 1, "stage", "engine up", 0),
    (45, 1, "stage", "engine up", 1),
    (46, 1, "phase", "ready", None),
    (100, 1, "drill", "SIGKILL to pid 7", 1),
    (100.05, 1, "exit", "exited: signal 9", 1),
    (100.08, 1, "failure", "server 1 exited: signal 9", 1),
    (101, 1, "diagnosis", "killed: SIGKILL from outside: by a person", 1),
    (101.5, 1, "restart", "killed: attempt 2 in 1.0 s", 1),
    (101.5, 1, "phase", "restarting", None),
    (104, 1, "phase", "checking", None),
    (105, 1, "phase", "starting", None),
    (105.5, 2, "command", "launched attempt 2", None),
    (106, 2, "stage", "spawned", 0),
    (132, 2, "phase", "ready", None),
    (200, 2, "phase", "stopping", None),
    (201, 2, "phase", "stopped", None),
]
READY, FAILED, LAUNCHED_AGAIN = 9, 16, 18
"""So many events until the group is ready, is checked again, is launched again."""


def events_of(count=None):
    return [
        Event(number, BEGAN + at, attempt, kind, text, server, GROUP)
        for number, (at, attempt, kind, text, server) in enumerate(ROWS[:count], 1)
    ]


def pieces_of(events, *, removed=False, created_at=BEGAN):
    history = GroupHistory("a2", GROUP, created_at, events)
    return list(complete_pieces(history, BEGAN + 300, removed=removed))


def heads(pieces):
    return [
        (piece.spans[0].name, piece.spans[0].attributes["raylaunch.attempt"]) for piece in pieces
    ]


def times(span):
    return round(span.at - BEGAN, 3), round(span.until - BEGAN, 3)


def named(piece, name):
    (span,) = [span for span in piece.spans if span.name == name]
    return span


@pytest.mark.parametrize(
    ("count", "complete"),
    [
        (READY - 1, []),
        (READY, [("start", 1)]),
        # The checks before the next launch still belong to the attempt that failed.
        (FAILED, [("start", 1)]),
        (LAUNCHED_AGAIN, [("start", 1), ("attempt", 1)]),
        (len(ROWS), [("start", 1), ("attempt", 1), ("start", 2), ("attempt", 2)]),
    ],
)
def test_a_part_of_a_trace_is_complete_when_nothing_of_it_changes_any_more(count, complete):
    assert heads(pieces_of(events_of(count))) == complete


def test_the_stages_of_a_start_are_its_children():
    start = pieces_of(events_of(READY))[0]
    head = start.spans[0]
    assert times(head) == (0, 46)
    assert head.attributes["raylaunch.outcome"] == "ready"
    phases = [span for span in start.spans if span.parent_id == head.span_id]
    assert [(span.name, times(span)) for span in phases] == [
        ("pending", (0, 1)),
        ("checking", (1, 4)),
        ("starting", (4, 46)),
        ("server 0", (5, 46)),
        ("server 1", (5, 46)),
    ]
    server = named(start, "server 1")
    stages = [span for span in start.spans if span.parent_id == server.span_id]
    assert [(span.name, times(span)) for span in stages] == [
        ("spawned", (5, 11)),
        ("weights", (11, 45)),
        ("engine up", (45, 46)),
    ]
    assert stages[1].attributes["raylaunch.detail"] == "1/3 shards"
    assert {span.attributes["raylaunch.server"] for span in (server, *stages)} == {1}


def test_a_failure_and_its_cause_are_an_event_of_the_attempt():
    attempt = pieces_of(events_of())[1]
    head = attempt.spans[0]
    assert times(head) == (0, 105.5)
    assert head.error == "killed: SIGKILL from outside: by a person"
    kinds = ["command", "drill", "exit", "failure", "diagnosis", "restart"]
    assert [event.name for event in head.events] == kinds
    failure = head.events[3]
    assert failure.attributes == {
        "raylaunch.text": "server 1 exited: signal 9",
        "raylaunch.server": 1,
        "raylaunch.diagnosis.id": "killed",
        "raylaunch.diagnosis.cause": "SIGKILL from outside: by a person",
    }
    steps = named(attempt, "failure")
    assert steps.parent_id == head.span_id
    children = [span for span in attempt.spans if span.parent_id == steps.span_id]
    assert [(span.name, times(span)) for span in children] == [
        ("detection", (100, 100.08)),
        ("evidence and diagnosis", (100.08, 101)),
        ("decision", (101, 101.5)),
        ("teardown and back-off", (101.5, 104)),
        ("checks and plan", (104, 105.5)),
    ]


def test_an_attempt_that_was_stopped_has_no_error():
    last = pieces_of(events_of())[-1]
    assert times(last.spans[0]) == (104, 201)
    assert [span.error for span in last.spans] == [""]


def test_all_parts_of_an_attempt_are_one_trace_that_has_one_root():
    start, attempt, *second = pieces_of(events_of())
    first = [*start.spans, *attempt.spans]
    assert len({span.trace_id for span in first}) == 1
    ids = [span.span_id for span in first]
    assert len(set(ids)) == len(ids)
    assert [span.name for span in first if span.parent_id not in ids] == ["attempt"]
    assert not {span.trace_id for span in first} & {
        span.trace_id for piece in second for span in piece.spans
    }


def test_the_next_controller_gives_the_same_ids_and_another_deployment_of_the_name_others():
    def keys(pieces):
        return [piece.key for piece in pieces]

    first = keys(pieces_of(events_of()))
    assert keys(pieces_of(events_of())) == first
    assert not set(keys(pieces_of(events_of(), created_at=BEGAN - 1))) & set(first)


def test_an_attempt_whose_launch_is_no_longer_kept_is_complete_all_the_same():
    pieces = pieces_of(events_of()[READY:])
    assert heads(pieces)[0] == ("attempt", 1)
    assert times(pieces[0].spans[0]) == (100, 105.5)


def test_the_attempt_of_a_group_that_was_removed_is_complete():
    assert heads(pieces_of(events_of(READY), removed=True)) == [("start", 1), ("attempt", 1)]


def test_a_secret_is_in_no_text_of_a_span():
    events = events_of()
    events[11] = Event(12, BEGAN + 100.08, 1, "failure", "died with s3cret-and-more", 1, GROUP)
    spans = [span for piece in pieces_of(events) for span in piece.spans]
    assert "s3cret" in repr(spans)
    masked = [without_secrets(span, ["s3cret", "s3cret-and-more", ""]) for span in spans]
    assert "s3cret" not in repr(masked)
    assert "died with ***'" in repr(masked)


def test_spans_are_encoded_with_their_times_kinds_and_status():
    attempt = pieces_of(events_of())[1]
    body = encode_spans(attempt.spans, {"service.name": "raylaunch"})
    (of_resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    (attribute,) = of_resource.resource.attributes
    assert (attribute.key, attribute.value.string_value) == ("service.name", "raylaunch")
    (scope,) = of_resource.scope_spans
    root = scope.spans[0]
    assert (len(root.trace_id), len(root.span_id), root.parent_span_id) == (16, 8, b"")
    assert abs(root.end_time_unix_nano - (BEGAN + 105.5) * 1e9) < 1e6
    assert root.status.code == Status.STATUS_CODE_ERROR
    (failure,) = [event for event in root.events if event.name == "failure"]
    values = {one.key: one.value for one in failure.attributes}
    assert values["raylaunch.server"].int_value == 1
    assert values["raylaunch.diagnosis.id"].string_value == "killed"
    assert scope.spans[2].status.code == Status.STATUS_CODE_UNSET


def test_the_answer_of_a_receiver_says_what_it_did_not_take():
    answer = ExportTraceServiceResponse()
    assert read_rejection(answer.SerializeToString()) == ""
    answer.partial_success.rejected_spans = 2
    answer.partial_success.error_message = "too old"
    assert read_rejection(answer.SerializeToString()) == "2 spans rejected: too old"
    assert read_rejection(b"{}") == ""


@pytest.mark.parametrize(
    ("endpoint", "url", "place"),
    [
        ("http://c:4318", "http://c:4318/v1/traces", "http://c:4318"),
        ("http://c:4318/", "http://c:4318/v1/traces", "http://c:4318"),
        ("https://c/otlp/T0K3N?key=T0K3N", "https://c/otlp/T0K3N?key=T0K3N", "https://c"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces", "http://[::1]:4318"),
    ],
)
def test_an_endpoint_without_a_path_gets_that_of_the_protocol(endpoint, url, place):
    assert (trace_url(endpoint), describe_receiver(endpoint)) == (url, place)


def test_the_messages_are_installed_here():
    assert is_installed()
