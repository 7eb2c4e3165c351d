"""KV transfer between servers: Mooncake's own error lines, and the reports of the connectors."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.error_codes import find_number
from raylaunch.supervise.diagnosis.rules.network_rules import PEER, describe_address
from raylaunch.supervise.diagnosis.rules.tables.mooncake_codes import CODES, NAMES
from raylaunch.supervise.diagnosis.rules.tables.mooncake_errors import (
    GUESSED,
    MOONCAKE,
    OF_THE_SETUP,
)
from raylaunch.supervise.diagnosis.signatures import Kind

GLOG_KV = re.compile(
    r"^[EF](?:\d{8} |\d{4} )\d\d:\d\d:\d\d\.\d{1,6}\s{1,8}(?:\d{1,20} )?"
    r"((?:[\w]*(?:transport|transfer|master|client|pybind|metadata|rdma|store|segment|rpc|"
    r"topology|engine|worker_pool|endpoint|adxl|hixl|memfabric|hybm|smem|mmc|storage|allocator|"
    r"uring|arena|etcd_helper|lease_helper)\w*)\."
    r"(?:cpp|h|hpp|cc)):\d{1,5}\] ([^\n]{1,1500})",
    re.MULTILINE,
)
_KV_FAILED = re.compile(
    r"(?:Mooncake transfer failed|Failed to transfer KV cache|Sync batch data transfer timeout|"
    r"Failed to (?:initialize|init) (?:mooncake|transfer engine)|"
    r"KV ?Transfer(?:Error|\w{0,20} ?(?:task|request)? ?(?:failed|timed out))|LLM_LINK_FAILED|"
    r"(?:Decode|Prefill) transfer failed|LLMStatusCode\.LLM_(?!SUCCESS)\w{3,40}|"
    r"(?:Transfer Engine|LLMDataDist|llm_datadist)\w{0,20} (?:initialization|init|link) failed|"
    r"Failed to register mooncake memory)[^\n]{0,300}",
    re.IGNORECASE,
)
_METADATA_SERVER = re.compile(
    r"(?:etcd uri: ?|\bfrom |conn string: ?\S{0,10}//)([\w.-]{2,80}:\d{2,5})"
)
_SESSION = re.compile(r"remote mooncake session [\w.:-]{3,80} is not alive")
_NIXL = re.compile(
    r"Handshake with [\w-]{8,80} failed[^\n]{0,200}|"
    r"NIXL (?:transfer failure|agent engine ID mismatch|handshake)[^\n]{0,200}|"
    r"Remote NIXL agent[^\n]{0,200}|NIXL_ERR_\w{3,40}|nixl\w{0,20}Error: [^\n]{1,200}",
)
_UCX = re.compile(
    r"\bUCX +(?:ERROR|FATAL) [^\n]{1,200}|Unexpected UCX error: [^\n]{1,160}|"
    r"Transport retry count exceeded on [\w.:/-]{1,60}|Remote access error on [\w.:/-]{1,60}"
)
_UCX_DEVICE = re.compile(
    r"uct_iface_open\((?:\w{1,20}/)?([\w:.-]{1,40})\) failed: [^\n]{1,80}|"
    r"network device '?([\w:.-]{1,40})'? is not available"
)
_SAYS_WHY = re.compile(
    r"refused|timed? ?out|[Tt]imeout|unreachable|[Nn]o route|not found|[Ii]nvalid|status|errno|"
    r"\bret\b|code|\d{1,3}\.\d{1,3}\.\d{1,3}\.\d"
)
_SIZE = re.compile(r"\bsize=(\d{6,16})\b")
_RDMA_CARDS = re.compile(r"local_nic: ([\w@.:-]{1,80}), peer_nic: ([\w@.:-]{1,120})")
_RPC_CLOSED = re.compile(r"read rpc (?:head|body) failed, error\s{1,200}msg: ?End of file")
_RDMA_REASON = re.compile(
    r"transport retry counter exceeded|RNR retry counter exceeded|remote access error|"
    r"local protection error|Work Request Flushed Error|remote operation error"
)


_NAMED = re.compile(rf"\b({'|'.join(NAMES)})\b")
_STORED = "OBJECT_ALREADY_EXISTS"
_LOAD_FAILED = re.compile(r"Failing (\d{1,6}) request\(s\) due to KV load failure")
_REMOTE = re.compile(
    r"(?:[Rr]eceive|[Rr]equest|[Hh]andshake)[^\n]{0,60}(?:timeout|timed out)[^\n]{0,40} "
    r"(?:host|from|to) ([\w.:-]{2,60}),? port:? (\d{2,5})\b"
)
_FABRIC = (
    "Unset `env.ASCEND_ENABLE_USE_FABRIC_MEM`, or install the driver (HDK) and CANN that fabric "
    "memory needs."
)


_NOT_OPENED = re.compile(
    r"[Ff]ailed to open (?:RDMA )?device:? ?[\w.-]{1,40}[^\n\[]{0,40}?GID \d{1,4}"
)
_NOT_REGISTERED = re.compile(r"[Rr]egister memory[^\n]{0,60}?: ([A-Z][\w/ ]{3,40}?) ?\[(\d{1,3})\]")
_SMALLER = (
    "Make the registered parts smaller than the card allows (`ibv_devinfo -v | grep max_mr_size`): "
    "lower `global_segment_size` and `local_buffer_size`."
)
_REGISTER_ERRNO = {
    5: (": the part is larger than the card's largest memory region", _SMALLER),
    22: (": the part is too large for the card, or is memory that it cannot reach", _SMALLER),
    12: (
        ": the limit of locked memory is too low, or the host's memory is short",
        (
            "Raise the limit first (`ulimit -l unlimited`, `docker run --ulimit memlock=-1`, "
            "LimitMEMLOCK=infinity); it counts once for each card."
        ),
    ),
    14: (
        ": the address is device memory that the card cannot reach",
        (
            "Load the module that lets the card reach device memory (`modprobe nvidia_peermem`; on "
            "NPUs use `protocol: ascend`), or keep the segment in host memory."
        ),
    ),
    1: (": the process may not", "Run with the right (root, `--privileged` or CAP_IPC_LOCK)."),
    13: (": the process may not", "Run with the right (root, `--privileged` or CAP_IPC_LOCK)."),
}


def read_kv_transfer(log: ServerLog) -> Iterator[Reading]:
    """Yield the error lines of Mooncake and of the KV connectors, the first of each kind."""
    lines = [each for each in log.errors.find(GLOG_KV) if _STORED not in each[1][2]]
    if lines:
        sessions = [match[0] for _, match in log.errors.find(_SESSION)]
        text = " ".join([*(f"{match[1]} {match[2]}" for _, match in lines[:40]), *sessions[:1]])
        covers = frozenset(line for line, _ in lines)
        said = [match[2] for _, match in lines]
        telling = next((each for each in said if _SAYS_WHY.search(each)), said[0])
        yield _mooncake(lines[0][0], text, telling, covers, _closed(log))
        return
    for line, match in log.errors.find(_NIXL):
        yield _nixl_memory(log, line, match[0]) or _nixl(line, match[0])
    ucx = list(log.errors.find(_UCX))
    device = next((found for _, each in ucx if (found := _UCX_DEVICE.search(each[0]))), None)
    for line, match in ucx:
        yield _ucx_device(line, device) if device else _ucx(line, match[0])
    for line, match in log.errors.find(_LOAD_FAILED):
        yield _load_failed(line, match)
    remote = next((each for _, each in log.errors.find(_REMOTE)), None)
    for line, match in log.errors.find(_KV_FAILED):
        if remote is not None:
            yield _no_answer(line, remote[1], remote[2])
            return
        yield Reading(
            reason(
                "kv-transfer-failed",
                f"The KV cache could not be transferred: {match[0][:200]}.",
                "Check that the peer server runs, and the link between the NPUs "
                "(`hccn_tool -i N -ping -g address PEER`); the error lines of the other side name "
                "the reason.",
                "KV connectors",
                "transient",
            ),
            line,
            rank=Rank.HINT,
            certain=False,
        )


def _no_answer(line: int, host: str, port: str) -> Reading:
    """Read a connector that got no answer from the other side's port."""
    return Reading(
        reason(
            "kv-transfer-failed",
            f"The KV connector got no answer from {host} port {port}: no worker of the other side "
            "listens there, or it hangs.",
            f"On {host} `ss -ltnp | grep {port}` must show a worker. If none does, the ports do "
            "not agree: give all servers of one side the same `kv_port` in "
            "`args.kv-transfer-config` (each adds the number of its rank; with pipeline "
            "parallelism over several nodes start them as one server with Ray), or use a newer "
            "release. If one does, open the port in the firewall and read that worker's log.",
            "vllm-ascend mooncake_connector.py; vllm-ascend#11343",
            "transient",
        ),
        line,
        rank=Rank.HINT,
        certain=False,
    )


