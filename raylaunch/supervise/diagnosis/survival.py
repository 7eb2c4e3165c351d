"""What a serving log survived, and which of its error lines nothing explains.

A bare log has no exit status. What comes after an error tells whether the server survived it: an
answered completion, tokens, a finished start. After an ordered stop, lost peers are no failure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from raylaunch.supervise.diagnosis.inputs.carried_lines import strip_foreign
from raylaunch.supervise.diagnosis.inputs.log_text import LogText
from raylaunch.supervise.diagnosis.last_exception import explain_message
from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.plog_lines import explain_plog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten

_SERVED = re.compile(
    r'"POST /(?:v1|v2|generate|pooling|tokenize|invocations|'
    r'inference)\S{0,80} HTTP/[\d.]{1,3}" 200|'
    r"Avg generation throughput: (?!0\.0 )[\d.]{1,12} tokens/s|"
    r"Application startup complete\.|Uvicorn running on |service is ready!"
)
_PROGRESSED = re.compile(
    r"init engine \([^)\n]{1,80}\) took|Graph capturing finished|Loading (?:model )?weights took|"
    r"Available KV cache memory|rank \d{1,5} in world size|"
    r"Initial profiling/warmup run took|torch\.compile took"
)
_PROGRESS_BAR = re.compile(r"\b\d{1,6}/\d{1,6} \[\d")
_ANSWERED = re.compile(r'"(?:GET|POST) /\S{0,120} HTTP/[\d.]{1,3}" [234]\d\d')
_DIED = re.compile(
    r"EngineDeadError|EngineCore encountered|died unexpectedly|Engine core initialization failed|"
    r"fatal signal from worker|failed to start\.|shutting down executor|AsyncEngineDeadError|"
    r"Engine loop (?:is not running|has died)|^Killed\b|Application startup failed|"
    r"Engine process failed to start",
    re.MULTILINE,
)
_ORDERED_STOP = re.compile(
    r"SIGTERM|SIGINT|[Rr]eceived signal (?:15|2)\b|KeyboardInterrupt|[Gg]raceful(?:ly)? shut|"
    r"INFO: {4,5}Shutting down|Received exit signal|received stop request|Stopping container|"
    r"Shutdown initiated \(timeout="
)
_INTERRUPTED = re.compile(r"^\^C", re.MULTILINE)
_LOGGED_BY = re.compile(r"[\s\[](\w{1,60})\.py:\d{1,5}\]")
_REQUEST_MODULE = re.compile(
    r"^(?:serving|base_serving|api_server|api_router|protocol|async_llm|preprocess|chat_utils|"
    r"renderer|"
    r"launcher|utils$|abstract_(?:tool_)?parser|\w{0,40}_(?:tool|reasoning)_parser)"
)
_ASGI = "Exception in ASGI application"
_PYTHON_ERROR = re.compile(
    r"^Traceback \(most recent call last\)|"
    r"^(?:[A-Za-z_]\w{0,60}\.){0,8}[A-Z]\w{0,60}(?:Error|Exception)(?:: |$)|"
    # pip indents what a build wrote.
    r"^ {4,12}(?:[a-z_]\w{0,60}\.){1,8}[A-Z]\w{0,60}(?:Error|Exception): "
)
_ERROR_LINE = re.compile(
    r"^\s{0,8}(?:\([^()]{0,64}\) ?){0,3}(?:\[rank\d{1,5}\]: ?)?(?:ERROR|CRITICAL|FATAL)\b[ :]|"
    r"^[EF](?:\d{8}|\d{4}) \d\d:\d\d:\d\d\.\d|^\[rank\d{1,5}\]:\[E|\[(?:ERROR|FATAL|"
    r"CRITICAL|error|critical|fatal)\][ :]|^\[ERROR\][A-Z]{2,20}\(|"
    # LMCache and its like: `[2025-09-04 01:00:51,159] LMCache ERROR: `.
    r"^\[\d{4}-\d\d-\d\d [\d:,. +-]{8,24}\] \w{2,30} (?:ERROR|CRITICAL)\b|"
    r"^(?:\(\w{1,40} pid=\d{1,9}\) )?\[\d{4}-\d\d-\d\d [\d:,]{8,16} C \d{1,9} \d{1,9}\]|"
    r"^(?:Error response from daemon|CMake Error|Allocate failed due to|(?:error|panic|fatal error)"
    r"(?: [\w ]{1,30})?): |Unhandled exception: |Check failed: |\bUCX +(?:ERROR|FATAL)\b|"
    r"^[\d:,. +-]{10,36}\s?(?:- [\w.]{1,60} - )?(?:ERROR|FATAL|CRITICAL)\b|^Fatal Python error"
)


_MAY_BE_ERROR = re.compile(
    r"rror|xception|ERR|CRIT|FATAL|Fatal|raceback|[EF]\d{4}|\d C \d|Check failed"
)
_SAYS_NOTHING = re.compile(r"^\s*(?:Traceback|TraceBack) \(most recent call last\)")


@dataclass(frozen=True)
class Sign:
    """A sign of life that is searched in lines of any level.

    Each match holds one of the words, and its line the word's companion.
    """

    pattern: re.Pattern[str]
    words: tuple[tuple[str, str], ...]

    @property
    def byte_words(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the words and their companions as they are in a file."""
        for word, companion in self.words:
            yield word.encode(), companion.encode()


