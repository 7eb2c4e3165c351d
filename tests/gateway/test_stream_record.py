"""What a client has of a stream, cut wherever a server may die."""

from __future__ import annotations

import json

import pytest
from dummy_server import DummyServer, expected_text
from hypothesis import given, settings, strategies as st

from raylaunch.gateway.relay.sse_events import EventSplitter, payload
from raylaunch.gateway.relay.stream_record import StreamDivergedError, StreamRecord
from raylaunch.gateway.relay.stream_rules import (
    DEFAULT_MAX_TOKENS,
    StreamRule,
    stream_rule,
    with_token_ids,
)

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GREEDY = {"prompt": "hi", "stream": True, "temperature": 0, "max_tokens": 60}
QUESTION = {
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
    "temperature": 0,
    "max_completion_tokens": 60,
}


def chunks_of(path: str, request: dict, ids_per_chunk: int = 1) -> list[dict]:
    server = DummyServer()
    server.ids_per_chunk = ids_per_chunk
    return server._chunks(path, request)


def follow(path: str, request: dict, cuts: list[int], ids_per_chunk: int) -> tuple[list, int]:
    """Feed a stream that breaks at each of `cuts`; return what the client got, and the resumes."""
    rule = stream_rule(path, request)
    assert rule is not None
    record = StreamRecord(rule)
    sent = []
    asked = path, json.loads(with_token_ids(json.dumps(request).encode(), request))
    if not rule.by_tokens:
        asked = path, request
    for cut in [*cuts, None]:
        for chunk in chunks_of(*asked, ids_per_chunk)[:cut]:
            out = record.feed(json.dumps(chunk).encode())
            if out is not None:
                sent.append(json.loads(out))
        if cut is None or record.complete:
            break
        resumed, body = record.resume()
        asked = (path, request) if resumed is None else (resumed, json.loads(body))
    return sent, len(cuts)


def text_of(sent: list) -> str:
    choices = [choice for chunk in sent for choice in chunk["choices"]]
    return "".join(
        choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices
    )


@settings(max_examples=60, deadline=None)
@given(
    path_and_request=st.sampled_from([(COMPLETIONS, GREEDY), (CHAT, QUESTION)]),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    ids_per_chunk=st.integers(1, 4),
    usage=st.booleans(),
    ids=st.booleans(),
    stop=st.booleans(),
)
def test_no_token_is_lost_or_sent_twice_wherever_it_breaks(
    path_and_request, cuts, ids_per_chunk, usage, ids, stop
):
    path, request = path_and_request
    request = dict(request)
    if usage:
        request["stream_options"] = {"include_usage": True}
    if ids:
        request["return_token_ids"] = True
    if stop:
        request["stop"] = ["never"]
    sent, _ = follow(path, request, cuts, ids_per_chunk)
    undisturbed, _ = follow(path, request, [], ids_per_chunk)
    assert text_of(sent) == text_of(undisturbed) == expected_text("hi", 60)
    assert len({chunk["id"] for chunk in sent}) <= 1
    finishes = [c["choices"][0]["finish_reason"] for c in sent if c["choices"]]
    assert [reason for reason in finishes if reason] == ["length"]
    if usage:
        usages = [chunk["usage"] for chunk in sent if chunk.get("usage")]
        assert usages == [chunk["usage"] for chunk in undisturbed if chunk.get("usage")]
    if ids:
        assert ids_of(sent) == ids_of(undisturbed)
    else:
        assert ids_of(sent) == []
    roles = [c["choices"][0].get("delta", {}).get("role") for c in sent if c["choices"]]
    assert roles.count("assistant") == (1 if path == CHAT else 0)


def ids_of(sent: list) -> list[int]:
    return [
        token
        for chunk in sent
        for choice in chunk["choices"]
        for token in choice.get("token_ids") or []
    ]


def record_of(request: dict, path: str = CHAT) -> StreamRecord:
    rule = stream_rule(path, {**request, "stream": True})
    assert rule is not None
    return StreamRecord(rule)


def chat_chunk(delta: dict, finish: str | None = None, **choice) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish, **choice}]
    return json.dumps({"id": "x", "created": 1, "model": "m", "choices": choices}).encode()


def delta_of(out: bytes | None) -> dict | None:
    return None if out is None else json.loads(out)["choices"][0]["delta"]


def test_reasoning_and_tool_calls_are_replayed_and_keep_their_first_id():
    record = record_of({**QUESTION, "tools": [{"type": "function"}]})
    call = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "f"}}
    arguments = {"index": 0, "function": {"arguments": '{"a"'}}
    for delta in (
        {"role": "assistant", "content": ""},
        {"reasoning": "let me"},
        {"tool_calls": [call]},
        {"tool_calls": [arguments]},
    ):
        assert delta_of(record.feed(chat_chunk(delta))) == delta
    assert record.resume() == (None, None)
    other = {**call, "id": "call-2"}
    longer = {"index": 0, "function": {"arguments": '{"a": 1}'}}
    got = [
        delta_of(record.feed(chat_chunk(delta)))
        for delta in (
            {"role": "assistant", "content": ""},
            {"reasoning": "let me think"},
            {"tool_calls": [other]},
            {"tool_calls": [longer]},
        )
    ]
    tail = {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}
    assert got == [None, {"reasoning": " think"}, None, tail]


