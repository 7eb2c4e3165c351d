"""HAProxy's configuration as text. Pure.

HAProxy owns everything that touches the client's connection: TLS, API keys, limits, slow clients.
It passes every request to the relay's unix socket, and sends it again while the relay restarts.
HAProxy runs in the folder of its files, so their names in the configuration are relative: the path
of a unix socket has at most 107 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raylaunch.gateway.gateway_messages import GatewayOptions
from raylaunch.gateway.openai_errors import error_body
from raylaunch.gateway.server_routes import INFERENCE

BUFFER_BYTES = 64 << 10
"""A larger request is not sent again when the relay itself dies under it. Buffers of 1 MB cost a
factor of ten in requests/s (measured, HAProxy 2.8.25)."""
RELAY_RETRIES = 3
"""Relays that may die under a request. While one starts, the request waits in the backlog."""
CONNECT_S = 10
REQUEST_S = 30
"""For the headers, and for a body up to the buffer. Later than that is 408."""
CLIENT_S = 60
"""A client that neither reads nor sends for so long, though it should, is gone."""
LONG = "24d"
"""The relay knows when to give up; HAProxy's own limit must come later."""
RATE_PERIOD_S = 60


@dataclass(frozen=True)
class HaproxyFiles:
    """Where HAProxy's files are."""

    folder: Path

    @property
    def config(self) -> Path:
        """The configuration."""
        return self.folder / "haproxy.cfg"

    @property
    def admin(self) -> Path:
        """The runtime API, for this user only."""
        return self.folder / "haproxy.sock"

    @property
    def relay(self) -> Path:
        """Where the relay listens."""
        return self.folder / "relay.sock"

    @property
    def keys(self) -> Path:
        """Hashes of the accepted API keys."""
        return self.folder / "keys.map"

    @property
    def certificate(self) -> Path:
        """A link to the certificate; HAProxy finds the key beside it under NAME.key."""
        return self.folder / "gateway.pem"

    @property
    def certificate_key(self) -> Path:
        """A link to the key of the certificate."""
        return self.folder / "gateway.pem.key"


def haproxy_config(options: GatewayOptions, files: HaproxyFiles, listener: int) -> str:
    """Return the configuration; `listener` is the inherited listening socket."""
    tls = f" ssl crt {files.certificate.name} alpn h2,http/1.1" if options.certificate else ""
    lines = [
        *_global(options, files),
        *_defaults(),
        "frontend clients",
        f"    bind fd@{listener}{tls}",
        f"    maxconn {options.max_connections}",
        *_limits(options),
        *(_keys(options, files) if options.key_hashes else []),
        "    http-request del-header Expect",
        # Below the refusals: a body that is refused anyway is not waited for. A request that is in
        # the buffer can be sent again, and a slow client does not occupy the relay.
        f"    http-request wait-for-body time {REQUEST_S}s",
        "    default_backend relay",
        *_relay(files),
    ]
    return "\n".join(lines) + "\n"


def keys_map(hashes: Mapping[str, str]) -> str:
    """Return the map file: hash of a key, name of its secret."""
    return "".join(f"{digest} {name}\n" for digest, name in sorted(hashes.items()))


def _global(options: GatewayOptions, files: HaproxyFiles) -> list[str]:
    return [
        "global",
        f"    maxconn {options.max_connections + 100}",
        "    nbthread 1",
        f"    hard-stop-after {max(1, round(options.drain_s))}s",
        f"    stats socket unix@{files.admin.name} mode 600 level admin",
        "    log stdout format raw local0 warning",
        f"    tune.bufsize {BUFFER_BYTES}",
        "    ssl-default-bind-options ssl-min-ver TLSv1.2",
        "    ssl-load-extra-files key",
    ]


def _defaults() -> list[str]:
    errors = {
        400: ("bad_request", "the request is not valid HTTP"),
        408: ("request_timeout", "the request did not arrive in time"),
        500: ("gateway_error", "the gateway failed"),
        502: ("gateway_error", "the relay of the gateway closed the connection"),
        503: ("gateway_error", "the relay of the gateway does not run"),
        504: ("gateway_error", "the relay of the gateway does not answer"),
    }
    return [
        "defaults",
        "    mode http",
        "    option http-no-delay",
        "    option abortonclose",
        f"    timeout http-request {REQUEST_S}s",
        "    timeout http-keep-alive 75s",
        f"    timeout client {CLIENT_S}s",
        f"    timeout connect {CONNECT_S}s",
        f"    timeout server {LONG}",
        f"    timeout queue {LONG}",
        f"    timeout tunnel {LONG}",
        *(
            f"    http-error status {status} {_json(status, *text)}"
            for status, text in errors.items()
        ),
    ]


def _limits(options: GatewayOptions) -> list[str]:
    limit = options.max_body_bytes
    answer = _json(413, "body_too_large", f"the request body is larger than {limit} bytes")
    condition = f"{{ req.body_size gt {limit} }}"
    return [f"    http-request return status 413 {answer} if {condition}"]


def _keys(options: GatewayOptions, files: HaproxyFiles) -> list[str]:
    """Check keys by their hash. A probe of /health needs none."""
    found = "{ var(txn.key) -m found }"
    name = f"http_auth_bearer,sha2(256),hex,lower,map_str({files.keys.name})"
    answer = _json(401, "invalid_api_key", "the API key is missing or unknown")
    refusal = f"http-request return status 401 {answer} hdr WWW-Authenticate Bearer"
    lines = [
        f"    http-request set-var(txn.key) {name}",
        f"    {refusal} unless {found} or {{ path /health }}",
    ]
    if options.rate_limit_per_key is None:
        return lines
    answer = _json(429, "rate_limit_exceeded", "too many requests a minute with this API key")
    refusal = f"http-request return status 429 {answer} hdr Retry-After {RATE_PERIOD_S}"
    expire_s = 2 * RATE_PERIOD_S
    table = f"type string len 64 size 10k expire {expire_s}s store http_req_rate({RATE_PERIOD_S}s)"
    return [
        *lines,
        f"    stick-table {table}",
        f"    http-request track-sc0 var(txn.key) if {found}",
        f"    {refusal} if {{ sc_http_req_rate(0) gt {options.rate_limit_per_key} }}",
    ]


def _relay(files: HaproxyFiles) -> list[str]:
    """Send again what the relay did not answer, except what must not be sent twice.

    `http-reuse never`: on a reused connection HAProxy closes the client's instead of repeating
    (measured, 2.8.25).
    """
    paths = " ".join(sorted(INFERENCE))
    return [
        "backend relay",
        f"    retries {RELAY_RETRIES}",
        "    retry-on conn-failure empty-response",
        "    http-reuse never",
        f"    acl repeatable path {paths}",
        "    acl repeatable method GET HEAD OPTIONS",
        "    http-request disable-l7-retry unless repeatable",
        f"    server relay unix@{files.relay.name}",
    ]


def _json(status: int, code: str, message: str) -> str:
    text = error_body(status, code, message).decode()
    return f"content-type application/json string '{text}'"
