"""Files and folders that the operating system refuses, by errno: which path, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason
from raylaunch.supervise.diagnosis.rules.tables.features import name_features
from raylaunch.supervise.diagnosis.signatures import Kind

_ERRNO = re.compile(
    r"(?:OSError|IOError|PermissionError|FileNotFoundError|BlockingIOError|RuntimeError|Error): "
    r"(?:\[Errno (\d{1,3})\] )?(Read-only file system|Stale (?:NFS )?file handle|"
    r"Input/output error|Remote I/O error|Transport endpoint is not connected|Host is down|"
    r"File name too long|Operation not permitted|Too many levels of symbolic links|"
    r"Is a directory|Not a directory|No locks available|Structure needs cleaning|"
    r"Resource temporarily unavailable)(?:: ?['\"]?([^'\"\n]{1,300})['\"]?)?"
)


_CALL_DENIED = re.compile(r"\b([a-z]\w{3,60}) failed\W{1,4}(?:with )?errno\W{1,3}(?:1|13)\b")
_DENIED = re.compile(r"PermissionError: \[Errno 13\] Permission denied: '([^'\n]{1,300})'")
# Which variable moves a folder that a library made up for itself.
_MOVED_BY: tuple[tuple[str, str], ...] = (
    (
        r"/_?ray(?:_lockfiles|_current_cluster|/)|/ray$",
        (
            "remove what another user's Ray left there (as that user `ray stop`, then `sudo rm "
            "-rf` of it), or give Ray a folder of its own: `ray start --head --temp-dir=DIR` "
            "(RAY_TMPDIR; without a cluster `ray.init(_temp_dir=...)`)"
        ),
    ),
    (
        r"^//?kernel_meta",
        "start Ray in a folder that the user may write: CANN puts kernel_meta there",
    ),
    (r"kernel_meta|atc_data|/ascend/log", "set `env.ASCEND_WORK_PATH` to a folder it may write"),
    (r"modelscope|ast_indexer", "set `env.MODELSCOPE_CACHE` to a folder it may write"),
    (r"huggingface|/hub\b|transformers_modules", "set `env.HF_HOME` to a folder it may write"),
    (r"triton", "set `env.TRITON_CACHE_DIR` to a folder it may write"),
    (r"inductor", "set `env.TORCHINDUCTOR_CACHE_DIR` to a folder it may write"),
    (r"\.cache/vllm|\.config/vllm", "set `env.VLLM_CACHE_ROOT` and `env.VLLM_CONFIG_ROOT`"),
    (
        r"^/(?:\.\w{1,40}|root/[^\n]{0,200})$|/\.cache\b",
        "set `env.HOME` (or `env.XDG_CACHE_HOME`) to a folder it may write",
    ),
    (r"/dev/(?:davinci|devmm|hisi)", "add the user to the group of the driver (HwHiAiUser)"),
)


_CRASH = re.compile(
    r"!!! Segfault encountered !!!|Fatal Python error: (?:Segmentation fault|Bus error)|"
    r"\*\*\* SIG(?:SEGV|BUS)[^\n]{0,80}|Caught signal 11[^\n]{0,80}"
)
_CRASH_FRAMES = (
    re.compile(r'^\s*File "(?:<unknown>|[^"\n]{1,300})", line \d{1,6},? in ([\w:.]{3,120})'),
    re.compile(
        r"^\s*(?:@|#\d{1,3}|\d{1,3}) +(?:0x[\da-f]{4,16} )?(?:in )?([A-Za-z_][\w:]{2,120}) ?\("
    ),
    re.compile(r"(/[\w./+-]{1,200}\.so[\w.]{0,20})"),
)
_FRAME_LINES = 12
_CORE = re.compile(r"^#0 {1,4}0x[\da-f]{4,16} in [^\n]{2,200}", re.MULTILINE)
"""The innermost frame of a core file, as gdb prints it."""
# Calls that crash by what they ask of the driver, and the switch that leaves them out.
_SWITCHES = (
    (
        r"ncclCuMem|cuMemCreate|ncclCudaLibraryInit",
        (
            "Set `env.NCCL_CUMEM_HOST_ENABLE: 0` and `env.NCCL_CUMEM_ENABLE: 0` (NCCL asks the "
            "driver for memory of the host in a way that this card or driver does not know). "
        ),
    ),
)


class _Refusal(NamedTuple):
    name: str
    cause: str
    remedy: str
    kind: Kind


_MOUNT = _Refusal(
    "mount-lost",
    "This node has lost the file system below{path} ({text}): the server of the share or the mount "
    "is gone.",
    "`df -h` and `mount` on that node: mount the share again, read `dmesg -T`, and compare "
    "with another node; exclude the node until it is back.",
    "device",
)
_DISK = _Refusal(
    "disk-failing",
    "The disk or share of this node cannot read or write{path} ({text}).",
    "`dmesg -T | tail -50` on that node: a failing disk or a lost share; exclude the node, and "
    "copy the files again.",
    "device",
)
_READ_ONLY = _Refusal(
    "read-only",
    "The server must write{path}, which is on a read-only file system.",
    "Put caches on a writable volume: `env.HOME`, `env.VLLM_CACHE_ROOT`, `env.TRITON_CACHE_DIR`; "
    "if the volume should be writable, `dmesg -T` shows why the kernel made it read-only.",
    "deterministic",
)
_PATH = _Refusal(
    "path-refused",
    "The operating system refuses{path}: {text}.",
    "Correct the path in the recipe (`model.path`, folders under `env`), and compare it with "
    "`ls -ld` on that node; in a container also the volumes that are mounted.",
    "deterministic",
)
_NOT_PERMITTED = _Refusal(
    "not-permitted",
    "The process lacks a permission of the kernel{path} ({text}): a capability, a seccomp filter "
    "of the container, or an immutable file.",
    "Run the container privileged or with the capability (IPC_LOCK for RDMA and pinned memory, "
    "SYS_NICE for binding), or switch off what needs it.",
    "deterministic",
)
_LOCKS = _Refusal(
    "no-file-locks",
    "The file system of{path} offers no file locks ({text}): a share without its lock service.",
    "Put caches and Hugging Face's folders on a local disk (`env.HF_HOME`, `env.VLLM_CACHE_ROOT`), "
    "or mount the share with locks.",
    "deterministic",
)
_NO_MAPPING = _Refusal(
    "no-mmap",
    "The file system of the weights cannot map files into memory ({text}, mmap), which safetensors "
    "needs: a FUSE, object store or network mount without it.",
    "Copy the model to a local disk of each node and give that folder as `model.path`; or mount "
    "the share with caching (FUSE without direct_io; mergerfs with cache.files=partial), or set "
    "`args.safetensors-load-strategy: eager`.",
    "deterministic",
)
_NO_DEVICE = re.compile(
    r"(?:OSError|SafetensorError|Error): (?:\[Errno 19\] )?(No such device)(?: \(os error 19\))?$",
    re.MULTILINE,
)
_BY_TEXT: tuple[tuple[str, _Refusal], ...] = (
    (r"Read-only", _READ_ONLY),
    (r"Stale|Transport endpoint|Host is down", _MOUNT),
    (r"[Ii]nput/output|Remote I/O|needs cleaning", _DISK),
    (r"Operation not permitted", _NOT_PERMITTED),
    (r"No locks", _LOCKS),
    (r"too long|symbolic|directory", _PATH),
)


def read_os_errors(log: ServerLog) -> Iterator[Reading]:
    """Yield the paths that the operating system refused, with their meaning."""
    yield from _crashes(log)
    for line, match in log.errors.find(_DENIED):
        yield _denied(line, match[1])
    for line, match in log.errors.find(_CALL_DENIED):
        cause = _NOT_PERMITTED.cause.format(path=f" for `{match[1]}`", text=match[0])
        remedy = f"{_NOT_PERMITTED.remedy} With Docker: `--cap-add SYS_NICE` or `--privileged`."
        yield Reading(reason("not-permitted", cause, remedy, "errno(3)", _NOT_PERMITTED.kind), line)
    for line, match in log.errors.find(_NO_DEVICE):
        above = "\n".join(log.cleaned[max(0, line - 8) : line])
        if re.search(r"safe_?open|safetensors|mmap", above):
            cause = _NO_MAPPING.cause.format(text=match[1])
            yield Reading(
                reason("no-mmap", cause, _NO_MAPPING.remedy, "mmap(2)", "deterministic"), line
            )
    for line, match in log.errors.find(_ERRNO):
        text, path = match[2], match[3]
        found = next((each for words, each in _BY_TEXT if re.search(words, text)), None)
        if found is None or (found in (_PATH, _NOT_PERMITTED) and not path):
            continue
        named = f" {path.strip()}" if path else " a file"
        cause = found.cause.format(path=named, text=text)
        yield Reading(reason(found.name, cause, found.remedy, "errno(3)", found.kind), line)


def _crashes(log: ServerLog) -> Iterator[Reading]:
    for line, _ in log.errors.find(_CRASH):
        if frames := _crashed_in(log.cleaned[line + 1 : line + _FRAME_LINES]):
            yield _crash(line, frames)
    for line, _ in log.errors.find(_CORE):
        if frames := _crashed_in(log.cleaned[line : line + _FRAME_LINES]):
            yield replace(_crash(line, frames), rank=Rank.HINT)


def _crashed_in(lines: Sequence[str]) -> list[str]:
    """Return the innermost calls below a crash, at most three."""
    calls = [
        found[1]
        for line in lines
        if (found := next((match for each in _CRASH_FRAMES if (match := each.search(line))), None))
    ]
    return list(dict.fromkeys(calls))[:3]


# C++ namespaces of packages; a crash belongs to the first one in its frames.
_NAMESPACES = (
    (r"mooncake::", "Mooncake (mooncake-transfer-engine)"),
    (r"(?:c10_npu|at_npu|torch_npu)::", "torch_npu"),
    (r"(?:atb|Mki|AtbSpeed)::", "ATB (package NNAL of CANN)"),
    (r"(?:hccl|Hccl|adxl|hixl|llm)::|aclrt|rt[A-Z][a-z]|hal[A-Z]|Hccl|Hcom", "CANN"),
    (r"/(?:[\w.-]{1,40}/){0,6}(?:Ascend|cann|ascend-toolkit)[\w.-]{0,20}/", "CANN"),
    (r"ray::", "Ray"),
    (r"(?:c10|at|torch)::", "torch"),
)


def _owner_of(frames: Sequence[str]) -> str:
    """Return the package that the innermost calls of a crash belong to; "" if none is known."""
    return next(
        (
            name
            for frame in frames
            for words, name in _NAMESPACES
            if re.match(words, frame) is not None
        ),
        "",
    )


def _crash(line: int, frames: Sequence[str]) -> Reading:
    owner = _owner_of(frames)
    newer = f"Use a newer release of {owner}, the same on all nodes. " if owner else ""
    through = " from ".join(f"`{frame}`" for frame in frames)
    switch = next((fix for words, fix in _SWITCHES if re.search(words, " ".join(frames))), "")
    features = [fix for _, fix in name_features(" ".join(frames), "") if fix]
    off = (
        f"start once with {' or '.join(features)}"
        if features
        else ("start once with `args.enforce-eager: true`")
    )
    return Reading(
        reason(
            "segfault",
            f"Native code {f'of {owner} ' if owner else ''}crashed with a segmentation fault in "
            f"{through}.",
            f"{switch}{newer}If it recurs at the same call, {off}, or use another release of the "
            "package that it belongs to; compare driver, CANN (or CUDA) and the wheels with the "
            "release's image. "
            "`dmesg -T` names the library; the frames after the line have the whole way.",
            "faulthandler; torch's and glog's crash handlers",
            "transient",
        ),
        line,
        certain=False,
    )


def _denied(line: int, path: str) -> Reading:
    moved = next((how for words, how in _MOVED_BY if re.search(words, path)), "")
    own = f", or {moved}" if moved else ""
    return Reading(
        reason(
            "permission-denied",
            f"The user that runs Ray may not read or write {path}.",
            f"Give that user the permissions on this node (`ls -ld`, owner, mount){own}, or start "
            "Ray as another user.",
            "open(2)",
            "deterministic",
        ),
        line,
    )