def _load_failed(line: int, match: re.Match[str]) -> Reading:
    return Reading(
        reason(
            "kv-load-failed",
            f"The KV blocks of {match[1]} request(s) could not be loaded from the other server or "
            f"the pool, and `kv_load_failure_policy: fail` ends such requests. What "
            "follows (metrics, status 500) is a consequence.",
            "Set `kv_load_failure_policy: recompute` in `args.kv-transfer-config`, which computes "
            "the blocks again. Why they could not be loaded is in the workers' lines before it "
            "(Mooncake, the connector) and on the other server; use a newer release of "
            "vllm-ascend if some ranks report success and others do not.",
            "vLLM v1/core/sched/scheduler.py; vllm-ascend#7871",
            "transient",
        ),
        line,
        rank=Rank.HINT,
        certain=False,
    )


def _nixl(line: int, said: str) -> Reading:
    return Reading(
        reason(
            "nixl-failed",
            f"NIXL could not set up the transfer of the KV cache with the other server: "
            f"{shorten(said, 200)}. Its side channel reaches another server than meant, the two "
            "servers differ in version, block size or parallel sizes, or UCX finds no way between "
            "them.",
            "Set `env.VLLM_NIXL_SIDE_CHANNEL_HOST` on each server to its own address between the "
            "nodes (and a free VLLM_NIXL_SIDE_CHANNEL_PORT); start prefill and decode with the "
            "same release and, to exclude it, the same `parallel.tensor`; try `env.UCX_TLS: "
            "rc,tcp` (and UCX_NET_DEVICES).",
            "vLLM nixl_connector; vllm#27083",
            "transient",
        ),
        line,
        certain=False,
    )


