"""Reads how far a starting server is from its log: a pure function from one line to the next stage.

The lines are those of vLLM 0.32 (measured, dense dp=2 on CPU), with the wordings of vLLM 0.23 and
vllm-ascend where they differ. Another vLLM may word a line differently, so a stage seen here is a
hint for people and may only accelerate a probe: whether the API answers is asked of `/health`.
A headless server prints nothing that says "ready": its last line is `init engine (...)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

Stage = Literal["spawned", "engine connected", "weights", "warm-up", "engine up", "API up"]
STAGES: tuple[Stage, ...] = (
    "spawned",
    "engine connected",
    "weights",
    "warm-up",
    "engine up",
    "API up",
)
"""In order. A headless server stops at "engine up"; a primary passes from "warm-up" to "API up"."""

MAX_LINE = 4096
"""Characters of a line that are read. The longest stage line of vLLM 0.32 has about 300."""


@dataclass(frozen=True)
class StartupProgress:
    """How far one server has started.

    `detail` is for people ("3/47 shards"). `at` is the time stamp of the line as logged
    ("11-23 20:26:51": no year, the node's wall clock), "" if the line carries none.
    """

    stage: Stage = "spawned"
    detail: str = ""
    at: str = ""
    headless_engines: int = 0
    """Engines that a headless server said it launches; 0 for a primary, or if not known yet."""
    engines_up: int = 0

    @property
    def done(self) -> bool:
        """Whether the log has shown the last stage of a server of this role."""
        return self.stage in ("engine up", "API up")


def advance(progress: StartupProgress, line: str) -> StartupProgress:
    """Return the progress after `line`. A stage never goes backwards.

    A progress bar redraws itself with carriage returns, so one line may hold many states: they are
    read in order.
    """
    for part in re.split(r"[\r\n]+", line):
        progress = _advance_part(progress, part[:MAX_LINE])
    return progress


def advance_all(progress: StartupProgress, lines: Iterable[str]) -> StartupProgress:
    """Return the progress after all `lines`."""
    for line in lines:
        progress = advance(progress, line)
    return progress


def hang_lines(line: str) -> bool:
    """Return whether `line` is vLLM's notice of workers that do not answer.

    A single notice is normal during a compilation or a long prefill.
    """
    return "No available shared memory broadcast block found" in line


_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PROCESS = re.compile(r"\([^()]* pid=\d+(?:, [^()]*)?\)\s*")
_LOGGER = re.compile(r"[A-Z]+ (?P<at>\d\d-\d\d \d\d:\d\d:\d\d)\S* (?:\[[^\]]*\] )?")
_UVICORN = re.compile(r"INFO:\s+")
_BAR = re.compile(r"\| (?P<done>\d+)/(?P<total>\d+) \[")
_SHARDS = re.compile(r"(?P<done>\d+)/(?P<total>\d+) ")
_NUMBER = r"\d+(?:\.\d+)?"
"""A number as vLLM prints it. `1.2.3` does not match, so no line can fail to be converted."""

Step = Callable[[StartupProgress, re.Match[str]], StartupProgress]


def _advance_part(progress: StartupProgress, part: str) -> StartupProgress:
    message, at = _strip(part)
    for pattern, step in _STEPS:
        match = pattern.match(message)
        if match:
            after = replace(step(progress, match), at=at)
            return _keep_order(progress, after)
    return progress


def _strip(part: str) -> tuple[str, str]:
    """Return the message without colours, process prefixes and logger head, and its time stamp."""
    body = _ANSI.sub("", part).strip()
    # A line carries one prefix per level of processes: API server, engine core, worker.
    while prefix := _PROCESS.match(body):
        body = body[prefix.end() :]
    head = _LOGGER.match(body)
    if head:
        return body[head.end() :], head["at"]
    uvicorn = _UVICORN.match(body)
    if uvicorn:
        return body[uvicorn.end() :], ""
    return body, ""


def _keep_order(before: StartupProgress, after: StartupProgress) -> StartupProgress:
    order = STAGES.index(after.stage) - STAGES.index(before.stage)
    if order < 0:
        return before
    if order == 0 and _is_behind(after.detail, before.detail):
        return before
    if not after.at:
        return replace(after, at=before.at)
    return after


def _is_behind(new: str, shown: str) -> bool:
    """Return whether `new` is the bar of a second engine on this server, behind the shown one."""
    new_bar = _SHARDS.match(new)
    shown_bar = _SHARDS.match(shown)
    if new_bar is None or shown_bar is None:
        return False
    same_total = new_bar["total"] == shown_bar["total"]
    return same_total and int(new_bar["done"]) < int(shown_bar["done"])


def _launch_headless(progress: StartupProgress, match: re.Match[str]) -> StartupProgress:
    # This line precedes the handshake: a headless server waits here, silently, for a late primary.
    return replace(
        progress,
        stage="engine connected",
        detail=f"waits for the primary at {match['address']}",
        headless_engines=int(match["n"]),
    )


def _connect(progress: StartupProgress, match: re.Match[str]) -> StartupProgress:
    return replace(progress, stage="engine connected", detail=f"vLLM {match['version']}")


def _load(progress: StartupProgress, match: re.Match[str]) -> StartupProgress:
    detail = _bar_of(match, "shards")
    return replace(progress, stage="weights", detail=detail)


def _capture(progress: StartupProgress, match: re.Match[str]) -> StartupProgress:
    detail = _bar_of(match, "graphs") or "graphs"
    return replace(progress, stage="warm-up", detail=detail)


def _bar_of(match: re.Match[str], what: str) -> str:
    """Return the count of a progress bar in the line, "" if there is none."""
    bar = _BAR.search(match.string)
    if bar is None:
        return ""
    return f"{bar['done']}/{bar['total']} {what}"


def _finish_engine(progress: StartupProgress, match: re.Match[str]) -> StartupProgress:
    engines_up = progress.engines_up + 1
    expected = progress.headless_engines
    all_up = expected > 0 and engines_up >= expected
    return replace(
        progress,
        # A primary's last stage is its API, so only a headless server is "engine up" here.
        stage="engine up" if all_up else "warm-up",
        detail=f"engine ready in {float(match['s']):.1f} s",
        engines_up=engines_up,
    )


def _warm_up(template: str) -> Step:
    """Return a step to "warm-up" whose detail is `template`, filled from the match."""

    def step(progress: StartupProgress, match: re.Match[str]) -> StartupProgress:
        return replace(progress, stage="warm-up", detail=match.expand(template))

    return step


def _api_up(progress: StartupProgress, _match: re.Match[str]) -> StartupProgress:
    return replace(progress, stage="API up", detail="")


# First match wins. Patterns match at the start of the message, because vLLM's dump of its
# configuration contains many of these words. `[^:]*` instead of `.*` keeps them linear.
_STEPS: tuple[tuple[re.Pattern[str], Step], ...] = (
    (
        re.compile(
            r"Launching (?P<n>\d{1,6}) data parallel engine\(s\)[^:]* address (?P<address>\S+?)\.?$"
        ),
        _launch_headless,
    ),
    (re.compile(r"Initializing a V1 LLM engine \((?P<version>v[^)]*)\)"), _connect),
    (re.compile(r"Starting to load model "), _load),
    (
        re.compile(
            r"(?:Loading|Multi-thread loading) (?:\w+ )?(?:checkpoint )?shards[^:]*:\s+\d+%"
        ),
        _load,
    ),
    (re.compile(r"Loading safetensors using [^:]*:\s+\d+%"), _load),
    (
        re.compile(rf"Loading weights took (?P<s>{_NUMBER}) seconds"),
        _warm_up(r"weights took \g<s> s"),
    ),
    # vllm-ascend's wording of the line above.
    (
        re.compile(rf"Loading model weights took (?P<gb>{_NUMBER}) GB"),
        _warm_up(r"weights: \g<gb> GB"),
    ),
    (
        re.compile(rf"Model loading took .*? and (?P<s>{_NUMBER}) seconds"),
        _warm_up(r"model took \g<s> s"),
    ),
    (re.compile(r"(?:Start compiling|Dynamo bytecode|torch\.compile t)"), _warm_up("compiling")),
    (re.compile(r"Available KV cache memory"), _warm_up("profiled")),
    (
        re.compile(r"\w{1,20} KV cache size: (?P<n>[\d,]+) tokens"),
        _warm_up(r"KV cache for \g<n> tokens"),
    ),
    (re.compile(r"Capturing (?:CUDA|ACL|NPU) graphs"), _capture),
    (re.compile(r"Graph capturing finished in (?P<s>\d+) secs"), _warm_up(r"graphs took \g<s> s")),
    (re.compile(rf"init engine \(.*\) took (?P<s>{_NUMBER}) s"), _finish_engine),
    (re.compile(r"Application startup complete"), _api_up),
)
