"""Links between NPUs that HCCL could not set up, with their two ends: from its table of links."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason
from raylaunch.supervise.diagnosis.rules.cann_blocks import find_blocks

# hccl_socket_manager.cc prints one row per link below LINK_ERROR_INFO:
# | dest_ip(user_rank) | dest_port | src_ip(user_rank) | src_port | MyRole | Status | TlsStatus |
# comm_base.cc of CANN 8.0 and before prints it without ports and TLS.
_LINK = re.compile(
    r"\| {0,8}([\da-fA-F.:]{3,45})\((\d{1,6})\) {0,8}\|(?: {0,8}(\d{1,10}) {0,8}\|)?"
    r" {0,8}([\da-fA-F.:]{3,45})\((\d{1,6})\) {0,8}\|(?: {0,8}\d{1,10} {0,8}\|)?"
    r" {0,8}(\w{1,12}) {0,8}\| {0,8}([\w ]{1,24}?) {0,8}\|(?: {0,8}(\w{1,16}) {0,8}\|)?"
)
# EI0002 and fftsplus name the rank that did not answer.
_REMOTE_RANK = re.compile(
    r"[Nn]otify record from remote rank:? ?\[?(\d{1,6})\]?|remote rank ?[:=] ?\[(\d{1,6})\]"
)
_HEARTBEAT = re.compile(r"serverId\[([\w.:-]{3,60})\], deviceId\[(\d{1,4})\], Heartbeat Lost")
_OPERATION = re.compile(r"\btag\[([A-Za-z]{3,30})_")
_TRANSPORT = re.compile(
    r"crea[\w]{1,3}Link para: ?rank\[(\d{1,6})\][^\n]{0,80}?localIpAddr\[([\da-fA-F.:/%]{3,60})\]"
    r"[^\n]{0,40}?"
    r"(?:dst_rank|remoteRank)\[(\d{1,6})\][^\n]{0,80}?"
    r"remote(?:_ip_addr|IpAddr)\[([\da-fA-F.:/%]{3,60})\]"
)
# Blocks that say why the link below them could not be made: other parameters or versions.
_TOLD_BY_THEIR_BLOCK = ("EI0003", "EI0005", "EI0008")
_ONE_SIDED = re.compile(
    r"Failed to invoke (HcclBatch(?:Get|Put))[^\n]{0,80}|"
    r"(HcclBatch(?:Get|Put)): HcclException[^\n]{0,200}"
)
# task_exception_handler.cc of hcomm: what the heartbeats of all ranks have told about the first
# failure of the cluster (fault guide of hcomm).
_LOCATED = re.compile(
    r"Cluster Exception Location\[IP/ID\]:\[([\w.:%-]{3,60})/(\d{1,6})\]"
    r"(?:, Arrival Time:\[([^\]\n]{1,40})\])?(?:, Discoverer:\[[^\]\n]{1,80}\])?"
    r"(?:, ExceptionType:\[([^\]\n]{1,60})\])?(?:, Possible Reason:([^\n]{1,200}))?"
)
_LOCATED_REMEDIES = (
    (
        r"(?i)stuck",
        (
            "Find where it is stuck on {where}: `py-spy dump --pid PID` of that NPU's worker, "
            "the end of its log and its plog at that time; then restart all servers of the group."
        ),
    ),
    (
        r"(?i)cqe|network|link|retry",
        (
            "Check the link of that NPU on {where}: `hccn_tool -i {card} -link -g`, `-stat -g` and "
            "`-ping -g address PEER`, and the switch port behind it."
        ),
    ),
    (
        r"",
        (
            "Read the log of that NPU's worker on {where} at that time: it stopped or failed "
            "first, and its own error is the cause (`dmesg -T` there if its log only ends)."
        ),
    ),
)
_SHOWN = 4
# detect_connect_anomalies.cc: after a link that failed, HCCL tries one of its own to each rank.
_DETECTED = re.compile(
    r"srcRank \(server ([\w.:%-]{3,60}), device ID (\d{1,4})\) fails to connect to dstRank "
    r"\(server ([\w.:%-]{3,60}), device ID (\d{1,4})\)"
)
_NOTHING_DETECTED = re.compile(r"No abnormal periods were discovered\. please prioritize")
# heartbeat.cc; both ends of the link that lost packets.
_CQE = re.compile(
    r"\[ROCE CQE ERROR\]cqe error status\[(\d{1,4})\][^\n]{0,80}localInfo\{server"
    r"\[([\w.:%-]{3,60})\][^\n]{0,40}?deviceIp\[([\w.:%-]{3,60})\]\}, remoteIP\{server"
    r"\[([\w.:%-]{3,60})\][^\n]{0,40}?deviceIp\[([\w.:%-]{3,60})\]"
)
# task_exception_handler.cc: the operation that a rank was in, and the rank itself.
_TASK = re.compile(
    r"Task run failed, (?:base|para) information is [^\n]{0,160}?"
    r"tag\[([A-Za-z]{3,30})_([^\]\n]{1,120})\]"
)
_TASK_RANK = re.compile(
    r"Task run failed, groupRank information is [^\n]{0,200}?rankSize\[(\d{1,6})\], "
    r"rankId\[(\d{1,6})\b"
)
_PROCESS = re.compile(r"\bHCCL\((\d{1,9}),")
_COPY_FAILED = re.compile(r"sdma error|EI0012|SDMA memory copy")


def read_hccl(log: ServerLog) -> Iterator[Reading]:
    """Yield the links that failed, and the rank that a collective operation waited for."""
    rows = list(log.errors.find(_LINK))
    if rows:
        yield _links(rows)
    transports = _unexplained_transports(log)
    ranks_of: dict[str, set[str]] = {}
    for _, match in transports:
        ranks_of.setdefault(match[4], set()).add(match[3])
    for line, match in transports:
        yield _transport(line, match, of_a_host=len(ranks_of[match[4]]) > 1)
    for line, match in log.errors.find(_ONE_SIDED):
        yield _one_sided(line, match[1] or match[2], match[0])
    located = next(iter(log.errors.find(_LOCATED)), None)
    if located:
        yield _located(log, *located)
    yield from _detected(log, linked=bool(rows or transports))
    for line, match in log.errors.find(_CQE):
        yield _lost_packets(line, *match.groups())
    copies = any(True for _ in log.errors.find(_COPY_FAILED))
    ranks = [] if copies else list(log.errors.find(_REMOTE_RANK))
    if ranks:
        yield _waited_for(log, ranks)
    tasks = [] if copies or ranks or located else list(log.errors.find(_TASK))
    if tasks:
        yield _tasks(log, tasks)


def _unexplained_transports(log: ServerLog) -> list[tuple[int, re.Match[str]]]:
    """Return the links that failed for no reason that the block around them gives."""
    found = list(log.errors.find(_TRANSPORT))
    if not found:
        return []
    blocks = [block for block in find_blocks(log) if block.code in _TOLD_BY_THEIR_BLOCK]
    told = {line for block in blocks for line in block.lines}
    return [each for each in found if each[0] not in told]


def _located(log: ServerLog, line: int, match: re.Match[str]) -> Reading:
    """Read the place of the cluster's first failure, which HCCL itself names."""
    host, card, moment, kind, why = match.groups()
    what = f" ({kind})" if kind else ""
    since = f" at {moment}" if moment else ""
    told = f": {why.strip()}" if why else ""
    where = f"{host} (NPU {card})"
    remedy = next(text for words, text in _LOCATED_REMEDIES if re.search(words, kind or ""))
    tag = next((each[1] for _, each in log.errors.find(_OPERATION)), "")
    during = f"The collective operation {tag}" if tag else "A collective operation"
    return Reading(
        reason(
            "hccl-exception-located",
            f"{during} failed because of another rank: HCCL names NPU {card} of host {host} as the "
            f"place of the first exception{what}{since}{told}",
            remedy.format(where=where, card=card),
            "hcomm task_exception_handler.cc; vllm-ascend#13482",
            "transient",
        ),
        line,
        rank=Rank.HINT,
        symptom=True,
        certain=False,
    )


