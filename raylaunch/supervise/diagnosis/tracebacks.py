"""Python exceptions of a log with the frame that raised them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from raylaunch.supervise.diagnosis.log_lines import ServerLog

EXCEPTION = re.compile(
    r"^\s{0,2}((?:[A-Za-z_]\w{0,60}\.){0,8}"
    r"(?:Exception\b|[A-Z]\w{0,60}(?:Error|Exception|Failure|Timeout|"
    r"Interrupt|NotFound)(?:_\w{1,40})?)|"
    r"(?:[A-Za-z_]\w{0,60}\.){1,8}[a-z]\w{1,60}(?:Error|Exception))"
    r"(?:: ?([^\n]{0,4000})|\((['\"])([^\n]{1,4000}?)\3,?\))?$",
    re.MULTILINE,
)
"""The last line of a traceback, or an exception that was logged by its repr.

A class of a module may begin with a small letter.
"""
_FRAME = re.compile(r'^\s*File "([^"\n]{1,400})", line (\d{1,6})(?:, in ([\w<>.]{1,100}))?')
_FOLDERS = ("site-packages/", "dist-packages/", "vllm-workspace/")
_KNOWN = re.compile(
    r"(?:^|/)((?:vllm_ascend|vllm_omni|vllm|torch_npu|transformers|ray|torch|lmcache_ascend|"
    r"lmcache|mooncake|nixl|xgrammar|flashinfer|compressed_tensors|kvcached)/[\w/]{1,200}\.py)$"
)
_FRAMES = 12
_DOTTED = re.compile(r"(?<![\w.])\w{1,60}(?:\.\w{1,60}){1,8}")
_LOOK_BACK = 60
_MESSAGE_LINES = 4
_NEW_SUBJECT = re.compile(
    r"\s*$|Traceback|\s*File \"|During handling|The above exception|\[ERROR\]|[\[(]|\d{4}-|"
    r"(?:DEBUG|INFO|WARNING|ERROR)\b|[A-Z]\w{2,40}(?:Error|Exception)\b"
)


_PASSED_ON = re.compile(
    r"^(?:Worker failed with error|Call to \w{1,60} method failed:) ?'?"
    r"(?:([A-Z]\w{1,60}(?:Error|Exception)): ?)?([^\n]{1,2000}?)'?"
    r"(?:, please check the stack trace.*)?$"
)
"""The engine's report of an exception in a worker, whose own traceback may be lost."""
_TYPE_BY_WORDS = (
    (re.compile(r"has no attribute"), "AttributeError"),
    (re.compile(r"argument|not callable|unsupported operand|not subscriptable"), "TypeError"),
    (re.compile(r"index out of range"), "IndexError"),
)


@dataclass(frozen=True)
class Frame:
    """One frame of a traceback."""

    path: str
    function: str
    code: str = ""
    """The statement of the frame, as the traceback shows it."""

    @property
    def module_path(self) -> str:
        """The path below the package's folder: `vllm_ascend/ops/fused_moe.py`."""
        if found := _KNOWN.search(self.path):
            return found[1].replace("vllm/vllm/", "vllm/")  # a checkout's folder has its name
        for folder in _FOLDERS:
            _, marker, below = self.path.rpartition(folder)
            if marker:
                return below
        if not self.path.startswith(("/", ".")):
            return self.path  # of compiled modules: `zmq/backend/cython/_zmq.py`
        return self.path.rpartition("/")[2]

    @property
    def package(self) -> str:
        """Name of the top package."""
        return self.module_path.partition("/")[0].removesuffix(".py")


@dataclass(frozen=True)
class Raised:
    """One exception as the log shows it."""

    line: int
    type: str
    """Class without its module."""
    message: str
    frames: tuple[Frame, ...]
    """Innermost first; empty when the log has none."""
    process: str
    code: str = ""
    """The statement that raised, as the traceback shows it."""
    after: str = ""
    """What follows the message on the next lines, of the same process."""
    before: str = ""
    """Names with dots in the lines above an exception that the log shows without frames."""

    @property
    def innermost(self) -> Frame | None:
        """The frame that raised."""
        return self.frames[0] if self.frames else None