_NO_TRANSPORTS = re.compile(r"transports ((?:'\w{1,20}',?){1,8}) are not available")


def _nixl_memory(log: ServerLog, line: int, said: str) -> Reading | None:
    """Read that NIXL could not register the server's own memory: no other server is involved."""
    above = "\n".join(log.cleaned[max(0, line - 30) : line])
    if "register_memory" not in above and "registerMem" not in above:
        return None
    missing = _NO_TRANSPORTS.search("\n".join(log.cleaned[max(0, line - 400) : line]))
    why = f" UCX says that its transports {missing[1]} are not available." if missing else ""
    return Reading(
        reason(
            "nixl-memory",
            f"NIXL could not register the memory of this server's own KV cache ({shorten(said, 60)}"
            f" in register_memory).{why} The UCX that it loads cannot handle memory of the device "
            "(built without CUDA or for another CUDA), or may not pin memory.",
            "Install the NIXL wheel of this CUDA (nixl-cu12, nixl-cu13), which brings a UCX with "
            "cuda_copy and cuda_ipc, and remove another UCX from LD_LIBRARY_PATH (`ucx_info -d | "
            "grep -i cuda`). Leave cuda_copy and cuda_ipc in `env.UCX_TLS`, run the container with "
            "IPC_LOCK and `ulimit -l unlimited`; for a platform without, set "
            '`kv_buffer_device: "cpu"` in `args.kv-transfer-config`.',
            "NIXL register_memory; LMCache#605",
            "deterministic",
        ),
        line,
        certain=False,
    )


def _ucx_device(line: int, found: re.Match[str]) -> Reading:
    return Reading(
        reason(
            "ucx-failed",
            f"UCX cannot open the network device {found[1] or found[2]}: it has no address, is not "
            f"there, or the transport does not work on it ({shorten(found[0], 160)}).",
            "Name the devices that it may use (`env.UCX_NET_DEVICES`, as in mlx5_0:1,eth0; "
            "`ucx_info -d` lists them) and a transport (`env.UCX_TLS`); use the UCX of the NIXL "
            "wheel.",
            "UCX ucp_worker.c",
            "deterministic",
        ),
        line,
        rank=Rank.HINT,
        certain=False,
    )


