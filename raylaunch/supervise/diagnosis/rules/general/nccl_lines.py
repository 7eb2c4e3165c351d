"""NCCL's own warnings: they name the peer, the interface or the call that failed.

The exception above them only says "unhandled system error".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.network_rules import describe_address
from raylaunch.supervise.diagnosis.rules.tables.nccl_calls import explain_cuda_call
from raylaunch.supervise.diagnosis.signatures import Kind
from raylaunch.supervise.diagnosis.survival import read_life

_WARNING = re.compile(r"\bNCCL WARN ([^\n]{8,400})")
_LAST = re.compile(r"\bLast error:\s{1,4}([^\n]{8,400})")  # of torch, with the last warning
_FAILED = re.compile(
    r"NCCL [Ee]rror|nccl(?:System|Internal|Remote|UnhandledCuda|InvalidUsage)Error|"
    r"unhandled (?:system|cuda) error|DistBackendError"
)
_PEER = re.compile(
    r"(?:[Cc]onnect(?:ing)? to|remote peer|from peer|peer) \[?([\w.:%-]{3,60})\]?<(\d{1,5})>"
)
_TRIED = re.compile(r"[Cc]onnect(?:ing)? to \[?([\w.:%-]{3,60})\]?<(\d{1,5})> (?:returned|failed)")
_MANY_TRIES = 2
_COMPOSE = re.compile(r"172\.(?:1[89]|2\d|3[01])\.0\.1")
_Found = tuple[int, re.Match[str]]
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
    yield from _read_nvshmem(log)
    warnings = [*log.warnings.find(_WARNING), *log.errors.find(_LAST)]
    if not warnings:
        yield from _read_phrases(log)
        return
    if not any(True for _ in log.errors.find(_FAILED)):
        yield from _broken_transfers(log, warnings)
        yield from _refused_verbs(log, warnings)
        yield from _repeated(log, warnings)
        yield from _without_memory(log, warnings)
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


_PHRASE = re.compile(r"NCCL [Ee]rror[^\n]{0,200}?(invalid usage)")


def _read_phrases(log: ServerLog) -> Iterator[Reading]:
    """Yield NCCL's short messages that mean one thing, where no warning says more."""
    for line, match in log.errors.find(_PHRASE):
        yield Reading(
            reason(
                "nccl-error",
                f"NCCL was called wrongly ({match[1]}): two ranks use the same GPU, or the ranks "
                "disagree about the size of their group.",
                "Give each rank a GPU of its own: as many visible devices a node as ranks "
                "(`parallel.tensor`, `parallel.data_local`), and CUDA_VISIBLE_DEVICES set before "
                "anything imports torch (a plug-in or package that uses the device on import, as "
                "deepspeed, fixes it to GPU 0). `env.NCCL_DEBUG: WARN` names the duplicate.",
                "NCCL troubleshooting; vllm#17079",
                "deterministic",
            ),
            line,
            certain=False,
        )


_NVSHMEM = re.compile(
    r"nvshmem\S{0,120}:\d{1,5}: ([^\n]{3,200})|"
    r"(neither nv_peer_mem, or nvidia_peermem detected)|(aborting due to error in nvshmem\w{0,40})"
)


class _Nvshmem(NamedTuple):
    """Words of NVSHMEM, what failed, and what to do."""

    words: str
    cause: str
    remedy: str


# Source: NVSHMEM's environment variables and FAQ.
_NVSHMEM_REASONS = (
    _Nvshmem(
        words=r"transport|topo|peermem|peer_mem|IBGDA|ibgda|ibrc",
        cause="it finds no way to the other GPUs (the kernel module nvidia_peermem, GDRCopy or "
        "the RDMA cards are missing in this container, or IBGDA is not switched on in the driver)",
        remedy="On the host load `nvidia_peermem` and give the container /dev/infiniband and "
        "IPC_LOCK; for IBGDA set NVreg_EnableStreamMemOPs=1 and "
        'NVreg_RegistryDwords="PeerMappingOverride=1;" of the driver, and name the cards '
        "(`env.NVSHMEM_HCA_PE_MAPPING`, NVSHMEM_ENABLE_NIC_PE_MAPPING).",
    ),
    _Nvshmem(
        words=r"socket|[Cc]onnect|timed out|bootstrap",
        cause="its ranks cannot reach each other to begin",
        remedy="Set `env.NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME` (and `network.interface`) to the "
        "network between the nodes, and open all ports between them.",
    ),
    _Nvshmem(
        words=r"",
        cause="it could not start",
        remedy="Set `env.NVSHMEM_DEBUG: INFO` and read its first error; install the NVSHMEM that "
        "DeepEP was built with.",
    ),
)
_NVSHMEM_FAILED = re.compile(r"non-zero status|[Ff]ail|[Uu]nable|abort|exit")


