"""Traces of a deployment, as a receiver of OTLP over HTTP gets them. Without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest
from fake_controllers import await_status, begin, creator, run
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from test_controller_groups import search_in

from raylaunch.monitoring.attempt_spans import Span
from raylaunch.recipe.catalog import read
from raylaunch.recipe.monitoring_settings import Tracing
from raylaunch.runtime.cluster.clock import SystemClock
from raylaunch.runtime.cluster.task_owner import TaskOwner
from raylaunch.runtime.controller import takeover
from raylaunch.runtime.controller.monitoring import (
    monitor,
    span_exporter,
    tracer,
    tracing_preflight,
)
from raylaunch.runtime.controller.monitoring.span_exporter import SpanExporter
from raylaunch.supervise.state import Phase

ONE = "parallel.replicas=1"
DEADLINE_S = 60.0


@pytest.fixture
def create(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return creator(monkeypatch, tmp_path)


class Receiver:
    """Answers with these statuses, the last one again and again, and keeps what came."""

    def __init__(self, *statuses: int, body: bytes = b"") -> None:
        self.statuses = list(statuses or (200,))
        self.body = body
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.endpoint = ""
        self._came = asyncio.Event()

    async def serve(self, reader, writer) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length:")[2].split()[0])
        self.bodies.append(await reader.readexactly(length))
        self.heads.append(head)
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        size = len(self.body)
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n".encode()
        )
        writer.write(self.body)
        writer.close()
        self._came.set()

    async def wait_for(self, condition) -> None:
        while not condition():
            self._came.clear()
            async with asyncio.timeout(DEADLINE_S):
                await self._came.wait()

    @property
    def spans(self) -> list:
        found = []
        for body in self.bodies:
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in of_resource.scope_spans:
                    found += scope.spans
        return found

    def named(self, name: str) -> list:
        return [span for span in self.spans if span.name == name]


@contextlib.asynccontextmanager
async def receiving(*statuses: int, body: bytes = b""):
    receiver = Receiver(*statuses, body=body)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    receiver.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield receiver
    finally:
        server.close()


def to(receiver: Receiver) -> str:
    return f"tracing.endpoint={receiver.endpoint}"


async def notes(one) -> list[str]:
    return [event.text for event in await one.events(0) if event.kind == "tracing"]


async def fail_once(one) -> None:
    group = next(iter(one._groups))
    group.backend.kill_server(0)
    await await_status(one, lambda now: now.restarts == 1 and now.phase is Phase.READY)


def value_of(attributes, name: str) -> str:
    (found,) = [one.value.string_value for one in attributes if one.key == name]
    return found


def test_each_attempt_is_a_trace_with_its_stages_and_its_failure(create):
    async def live():
        async with receiving() as receiver:
            one = await begin(create, to(receiver), ONE)
            await fail_once(one)
            await one.stop()
            await receiver.wait_for(lambda: len(receiver.named("attempt")) == 2)
            first, second = receiver.named("attempt")
            starts = receiver.named("start")
            assert [span.trace_id for span in starts] == [first.trace_id, second.trace_id]
            assert [span.parent_span_id for span in starts] == [first.span_id, second.span_id]
            of_first = [span.span_id for span in receiver.spans if span.trace_id == first.trace_id]
            assert len(set(of_first)) == len(of_first)
            of_start = [s.name for s in receiver.spans if s.parent_span_id == starts[0].span_id]
            assert of_start[:3] == ["pending", "checking", "starting"]
            assert first.status.code == Status.STATUS_CODE_ERROR
            [failure] = [event for event in first.events if event.name == "failure"]
            diagnosis = next(iter(one._groups)).journal.diagnosis
            assert value_of(failure.attributes, "raylaunch.diagnosis.id") == diagnosis.id
            assert value_of(failure.attributes, "raylaunch.diagnosis.cause") == diagnosis.cause
            assert second.status.code == Status.STATUS_CODE_UNSET
            assert "POST /v1/traces HTTP/1.1" in receiver.heads[0]
            assert "application/x-protobuf" in receiver.heads[0]
            assert await notes(one) == []

    run(live)


def test_a_controller_that_takes_over_continues_the_trace_and_repeats_nothing(create, monkeypatch):
    async def live():
        async with receiving() as receiver:
            old = await begin(create, to(receiver), ONE)
            await receiver.wait_for(lambda: receiver.named("start"))
            old._tasks.cancel()
            for group in old._groups:
                group._tasks.cancel()
            monkeypatch.setattr(takeover, "search", search_in(old))
            new = create(to(receiver), ONE, reconstructed=True)
            await new.take_over()
            await await_status(new, lambda now: now.phase is Phase.READY)
            await new.stop()
            await receiver.wait_for(lambda: receiver.named("attempt"))
            [start] = receiver.named("start")
            [attempt] = receiver.named("attempt")
            assert start.trace_id == attempt.trace_id
            assert start.parent_span_id == attempt.span_id

    run(live)


def test_a_header_has_the_value_of_a_secret_that_is_in_no_event(create):
    settings = ("secrets=[OTLP_AUTH]", "tracing.headers={Authorization: OTLP_AUTH}")

    async def live():
        async with receiving() as receiver:
            one = create(to(receiver), ONE, *settings)
            await one.begin({"OTLP_AUTH": "Bearer s3cret"})
            await receiver.wait_for(lambda: receiver.named("start"))
            assert "authorization: bearer s3cret" in receiver.heads[0].lower()
            events = [event.text for event in await one.events(0)]
            assert "s3cret" not in json.dumps(events)
            await one.stop()

    run(live)


def test_spans_wait_for_a_secret_that_comes_late(create):
    settings = ("secrets=[OTLP_AUTH]", "tracing.headers={Authorization: OTLP_AUTH}")

    async def live():
        async with receiving() as receiver:
            one = await begin(create, to(receiver), ONE, *settings)
            assert await notes(one) == ["no spans are sent: OTLP_AUTH has no value"]
            assert receiver.heads == []
            one._monitor.take_secrets({"OTLP_AUTH": "Basic s3cret"})
            await receiver.wait_for(lambda: receiver.named("start"))
            await one.stop()

    run(live)


def test_without_the_package_there_is_a_finding_with_the_command_and_the_deployment_runs(
    create, monkeypatch
):
    monkeypatch.setattr(tracer, "is_installed", lambda: False)

    async def live():
        one = await begin(create, "tracing.endpoint=http://127.0.0.1:9", ONE)
        status = await one.status()
        [finding] = [one for one in status.findings if one.id == "tracing-package"]
        assert "pip install opentelemetry-proto" in finding.todo
        [note] = await notes(one)
        assert "pip install opentelemetry-proto" in note
        await one.stop()

    run(live)


@pytest.mark.parametrize(
    ("answer", "found"),
    [({"n1": False}, ["10.0.0.1"]), ({"n1": True}, []), ({}, [])],
)
def test_a_check_on_a_cluster_asks_its_head(answer, found, monkeypatch):
    head = {"NodeID": "n1", "NodeManagerAddress": "10.0.0.1"}
    asked = []
    monkeypatch.setattr(tracing_preflight, "head_node", lambda: head)
    monkeypatch.setattr(
        tracing_preflight, "call_on_nodes", lambda _, nodes: (asked.append(nodes), (answer, ()))[1]
    )
    on = read("local-dual", ["tracing.endpoint=http://127.0.0.1:9"])
    assert [one.where for one in tracing_preflight.preflight_tracing(on)] == found
    assert tracing_preflight.preflight_tracing(read("local-dual")) == []
    assert asked == [{"n1": ()}]


def test_a_check_without_a_cluster_asks_this_machine(monkeypatch):
    on = read("local-dual", ["tracing.endpoint=http://127.0.0.1:9"])
    assert tracing_preflight.check_tracing_here(on, "127.0.0.1") == []
    monkeypatch.setattr(tracing_preflight, "is_installed", lambda: False)
    [finding] = tracing_preflight.check_tracing_here(on, "127.0.0.1")
    assert finding.id == "tracing-package"


def test_a_receiver_that_never_answers_delays_no_restart(create, monkeypatch):
    monkeypatch.setattr(monitor, "FLUSH_S", 0.1)

    async def swallow(reader, writer) -> None:
        await reader.read()
        writer.close()

    async def live():
        server = await asyncio.start_server(swallow, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        endpoint = f"tracing.endpoint=http://127.0.0.1:{port}"
        # The deadline of the test is far below the time-out.
        one = await begin(create, endpoint, ONE, "tracing.timeout_s=300")
        await fail_once(one)
        await one.stop()
        server.close()

    run(live)


class FastClock(SystemClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


def some_spans(count: int) -> list[Span]:
    now = time.time()
    return [Span("x", now, now, b"t" * 16, number.to_bytes(8, "big")) for number in range(count)]


class Line:
    """An exporter under way, and what it has reported."""

    def __init__(self, endpoint: str) -> None:
        self.problems: list[str] = []
        self.tasks = TaskOwner(lambda failure: self.problems.append(str(failure)))
        settings = Tracing(endpoint=endpoint, timeout_s=30)
        self.exporter = SpanExporter(settings, {}, FastClock(), self.problems.append)
        self.exporter.use_headers({})

    async def send(self, *counts: int) -> None:
        """Send so many spans, and wait each time until nothing is queued."""
        task = self.tasks.keep_running("tracing", self.exporter.run)
        for count in counts:
            self.exporter.put(some_spans(count))
            await self.exporter.flush(DEADLINE_S)
        task.cancel()
        await self.tasks.cancel_and_wait()


@pytest.mark.parametrize(
    ("statuses", "requests", "problem"),
    [
        ((503, 429, 200), 3, ""),
        ((503,), span_exporter.TRIES, "status 503"),
        ((401,), 1, "status 401"),
    ],
)
async def test_what_may_pass_is_tried_again_and_what_may_not_is_given_up(
    statuses, requests, problem, monkeypatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with receiving(*statuses) as receiver:
        line = Line(receiver.endpoint)
        await line.send(1)
        assert len(receiver.heads) == requests
        place = receiver.endpoint
        wanted = [f"{place} did not take 1 spans: {problem}"] if problem else []
        assert line.problems == wanted


async def test_a_receiver_that_is_down_is_one_event_until_it_works_again(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with receiving(401, 401, 200, 401) as receiver:
        line = Line(receiver.endpoint)
        await line.send(1, 1)
        assert len(line.problems) == 1
        await line.send(1, 1)
        assert len(line.problems) == 2


async def test_nobody_listens_is_reported_without_the_path(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with receiving() as receiver:
        endpoint = receiver.endpoint
    line = Line(f"{endpoint}/hooks/T0K3N")
    await line.send(1)
    assert line.problems == [f"{endpoint} did not take 1 spans: ConnectError"]


async def test_a_partial_success_is_reported_and_not_repeated(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 1
    answer.partial_success.error_message = "too old"
    async with receiving(200, body=answer.SerializeToString()) as receiver:
        line = Line(receiver.endpoint)
        await line.send(2)
        assert len(receiver.heads) == 1
        [problem] = line.problems
        assert "1 spans rejected: too old" in problem


async def test_more_spans_than_may_wait_are_dropped_with_one_event(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with receiving() as receiver:
        line = Line(receiver.endpoint)
        line.exporter.put(some_spans(span_exporter.QUEUED))
        line.exporter.put(some_spans(1))
        line.exporter.put(some_spans(1))
        [problem] = line.problems
        assert f"more than {span_exporter.QUEUED} wait" in problem
        await line.send(0)
        assert len(receiver.spans) == span_exporter.QUEUED
        assert len(receiver.heads) == span_exporter.QUEUED // span_exporter.BATCH
        assert line.problems == [problem]
