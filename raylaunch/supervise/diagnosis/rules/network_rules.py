"""Peers, names and addresses: who could not be reached, where, and what kind of address it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason
from raylaunch.supervise.diagnosis.signatures import Kind
from raylaunch.supervise.diagnosis.survival import read_life

_NAME = re.compile(
    r"(?:host=\\{0,2}'([\w.-]{1,120})\\{0,2}'[^\n]{0,400})?(?:Temporary failure in name resolution|"
    r"Name or service not known|nodename nor servname provided|No address associated with hostname|"
    r"NameResolutionError|getaddrinfo failed|Failed to resolve \\{0,2}'([\w.-]{1,120})\\{0,2}')"
)
_HTTP = re.compile(
    r"HTTPS?ConnectionPool\(host=\\{0,2}'([\w.-]{1,120})\\{0,2}', port=(\d{1,5})\): "
    r"(?:Max retries exceeded[^\n]{0,600}?Caused by ?(?:(\w{4,40})|$)|(Read timed out))"
)
_PROXY = re.compile(
    r"ProxyError: ?\(?['\"]?(?:Unable|Cannot|Your proxy)[^\n]{0,200}|"
    r"Tunnel connection failed: (?:\d{3}[^\n)'\"]{0,80})"
)
_SERVER_ERROR = re.compile(
    r"(?<!\d)(5\d\d) Server Error: ([^\n]{1,60}?) for url: (https?://([\w.-]{1,100})\S{0,160})"
)
_CERTIFICATE = re.compile(r"(?i)certificate|self.signed|CERT_")
_HUB = re.compile(
    r"couldn't connect to '(https?://[^'\n]{1,120})' to load|"
    r"(?:LocalEntryNotFoundError|OfflineModeIsEnabled)\b|"
    r"outgoing traffic has been disabled|Cannot reach (https?://[\w./-]{1,120})"
)
_NOT_ALLOWED = re.compile(
    r"Access to model ([\w./-]{1,120}) is restricted|\b(401|"
    r"403) Client Error[^\n]{0,200}url: (\S{1,160})|"
    r"GatedRepoError|You are trying to access a gated repo"
)
_C10D_RETRY = re.compile(
    r"\[c10d\] The (?:server socket on|client socket has (?:failed to connect|"
    r"timed out[^\n]{0,40}) to) "
    r"\[?(?:::ffff:)?((?:\d{1,3}\.){3}\d{1,3}|[\w.-]{1,80}|[\da-f:]{2,40})\]?:(\d{2,5})\b"
)
_STORE = re.compile(
    r"client socket has timed out after (\w{1,20}) while trying to connect to \(([^,)\n]{1,120}),"
    r" (\d{2,5})"
)
_REFUSED = re.compile(
    r"\b(Connection refused|Connection timed out|No route to host|Network is unreachable|"
    r"Connect call failed)\b"
)
PEER = re.compile(
    r"(?<![\w.-])((?:\d{1,3}\.){3}\d{1,3}|[a-z][\w-]{0,60}(?:\.[\w-]{1,60}){1,6})\]?(?:'?, |"
    r":)(\d{2,5})\b"
)
_RETRIED = re.compile(r"\[c10d\]|^\[?W\d{4}")  # warnings; the rendezvous has a rule of its own
_SOURCE_FILE = re.compile(r"\.(?:cpp|cc|hpp|h|py|ts)$")
_BIND = re.compile(
    r"bind on address \('([^'\n]{1,80})', (\d{1,5})[^)\n]{0,40}\): cannot assign requested address"
)
_NOT_LOCAL = re.compile(r"(?<!\): )\[Errno 99\] [Cc]annot assign requested address")
_CONNECTS = re.compile(r"\.connect\(|create_connection|NewConnectionError|ConnectionPool")
_TUNNEL = ip_network("198.18.0.0/15")
_RETRIES = 2


def read_network(log: ServerLog) -> Iterator[Reading]:
    """Yield the peers, names and addresses that could not be reached."""
    yield from _names_and_hubs(log)
    yield from _rendezvous(log)
    for line, match in log.errors.find(_BIND):
        yield _reading(
            line, "address-not-local", *_cannot_bind(match[1], match[2]), "deterministic"
        )
    for line, _ in log.errors.find(_NOT_LOCAL):
        yield _not_local(log, line)
    for line, _ in log.errors.find(_IN_USE):
        if any(_ANY_PORT.search(text) for text in log.cleaned[max(0, line - 3) : line]):
            yield _reading(
                line,
                "ports-used-up",
                "No free port is left on this node: the server asked the kernel for any port. The "
                "range of ephemeral ports is used up, by connections or by sockets that "
                "were never closed.",
                "`ss -s` and `sysctl net.ipv4.ip_local_port_range` on that node: find the process "
                "with many sockets (`ss -tanp | awk '{print $NF}' | sort | uniq -c | sort -n`), "
                "stop it, or widen the range.",
                "transient",
                certain=False,
            )
    yield from _refused(log)


def _reading(
    line: int,
    id_: str,
    cause: str,
    remedy: str,
    kind: Kind,
    *,
    rank: Rank = Rank.CAUSE,
    certain: bool = True,
    symptom: bool = False,
) -> Reading:
    told = reason(id_, cause, remedy, "network message", kind)
    return Reading(told, line, rank=rank, symptom=symptom, certain=certain)


def _names_and_hubs(log: ServerLog) -> Iterator[Reading]:
    for line, match in log.errors.find(_HTTP):
        certificate = _CERTIFICATE.search(log.cleaned[line]) is not None
        yield _http(line, match[1], match[2], match[3] or match[4] or "", certificate=certificate)
    for line, _ in log.errors.find(_PROXY):
        yield _reading(line, "proxy-failed", *_no_proxy("the hub or a peer"), "deterministic")
    for line, match in log.errors.find(_SERVER_ERROR):
        where = f"{match[4]} ({match[3]})"
        yield _reading(
            line,
            "hub-unreachable",
            *_hub(where, f"it or a gateway before it answers {match[1]} {match[2]}"),
            "transient",
        )
    for line, match in log.errors.find(_HUB):
        where = match[1] or match[2] or "(no address in the message)"
        yield _reading(
            line,
            "hub-unreachable",
            *_hub(where, "no connection, and no complete copy in the cache"),
            "deterministic",
        )
    for line, match in log.errors.find(_NOT_ALLOWED):
        what = match[1] or match[3] or "the repository"
        yield _reading(
            line,
            "hub-not-allowed",
            f"The model hub refuses access to {what}: it is gated or private, and the token, if "
            "one was sent, has no access.",
            "Accept the licence on the hub, set `env.HF_TOKEN`, or give a local folder as "
            "`model.path`.",
            "deterministic",
        )
    for line, match in log.errors.find(_NAME):
        host = match[1] or match[2] or _host_near(log, line)
        if host in _HUB_HOSTS:
            continue  # the message of the hub, which is read above
        if "://" in host:
            yield _reading(line, "name-resolution", *_url_as_host(host), "deterministic")
            continue
        named = f" `{host}`" if host else ""
        yield _reading(
            line,
            "name-resolution",
            f"The host name{named} cannot be resolved on this node.",
            "Give an IP address, or add the name to DNS or /etc/hosts on every node "
            f"(`getent hosts {host or 'NAME'}`); in a container check its DNS settings.",
            "deterministic",
        )


def _url_as_host(host: str) -> tuple[str, str]:
    bare = host.partition("://")[2].strip("/").partition(":")[0] or "0.0.0.0"  # noqa: S104 - text
    return (
        f"The host to listen on is given as a URL, {host}, which no name server knows.",
        f"Give the address alone: `network.host` (--host) {bare}, and the port as --port.",
    )


_HUB_HOSTS = ("huggingface.co", "hf-mirror.com", "modelscope.cn", "www.modelscope.cn")


_NAMED = re.compile(
    r"(?:tcp://|https?://|host[= ]'?|for |addresses of \(|MASTER_ADDR[= ])"
    r"([a-zA-Z_][\w.-]{1,100})"
)


_ANY_PORT = re.compile(
    r"\.bind\(\(['\"][^'\"]{0,40}['\"], 0\)\)|in (?:_?get_open_port|find_free_port)\b"
)
_IN_USE = re.compile(r"Errno (?:98|99)\][^\n]{0,80}(?:[Aa]ddress already in use|[Cc]annot assign)")
_LISTENS = re.compile(r"\.bind\(|in create_server_socket")
ECHO_ANCHOR = "non-default args: "
_ECHOED_HOST = re.compile(
    r"^non-default args: [^\n]{0,4000}?'host': '([\w.:/-]{1,120})'", re.MULTILINE
)


def _host_near(log: ServerLog, line: int) -> str:
    """Return the host by the lines around, or the address that the server was to listen on."""
    if found := _NAMED.search(" ".join(log.cleaned[max(0, line - 3) : line + 2])):
        return found[1]
    if not any(_LISTENS.search(text) for text in log.cleaned[max(0, line - 12) : line]):
        return ""
    return next((match[1] for _, match in log.everything.find(_ECHOED_HOST)), "")


def _http(line: int, host: str, port: str, why: str, *, certificate: bool) -> Reading:
    if why.startswith("Proxy"):
        return _reading(line, "proxy-failed", *_no_proxy(f"{host}:{port}"), "deterministic")
    if why.startswith("SSL") and certificate:
        cause = (
            f"The TLS certificate of {host}:{port} is not accepted (usually a proxy that opens "
            "TLS)."
        )
        remedy = (
            "Install the proxy's certificate (`env.REQUESTS_CA_BUNDLE`), or give a local folder "
            "as `model.path`."
        )
        return _reading(line, "tls-failed", cause, remedy, "deterministic")
    reached = {
        "NameResolutionError": "its name cannot be resolved",
        "ConnectTimeoutError": "the connection times out",
        "ReadTimeoutError": "it does not answer in time",
        "Read timed out": "it does not answer in time",
        "NewConnectionError": "no connection can be made",
        "SSLError": "the connection breaks while TLS is set up",
    }.get(why, "no connection can be made")
    if host in _HUB_HOSTS or "hugging" in host or "modelscope" in host:
        return _reading(line, "hub-unreachable", *_hub(f"{host}:{port}", reached), "deterministic")
    return _reading(
        line,
        "peer-unreachable",
        f"{host}:{port} cannot be reached over HTTP: {reached}.",
        f"From this node try `nc -vz {host} {port}`; check that the service runs, that its address "
        "is right, and that no proxy variable is in the way (`env.no_proxy`).",
        "transient",
    )


def _no_proxy(where: str) -> tuple[str, str]:
    return (
        f"The proxy set in http_proxy or https_proxy does not connect to {where}.",
        (
            "Correct or unset `env.http_proxy` and `env.https_proxy`, and set `env.no_proxy` to "
            "the nodes' addresses; or give a local folder as `model.path` with "
            "`env.HF_HUB_OFFLINE: 1`."
        ),
    )


def _hub(where: str, why: str) -> tuple[str, str]:
    return (
        (
            f"The model hub {where} cannot be reached from this node ({why}), and vLLM asks it for "
            "files of the model."
        ),
        (
            "Copy the model to the node and give its folder as `model.path` with "
            "`env.HF_HUB_OFFLINE: 1`; or use a mirror or proxy that the node reaches "
            "(`env.HF_ENDPOINT`, `env.https_proxy`); for ModelScope set "
            "`env.VLLM_USE_MODELSCOPE: true`."
        ),
    )


def _rendezvous(log: ServerLog) -> Iterator[Reading]:
    """Read the endless retries of c10d towards one address."""
    matches = list(log.errors.find(_C10D_RETRY))
    progressed = read_life(log).progressed if matches else -1  # a retry that connected
    found = [(line, match[1], match[2]) for line, match in matches if line > progressed]
    counts = Counter((host, port) for _, host, port in found)
    seen: set[tuple[str, str]] = set()
    for line, host, port in found:
        if counts[host, port] < _RETRIES or (host, port) in seen:
            continue
        seen.add((host, port))
        yield _no_rendezvous(line, host, port, f"{counts[host, port]} attempts in this log")
    for line, match in log.errors.find(_STORE):
        if (match[2], match[3]) not in seen:
            yield _no_rendezvous(line, match[2], match[3], f"for {match[1]}")


def _no_rendezvous(line: int, host: str, port: str, how_long: str) -> Reading:
    kind_of = describe_address(host)
    where = f"{host}:{port}" if port else host
    if kind_of:
        return _reading(
            line,
            "rendezvous-address",
            f"The ranks cannot meet at {where} ({how_long}): {host} is {kind_of}, not the head "
            "node's address on the cluster network, so other nodes never reach it.",
            "Set `network.interface` (or VLLM_HOST_IP, GLOO_SOCKET_IFNAME, TP_SOCKET_IFNAME, "
            "HCCL_SOCKET_IFNAME) to the network between the nodes on every node before `ray "
            "start`.",
            "deterministic",
        )
    return _reading(
        line,
        "rendezvous-unreachable",
        f"The ranks cannot meet at {where} ({how_long}): the server that hosts the rendezvous is "
        "gone or late, the address is wrong, or its port is blocked between the nodes.",
        f"From this node try `nc -vz {host} {port or 'PORT'}`; open the ephemeral ports between "
        "the nodes, set `network.interface` (VLLM_HOST_IP; not the address of a VPN or tunnel, "
        "127.0.0.1 on a single node), and see whether that server's log stopped first.",
        "transient",
        rank=Rank.HINT,
        certain=False,
        symptom=True,
    )


def describe_address(host: str) -> str:
    """Say why an address cannot be that of a peer; "" when nothing is known against it."""
    if host.lower() in ("localhost", "localhost.localdomain"):
        return "a loopback name"
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return ""
    if address.is_loopback:
        return "a loopback address"
    if address.is_link_local:
        return "a link-local address"
    if address.version == 4 and address in _TUNNEL:
        return "an address of a tunnel or proxy (198.18.0.0/15)"
    if address.version == 4 and address in ip_network("172.17.0.0/16"):
        return "an address of the Docker bridge (172.17.0.0/16)"
    return ""


def _cannot_bind(host: str, port: str) -> tuple[str, str]:
    hint = ""
    if host == "::1":
        hint = "; `localhost` was resolved to IPv6, which this container does not have"
    return (
        (
            f"The server tries to listen on {host} port {port}, an address that this node or "
            "container "
            f"does not have{hint}."
        ),
        (
            "Listen on an address that exists: `network.host` (or --host) 0.0.0.0 or 127.0.0.1; "
            "`ip -br addr` on the node shows its addresses."
        ),
    )


def _not_local(log: ServerLog, line: int) -> Reading:
    """Read the plain errno, whose address stands in the echoed arguments if anywhere."""
    if any(_CONNECTS.search(text) for text in log.cleaned[max(0, line - 6) : line + 1]):
        return _reading(
            line,
            "peer-unreachable",
            "A connection could not be made because this node has no address of its own for it: "
            "`localhost` was taken for IPv6 (::1), or the ephemeral ports are used up.",
            "Write 127.0.0.1 for localhost; `ss -s` and `sysctl net.ipv4.ip_local_port_range` show "
            "whether ports are left; the service must listen on that address.",
            "transient",
            certain=False,
        )
    host = _host_near(log, line)
    named = f"{host}, an address" if host else "an address (that of --host, or of its name)"
    return _reading(
        line,
        "address-not-local",
        f"The server tries to listen on {named} that this node or container does not have.",
        "Listen on all addresses: `network.host` (or --host) 0.0.0.0; a container with a network "
        "of its own (-p) does not have its host's address. `ip -br addr` in it shows what it has.",
        "deterministic",
    )


def _refused(log: ServerLog) -> Iterator[Reading]:
    """Read a refused, timed-out or unroutable connection with its peer, from any reporter."""
    for line, match in log.errors.find(_REFUSED):
        text = log.cleaned[line]
        peer = None if _RETRIED.search(text) else PEER.search(text)
        if peer is None or _SOURCE_FILE.search(peer[1]):
            continue
        where = f"{peer[1]}:{peer[2]}"
        kind_of = describe_address(peer[1])
        note = f" ({kind_of})" if kind_of else ""
        yield _reading(
            line,
            "peer-unreachable",
            f"No connection to {where}{note}: {match[1].lower()}. The service there is not "
            "running, listens on another address, or is blocked.",
            f"On the peer run `ss -ltnp | grep {peer[2]}`; from this node `nc -vz {peer[1]} "
            f"{peer[2]}`; "
            "open the port and check the address in the recipe (`network`).",
            "transient",
            rank=Rank.HINT,
            certain=False,
        )
