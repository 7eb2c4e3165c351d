"""The sections `metrics:` and `notify:` of a recipe: how a deployment is seen from outside."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from raylaunch.recipe.gateway_settings import SecretName

MAX_HOOKS = 8
"""Hooks of one recipe: each has a task and a queue of its own in the controller."""
NotifyPhase = Literal[
    "pending", "checking", "starting", "ready", "restarting", "stopping", "stopped", "failed"
]
Argument = Annotated[str, Field(min_length=1, max_length=4096)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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

    url: str | None = None
    """Webhook: the document is sent by POST."""
    command: Annotated[tuple[Argument, ...], Field(max_length=64)] = ()
    """Program and arguments, run on the controller's node; the document comes on its stdin."""
    phases: tuple[NotifyPhase, ...] = ("ready", "restarting", "failed", "stopped")
    """Phases that are notified."""
    token: SecretName | None = None
    """Name of the secret that the webhook gets as a bearer token."""
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 10.0
    """Time-out of one delivery, in seconds. A failed one is tried again, five times in all."""

    @field_validator("url")
    @classmethod
    def _is_plain_http(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give a URL that begins with http:// or https://")
        if parts.username or parts.password:
            raise ValueError("a recipe holds no passwords: name a secret in `token`")
        return url

    @model_validator(mode="after")
    def _has_one_receiver(self) -> Notify:
        if bool(self.url) == bool(self.command):
            raise ValueError("give either `url` or `command`")
        if self.token and not self.url:
            raise ValueError("`token` belongs to `url`: a command has its own means")
        return self


Hooks = Annotated[tuple[Notify, ...], Field(max_length=MAX_HOOKS)]
