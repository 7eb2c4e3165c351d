"""What a KV connector finds when it meets the other server: the two must fit each other."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason, shorten
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_CONNECTOR = re.compile(r"kv_transfer|kv_connector|nixl|mooncake|lmcache|kv_p2p|llmdatadist")
_MEETING = re.compile(
    r"remote|handshake|peer|prefill|decode|producer|consumer|\bP worker|\bD worker|compatib"
)
_TYPES = ("AssertionError", "ValueError", "RuntimeError", "NotImplementedError", "KeyError")
_CANNOT_REACH = re.compile(r"(?i)timed? ?out|refused|unreachable|resource temporarily|NIXL_ERR")
# Ordered. Words of message and statement, what must be the same, the recipe fields.
_SAME: tuple[tuple[str, str, str], ...] = (
    (r"block[_ ]size", "block size of the KV cache", "`args.block-size`"),
    (r"layout|permute|HND|NHD", "layout of the KV cache", "`env.VLLM_KV_CACHE_LAYOUT`"),
    (
        r"kv_heads|block_len|layer cache|tp_(?:ratio|size)|head|shape",
        (
            "tensor parallel size (one must divide the other, and neither may be larger than the "
            "number of KV heads) and type of the KV cache"
        ),
        "`parallel.tensor` and `args.kv-cache-dtype`",
    ),
    (
        r"num_blocks",
        (
            "number of KV blocks of all ranks, and one life of both servers (a server that was "
            "started again has another number)"
        ),
        "`args.num-gpu-blocks-override`, and start both again",
    ),
    (r"dtype", "type of the KV cache", "`args.kv-cache-dtype` and `args.dtype`"),
    (r"hash|version|schema", "release of vLLM and of the connector", "`pip list`"),
    (
        r"engine_?id|agent",
        "address of the partner that the proxy names",
        "`env.VLLM_NIXL_SIDE_CHANNEL_HOST` and the ports in `args.kv-transfer-config`",
    ),
    (r"layer|region|spec|group", "model with its draft model", "`features.speculative`"),
)


def read_kv_pairing(log: ServerLog) -> Iterator[Reading]:
    """Yield the checks of a connector that another server did not pass."""
    for raised in find_exceptions(log):
        if reading := _not_through_the_proxy(raised) or _pairing(log, raised):
            yield reading


def _not_through_the_proxy(raised: Raised) -> Reading | None:
    if not re.match(r"Request id \S{1,200} does not contain hostname and port", raised.message):
        return None
    return Reading(
        reason(
            "kv-request-unproxied",
            "A request reached a server of prefill/decode without the addresses of its partners: "
            f"it did not come through the proxy ({shorten(raised.message, 160)}).",
            "Send requests only to the proxy, and start it with the script of the same release as "
            "vLLM: the connector reads the addresses from the request id that the proxy writes "
            "(`X-Request-Id`).",
            "exception of a KV connector",
            "transient",
        ),
        raised.line,
    )


def _pairing(log: ServerLog, raised: Raised) -> Reading | None:
    frame = raised.innermost
    way = " ".join(f"{each.module_path} {each.function}" for each in raised.frames[:3])
    said = raised.message or raised.code
    if frame is None or raised.type not in _TYPES or not _CONNECTOR.search(way):
        return None
    if not _MEETING.search(f"{said} {way.replace('kv_', '')}") or _CANNOT_REACH.search(said):
        return None
    if not re.search(r"remote|handshake|peer", f"{said} {way}"):
        return None
    same = next(((what, field) for words, what, field in _SAME if re.search(words, said)), None)
    if same is None:
        return None
    report = _reports(log, raised.line)
    return Reading(
        reason(
            "kv-partners-differ",
            f"The prefill and the decode server do not fit each other: {shorten(said, 240)} "
            f"({raised.type} in {frame.module_path}).",
            f"Both servers need the same: {same[0]} ({same[1]}). To differ they need a "
            "release of vLLM whose connector supports it, the same on both.",
            "check of a KV connector by its place",
            "deterministic",
        ),
        raised.line,
        covers=report,
        certain=False,
    )


def _reports(log: ServerLog, line: int) -> frozenset[int]:
    """Return the connector's report above the traceback: it only says that something failed."""
    above = range(max(0, line - 40), line)
    return frozenset(
        index
        for index in above
        if re.search(r"transfer failure|[Hh]andshake failed", log.cleaned[index])
    )
