"""Spans in the form of OTLP, the protocol of OpenTelemetry: protobuf messages.

The messages come from the package opentelemetry-proto, which is imported only to encode. Its
exporters are not used: they wait in a thread, and say of a failure only that it was one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from raylaunch.monitoring.attempt_spans import Span, SpanEvent, Value

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1 import trace_pb2

CONTENT_TYPE = "application/x-protobuf"
DEFAULT_PATH = "/v1/traces"
PACKAGE = "opentelemetry.proto"
NANO = 1_000_000_000


def is_installed() -> bool:
    """Return whether this Python has the messages."""
    # A search for a submodule imports its parents.
    return find_spec("opentelemetry") is not None and find_spec(PACKAGE) is not None


def trace_url(endpoint: str) -> str:
    """Return the URL for spans: an endpoint without a path gets the one of the protocol."""
    parts = urlsplit(endpoint)
    return endpoint if parts.path.strip("/") else parts._replace(path=DEFAULT_PATH).geturl()


def describe_receiver(endpoint: str) -> str:
    """Return an endpoint for messages: without its path and query, which may hold a secret."""
    parts = urlsplit(endpoint)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def encode_spans(spans: Iterable[Span], resource: Mapping[str, Value]) -> bytes:
    """Return the body of a request.

    Args:
        spans: To send.
        resource: Attributes of what they are about.
    """
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

    scope = ScopeSpans(
        scope=InstrumentationScope(name="raylaunch"),
        spans=[_encode_span(span) for span in spans],
    )
    about = Resource(attributes=_encode_attributes(resource))
    request = ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=about, scope_spans=[scope])]
    )
    return bytes(request.SerializeToString())


def read_rejection(body: bytes) -> str:
    """Return what a receiver did not take of a request that it accepted; "" for nothing."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        partial = ExportTraceServiceResponse.FromString(body).partial_success
    except DecodeError:
        # Some receivers answer with JSON or text. The status is what counts.
        return ""
    if not partial.rejected_spans:
        return ""
    return f"{partial.rejected_spans} spans rejected: {partial.error_message}"


def _encode_span(span: Span) -> trace_pb2.Span:
    from opentelemetry.proto.trace.v1 import trace_pb2

    status = trace_pb2.Status()
    if span.error:
        status = trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR, message=span.error)
    return trace_pb2.Span(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_id,
        name=span.name,
        kind=trace_pb2.Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=int(span.at * NANO),
        end_time_unix_nano=int(span.until * NANO),
        attributes=_encode_attributes(span.attributes),
        events=_encode_events(span.events),
        status=status,
    )


def _encode_events(events: Sequence[SpanEvent]) -> list[trace_pb2.Span.Event]:
    from opentelemetry.proto.trace.v1 import trace_pb2

    return [
        trace_pb2.Span.Event(
            name=event.name,
            time_unix_nano=int(event.at * NANO),
            attributes=_encode_attributes(event.attributes),
        )
        for event in events
    ]


def _encode_attributes(attributes: Mapping[str, Value]) -> list[KeyValue]:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

    found = []
    for name, value in attributes.items():
        if isinstance(value, str):
            encoded = AnyValue(string_value=value)
        else:
            encoded = AnyValue(int_value=value)
        found.append(KeyValue(key=name, value=encoded))
    return found