def _links(rows: Sequence[tuple[int, re.Match[str]]]) -> Reading:
    peers = Counter(f"{match[1]} (rank {match[2]})" for _, match in rows)
    first = rows[0][1]
    shown = ", ".join(peer for peer, _ in peers.most_common(_SHOWN))
    more = f" and {len(peers) - _SHOWN} more" if len(peers) > _SHOWN else ""
    tls = f"; TLS of this end: {first[8]}" if first[8] else ""
    port = f" on NPU port {first[3]}" if first[3] else ""
    cause = (
        f"HCCL could not set up the link from NPU address {first[4]} (rank {first[5]}) to {shown}"
        f"{more}: {first[7]}{port}{tls}. The other end did not start in time, is "
        "in another network, its link is down, or its TLS switch differs."
    )
    return Reading(
        reason(
            "hccl-socket-EI0006",
            cause,
            f"Read the log of rank {first[2]} first. On both nodes run `hccn_tool -i N -link -g`, "
            f"`-ip -g`, `-tls -g` (equal everywhere), and `-ping -g address {first[1]}`; if ranks "
            "load at different speed, set `env.HCCL_CONNECT_TIMEOUT: 7200`.",
            "hcomm hccl_socket_manager.cc; vllm-ascend#9447, #1955",
            "transient",
        ),
        rows[0][0],
        covers=frozenset(line for line, _ in rows),
        rank=Rank.HINT,
        symptom=True,
        certain=False,
    )


