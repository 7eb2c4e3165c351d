"""NCCL's own warnings: they name the peer, the interface or the call that failed.

The exception above them only says "unhandled system error".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.network_rules import describe_address
from raylaunch.supervise.diagnosis.signatures import Kind

_WARNING = re.compile(r"\bNCCL WARN ([^\n]{8,400})")
_FAILED = re.compile(
    r"NCCL [Ee]rror|nccl(?:System|Internal|Remote|UnhandledCuda|InvalidUsage)Error|"
    r"unhandled (?:system|cuda) error|DistBackendError"
)
_PEER = re.compile(
    r"(?:[Cc]onnect(?:ing)? to|remote peer|from peer|peer) \[?([\w.:%-]{3,60})\]?<(\d{1,5})>"
)
_INTERFACE = re.compile(
    r"no (?:usable )?(?:socket )?interface found|No interface found|"
    r"[Nn]o socket interface"
)
_CHOSEN = re.compile(r"NCCL_SOCKET_IFNAME set (?:by environment )?to (\S{1,60})")
_USING = re.compile(r"Bootstrap ?: Using (?:\[\d\])?([\w.-]{1,40}):([\w.:%-]{3,60})<")
_SET_INTERFACE = (
    "Set `network.interface` (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME, VLLM_HOST_IP) to the network "
    "between the nodes on every node before `ray start`"
)


def read_nccl_lines(log: ServerLog) -> Iterator[Reading]:
    """Yield what the first warning of NCCL says, where a call of NCCL failed."""
    warnings = list(log.warnings.find(_WARNING))
    if not warnings or not any(True for _ in log.errors.find(_FAILED)):
        return
    line, match = next(
        ((line, match) for line, match in warnings if _explain(log, match[1])), warnings[0]
    )
    cause, remedy, kind = _explain(log, match[1]) or (
        f"NCCL could not go on: {shorten(match[1], 240)}",
        (
            "Read NCCL's lines above it (`env.NCCL_DEBUG: INFO`); between nodes set "
            "`network.interface` (NCCL_SOCKET_IFNAME), for RDMA try once `env.NCCL_IB_DISABLE: 1`."
        ),
        "transient",
    )
    yield Reading(
        reason("nccl-error", f"{cause}.", remedy, "NCCL's warnings", kind),
        line,
        covers=frozenset(each for each, _ in warnings),
        certain=False,
    )


def _explain(log: ServerLog, said: str) -> tuple[str, str, Kind] | None:
    peer = _PEER.search(said)
    if peer and re.search(r"closed", said):
        return (
            f"The rank at {peer[1]} closed its connection of NCCL: it failed or was stopped first",
            "Read the log of that rank (its node): the first error there is the cause.",
            "transient",
        )
    if re.search(r"NET/IB|ibv_|IB device|GID|RDMA", said):
        return (
            f"RDMA failed inside NCCL: {shorten(said, 200)}",
            (
                "Check the card (`ibv_devinfo`, `ibstat`, `ulimit -l`, the GID index), name "
                "the right one with `env.NCCL_IB_HCA` and NCCL_IB_GID_INDEX, or go over TCP with "
                "`env.NCCL_IB_DISABLE: 1`."
            ),
            "transient",
        )
    if peer:
        return _no_connection(log, said, peer[1], peer[2])
    if _INTERFACE.search(said):
        chosen = next((found[1] for _, found in log.everything.find(_CHOSEN)), "")
        named = f" named {chosen}" if chosen else ""
        return (
            f"NCCL finds no network interface{named} with an address on this node",
            f"{_SET_INTERFACE}; `ip -br addr` shows what this node has.",
            "deterministic",
        )
    if "Duplicate GPU" in said:
        return (
            f"Two ranks use the same GPU ({shorten(said, 120)})",
            (
                "Give each rank a device of its own: as many visible devices a node as ranks "
                "(`parallel.tensor`, `parallel.data_local`), no device twice, "
                "and one server a set of devices."
            ),
            "deterministic",
        )
    if found := re.search(r"Cuda failure (?:\d{1,4} )?'?([^'\n]{3,120})'?", said):
        return (
            f"A call of CUDA failed inside NCCL: {found[1]}",
            (
                "For memory lower `args.gpu-memory-utilization`; otherwise compare the driver "
                "(`nvidia-smi`) with the CUDA of torch and NCCL, and see whether `dmesg -T` has an "
                "Xid."
            ),
            "transient",
        )
    if re.search(r"truncated|[Mm]ismatch|version", said):
        return (
            f"The ranks do not run the same program: {shorten(said, 160)}",
            (
                "Install the same torch, NCCL and vLLM on all nodes, and start all servers of the "
                "group with the same parallel sizes."
            ),
            "deterministic",
        )
    return None


def _no_connection(log: ServerLog, said: str, host: str, port: str) -> tuple[str, str, Kind]:
    kind_of = describe_address(host.partition("%")[0])
    note = f" ({kind_of})" if kind_of else ""
    found = re.search(r"(?:returned \d{1,3}\(|failed ?: )([^)\n]{4,60})", said)
    why = f": {found[1].strip().lower()}" if found else ""
    own = next((match for _, match in log.everything.find(_USING)), None)
    from_here = f" This node uses {own[1]} ({own[2]})." if own else ""
    return (
        f"NCCL cannot connect to {host}{note} port {port}{why}. The two nodes use interfaces of "
        f"different networks, or a firewall is between them.{from_here}".removesuffix("."),
        (
            f"{_SET_INTERFACE}; {host.partition('%')[0]} must be an address that this node reaches "
            f"(`ip route get`, `nc -vz`), and all ports between the nodes must be open."
        ),
        "deterministic" if kind_of else "transient",
    )