# vLLM shuts down an executor whose constructor failed.
_HALF_MADE = re.compile(r"'\w{0,40}Executor' object has no attribute 'workers'")
FOLLOWS = re.compile(
    r"(?:^|\.)(?:CancelledError|BrokenPipeError|Connection(?:Reset|Aborted)Error|KeyboardInterrupt|"
    r"(?:Async|MQ)?EngineDeadError|EngineGenerationError|RayTaskError|ChildProcessError)\b|"
    + _HALF_MADE.pattern
)
"""Exceptions of a connection that the peer closed, and others that follow a failure and never
explain one."""


_CLEANING_UP = re.compile(
    r"^(?:shutdown|_?_?del_?_?|close|_?stop|terminate|cleanup|_exitfunc|_?cleanup\w*|__exit__)$"
)


def find_exceptions(log: ServerLog) -> Iterator[Raised]:
    """Yield the exceptions of a log, in its order."""
    for line, match in log.errors.find(EXCEPTION):
        if not is_half_made(log, line, match):
            yield read_exception(log, line, match)


def is_half_made(log: ServerLog, line: int, match: re.Match[str]) -> bool:
    """Whether an exception is that of a clean-up: its object's constructor had failed before."""
    if "has no attribute" not in match[0]:
        return False
    if _HALF_MADE.search(match[0]):
        return True
    innermost = next(iter(_frames_before(log, line)), None)
    return innermost is not None and _CLEANING_UP.match(innermost.function) is not None


def read_exception(log: ServerLog, line: int, match: re.Match[str]) -> Raised:
    """Return the exception that `EXCEPTION` matched on a line, with the frames above it."""
    message = (match[2] or match[4] or "").strip()
    if passed_on := _PASSED_ON.match(message):
        # The frames are those of the engine.
        said = passed_on[2]
        by_words = (type_ for words, type_ in _TYPE_BY_WORDS if words.search(said))
        type_ = passed_on[1] or next(by_words, "RuntimeError")
        return Raised(line, type_, said, (), log.processes[line])
    frames = tuple(_frames_before(log, line))
    before = [] if frames else _DOTTED.findall("\n".join(log.cleaned[max(0, line - 4) : line]))
    return Raised(
        line=line,
        type=match[1].rpartition(".")[2],
        message=message,
        frames=frames,
        process=log.processes[line],
        code=_statement_before(log, line),
        after=_following(log, line),
        before=" ".join(before),
    )


def is_passed_on(match: re.Match[str]) -> bool:
    """Whether what `EXCEPTION` matched is the engine's report of a worker's exception."""
    return _PASSED_ON.match((match[2] or "").strip()) is not None


def _following(log: ServerLog, line: int) -> str:
    """Return the lines that go on with the message of an exception."""
    said: list[str] = []
    for index in range(line + 1, min(line + 1 + _MESSAGE_LINES, len(log.cleaned))):
        text = log.cleaned[index]
        if log.processes[index] != log.processes[line] or _NEW_SUBJECT.match(text):
            break
        said.append(text.strip()[:400])
    return "\n".join(said)


def _statement_before(log: ServerLog, line: int) -> str:
    """Return the last line of code above an exception: neither a frame nor its marks."""
    for index in range(line - 1, max(-1, line - 4), -1):
        text = log.cleaned[index].strip()
        if not text.strip("^~ "):
            continue
        return "" if _FRAME.match(text) or text.startswith("Traceback") else text[:200]
    return ""


def _statement_of(log: ServerLog, index: int) -> str:
    """Return the line of code below a frame of a traceback; "" when there is none."""
    for below in range(index + 1, min(index + 4, len(log.cleaned))):
        if log.processes[below] == log.processes[index]:
            text = log.cleaned[below].strip()
            is_code = text.strip("^~ ") and not _FRAME.match(text) and not EXCEPTION.match(text)
            return text[:200] if is_code else ""
    return ""


def _frames_before(log: ServerLog, line: int) -> Iterator[Frame]:
    """Yield the frames above an exception of the same process, innermost first."""
    process = log.processes[line]
    count = 0
    for index in range(line - 1, max(-1, line - _LOOK_BACK), -1):
        if log.numbers[index] <= log.numbers[line] - _LOOK_BACK:
            return  # lines between are left out
        if log.processes[index] != process:
            continue
        text = log.cleaned[index]
        if text.lstrip().startswith("Traceback (most recent"):
            return
        found = _FRAME.match(text)
        if found is None:
            # The end of an exception above this one's first frame.
            if count and EXCEPTION.match(text):
                return
            continue
        count += 1
        yield Frame(found[1], found[3] or "", _statement_of(log, index))
        if count == _FRAMES:
            return