def _transport(line: int, match: re.Match[str], *, of_a_host: bool) -> Reading:
    """Read one failed link. An address that several ranks have is that of their host."""
    rank, local, peer, remote = match.groups()
    shared = local == remote and not of_a_host
    why = (
        "Both ends have the same address: two processes use one NPU, or one rank was given another "
        "rank's device."
        if shared
        else "The other end usually logs the reason."
    )
    remedy = (
        "`npu-smi info` shows the processes per NPU; check ASCEND_RT_VISIBLE_DEVICES of both "
        "processes, and stop the one that should not be there; read the peer's log."
        if shared
        else f"Read the log of rank {peer}, the peer, first; then check the link with `hccn_tool "
        f"-i N -link -g` and `hccn_tool -i N -ping -g address {remote}`."
    )
    return Reading(
        reason(
            "hccl-transport-EI0009",
            f"HCCL could not set up the link from rank {rank} ({local}) to rank {peer} ({remote}). "
            f"{why}",
            remedy,
            "CANN EI0009; vllm-ascend#3162",
            "transient",
        ),
        line,
        rank=Rank.CAUSE if shared else Rank.HINT,
        symptom=not shared,
        certain=False,
    )


def _one_sided(line: int, call: str, text: str) -> Reading:
    return Reading(
        reason(
            "hccl-one-sided",
            f"A one-sided transfer of KV blocks between NPUs failed in {call}: {text[:200]}. The "
            "link to the peer is broken or too slow, the peer is gone, or its memory is no longer "
            "registered.",
            "Read the peer's log and plog at the same moment; check the link with `hccn_tool -i N "
            "-link -g` and `-ping -g address PEER`; with time-outs under load raise "
            "`env.ASCEND_TRANSFER_TIMEOUT`.",
            "hcomm hccl_one_sided_service.cc; vllm-ascend#13934",
            "transient",
        ),
        line,
        rank=Rank.HINT,
        symptom=True,
        certain=False,
    )


def _waited_for(log: ServerLog, found: Sequence[tuple[int, re.Match[str]]]) -> Reading:
    line = found[0][0]
    ranks = sorted({each[1] or each[2] for _, each in found}, key=int)
    operation = _OPERATION.search(log.cleaned[line])
    during = f" in {operation[1]}" if operation else " in a collective operation"
    lost = [f"NPU {each[2]} of {each[1]}" for _, each in log.errors.find(_HEARTBEAT)]
    heard = f" HCCL lost the heartbeat of {', '.join(dict.fromkeys(lost))}." if lost else ""
    named = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks[:8])}"
    return Reading(
        reason(
            "hccl-notify-EI0002",
            f"An NPU waited{during} for {named} until HCCL_EXEC_TIMEOUT expired. That rank died, "
            f"hung, ran other code, or its RoCE link drops packets.{heard}",
            f"Read the log of the server with {named}: the one whose log stops first is the likely "
            "cause. Check the links with `hccn_tool -i N -stat -g` and `-ping`. A larger "
            "`env.HCCL_EXEC_TIMEOUT` only lengthens the wait.",
            "CANN EI0002; vllm-ascend#1193, #3413",
            "transient",
        ),
        line,
        rank=Rank.HINT,
        symptom=True,
        certain=False,
    )