SERVED = Sign(
    _SERVED,
    (
        ('"POST /', '" 200'),
        ("Avg generation throughput: ", "tokens/s"),
        ("Application startup complete.", ""),
        ("Uvicorn running on ", ""),
        ("service is ready!", ""),
    ),
)
PROGRESSED = Sign(
    _PROGRESSED,
    (
        ("init engine (", " took"),
        ("Graph capturing finished", ""),
        ("eights took", ""),
        ("Available KV cache memory", ""),
        (" in world size", ""),
        ("warmup run took", ""),
        ("torch.compile took", ""),
    ),
)
ANSWERED = Sign(_ANSWERED, (('"GET /', '" '), ('"POST /', '" ')))
STOPPED = Sign(
    _ORDERED_STOP,
    (
        ("SIGTERM", ""),
        ("SIGINT", ""),
        ("eceived signal ", ""),
        ("KeyboardInterrupt", ""),
        ("raceful", " shut"),
        ("Shutting down", ""),
        ("Received exit signal", ""),
        ("received stop request", ""),
        ("Stopping container", ""),
        ("Shutdown initiated ", "(timeout="),
    ),
)


@dataclass(frozen=True)
class Life:
    """Where a log shows that its server was alive, dead, or told to stop. Indices of lines."""

    served: int = -1
    """Last sign that the engine worked."""
    progressed: int = -1
    """Last sign that a start went on: weaker, since one of many workers may have failed."""
    answered: int = -1
    """Last answer of the API to anybody."""
    died: int = -1
    stopped: int | None = None
    """First line of an ordered stop."""

    def survived(self, log: ServerLog, line: int) -> bool:
        """Whether the server worked on after this line."""
        if self.died >= line and self.died > self.served:
            return False
        if self.served > line or _concerns_one_answer(log, line):
            return True
        return self.answered > line and _is_of_a_request(log, line)

    def after_stop(self, line: int) -> bool:
        """Whether the line was written after the server was told to stop."""
        return self.stopped is not None and line > self.stopped


def read_life(log: ServerLog) -> Life:
    """Find the signs of life of a log."""
    served = _last(log.everything, _SERVED)
    # A progress bar has no level.
    progressed = max(_last(log.everything, _PROGRESSED), _last(log.errors, _PROGRESS_BAR))
    stops = [
        next((line for line, _ in log.everything.find(_ORDERED_STOP)), None),
        next((line for line, _ in log.errors.find(_INTERRUPTED)), None),
    ]
    return Life(
        served=served,
        progressed=max(served, progressed),
        answered=_last(log.everything, _ANSWERED),
        died=_last(log.errors, _DIED),
        stopped=min((_first_of(log, line) for line in stops if line is not None), default=None),
    )


_TRACEBACK_LINES = 80