def test_log_probabilities_are_cut_too():
    record = record_of({**QUESTION, "logprobs": True})
    entries = [{"token": "a"}, {"token": "b"}, {"token": "c"}]
    record.feed(chat_chunk({"content": "a"}, logprobs={"content": entries[:1]}))
    assert record.resume() == (None, None)
    out = record.feed(chat_chunk({"content": "abc"}, logprobs={"content": entries}))
    choice = json.loads(out)["choices"][0]
    assert (choice["delta"]["content"], choice["logprobs"]["content"]) == ("bc", entries[1:])


def test_a_server_that_answers_otherwise_is_noticed():
    record = record_of({**QUESTION, "seed": 7, "temperature": 1})
    record.feed(chat_chunk({"content": "hello"}))
    record.resume()
    with pytest.raises(StreamDivergedError):
        record.feed(chat_chunk({"content": "hullo"}))


def test_a_chunk_for_token_ids_alone_is_not_sent():
    record = record_of(QUESTION)
    assert record.feed(chat_chunk({}, token_ids=[5])) is None
    assert record.feed(chat_chunk({"content": "a"}, token_ids=[6])) is not None


def test_a_seed_is_replayed_because_its_random_numbers_start_over():
    rule = stream_rule(COMPLETIONS, {**GREEDY, "temperature": 0.7, "seed": 1})
    assert rule is not None
    assert not rule.by_tokens


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.7},
        {"temperature": None},
        {"temperature": False},
        {"stream": False},
        {"n": 2},
        {"best_of": 3},
        {"use_beam_search": True},
        {"echo": True},
        {"prompt": ["a", "b"]},
        {"prompt": [[1], [2]]},
    ],
)
def test_a_stream_whose_text_is_not_determined_is_not_continued(change):
    assert stream_rule(COMPLETIONS, {**GREEDY, **change}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"stop": ["x"]},
        {"frequency_penalty": 0.5},
        {"presence_penalty": 0.5},
        {"logprobs": 1},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a*"}},
        {"a_field_of_another_version": 1},
    ],
)
def test_what_depends_on_the_whole_answer_is_replayed(change):
    rule = stream_rule(COMPLETIONS, {**GREEDY, **change})
    assert rule is not None
    assert not rule.by_tokens


def test_images_are_replayed():
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    messages = [{"role": "user", "content": [image]}]
    rule = stream_rule(CHAT, {**QUESTION, "messages": messages})
    assert rule is not None
    assert not rule.by_tokens


@pytest.mark.parametrize(
    ("path", "request_", "expected"),
    [
        (COMPLETIONS, {}, DEFAULT_MAX_TOKENS),
        (COMPLETIONS, {"max_tokens": 5}, 5),
        (CHAT, {}, None),
        (CHAT, {"max_tokens": 5}, 5),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 6}, 6),
    ],
)
def test_the_clients_limit_of_tokens_is_known(path, request_, expected):
    base = {"messages": [], "prompt": "", "stream": True, "temperature": 0}
    rule = stream_rule(path, {**base, **request_})
    assert isinstance(rule, StreamRule)
    assert rule.max_tokens == expected


@pytest.mark.parametrize("value", ["hi", "a{b", {"return_token_ids": False}, None])
def test_token_ids_are_asked_for_without_changing_anything_else(value):
    request = {"prompt": value}
    body = json.dumps(request).encode()
    assert json.loads(with_token_ids(body, request)) == {**request, "return_token_ids": True}
    refused = {**request, "return_token_ids": False}
    body = json.dumps(refused).encode()
    assert json.loads(with_token_ids(body, refused)) == {**request, "return_token_ids": True}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab\r ", min_size=1).map(str.strip).filter(bool)), st.data())
def test_events_are_whole_however_their_bytes_arrive(events, data):
    events = [event.replace("\r", ".").encode() for event in events]
    line_end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    raw = b"".join(event + 2 * line_end for event in events)
    splitter = EventSplitter()
    got = []
    while raw:
        cut = data.draw(st.integers(1, len(raw)))
        got += splitter.feed(raw[:cut])
        raw = raw[cut:]
    assert got == events
    assert splitter.rest == b""


@pytest.mark.parametrize(
    ("event", "data"),
    [(b"data: {}", b"{}"), (b"data:{}", b"{}"), (b": comment", None), (b"event: x", None)],
)
def test_the_data_of_an_event_is_found(event, data):
    assert payload(event) == data
