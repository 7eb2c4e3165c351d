"""What crosses between client, keeper and relay: members, options, status, each as plain JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

MemberState = Literal["ready", "draining", "down", "failed"]
Policy = Literal["least-loaded", "round-robin", "prefix-aware", "sticky"]
MESSAGE_LIMIT = 16 << 20
"""Bytes of one line: 8192 members with their counters need 2 MB."""


@dataclass(frozen=True)
class Member:
    """One server behind the gateway, as the controller sees it.

    `running` and `waiting` are the sums of the server's own counters over its ranks.
    """

    id: str
    """Group and server, `serve-0/0`."""
    url: str
    """Root of the server's API, without a path: `http://192.0.2.10:20004`."""
    ranks: tuple[int, ...] = (0,)
    """Data-parallel ranks that answer behind this address."""
    state: MemberState = "ready"
    """`draining` gets no new request; `down` loses its running ones too.

    `failed` is for all members: every group has failed, and no request waits for one.
    """
    weight: float = 1.0
    """Share of requests, relative to members with as many ranks."""
    running: float = 0.0
    waiting: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return the member as it crosses a socket."""
        return asdict(self)


def read_member(data: Mapping[str, Any]) -> Member:
    """Rebuild a member.

    Raises:
        ValueError: The state is unknown or the URL has no host.
    """
    state = data.get("state", "ready")
    if state not in get_args(MemberState):
        raise ValueError(f"member {data.get('id')}: unknown state {state!r}")
    url = str(data["url"]).rstrip("/")
    if not url.startswith("http://"):
        raise ValueError(f"member {data.get('id')}: {url!r} is not an http URL")
    return Member(
        id=str(data["id"]),
        url=url,
        ranks=tuple(int(rank) for rank in data.get("ranks", (0,))),
        state=state,
        weight=float(data.get("weight", 1.0)),
        running=float(data.get("running", 0.0)),
        waiting=float(data.get("waiting", 0.0)),
    )


@dataclass(frozen=True)
class GatewayOptions:
    """The gateway's settings, resolved: an address, hashed keys. Times in seconds.

    Crosses a pipe and a socket of this user only. `server_key` is the one secret in it, so it is
    neither printed nor written to a file.
    """

    address: str = "127.0.0.1"
    port: int = 8000
    policy: Policy = "least-loaded"
    sticky_header: str = "x-session-id"
    hold_s: float = 600.0
    hold_requests: int = 1000
    hold_bytes: int = 1 << 30
    drain_s: float = 300.0
    continue_streams: bool = True
    max_body_bytes: int = 64 << 20
    max_connections: int = 4096
    body_s: float = 300.0
    """For a request to arrive completely."""
    certificate: str = ""
    key: str = ""
    key_hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of an accepted API key, as hexadecimal digits -> the name of its secret."""
    server_key: str = field(default="", repr=False)
    """API key for the servers, sent in place of the client's when the gateway checks keys."""
    rate_limit_per_key: int | None = None
    orphan_grace_s: float = 600.0

    def as_json(self) -> dict[str, Any]:
        """Return the options as they cross a socket."""
        return {**asdict(self), "key_hashes": dict(self.key_hashes)}


def read_options(data: Mapping[str, Any]) -> GatewayOptions:
    """Rebuild options; fields of another version are left out."""
    known = GatewayOptions.__dataclass_fields__
    return GatewayOptions(**{name: value for name, value in data.items() if name in known})


def hash_key(key: str) -> str:
    """Return what is kept of an API key."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class MemberStatus:
    """One member as the relay sees it."""

    id: str
    state: MemberState
    in_flight: int
    requests: int
    """Attempts that were sent to it."""
    failures: int
    """Attempts that ended without an answer."""


@dataclass
class RelayCounters:
    """Sums since the relay started, which counts in place. `held_s` in seconds."""

    requests: int = 0
    retries: int = 0
    """Attempts beyond the first of a request."""
    held: int = 0
    """Requests that wait now."""
    held_total: int = 0
    held_s: float = 0.0
    rejected: int = 0
    """Refused because the hold queue was full."""
    failed: int = 0
    """Answered with an error of the gateway's own."""
    continued: int = 0
    """Streams that were continued after a break."""
    broken: int = 0
    """Streams that had to be closed with an error event."""
    cancelled: int = 0
    """Requests whose client went away."""


@dataclass(frozen=True)
class GatewayStatus:
    """The gateway as its keeper sees it."""

    deployment: str
    instance: str
    address: str
    port: int
    tls: bool
    keeper_pid: int
    haproxy_pid: int | None
    relay_pid: int | None
    haproxy_starts: int
    relay_starts: int
    draining: bool
    counters: RelayCounters
    members: tuple[MemberStatus, ...]

    @property
    def url(self) -> str:
        """Root of the address that clients use."""
        scheme = "https" if self.tls else "http"
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{scheme}://{host}:{self.port}"

    def as_json(self) -> dict[str, Any]:
        """Return the status as it crosses a socket."""
        return asdict(self)


def read_status(data: Mapping[str, Any]) -> GatewayStatus:
    """Rebuild a status."""
    members = (MemberStatus(**member) for member in data["members"])
    rest = {key: value for key, value in data.items() if key not in ("members", "counters")}
    return GatewayStatus(
        **rest,
        counters=RelayCounters(**data["counters"]),
        members=tuple(members),
    )
