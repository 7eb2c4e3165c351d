"""HCCL's first exchange over the host network: which rank was asked, and which ranks came.

Source: cann/hcomm, fault guide for EI0015.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason

_AGENT = re.compile(r"connect server ?\[([\w.:%-]{2,60}?) ?: ?(\d{1,5})\] ?fail")
_SERVER = re.compile(r"topo exchange server get socket timeout|need connect rankNum is")
_CAME = re.compile(r"total connected num is ?\[(\d{1,6})\]")
_WANTED = re.compile(r"need connect rankNum is ?\[(\d{1,6})\]")
_RANKS = re.compile(r"connected rankinfo\[LINE \d{1,4}\]: ?((?:\[\d{1,20}\],?){1,64})")
_UNCONNECTED = re.compile(
    r"(?:unconnected ranks?:? ?[\"'\[ ]{0,4}|Failed to connect agents?:? ?\[)"
    r"(\d{1,6}(?:, ?\d{1,6}){0,255})"
)
_SHOWN = 8
_REMEDY = (
    "Check that `network.interface` is right on every node (`raylaunch plan` shows HCCL_IF_IP), "
    "open 16 ports from `network.hccl_base_port` on, and raise `env.HCCL_CONNECT_TIMEOUT` when "
    "servers start far apart."
)


def read_exchanges(log: ServerLog) -> Iterator[Reading]:
    """Yield the exchange that did not complete, with the values of its lines."""
    for line, match in log.errors.find(_AGENT):
        yield _reading(
            line,
            f"This rank cannot reach the root of its group at {match[1]}:{match[2]} on the host "
            "network: that rank has failed or starts late, HCCL chose another network there, or a "
            "firewall is between them.",
            f"Try `nc -vz {match[1]} {match[2]}` from this node, and read the log of the rank "
            f"there. {_REMEDY}",
        )
        return
    for line, match in log.errors.find(_UNCONNECTED):
        ranks = re.findall(r"\d{1,6}", match[1])
        shown = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks[:_SHOWN])}"
        yield _reading(
            line,
            f"HCCL's first exchange lacks {shown}{' and others' if len(ranks) > _SHOWN else ''}: "
            "the others waited for it in vain. That process has failed, starts late, has no NPU "
            "of its own, or its node chose another network.",
            f"Read the log of {shown} first, then on its node `npu-smi info` (is its NPU free and "
            f"healthy?) and `dmesg -T | grep -iE 'oom|killed process'`. {_REMEDY}",
        )
        return
    waiting = next(iter(log.errors.find(_SERVER)), None)
    if waiting is not None and (told := _missing(log)):
        yield _reading(
            waiting[0],
            f"The root of the group waited for all ranks on the host network in vain: {told}.",
            "Read the logs of the ranks that are missing: one has failed or starts late, or its "
            f"node chose another network. {_REMEDY}",
        )


def _missing(log: ServerLog) -> str:
    came = next((match[1] for _, match in log.errors.find(_CAME)), "")
    wanted = next((match[1] for _, match in log.errors.find(_WANTED)), "")
    there = {
        int(each)
        for _, match in log.errors.find(_RANKS)
        for each in re.findall(r"\d{1,20}", match[1])
    }
    if not (came and wanted):
        return ""
    missing = [rank for rank in range(min(int(wanted), 4096)) if rank not in there]
    if not there or not missing:
        return f"{came} of {wanted} came"
    shown = ", ".join(str(rank) for rank in missing[:_SHOWN])
    more = " and others" if len(missing) > _SHOWN else ""
    return f"{came} of {wanted} came, missing are the ranks {shown}{more}"


def _reading(line: int, cause: str, remedy: str) -> Reading:
    return Reading(
        reason("hccl-topo-EI0015", cause, remedy, "cann/hcomm fault guide EI0015", "transient"),
        line,
        rank=Rank.HINT,
        symptom=True,
        certain=False,
    )
