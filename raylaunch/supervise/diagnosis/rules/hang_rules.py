"""Collective operations that did not end: who waits for whom."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason
from raylaunch.supervise.diagnosis.survival import read_life
from raylaunch.supervise.diagnosis.tracebacks import find_exceptions

_WATCHDOG = re.compile(
    r"\[Rank (\d{1,5})\][^\n]{0,60}Watchdog caught collective operation timeout: "
    r"Work(\w{2,8})\(SeqNum=(\d{1,12}), OpType=(\w{1,40})[^)\n]{0,160}Timeout\(ms\)=(\d{1,10})"
)
_FFTS = re.compile(
    r"(?:device\(chipId:(\d{1,3})[^\n]{0,120})?(?:hccl fftsplus task|notify wait) timeout occurred"
    r"[^\n]{0,160}?timeout[:=] ?(\d{1,6}) ?(min)?|reason=fftsplus timeout"
)
_NOTICE = re.compile(r"No available shared memory broadcast block found in (\d{1,6}) seconds?")
_STUCK = re.compile(r"Rank (\d{1,5})\][^\n]{0,80}watchdog got stuck for (\d{1,7}) ?s(?:econds)?")
_NO_INPUT = re.compile(
    r"waitForInput: [^\n]{0,200}remote=\[?(?:::ffff:)?([\w.:-]{2,60}?)\]?:(\d{2,5})\) "
    r"timed out after (\d{1,9})ms"
)
_GLOO_WAIT = re.compile(r"Timed out waiting (\d{1,9})ms for (send|recv) operation to complete")
_P2P_TEST = re.compile(r"P2P access cache|gpu_p2p_access_check|custom_all_reduce")
_GLOO_LINES = 40
_RPC = re.compile(r"RPC call to (\w{1,60}) timed out")


def read_hangs(log: ServerLog) -> Iterator[Reading]:
    """Yield the time-outs of collective operations and of calls to workers."""
    yield from _repeated_notices(log)
    yield from _compiled_meanwhile(log)
    yield from _unanswered_calls(log)
    yield from _gloo_waits(log)
    timeouts = list(log.errors.find(_WATCHDOG))
    ranks = {match[1] for _, match in timeouts}
    steps = _different_steps([match for _, match in timeouts])
    for line, match in timeouts:
        waits = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(sorted(ranks, key=int))}"
        yield _waits(
            line,
            f"Hang in a collective operation: {waits} waited {int(match[5]) // 1000} s in "
            f"{match[4]} (number {match[3]}, {match[2]}) for ranks that did not take part."
            f"{steps}",
            _EXPERTS if match[4] == "BROADCAST" else "",
        )
    yield from _stuck_watchdogs(log)
    for line, match in log.errors.find(_NO_INPUT):
        yield _waits(
            line,
            f"Hang: a rank waited {int(match[3]) // 1000} s for an answer of the store at "
            f"{match[1]}:{match[2]}, where the ranks of a group meet: another rank never came, or "
            "the process that hosts the store hangs.",
        )
    for line, match in log.errors.find(_FFTS):
        chip = f"NPU {match[1]}" if match[1] else "an NPU"
        limit = f" for {match[2]} {match[3] or 's'}" if match[2] else ""
        stage = "notify" if "notify wait timeout" in match[0] else "fftsplus"
        yield _waits(
            line,
            f"Hang in a collective operation: {chip} waited{limit} ({stage}, HCCL_EXEC_TIMEOUT) "
            "for a peer that did not take part: it died, hangs, or its link lost the message.",
            id_="hccl-notify-EI0002" if stage == "notify" else "collective-timeout",
        )


# The exchange `naive` of experts sends the tokens of each rank by a broadcast.
_EXPERTS = "With data-parallel experts choose another `args.all2all-backend` than naive first. "


def _different_steps(timeouts: Sequence[re.Match[str]]) -> str:
    """Return a sentence on ranks that wait in different operations; "" if all are in one."""
    numbers: dict[str, int] = {}
    for match in timeouts:
        numbers.setdefault(match[1], int(match[3]))
    first, last = min(numbers.values(), default=0), max(numbers.values(), default=0)
    if first == last:
        return ""
    late = sorted((rank for rank, number in numbers.items() if number == first), key=int)
    return (
        f" Rank {', '.join(late)} waits in number {first}, others in up to {last}: if they are "
        "of one group, they do not run the same steps."
    )


def _stuck_watchdogs(log: ServerLog) -> Iterator[Reading]:
    """Read that the thread which watches the collective operations does not go on itself."""
    found = list(log.errors.find(_STUCK))
    if not found:
        return
    ranks = ", ".join(sorted({match[1] for _, match in found}, key=int))
    yield Reading(
        reason(
            "device-call-hangs",
            f"A call of the device's runtime hangs on rank {ranks}: the watchdog of the collective "
            f"operations was stuck for {found[0][1][2]} s. The device or its driver does not "
            "answer, or a thread holds Python's lock inside such a call.",
            "On that node run `dmesg -T | grep -iE 'xid|nvrm|ascend'` and `nvidia-smi` (`npu-smi "
            "info`): a device that has failed needs a reset, and another node meanwhile. If the "
            "devices are sound, `py-spy dump --pid WORKER` shows the call.",
            "torch ProcessGroupNCCL heartbeat monitor",
            "transient",
        ),
        found[0][0],
        covers=frozenset(line for line, _ in found),
        rank=Rank.HINT,
        certain=False,
    )


def _repeated_notices(log: ServerLog) -> Iterator[Reading]:
    """Read the engine's notices that its workers do not take the next step.

    One notice is normal during a compilation. Several without progress after them are a hang.
    """
    notices = [(line, int(match[1])) for line, match in log.everything.find(_NOTICE)]
    progressed = read_life(log).progressed if notices else -1
    notices = [(line, seconds) for line, seconds in notices if line > progressed]
    if len(notices) < 2:
        return
    first = notices[0][0]
    waited = sum(seconds for _, seconds in notices)
    process = log.processes[first].strip("() ") or "the engine"
    rpc = next((match[1] for _, match in log.errors.find(_RPC)), "")
    then = f", until the call `{rpc}` timed out" if rpc else ""
    yield Reading(
        reason(
            "shm-broadcast-hang",
            f"Hang: {process} has waited {waited} s for its workers ({len(notices)} notices, no "
            f"progress since){then}. At least one worker is stuck: in a collective operation with "
            "a dead or late peer, in a compilation, or on the device. A larger shared memory does "
            "not help.",
            "Find the worker whose log stops first: `py-spy dump --pid WORKER`, its plog under "
            "`~/ascend/log/debug/plog`, and the links (`hccn_tool -i N -link -g`, `-net_health "
            "-g`). "
            "raylaunch restarts the group when token counters stall (`health.stall_s`).",
            "vLLM shm_broadcast.py; vllm-ascend#3978, #10591",
            "transient",
        ),
        first,
        frozenset(line for line, _ in notices),
        # A call that timed out ended the hang; its report is then more than a hang line.
        rank=Rank.HINT if rpc else Rank.HANG,
        certain=False,
    )


_JIT = re.compile(r"JIT compilation during inference: (\w{2,120})")
_JIT_LINES = 40


def _compiled_meanwhile(log: ServerLog) -> Iterator[Reading]:
    """Read that a worker compiled a kernel in a request, and the engine did not wait for it."""
    calls = list(log.errors.find(_RPC))
    kernels = [(line, match[1]) for line, match in log.warnings.find(_JIT)] if calls else []
    served = read_life(log).served if kernels else -1
    for line, match in calls:
        compiled = [
            (each, name)
            for each, name in kernels
            if served <= each < line and log.numbers[line] - log.numbers[each] <= _JIT_LINES
        ]
        if not compiled:
            continue
        kernel = compiled[-1][1]
        yield Reading(
            reason(
                "compiled-while-serving",
                f"A worker was compiling a kernel ({kernel}) for a request when the engine's call "
                f"to `{match[1]}` timed out: this shape was not met in the warm-up, and the "
                "compilation took longer than the engine waits.",
                "Raise `env.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS` (300 by default) above the time of "
                "a compilation; keep the compiled kernels over restarts (`env.VLLM_CACHE_ROOT`, "
                "TRITON_CACHE_DIR on a volume), and send requests of such sizes after a start, "
                "before clients do.",
                "vLLM jit_monitor.py, multiproc_executor.py",
                "transient",
            ),
            line,
            certain=False,
        )
        return


def _gloo_waits(log: ServerLog) -> Iterator[Reading]:
    """Read a rank that waited for another one over the host network in vain."""
    for line, match in log.errors.find(_GLOO_WAIT):
        near = "\n".join(log.cleaned[max(0, line - _GLOO_LINES) : line + _GLOO_LINES])
        p2p = _P2P_TEST.search(near) is not None
        during = (
            ", while vLLM tests whether the GPUs copy to each other (P2P): that copy hangs on this "
            "node"
            if p2p
            else ""
        )
        way = "from" if match[2] == "recv" else "to"
        first = "Set `args.disable-custom-all-reduce: true` and `env.NCCL_P2P_DISABLE: 1`. "
        yield Reading(
            reason(
                "gloo-peer-lost",
                f"A rank waited {int(match[1]) // 1000} s for a message {way} another rank (gloo)"
                f"{during}. The other one hangs, died, or cannot be reached.",
                f"{first if p2p else ''}Find the server and rank whose log stops first (`py-spy "
                "dump --pid WORKER` shows where it is); on several nodes set `network.interface` "
                "(GLOO_SOCKET_IFNAME) and open the ports between them.",
                "gloo unbound_buffer.cc",
                "transient",
            ),
            line,
            rank=Rank.HINT,
            symptom=not p2p,
            certain=False,
        )


def _unanswered_calls(log: ServerLog) -> Iterator[Reading]:
    """Read the time-out of the queue between engine and workers, which has no message."""
    for raised in find_exceptions(log):
        places = [frame.module_path for frame in raised.frames[:4]]
        queue = any(path.endswith("shm_broadcast.py") for path in places)
        if raised.type != "TimeoutError" or raised.message or not queue:
            continue
        rpc = next((match[1] for _, match in log.errors.find(_RPC)), "")
        call = f" to `{rpc}`" if rpc else ""
        yield Reading(
            reason(
                "rpc-timeout",
                f"The engine's call{call} was not answered by its workers in time "
                "(VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS): at least one worker hangs, usually in a "
                "collective operation with a peer that is gone, or on the device.",
                "Find the worker or rank whose log stops first: `py-spy dump --pid WORKER` and its "
                "plog under `~/ascend/log/debug/plog`. For steps that are really that long raise "
                "`env.VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS`.",
                "vLLM shm_broadcast.py; vllm-ascend#2264",
                "transient",
            ),
            raised.line,
            rank=Rank.WRAPPER,
            certain=False,
        )


_BY_NCCL = (
    "`py-spy dump --pid WORKER` shows where it is, `dmesg -T | grep -i xid` whether its GPU "
    "failed. `env.NCCL_DEBUG: INFO` shows the links it uses; start once with "
    "`args.disable-custom-all-reduce: true` and once with `env.NCCL_P2P_DISABLE: 1`."
)
_BY_HCCL = (
    "`py-spy dump --pid WORKER` and its plog show where it is; check the links with "
    "`hccn_tool -i N -link -g` and `-stat -g`."
)


def _waits(line: int, cause: str, first: str = "", *, id_: str = "collective-timeout") -> Reading:
    by_library = _BY_NCCL if ", NCCL)" in cause else _BY_HCCL
    return Reading(
        reason(
            id_,
            cause,
            f"{first}The rank without such a line, or whose log stops first, is the likely cause: "
            f"{by_library} A longer time-out only delays the end.",
            "torch_npu watchdog; vllm-ascend#16646, #382",
            "transient",
        ),
        line,
        rank=Rank.HINT,
        symptom=True,
        certain=False,
    )