def _read_nvshmem(log: ServerLog) -> Iterator[Reading]:
    """Yield why NVSHMEM, below DeepEP's exchange of tokens between experts, failed."""
    lines = [(line, match[0]) for line, match in log.errors.find(_NVSHMEM)]
    said = " ".join(text for _, text in lines)
    if not _NVSHMEM_FAILED.search(said):
        return
    known = next(each for each in _NVSHMEM_REASONS if re.search(each.words, said))
    yield Reading(
        reason(
            "nvshmem-failed",
            "NVSHMEM, which DeepEP exchanges the tokens of the experts with, failed: "
            f"{known.cause} ({shorten(lines[0][1], 200)}).",
            f"{known.remedy} Until then choose another exchange (`args.all2all-backend`: "
            "allgather_reducescatter), or `parallel.expert: false`.",
            "NVSHMEM; DeepEP#150",
            "deterministic",
        ),
        lines[0][0],
        covers=frozenset(line for line, _ in lines),
        certain=False,
    )


_COMPLETION = re.compile(
    r"Got completion from peer \[?([\w.:%-]{3,60})\]?<\d{1,5}> with status=(?:IBV_WC_)?(\w{2,40})"
    r"[^\n]{0,300}?(?:hca (\S{1,40}))?$"
)
# ibvwrap.cc: without such a queue pair there is no connection. 2.7 to 2.27 word the error so.
_VERB = re.compile(
    r"Call to (ibv_(?:modify_qp|create_qp|create_cq|open_device)) failed"
    r"(?: with(?: error)?)? ([^\n]{3,160})"
)


def _broken_transfers(log: ServerLog, warnings: Sequence[_Found]) -> Iterator[Reading]:
    """Yield a transfer over RDMA that the card reports as failed: its ranks wait for ever."""
    failed = [(line, found) for line, match in warnings if (found := _COMPLETION.search(match[1]))]
    if not failed or read_life(log).progressed > failed[-1][0]:
        return
    line, found = failed[0]
    card = f" on the card {found[3]}" if found[3] else ""
    cause, remedy, kind = _rdma(f"the transfer to {found[1]}{card} ended with {found[2]}")
    yield Reading(
        reason(
            "nccl-error",
            f"{cause}; the ranks wait for it without end.",
            remedy,
            "NCCL's warnings",
            kind,
        ),
        line,
        covers=frozenset(each for each, _ in warnings),
        certain=False,
    )


def _refused_verbs(log: ServerLog, warnings: Sequence[_Found]) -> Iterator[Reading]:
    """Yield a call to the RDMA card that failed, in a log without the exception above it."""
    failed = [(line, found) for line, match in warnings if (found := _VERB.search(match[1]))]
    if not failed or read_life(log).progressed > failed[-1][0]:
        return
    line, found = failed[0]
    cause, remedy, kind = _rdma(f"{found[1]} failed with {shorten(found[2], 160)}")
    yield Reading(
        reason(
            "nccl-error",
            f"{cause}. The card has no address (GID) at the index that was chosen, is missing in "
            "this container, or has no route to the peer's card.",
            f"{remedy} `show_gids` lists the addresses of the cards.",
            "NCCL's warnings; nccl#799",
            kind,
        ),
        line,
        covers=frozenset(each for each, _ in warnings),
        certain=False,
    )


def _rdma(said: str) -> tuple[str, str, Kind]:
    return (
        f"RDMA failed inside NCCL: {said}",
        (
            "Check the card (`ibv_devinfo`, `ibstat`, `ulimit -l`, the GID index), name "
            "the right one with `env.NCCL_IB_HCA` and NCCL_IB_GID_INDEX, or go over TCP with "
            "`env.NCCL_IB_DISABLE: 1`. Both ends need the same NCCL, driver, firmware and MTU."
        ),
        "transient",
    )


def _repeated(log: ServerLog, warnings: Sequence[_Found]) -> Iterator[Reading]:
    """Yield the peer that NCCL tries again and again, in a log that ends with the attempts."""
    tries = [(line, found) for line, match in warnings if (found := _TRIED.search(match[1]))]
    progressed = read_life(log).progressed if tries else -1
    tries = [(line, found) for line, found in tries if line > progressed]
    if len(tries) < _MANY_TRIES:
        return
    line, found = tries[0]
    cause, remedy, kind = _no_connection(log, found.string, found[1], found[2])
    yield Reading(
        reason("nccl-error", f"{cause}.", remedy, "NCCL's warnings", kind),
        line,
        covers=frozenset(each for each, _ in tries),
        rank=Rank.HINT,
        certain=False,
    )


def _without_memory(log: ServerLog, warnings: Sequence[_Found]) -> Iterator[Reading]:
    """Yield that the GPU's memory ran out inside NCCL, in a log that ends with it."""
    refused = [(line, match) for line, match in warnings if "out of memory" in match[1]]
    call = explain_cuda_call(refused[0][1][1]) if refused else None
    if call is None or read_life(log).progressed > refused[-1][0]:
        return
    cause, remedy, kind = call
    yield Reading(
        reason("nccl-error", f"{cause}.", remedy, "NCCL's warnings", kind),
        refused[0][0],
        covers=frozenset(line for line, _ in warnings),
        rank=Rank.HINT,
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
    if call := explain_cuda_call(said):
        return call
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
    bridge = "an address as Docker gives a bridge of compose, the same on each host"
    looks_like = bridge if _COMPOSE.fullmatch(host) else ""
    note = f" ({kind_of or looks_like})" if kind_of or looks_like else ""
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
        "deterministic" if note else "transient",
    )
