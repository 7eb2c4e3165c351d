"""A process of the server that exited, as its parent reports it: which signal, and what that means.

vLLM, Ray, torch's launcher and supervisors write this in words of their own; the number is the
same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason
from raylaunch.supervise.diagnosis.survival import read_life

_EXITED = re.compile(
    r"\b(?:[Ww]orker|[Pp]roc(?:ess)?|[Cc]hild|[Ee]ngine|[Ss]cheduler|[Rr]ank|[Cc]ommand|[Cc]ontainer)"
    r"\b[^\n]{0,120}?\b(?:died|dead|exited|terminated|killed|crashed|failed|ended)\b[^\n]{0,60}?"
    r"(?:exit ?(?:code|status)|exitcode|return ?code|status|signal)[ :=(]{1,4}(-?\d{1,3})\b"
)
_NAME = re.compile(r"\b((?:Vllm\w*|Worker\w*|EngineCore\w*|APIServer\w*)[\w-]{0,30})")
_MEANINGS = {
    9: (
        (
            "was killed from outside (SIGKILL), most often by the kernel because memory of host or "
            "container ran out"
        ),
        (
            "Run `dmesg -T | grep -iE 'oom|killed process'` on that node (Kubernetes: OOMKilled in "
            "`kubectl describe pod`); give more memory, load fewer ranks a node "
            "(`parallel.data_local`), or leave out offloading (`args.cpu-offload-gb`, "
            "`args.kv-offloading-size`)."
        ),
    ),
    11: (
        "crashed in native code (SIGSEGV)",
        (
            "`env.PYTHONFAULTHANDLER: 1` shows the call at the next crash, `dmesg -T` the library. "
            "Compare torch, driver and kernel packages with the release's image, and start with "
            "`args.enforce-eager: true`."
        ),
    ),
    6: (
        "aborted itself in native code (SIGABRT)",
        (
            "The line `what():` or `terminate called` above it has the reason; on NPUs a file "
            "under `~/ascend/log/debug/plog`."
        ),
    ),
    7: (
        "met a bus error (SIGBUS): /dev/shm or a mapped file has no room or broke off",
        (
            "Check `df -h /dev/shm` in the container (`--shm-size`, `--ipc=host`) and the disk or "
            "share that holds the model."
        ),
    ),
    8: (
        (
            "crashed in native code (SIGFPE: a whole number was divided by zero), so it was not "
            "killed for memory"
        ),
        (
            "`env.PYTHONFAULTHANDLER: 1` shows the call at the next crash, `dmesg -T` the library. "
            "Use a newer release or image of vLLM; until then start with `args.enforce-eager: "
            "true`, another `args.attention-backend`, or other parallel sizes."
        ),
    ),
    4: (
        "ran an instruction that this processor does not have (SIGILL)",
        (
            "Install wheels for this processor, or build for it: it expects AVX512 or another "
            "extension (`lscpu`)."
        ),
    ),
}


_TERMINATED = re.compile(r"KeyboardInterrupt(?:: |\([\"'])terminated")


def _stopped_start(log: ServerLog) -> Iterator[Reading]:
    """Read that a start was ended from outside before the server had answered."""
    found = next(iter(log.errors.find(_TERMINATED)), None)
    if found is None or read_life(log).served >= 0:
        return
    yield Reading(
        reason(
            "start-stopped",
            "The server was told to end (SIGTERM) before its start was finished: by a start-up or "
            "liveness probe of Kubernetes, by another limit of time, or by an operator. Nothing "
            "failed in the server itself.",
            "Give the start more time: `startupProbe` with a larger failureThreshold (`kubectl "
            "describe pod` shows the probe that failed), or the time limit of the job; a cache of "
            "compiled graphs (VLLM_CACHE_ROOT on a volume) and a local copy of the model make it "
            "shorter.",
            "vLLM signal_handler; vllm#17386",
            "transient",
        ),
        found[0],
        rank=Rank.HINT,
        certain=False,
    )


def read_process_exits(log: ServerLog) -> Iterator[Reading]:
    """Yield the exits by a signal; an ordered stop (SIGTERM, SIGINT) is none."""
    yield from _stopped_start(log)
    for line, match in log.errors.find(_EXITED):
        code = int(match[1])
        number = -code if code < 0 else code - 128 if code > 128 else 0
        if re.search(r"signal[ :=(]{1,4}\d", match[0]):
            number = abs(code)
        meaning = _MEANINGS.get(number)
        if meaning is None:
            continue
        named = _NAME.findall(match[0])
        who = f"The process {max(named, key=len)}" if named else "A process of the server"
        what, remedy = meaning
        yield Reading(
            reason(
                "worker-died",
                f"{who} {what}; no other cause stands beside it (exit code: {code}).",
                remedy,
                "signal(7)",
                "transient",
            ),
            line,
            rank=Rank.HINT,
            certain=False,
        )
