"""pip's refusals, and processes that torchrun reports by an exit code."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten

_NO_VERSION = re.compile(
    r"Could not find a version that satisfies the requirement ([^\s(]{2,120})"
    r"(?: \(from (?:versions: )?([^)\n]{0,400})\))?|No matching distribution found for (\S{2,120})"
)
_CONFLICT = re.compile(
    r"Cannot install ([^\n]{4,300}?) because these package versions have conflicting dependencies|"
    r"(ResolutionImpossible)\b"
)
_DEPENDS = re.compile(
    r"^\s{1,8}((?:The user requested )?[\w.\[\]-]{2,60}(?: \d[\w.+!-]{0,40})?) depends on "
    r"([^\n]{2,120})",
    re.MULTILINE,
)
_TORCH_NPU = re.compile(r"torch[-_]npu")
_PYTHON = re.compile(r"Package '?([\w.-]{2,60})'? requires a different Python: ([^\n]{3,80})")
_CHILD = re.compile(r"failed \(exitcode: (-?\d{1,3})\) local_rank: (\d{1,5}) \(pid: (\d{1,9})\)")
_SIGNALS = {
    4: "SIGILL, an instruction that this processor does not have",
    6: "SIGABRT, an abort of native code",
    7: "SIGBUS, as when /dev/shm or a file system is full",
    8: "SIGFPE",
    9: "SIGKILL, from outside: most often the host's memory ran out",
    11: "SIGSEGV, a crash of native code",
    15: "SIGTERM, ordered from outside",
}
_VERSIONS = (
    "Install vllm first and vllm-ascend after it, with the torch and torch_npu that this "
    "vllm-ascend names (its table of versions), or use the release's image."
)


def read_installs(log: ServerLog) -> Iterator[Reading]:
    """Yield what pip could not install, the first refusal of a log."""
    for line, match in log.errors.find(_PYTHON):
        yield _refused(
            line,
            f"pip refuses {match[1]}: it is for another Python ({match[2]}: the one that runs, and "
            "those that it takes).",
            f"Make an environment with a Python that it takes (`conda create -n vllm python=3.11`, "
            f"or the release's image), or install another release of {match[1]}.",
        )
        return
    if reading := _conflict(log):
        yield reading
        return
    for line, match in log.errors.find(_NO_VERSION):
        wanted = match[1] or match[3]
        there = f" Its index has {shorten(match[2], 160)}." if match[2] else ""
        yield _refused(
            line,
            f"pip finds no version {wanted} for this Python and processor.{there}",
            f"Take a version that is there, or a Python (`python --version`) and processor (`uname "
            f"-m`) that it is built for, or name the index that has it (`--extra-index-url`). "
            f"{_VERSIONS}",
        )
        return


def _conflict(log: ServerLog) -> Reading | None:
    """Return who disagrees with whom, as pip lists it."""
    refused = list(log.errors.find(_CONFLICT))
    if not refused:
        return None
    line = refused[0][0]
    named = next((match[1] for _, match in refused if match[1]), "")
    needs = [f"{match[1]} needs {match[2]}" for _, match in log.errors.find(_DEPENDS)]
    told = shorten("; ".join(filter(None, [named, *needs])) or "ResolutionImpossible", 300)
    both = {"vllm", "vllm-ascend"} <= {
        match[1].partition(" ")[0].lower() for _, match in log.errors.find(_DEPENDS)
    }
    remedy = (
        f"{_VERSIONS} Where two only disagree on paper, `--no-deps` installs one of them alone."
    )
    if both:
        remedy = (
            "Install vllm first and vllm-ascend after it, in two commands: vllm names a newer "
            "torch than torch_npu supports, and pip only warns of that. " + remedy
        )
    elif _TORCH_NPU.search(told):
        remedy = (
            "torch_npu needs the CPU build of torch: give pip its index "
            "(`--extra-index-url` with torch's index whl/cpu, on x86 for torch, "
            "torchvision and torchaudio), and pin all of them to one release. " + remedy
        )
    return _refused(
        line,
        f"pip cannot install packages together: their versions have conflicting dependencies "
        f"({told}).",
        remedy,
    )


def _refused(line: int, cause: str, remedy: str) -> Reading:
    told = reason("pip-refused", cause, remedy, "pip", "deterministic")
    return Reading(told, line, rank=Rank.HINT, certain=False)


def read_children(log: ServerLog) -> Iterator[Reading]:
    """Yield the processes that a signal stopped, as torchrun reports them."""
    for line, match in log.errors.find(_CHILD):
        number = -int(match[1])
        if number not in _SIGNALS:
            continue
        yield Reading(
            reason(
                "child-signal",
                f"torchrun's process of local rank {match[2]} (pid {match[3]}) was stopped by "
                f"signal {number} (exit code {match[1]}): {_SIGNALS[number]}.",
                _child_remedy(number),
                "torch.distributed.elastic",
                "transient",
            ),
            line,
            rank=Rank.HINT,
            certain=False,
        )


def _child_remedy(number: int) -> str:
    if number in (9, 15):
        return (
            "On that node run `dmesg -T | grep -iE 'oom|killed process'`, and see who stopped it; "
            "load less per process."
        )
    return (
        "The lines of that process before it, and `dmesg -T | tail`, name the library; `ulimit -c "
        "unlimited` keeps a core. If it recurs, use another release of that library: for ATB "
        "(NNAL) try `env.ATB_OPSRUNNER_SETUP_CACHE_ENABLE: 0` and "
        "`env.ATB_OPSRUNNER_KERNEL_CACHE_TYPE: 0`; check `df -h /dev/shm`."
    )
