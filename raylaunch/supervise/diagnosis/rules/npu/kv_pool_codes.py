"""Failed calls of a KV pool's library: codes of the Mooncake store, and checks by an assertion."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.tables.mooncake_codes import CODES, RECOMPUTE
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_FAILED = re.compile(
    r"(Failed to (?:get|put|batch \w{2,8}|load|store) [^\n]{0,160}?"
    r"(?:error_codes?|res|ret|errno|code)s? ?[=:] ?[\[({]{0,2}(?:\d{1,6}, ?){0,8}"
    r"(-\d{2,4}))(?!\d)[^\n]{0,120}|"
    r"(batch ?_?(?:put|get)\w{0,12} failed,? ?(?:with )?(?:err\w{0,3} ?code|ret|code)\s?[:=]?\s?"
    r"(-\d{2,4}))(?!\d)"
)

_CHECKED = re.compile(
    r"assert \(?(?:self\.)?(?:res|ret|rc|result|status|err|code)\w{0,12} ?(?:==|is) ?0\b"
)
_OF_A_POOL = re.compile(r"kv_(?:pool|transfer)|kv_connector|memcache|mooncake|mf_?store|backend")
_POOLS = (("memcache", "MemCache"), ("mooncake", "Mooncake"), ("yuanrong", "Yuanrong"))


def read_kv_pool(log: ServerLog) -> Iterator[Reading]:
    """Yield the first failed call of the KV pool whose code is known, and checked calls."""
    for raised in find_exceptions(log):
        if reading := _checked(raised):
            yield reading
            break
    for line, match in log.errors.find(_FAILED):
        text, code = match[1] or match[3], match[2] or match[4]
        known = CODES.get(int(code))
        if known is None:
            continue
        meaning, remedy = known
        yield Reading(
            reason(
                "mooncake-store-code",
                f"The KV pool (Mooncake store) reports {code}, {meaning}: {shorten(text, 160)}.",
                f"{remedy} {RECOMPUTE} instead of failing the request.",
                "Mooncake types.h",
                "transient",
            ),
            line,
            rank=Rank.HINT,
            certain=False,
        )
        return


def _checked(raised: Raised) -> Reading | None:
    """Read an assertion that a call of a pool's library returned 0."""
    own = raised.innermost
    if raised.type != "AssertionError" or own is None:
        return None
    if not _OF_A_POOL.search(own.module_path) or not _CHECKED.match(raised.code.strip()):
        return None
    pool = next((name for word, name in _POOLS if word in own.module_path), "its library")
    return Reading(
        reason(
            "kv-pool-call",
            f"A call of the KV pool ({pool}) returned an error, and only an assertion reports it "
            f"({own.module_path}, {own.function}): the pool could not set itself up or reach its "
            "service, memory or network card.",
            f"The lines of {pool} above it and its own log, and the plog of this process "
            "(`~/ascend/log/debug/plog`), name the reason. Check the settings of the backend "
            "(`backend_kwargs` and others of kv_connector_extra_config: `lazy_init: false` "
            "connects at the start; protocol, sizes), its service (metadata or master address), "
            "and that the driver is the one which this image's CANN names. To start without it "
            "leave out `args.kv-transfer-config`.",
            "vllm-ascend#14121",
            "transient",
        ),
        raised.line,
        rank=Rank.HINT,
        certain=False,
    )
