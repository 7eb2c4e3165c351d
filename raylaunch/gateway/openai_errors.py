"""The gateway's own errors, in the form of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Mapping

RETRY_AFTER_S = 5


class GatewayError(Exception):
    """An error that the gateway answers by itself. `code` is for programs: `no_group_ready`."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Return the JSON text of the answer."""
        return error_body(self.status, self.code, self.message)


def error_body(status: int, code: str, message: str) -> bytes:
    """Return an error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    return json.dumps({"error": error}).encode()


def error_event(code: str, message: str) -> bytes:
    """Return the events that close a stream with an error, as vLLM itself closes one."""
    return b"data: " + error_body(502, code, message) + b"\n\ndata: [DONE]\n\n"


def no_group_ready(waited_s: float) -> GatewayError:
    """No group could answer for as long as a request may wait."""
    return GatewayError(
        503,
        "no_group_ready",
        f"no group of this deployment was ready within {waited_s:.0f} s",
        {"Retry-After": str(RETRY_AFTER_S)},
    )


def all_groups_failed() -> GatewayError:
    """Every group has failed, and nothing but a command starts one again."""
    return GatewayError(
        503,
        "all_groups_failed",
        "every group of this deployment has failed; `raylaunch status` says why",
        {"Retry-After": str(RETRY_AFTER_S)},
    )


def hold_queue_full(what: str) -> GatewayError:
    """No group can answer now, and no more requests may wait."""
    return GatewayError(
        503,
        "hold_queue_full",
        f"the gateway holds as many {what} as it may: try again later",
        {"Retry-After": str(RETRY_AFTER_S)},
    )


def body_too_large(limit: int) -> GatewayError:
    """The body is larger than `gateway.max_body_bytes`."""
    return GatewayError(413, "body_too_large", f"the request body is larger than {limit} bytes")


def body_too_slow(limit_s: float) -> GatewayError:
    """The client did not send its request in time."""
    return GatewayError(408, "request_timeout", f"the request did not arrive within {limit_s:g} s")


def server_died(times: int) -> GatewayError:
    """The server died under the request, again and again."""
    return GatewayError(
        502,
        "server_died",
        f"the server exited or was taken out {times} times while it had this request",
    )


def not_repeatable() -> GatewayError:
    """The server died under a request that may not be sent twice."""
    return GatewayError(
        502,
        "server_died",
        "the server exited while it had this request; a request to this path is not repeated",
    )