def _detected(log: ServerLog, *, linked: bool) -> Iterator[Reading]:
    """Read what HCCL's test links found after a link failed, unless the log names it (linked)."""
    pairs = list(log.errors.find(_DETECTED))
    if pairs:
        line, match = pairs[0]
        source, its_card, target, card = match.groups()
        cause = (
            f"HCCL could not connect NPU {its_card} of {source} to NPU {card} of {target}, and its "
            "own test link between the two failed as well: that process has ended or hangs, or "
            "the network between the two does not work."
        )
        remedy = (
            f"Read the log of the worker of NPU {card} on {target}: an error there is the cause; "
            "without one see whether it lives and where it is (`py-spy dump --pid WORKER`, `dmesg "
            "-T`). If both sides report the time-out, check the links: `hccn_tool -i N -link -g`, "
            "`-ip -g`, `-tls -g` and `-ping -g address PEER`."
        )
    elif not linked and (found := next(iter(log.errors.find(_NOTHING_DETECTED)), None)):
        line = found[0]
        cause = (
            "A link between NPUs timed out, but HCCL's test links to all ranks work: the network "
            "is sound, and the ranks do not call the same operations (a rank is in another step, "
            "has other settings, or failed before)."
        )
        remedy = (
            "Compare what the ranks were in (`grep 'Alloc transports failed, tag' "
            "~/ascend/log/debug/plog/*` on all nodes): a rank in another operation, or that "
            "reports nothing, has the cause. Start all servers with the same release, model, "
            "recipe and environment (`raylaunch plan NAME`), and read each log from its start."
        )
    else:
        return
    yield Reading(
        reason(
            "hccl-socket-EI0006",
            cause,
            remedy,
            "hcomm detect_connect_anomalies.cc; vllm-ascend#10591, #9447",
            "transient",
        ),
        line,
        rank=Rank.HINT,
        symptom=True,
        certain=False,
    )


def _lost_packets(
    line: int, status: str, host: str, address: str, peer_host: str, peer: str
) -> Reading:
    return Reading(
        reason(
            "cann-EI0013",
            f"The RoCE link from NPU address {address} of {host} to {peer} of {peer_host} loses "
            f"packets (error CQE, status {status}): the peer did not confirm what was sent. A port "
            "flaps, a switch drops packets, or the peer's process has ended.",
            f"See first whether the process on {peer_host} ended before (its log, `dmesg -T`). If "
            "not, check both ends: `hccn_tool -i N -link -g`, `-stat -g` and `-ping -g address "
            f"{peer}`, and the switch ports between them.",
            "hcomm heartbeat.cc, EI0013",
            "transient",
        ),
        line,
        rank=Rank.HINT,
        symptom=True,
        certain=False,
    )


def _operations_of_one_group(
    log: ServerLog, found: Sequence[tuple[int, re.Match[str]]]
) -> list[str]:
    """Return the operations in which different processes of one group are; [] if it is one."""
    groups: dict[str, dict[str, str]] = {}
    for line, match in found:
        process = _PROCESS.search(log.cleaned[line])
        by_process = groups.setdefault(match[2], {})
        by_process.setdefault(process[1] if process else "", match[1])
    names = (sorted(set(each.values())) for each in groups.values())
    return next((each for each in names if len(each) > 1), [])


def _tasks(log: ServerLog, found: Sequence[tuple[int, re.Match[str]]]) -> Reading:
    """Read in which collective operations the ranks waited, by HCCL's own report of the task."""
    line = found[0][0]
    names = _operations_of_one_group(log, found)
    ranks = sorted({(int(each[2]), each[1]) for _, each in log.errors.find(_TASK_RANK)})
    who = (
        f" (rank {', '.join(str(rank) for rank, _ in ranks[:8])} of {ranks[0][1]})" if ranks else ""
    )
    if names:
        cause = (
            f"The ranks of one group do not run the same operation: {' and '.join(names)} wait for "
            "each other until HCCL_EXEC_TIMEOUT expires."
        )
        first = (
            "Start all servers with the same release, model, recipe and environment (`raylaunch "
            "plan NAME`); if they are, a feature sends the ranks different ways: start without "
            "`features.speculative`, `args.async-scheduling` and overlapping streams. "
        )
    else:
        cause = (
            f"An NPU waited in {found[0][1][1]}{who} for its peers until HCCL_EXEC_TIMEOUT "
            "expired: a rank died, hangs, runs another operation, or its link drops packets."
        )
        first = ""
    return Reading(
        reason(
            "hccl-notify-EI0002",
            cause,
            f"{first}Read the logs of all ranks of the group: the one with another error, or whose "
            "log stops first, is the cause. If all report the same, check the links (`hccn_tool -i "
            "N -stat -g`, `-ping`), and whether the times of their reports differ by more than "
            "HCCL_EXEC_TIMEOUT.",
            "hcomm task_exception_handler.cc, EI0002",
            "transient",
        ),
        line,
        rank=Rank.HINT,
        symptom=True,
        certain=False,
    )