def _first_of(log: ServerLog, line: int) -> int:
    """Return the line above the traceback that a line belongs to, else the line itself."""
    for index in range(line - 1, max(-1, line - _TRACEBACK_LINES), -1):
        if _SAYS_NOTHING.match(log.cleaned[index]):
            return index - 1
        if not log.cleaned[index].startswith(("  ", "\t")):
            return line
    return line


def _last(text: LogText, pattern: re.Pattern[str]) -> int:
    return max((line for line, _ in text.find(pattern)), default=-1)


_ANSWER_MODULE = re.compile(
    r"^(?:serving_(?:chat|completion|responses)|\w{1,40}_(?:tool|reasoning)_parser)$"
)


def _concerns_one_answer(log: ServerLog, line: int) -> bool:
    """Whether a module that only forms the answer to one request has logged a line.

    It catches its exception, and the server answers on.
    """
    module = _LOGGED_BY.search(log.raw[line], 0, 200)
    return module is not None and _ANSWER_MODULE.match(module[1]) is not None


def _is_of_a_request(log: ServerLog, line: int) -> bool:
    """Whether a line was logged by the API server for one request."""
    process = log.processes[line].lower()
    if process and "apiserver" not in process.replace("_", ""):
        return False
    near = log.raw[max(0, line - 40) : line + 1]
    return any(_is_from_a_request_module(text) for text in near)


def _is_from_a_request_module(text: str) -> bool:
    if _ASGI in text:
        return True
    module = _LOGGED_BY.search(text, 0, 200)
    return module is not None and _REQUEST_MODULE.match(module[1]) is not None


def _is_error(log: ServerLog, line: int) -> bool:
    cleaned = log.cleaned[line]
    # The cheapest test first: the patterns below need a word or a letter with a date.
    if not _MAY_BE_ERROR.search(log.raw[line]) or not cleaned.strip():
        return False
    if _PYTHON_ERROR.match(cleaned):
        return True
    # The level may stand before the name of the process or behind it.
    return any(_ERROR_LINE.search(text) for text in (strip_foreign(log.raw[line]), cleaned))


def _only_a_broken_answer(log: ServerLog, lines: Collection[int]) -> bool:
    """Whether lines only say that one request ended with an exception, without telling which."""
    told = [log.cleaned[line].strip() for line in lines if _ASGI not in log.cleaned[line]]
    return len(told) < len(lines) and all(_SAYS_NOTHING.match(each) for each in told)


def read_unexplained(log: ServerLog, life: Life, explained: Collection[int]) -> Iterator[Reading]:
    """Yield one reading for the error lines that no rule explains: first, last, how many."""
    lines = [
        line
        for line in log.errors.lines
        if line not in explained
        and _is_error(log, line)
        and not life.survived(log, line)
        and not life.after_stop(line)
    ]
    if not lines or (life.answered >= 0 and _only_a_broken_answer(log, lines)):
        return
    if explained_by := explain_plog([log.cleaned[line] for line in lines]):
        index, meaning = explained_by
        yield Reading(meaning, lines[index], rank=Rank.UNREAD, certain=False)
        return
    for line in lines:
        if said := explain_message(log.cleaned[line].strip()):
            yield Reading(said, line, rank=Rank.UNREAD, certain=False)
            return
    first = next((line for line in lines if not _SAYS_NOTHING.match(log.cleaned[line])), lines[0])
    last = lines[-1]
    processes = sorted({log.processes[line].strip("() ") for line in lines} - {""})
    by = f" from {shorten(', '.join(processes), 120)}" if processes else ""
    many = f"{len(lines)} error lines{by}" if len(lines) > 1 else f"One error line{by}"
    cause = (
        f"{many}, and no known failure explains them. First: `{shorten(log.cleaned[first], 200)}`"
    )
    if last != first:
        cause += f". Last: `{shorten(log.cleaned[last], 200)}`"
    yield Reading(
        reason(
            "unexplained-errors",
            f"{cause}.",
            "Read the log from the first of these lines on; on Ascend also "
            "`~/ascend/log/debug/plog/plog-PID_*.log` of that process.",
            "raylaunch",
            "transient",
        ),
        first,
        rank=Rank.UNREAD,
        certain=False,
    )
