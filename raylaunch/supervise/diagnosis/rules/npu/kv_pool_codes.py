"""Codes of the Mooncake store, as the KV pool of vllm-ascend logs them beside its keys."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten

_FAILED = re.compile(
    r"(Failed to (?:get|put|batch \w{2,8}|load|store) [^\n]{0,160}?"
    r"(?:error_codes?|res|ret|errno|code)s? ?[=:] ?[\[({]{0,2}(?:\d{1,6}, ?){0,8}"
    r"(-\d{2,4}))(?!\d)[^\n]{0,120}"
)
_SPACE = (
    "Give the pool more room (`global_segment_size` per server in mooncake.json, more servers, "
    "`mooncake_master --eviction_high_watermark_ratio`), or store less."
)
_MASTER = (
    "See whether `mooncake_master` runs and its log, and that its port is reachable from this "
    "node (`master_server_address`)."
)
_TRANSFER = (
    "Check the link between the NPUs (`hccn_tool -i N -link -g`, `-ping -g address PEER`), the "
    "same CANN, driver and Mooncake build on all servers, and the peer's log and plog at that "
    "moment."
)
_LEASE = (
    "Raise the lease (`mooncake_master --default_kv_lease_ttl`, in ms) above the longest transfer, "
    "transfer fewer keys per call, and check the link between the servers."
)
_RECOMPUTE = "`kv_load_failure_policy: recompute` in `args.kv-transfer-config` computes such blocks"
# Mooncake mooncake-store/include/types.h, ErrorCode.
_CODES: dict[int, tuple[str, str]] = {
    -1: ("an internal error", _MASTER),
    -10: ("a buffer is too small", "Raise `local_buffer_size` in mooncake.json."),
    -101: ("no segment is available", _MASTER),
    -102: ("the segment is there already", "Wait until the old server's lease has expired."),
    -103: (
        "the master does not know this client (it was given up, or the master was restarted)",
        _MASTER,
    ),
    -200: ("the store has no space left", _SPACE),
    -400: ("the key is invalid", "Use one release of vllm-ascend on all servers."),
    -500: ("writing failed", _TRANSFER),
    -600: ("the parameters are invalid", "Compare mooncake.json and the releases of all servers."),
    -703: ("the copy is not written yet", _RECOMPUTE + " again."),
    -704: ("the key is not in the store: evicted, or its server is gone", _SPACE),
    -705: ("the key is there already", "Nothing to do: another server has stored it."),
    -706: ("the key is in use", "Retry; nothing is lost."),
    -707: ("the lease of the key expired before the transfer was complete", _LEASE),
    -710: ("the copy is not there", _SPACE),
    -712: ("the copy is gone: its server was stopped or lost", _MASTER),
    -800: ("the transfer of the data failed", _TRANSFER),
    -801: ("the data is damaged: its checksum differs", _TRANSFER),
    -900: ("the call to the master failed", _MASTER),
    -901: ("the call to the master timed out", _MASTER),
    -1000: ("etcd did not answer", "Check the etcd of `metadata_server`."),
    -1010: ("the master does not take this call in its state", _MASTER),
}


def read_kv_pool(log: ServerLog) -> Iterator[Reading]:
    """Yield the first failed call of the KV pool whose code is known."""
    for line, match in log.errors.find(_FAILED):
        known = _CODES.get(int(match[2]))
        if known is None:
            continue
        meaning, remedy = known
        yield Reading(
            reason(
                "mooncake-store-code",
                f"The KV pool (Mooncake store) reports {match[2]}, {meaning}: "
                f"{shorten(match[1], 160)}.",
                f"{remedy} {_RECOMPUTE} instead of failing the request.",
                "Mooncake types.h",
                "transient",
            ),
            line,
            rank=Rank.HINT,
            certain=False,
        )
        return