def _ucx(line: int, said: str) -> Reading:
    return Reading(
        reason(
            "ucx-failed",
            f"A connection of UCX to a peer broke: {shorten(said, 200)}. The peer is gone, or the "
            "network between the two servers (RDMA link, switch, priority flow control, firewall) "
            "loses packets.",
            "Read the peer's log first. Check the link (`ibstat`, `ibv_devinfo`, `ethtool -S`) and "
            "the switch on the way; exclude a card with `env.UCX_NET_DEVICES`; `env.UCX_TLS: tcp` "
            "shows whether only RDMA fails.",
            "UCX tcp_ep.c, ib_mlx5_log.c",
            "transient",
        ),
        line,
        rank=Rank.HINT,
        certain=False,
    )


def _closed(log: ServerLog) -> str:
    """Say what it means that the peer of a call closed the connection; "" when it did not."""
    if not any(True for _ in log.errors.find(_RPC_CLOSED)):
        return ""
    return (
        "The other side accepted the connection and closed it (end of file): install the same "
        "release of Mooncake for the master and all servers, and read the master's log."
    )


_OF_A_BRIDGE = (
    "other hosts do not reach it, and containers of one host with such addresses count as several "
    "servers, which need RoCE between their NPUs."
)


def _mooncake(line: int, text: str, said: str, covers: frozenset[int], closed: str) -> Reading:
    lower = text.lower()
    peer = PEER.search(text)
    size = _SIZE.search(text)
    cards = _RDMA_CARDS.search(text)
    rdma = _RDMA_REASON.search(text)
    server = _METADATA_SERVER.search(text)
    where = f" at {peer[1]}:{peer[2]}" if peer else ""
    where = f" from {server[1]}" if server else where
    big = f" of {int(size[1]) / 2**30:.0f} GiB" if size else ""
    kind = next(each for each in MOONCAKE if all(re.search(w, lower) for w in each.words))
    between = f" between {cards[1]} and {cards[2]}" if cards else ""
    why = f" ({rdma[0]})" if rdma else ""
    if opened := _NOT_OPENED.search(text):
        why = f" ({opened[0]})"
    cause = kind.cause.format(where=where, big=big, between=between, why=why)
    quoted = shorten(said.rstrip(". "), 200)
    cause = f"{cause} Mooncake reports: {quoted}."
    known = find_number([text])
    remedy = f"{closed} {kind.remedy}".strip()
    bridge = describe_address(peer[1]) if peer and kind.name == "mooncake-transfer" else ""
    if peer and "Docker" in bridge:
        cause = f"{cause} {peer[1]} is {bridge}: {_OF_A_BRIDGE}"
        remedy = f"Start the containers of both sides with `--network host`. {remedy}"
    named = _NAMED.search(text)
    if named and not kind.words:
        meaning, first = CODES[NAMES[named[1]]]
        cause, remedy = f"{cause} {named[1]} means: {meaning}.", f"{first} {remedy}"
    refused = _NOT_REGISTERED.search(text) if kind.name == "mooncake-memory" else None
    if refused:
        cause, remedy = _unregistered(refused, cause, remedy)
    if known is not None:
        cause = f"{cause} {known.code} of CANN: {known.cause}."
        remedy = f"{remedy} {known.remedy}" if kind.words else f"{known.remedy} {remedy}"
    if known is not None and known.code == "207000":
        remedy = f"{_FABRIC} {remedy}"
    known_errno = refused is not None and int(refused[2]) in _REGISTER_ERRNO
    again: Kind = "deterministic" if known_errno or kind.name in OF_THE_SETUP else "transient"
    told = reason(kind.name, cause, remedy, "Mooncake's error lines", again)
    return Reading(told, line, covers=covers, certain=kind.name not in GUESSED)


def _unregistered(said: re.Match[str], cause: str, remedy: str) -> tuple[str, str]:
    """Return cause and remedy of a refused registration by its errno (ibv_reg_mr)."""
    number = int(said[2])
    why, first = _REGISTER_ERRNO.get(number, ("", ""))
    named = f"{cause} The card's driver answers: {said[1].strip()} (errno {number}){why}."
    return named, f"{first} {remedy}".strip()
