"""The sections `metrics:`, `notify:` and `tracing:`: how a deployment is seen from outside."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from raylaunch.recipe.gateway_settings import HeaderName, SecretName

MAX_HOOKS = 8
"""Hooks of one recipe: each has a task and a queue of its own in the controller."""
NotifyPhase = Literal[
    "pending", "checking", "starting", "ready", "restarting", "stopping", "stopped", "failed"
]
OWN_HEADERS = ("content-length", "content-type", "host", "transfer-encoding")
"""Headers that belong to the request itself."""
Argument = Annotated[str, Field(min_length=1, max_length=4096)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _plain_url(url: str | None) -> str | None:
    if url is None:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give a URL that begins with http:// or https://")
    if parts.username or parts.password:
        raise ValueError("a recipe holds no passwords: name a secret")
    if parts.port == 0:
        raise ValueError("port 0 cannot be connected to")
    return url


PlainUrl = Annotated[str | None, AfterValidator(_plain_url)]


class Metrics(_Part):
    """The Prometheus endpoint of the deployment, on the controller's node."""

    enabled: bool = False
    """Serve `/metrics`, and write the targets of a Prometheus on the controller's node."""
    host: str = "loopback"
    """Listening address: `loopback`, `node` (the node's own), or a literal such as 0.0.0.0."""
    port: Annotated[int, Field(ge=1, le=65535)] = 9470
    """Port of the endpoint, or the next free one."""
    token: SecretName | None = None
    """Name of the secret that a scraper must send as a bearer token. None: no token is asked."""


class Notify(_Part):
    """One hook: it gets a JSON document for each change of a group's phase."""

    url: PlainUrl = None
    """Webhook: the document is sent by POST."""
    command: Annotated[tuple[Argument, ...], Field(max_length=64)] = ()
    """Program and arguments, run on the controller's node; the document comes on its stdin."""
    phases: tuple[NotifyPhase, ...] = ("ready", "restarting", "failed", "stopped")
    """Phases that are notified."""
    token: SecretName | None = None
    """Name of the secret that the webhook gets as a bearer token."""
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    """Time-out of one delivery, in seconds. A failed one is tried again, five times in all."""

    @model_validator(mode="after")
    def _has_one_receiver(self) -> Notify:
        if bool(self.url) == bool(self.command):
            raise ValueError("give either `url` or `command`")
        if self.token and not self.url:
            raise ValueError("`token` belongs to `url`: a command has its own means")
        return self


class Tracing(_Part):
    """Each attempt as a trace for OpenTelemetry, sent by the controller with OTLP over HTTP."""

    endpoint: PlainUrl = None
    """URL of a receiver, with /v1/traces if it has no path. None: no spans are made."""
    headers: Annotated[dict[HeaderName, SecretName], Field(max_length=16)] = {}
    """Headers of each request: name -> name of the secret that holds the whole value."""
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    """Time-out of one request, in seconds. A failed one is repeated, five times in all."""

    @field_validator("headers")
    @classmethod
    def _leaves_own_headers_alone(cls, headers: dict[str, str]) -> dict[str, str]:
        for name in headers:
            if name.lower() in OWN_HEADERS:
                raise ValueError(f"{name} is set by raylaunch")
        return headers


Hooks = Annotated[tuple[Notify, ...], Field(max_length=MAX_HOOKS)]
