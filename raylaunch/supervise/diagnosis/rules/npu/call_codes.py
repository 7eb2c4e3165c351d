"""Codes that HCCL and the runtime return to torch_npu: what this one means, not a list of all."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason
from raylaunch.supervise.diagnosis.rules.error_codes import find_code

_HCCL = re.compile(
    r"(?:HCCL|OPS) function error: ?([Hh]ccl\w{0,60})[^\n]{0,160}?error code is (\d{1,5})\b"
)
# glog of a program that checks the result: `Check failed: status == HCCL_SUCCESS (1 vs. 0) text`.
_CHECKED = re.compile(r"\bHCCL_SUCCESS \((\d{1,5}) vs\. 0\) ?([^\n]{0,80})")
# HIXL's link for KV transfer: `HcclCommPrepare(...) fail, ret: 0x13`, a code of HCCL.
_PREPARED = re.compile(r"HcclCommPrepare\b[^\n]{0,200}?\bret: ?(0x[\da-f]{1,4}|\d{1,3})\b")
_ENGINES = re.compile(r"(?:remote engine|to target): ?\[?([\w.:-]{3,60}?)\]?:(\d{2,5})\b")
_ENGINE_LINES = 8
_STREAM = re.compile(
    r"(?:ACL stream synchronize failed, error code:|AclrtSynchronize\w{1,40}(?:\([\w().]{0,60}\))?,"
    r" error code is|rtKernelLaunch\w{0,40} failed:) ?"
    r"(?!507(?:010|053|054|055|056|901)\b)(\d{6})"
)
_OPERATOR = re.compile(r"OPS function error: ?(?![Hh]ccl)(\w{2,60}), error code is (5\d{5})")
_PLOG = (
    "The newest `~/ascend/log/debug/plog/plog-PID_*.log` of this process has the first [ERROR] "
    "line."
)
_PEER = (
    "Another rank failed or hangs: read the log of the rank that stops first; check the links "
    "(`hccn_tool -i N -link -g`, `-tls -g`, `-ping -g address PEER`) and `network.interface`."
)
# hcomm hccl_types.h, HcclResult.
_RESULTS: dict[int, tuple[str, str]] = {
    1: (
        (
            "a parameter is invalid: ranks differ in device, rank table or settings, or "
            "this NPU does not have the operation"
        ),
        (
            "Compare `parallel`, versions and ASCEND_RT_VISIBLE_DEVICES of all ranks, and "
            "unset a rank table (`env.RANK_TABLE_FILE: null`)."
        ),
    ),
    2: ("a pointer is empty: an earlier call failed", "Read the lines above it."),
    3: (
        "memory is short for its buffers",
        "Lower `args.gpu-memory-utilization` or `env.HCCL_BUFFSIZE`.",
    ),
    4: ("an internal error", "Compare CANN and driver on all nodes with the release's image."),
    5: (
        "this NPU, driver or topology does not support the operation",
        (
            "Use the CANN, driver and image made for this NPU generation; the ranks of one "
            "group must be on NPUs of one kind that are linked to each other (`npu-smi info "
            "-t topo`)."
        ),
    ),
    6: ("something is not found: a peer that has gone, or an interface", _PEER),
    7: (
        "a resource is taken or not available",
        "Stop other processes on these NPUs (`npu-smi info`), or lower the number of groups.",
    ),
    8: (
        "a call of the operating system failed",
        "Check open files, /dev/shm and permissions (`ulimit -n`, `df -h /dev/shm`).",
    ),
    9: ("it timed out", _PEER),
    10: (
        "a file cannot be opened",
        "Check `env.RANK_TABLE_FILE` and /etc/hccn.conf (mount it into the container).",
    ),
    11: (
        "a TCP connection between ranks failed: port taken, interface wrong, or a rank has gone",
        _PEER + " Two jobs on one host need different `network.hccl_base_port`.",
    ),
    12: ("a RoCE connection between NPUs failed", _PEER),
    13: ("a TCP transfer failed", _PEER),
    14: ("a RoCE transfer failed", _PEER),
    15: (
        "the runtime of CANN failed below it",
        (
            "Check that each rank uses an NPU of its own that exists (`npu-smi info`, "
            "ASCEND_RT_VISIBLE_DEVICES), and that CANN fits the driver; CANN 8.1 corrects "
            "known faults of 8.0."
        ),
    ),
    16: (
        "the driver failed below it",
        "Run `npu-smi info` and `dmesg -T`; compare the driver with the release that CANN names.",
    ),
    19: ("the network between the NPUs failed", _PEER),
    21: ("a remote rank reports an error", _PEER),
    24: ("NPU memory is used up", "Lower `args.gpu-memory-utilization` or `env.HCCL_BUFFSIZE`."),
}
_LOCAL_CODES = ("4", "11", "15", "16", "19")
_LOCAL = (
    (
        "this process could not open its own NPU's network service (HCCP) or its host port: its "
        "user has no entry in /etc/passwd or no right to the NPU, another process or container "
        "holds the NPU or the port, or the driver is not wholly mounted"
    ),
    (
        "Run the server as a user with an entry in /etc/passwd that may use the NPU (uid of "
        "HwHiAiUser, often 1000); see `npu-smi info` for other processes; two jobs on one host "
        "need different `network.hccl_base_port`; mount /usr/local/Ascend/driver and "
        "/etc/hccn.conf."
    ),
)
_OF_PEERS = ("507046", "507047", "507048", "507057", "507012", "507002", "107019", "107020")


def read_call_codes(log: ServerLog) -> Iterator[Reading]:
    """Yield what the code of a failed call into HCCL or of a failed stream means."""
    for line, match in log.errors.find(_HCCL):
        known = _RESULTS.get(int(match[2]))
        if known is not None:
            yield _hccl(line, match[1], match[2], *known)
    for line, match in log.errors.find(_CHECKED):
        if known := _RESULTS.get(int(match[1])):
            yield _hccl(line, match[2].rstrip(" .") or "unnamed", match[1], *known)
    for line, match in log.errors.find(_PREPARED):
        if known := _RESULTS.get(int(match[1], 0)):
            yield _hixl(log, line, match[1], known[0])
    for line, match in log.errors.find(_OPERATOR):
        yield _operator(line, match[1], match[2])
    for line, match in log.errors.find(_STREAM):
        if reading := _stream(log, line, match[1]):
            yield reading


def _hccl(line: int, call: str, code: str, meaning: str, remedy: str) -> Reading:
    if re.search(r"(?i)get ?root ?info", call) and code in _LOCAL_CODES:
        # No peer is asked yet: the NPU's own network service is opened, and a host port.
        meaning, remedy = _LOCAL
    return Reading(
        reason(
            "hccl-func-error",
            f"A call into HCCL failed ({call}, code {code}): {meaning}.",
            f"{remedy} {_PLOG}",
            "hccl_types.h; vllm-ascend#11542, #3196",
            "transient",
        ),
        line,
        rank=Rank.WRAPPER,
        certain=False,
    )


def _hixl(log: ServerLog, line: int, code: str, meaning: str) -> Reading:
    near = "\n".join(log.cleaned[max(0, line - _ENGINE_LINES) : line + _ENGINE_LINES])
    found = _ENGINES.search(near)
    peer = f" to {found[1]}:{found[2]}" if found else ""
    return Reading(
        reason(
            "hixl-link-failed",
            f"The NPU link{peer} for the transfer of KV blocks could not be set up "
            f"(HcclCommPrepare, code {code}): {meaning}. The address of one NPU is wrong or stale "
            "(/etc/hccn.conf), its port is down or in another network, TLS differs, or the peer "
            "has ended.",
            "On both hosts compare each `address_N` of /etc/hccn.conf with `hccn_tool -i N -ip -g` "
            "(one that differs makes that NPU unreachable; correct the file and restart), check "
            "`hccn_tool -i N -link -g` and `-tls -g`, and try `hccn_tool -i N -ping -g address "
            "PEER` between all NPUs. Two containers of one host without RoCE need the host's "
            "network (`--network host`) and `env.HCCL_INTRA_ROCE_ENABLE: 0`. A longer time-out "
            f"does not help. {_PLOG}",
            "HIXL channel.cc; Mooncake#3267, vllm-ascend#16847, #14506",
            "transient",
        ),
        line,
        certain=False,
    )


def _operator(line: int, name: str, code: str) -> Reading:
    return Reading(
        reason(
            "ops-failed",
            f"CANN could not compile or run the operator `{name}` (code {code}): its kernel does "
            "not take these types or sizes on this NPU, the operator packages are missing, or "
            "CANN is of another release than torch_npu needs.",
            f"{_PLOG} Install the CANN release and the kernels package (Ascend-cann-kernels or "
            "-ops for this NPU) that this torch_npu and vllm-ascend name, or use the release's "
            "image; try `python -c 'import te, tbe'` with set_env.sh sourced.",
            "torch_npu OpParamMaker; CANN ge_error_codes.h",
            "transient",
        ),
        line,
        rank=Rank.CODE,
        certain=False,
    )


def _stream(log: ServerLog, line: int, code: str) -> Reading | None:
    known = find_code(code, log.codes)
    if known is None or not (code in _OF_PEERS or code.startswith("507")):
        return None  # a wrong call, which `error_codes` reads
    by_peer = code in _OF_PEERS
    what = known.cause[0].lower() + known.cause[1:] if known.cause[1:2].islower() else known.cause
    why = (
        "The cause is usually in another rank, or in the links between the NPUs."
        if by_peer
        else "It is an operator's defect, an address out of range (wrong sizes, a request of odd "
        "length), or a lost peer; the Python line that reports it only waited for the kernel."
    )
    hint = (
        _PEER
        if by_peer
        else "Look for the EZ9999 or EI0002 line beside it and for an alarm in `npu-smi info`. If "
        "it recurs, try `args.enforce-eager: true`, start without `features.speculative`, or use "
        "another release of vllm-ascend."
    )
    return Reading(
        reason(
            "acl-stream-sync",
            f"A kernel failed on the NPU: {what} (code {code}). {why}",
            f"{hint} {_PLOG}",
            "vllm-ascend#2349, #2763, #5661, #4914",
            "transient",
        ),
        line,
        rank=Rank.HINT,
        symptom=True,
        certain=False,
    )
