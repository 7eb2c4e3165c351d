"""KV transfer between servers: Mooncake's own error lines, and the reports of the connectors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.error_codes import find_number
from raylaunch.supervise.diagnosis.rules.network_rules import PEER

_GLOG_KV = re.compile(
    r"^[EF](?:\d{8} |\d{4} )\d\d:\d\d:\d\d\.\d{1,6}\s+\d{1,20} "
    r"((?:[\w]*(?:transport|transfer|master|client|pybind|metadata|rdma|store|segment|rpc|"
    r"topology|engine|worker_pool|endpoint|adxl|hixl|memfabric|hybm|smem|mmc)\w*)\."
    r"(?:cpp|h|hpp|cc)):\d{1,5}\] ([^\n]{1,1500})",
    re.MULTILINE,
)
_KV_FAILED = re.compile(
    r"(?:Mooncake transfer failed|Failed to transfer KV cache|Sync batch data transfer timeout|"
    r"Initialize mooncake failed|Failed to (?:initialize|init) (?:mooncake|transfer engine)|"
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


_FABRIC = (
    "Unset `env.ASCEND_ENABLE_USE_FABRIC_MEM`, or install the driver (HDK) and CANN that fabric "
    "memory needs."
)


def read_kv_transfer(log: ServerLog) -> Iterator[Reading]:
    """Yield the error lines of Mooncake and of the KV connectors, the first of each kind."""
    lines = list(log.errors.find(_GLOG_KV))
    if lines:
        sessions = [match[0] for _, match in log.errors.find(_SESSION)]
        text = " ".join([*(f"{match[1]} {match[2]}" for _, match in lines[:40]), *sessions[:1]])
        covers = frozenset(line for line, _ in lines)
        said = [match[2] for _, match in lines]
        telling = next((each for each in said if _SAYS_WHY.search(each)), said[0])
        yield _mooncake(lines[0][0], text, telling, covers, _closed(log))
        return
    for line, match in log.errors.find(_NIXL):
        yield _nixl(line, match[0])
    ucx = list(log.errors.find(_UCX))
    device = next((found for _, each in ucx if (found := _UCX_DEVICE.search(each[0]))), None)
    for line, match in ucx:
        yield _ucx_device(line, device) if device else _ucx(line, match[0])
    for line, match in log.errors.find(_KV_FAILED):
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
    kind = next(each for each in _MOONCAKE if all(re.search(w, lower) for w in each.words))
    between = f" between {cards[1]} and {cards[2]}" if cards else ""
    why = f" ({rdma[0]})" if rdma else ""
    cause = kind.cause.format(where=where, big=big, between=between, why=why)
    cause = f"{cause} Mooncake reports: {shorten(said, 200).rstrip('.')}."
    known = find_number([text])
    remedy = f"{closed} {kind.remedy}".strip()
    if known is not None:
        cause = f"{cause} {known.code} of CANN: {known.cause}."
        remedy = f"{known.remedy} {remedy}"
    if known is not None and known.code == "207000":
        remedy = f"{_FABRIC} {remedy}"
    told = reason(kind.name, cause, remedy, "Mooncake's error lines", "transient")
    return Reading(told, line, covers=covers)


class _Mooncake(NamedTuple):
    """A kind of Mooncake failure; all `words` are in its error lines."""

    words: tuple[str, ...]
    name: str
    cause: str
    remedy: str


# The first that fits counts.
_MOONCAKE = (
    _Mooncake(
        (r"retry counter exceeded|remote (?:access|operation) error|local protection|flushed",),
        "mooncake-rdma-link",
        "An RDMA transfer of Mooncake{between} failed{why}: the two cards do not reach each other, "
        "a port is down, or the peer is gone.",
        "Check both cards with `ibv_devinfo` and `ib_write_bw` between them (same network, GID "
        "index, MTU), name the right card in `device_name`, or choose another `protocol` (`tcp`, "
        "`ascend`); read the peer's log.",
    ),
    _Mooncake(
        (
            r"master_client|mount_segment|master|create client",
            r"rpc|timed out|refused|connect|retries",
        ),
        "mooncake-master",
        "The Mooncake store cannot register its segment{big} with the Mooncake master{where}: the "
        "call to the master failed (master not running, not reachable, or too slow for a segment "
        "of this size).",
        "Check that `mooncake_master` runs and that its port is reachable from this node (`nc -vz "
        "MASTER 50051`; `master_server_address` in mooncake.json); use a smaller "
        "`global_segment_size`.",
    ),
    _Mooncake(
        (r"metadata",),
        "mooncake-metadata",
        "Mooncake's metadata of a peer cannot be read{where}: the metadata server is not "
        "reachable, or the peer has not registered itself (not started, or gone).",
        "Check `metadata_server` in the configuration and that the peer server runs; with "
        "P2PHANDSHAKE check that the peer's address is right and its port open; read the peer's "
        "log.",
    ),
    _Mooncake(
        (r"register (?:local )?mem|regmem|registermem|ibv_reg_mr|memory region",),
        "mooncake-memory",
        "Mooncake cannot register memory with the network card or NPU.",
        "Raise `ulimit -l` (unlimited), use a Mooncake build that fits CANN and driver, and lower "
        "the segment size or the number of registered blocks.",
    ),
    _Mooncake(
        (r"no (?:rdma )?device|topology|ibv_open|rdma_context|\bgid\b",),
        "mooncake-rdma",
        "Mooncake finds no usable RDMA device.",
        "Map /dev/infiniband into the container, check `ibv_devices`, or choose another protocol "
        "(`tcp`, `ascend`).",
    ),
    _Mooncake(
        (),
        "mooncake-transfer",
        "Mooncake cannot transfer KV blocks to its peer{where}: the connection or a transfer "
        "failed.",
        "Check that the peer server runs and is reachable (`hccn_tool -i N -ping -g address PEER` "
        "between the NPUs; the same CANN, driver and Mooncake build on both sides, "
        "`use_ascend_direct`; ASCEND_CONNECT_TIMEOUT), and read the peer's log.",
    ),
)
