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
# uv breaks its lines; the sentence that decides is the first one with "Because".
_UV = re.compile(
    r"Because (?:only )?([\w.\[\]+<>=!~,-]{2,80}) depends on ([\w.\[\]+<>=!~,-]{2,80}) and "
    r"(there (?:is|are) no versions? of [^\n,]{2,80}|[^\n]{3,120})|"
    r"(No solution found when resolving)"
)
_IN_HUAWEIS_INDEX = re.compile(r"^(?:torch[-_]npu|triton[-_]ascend)\b")
_OTHER_REFUSALS = (
    (
        r"externally-managed-environment|This environment is externally managed",
        "pip refuses to install into the Python of the operating system (PEP 668)",
        (
            "Make an environment and install there: `python -m venv vllm-env; source "
            "vllm-env/bin/activate` (or conda, or the release's image); start Ray from it on all "
            "nodes."
        ),
    ),
    (
        r"([\w.+-]{3,120}\.whl) is not a supported wheel on this platform",
        (
            "the wheel {0} is for another Python, processor or C library than this one (cp310: "
            "Python 3.10; aarch64 or x86_64; manylinux_2_28: glibc 2.28 or newer)"
        ),
        (
            "Compare `python -V`, `uname -m` and `ldd --version` with the name of the wheel, and "
            "take the one that fits, or a Python that it is for."
        ),
    ),
    (
        r"PACKAGES DO NOT MATCH THE HASHES",
        (
            "a downloaded package is not the one that was asked for (its hash differs): the "
            "download broke off, or a mirror or cache is damaged"
        ),
        (
            "`pip cache purge`, then install again with `--no-cache-dir`, from another index if it "
            "recurs."
        ),
    ),
    (
        (
            r"Could not install packages due to an OSError: \[Errno 13\] Permission denied: "
            r"'([^'\n]{2,200})'"
        ),
        "pip may not write {0}",
        (
            "Install as the owner of that environment, or into one of your own (`python -m venv`); "
            "`pip install --user` is not found by a server of another user."
        ),
    ),
    (
        r"pip\._vendor\.urllib3[\w.]{0,40}\.(ReadTimeoutError|ProtocolError|IncompleteRead)",
        "pip's download broke off ({0}): the index is slow or a proxy cut it",
        (
            "Use a nearer mirror (`pip config set global.index-url`), `--timeout 120 --retries 5`, "
            "and the proxy variables of this network; or copy the wheels (`pip download` "
            "elsewhere, `pip install --no-index --find-links`)."
        ),
    ),
)
_OTHERS = tuple((re.compile(words), cause, remedy) for words, cause, remedy in _OTHER_REFUSALS)
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
    if reading := _conflict(log) or _unsolved(log) or _other(log):
        yield reading
        return
    for line, match in log.errors.find(_NO_VERSION):
        wanted = match[1] or match[3]
        there = f" Its index has {shorten(match[2], 160)}." if match[2] else ""
        huawei = _IN_HUAWEIS_INDEX.match(wanted) is not None
        index = (
            "Its dev and post releases are in Huawei's index: name it beside the usual one "
            "(`--extra-index-url`, the mirror's path ascend/repos/pypi), on x86 also torch's index "
            "whl/cpu. Else: "
            if huawei
            else ""
        )
        yield _refused(
            line,
            f"pip finds no version {wanted} for this Python and processor.{there}",
            f"{index}Take a version that is there, or a Python (`python --version`) and processor "
            f"(`uname -m`) that it is built for, or name the index that has it "
            f"(`--extra-index-url`). {_VERSIONS}",
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


def _unsolved(log: ServerLog) -> Reading | None:
    """Return what uv could not resolve: its first reason."""
    found = list(log.errors.find(_UV))
    if not found:
        return None
    line, match = next(((line, each) for line, each in found if each[1]), found[0])
    if not match[1]:
        return _refused(
            line,
            "uv finds no set of releases that fit each other.",
            f"{_VERSIONS} `uv pip install --index-strategy unsafe-best-match` looks into all "
            "indexes.",
        )
    cpu = (
        "torch_npu needs the CPU build of torch (the suffix +cpu): name torch's index whl/cpu "
        "beside Huawei's (`--extra-index-url`), with `--index-strategy unsafe-best-match`, or "
        "install torch from it before. "
        if "+cpu" in match[2]
        else ""
    )
    return _refused(
        line,
        f"uv finds no set of releases that fit each other: {match[1]} depends on {match[2]}, and "
        f"{shorten(match[3], 120)}.",
        f"{cpu}{_VERSIONS} `--no-build-isolation` builds with what is installed.",
    )


def _other(log: ServerLog) -> Reading | None:
    """Return what else pip refuses, in its own words."""
    for pattern, cause, remedy in _OTHERS:
        for line, match in log.errors.find(pattern):
            told = cause.replace("{0}", match[1] if match.groups() and match[1] else "it")
            return _refused(line, f"pip could not install a package: {told}.", remedy)
    return None


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
