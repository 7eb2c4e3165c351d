"""Where a starting server is, read from its log: one pure function from a line to the next stage.

The lines are those of vLLM 0.32 (measured, dense dp=2 on CPU), with the wordings that vLLM 0.23 and vllm-ascend use
where they differ. A server prints nothing that says "headless server ready": its last line is `init engine (...)`.
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
"""In order. A headless server ends at "engine up"; a primary passes from "warm-up" to "API up"."""


@dataclass(frozen=True)
class StartupProgress:
    """How far one server is.

    `detail` is for people ("3/47 shards"). `at` is the time stamp of the line as the log has it ("11-23 20:26:51",
    no year, the node's own clock), "" when the line carries none.
    """

    stage: Stage = "spawned"
    detail: str = ""
    at: str = ""
    headless_engines: int = 0
    """Engines that a headless server said it launches; 0: a primary, or not known yet."""
    engines_up: int = 0

    @property
    def done(self) -> bool:
        """Whether the log has shown all that a server of this role ever shows."""
        return self.stage in ("engine up", "API up")


def advance(progress: StartupProgress, line: str) -> StartupProgress:
    """Return the progress after `line`. A stage never goes backwards; a line that says nothing changes nothing.

    A progress bar redraws itself with carriage returns, so one line may hold many states; they are read in order.
    """
    for part in re.split(r"[\r\n]+", line):
        progress = _advance_part(progress, part)
    return progress


def advance_all(progress: StartupProgress, lines: Iterable[str]) -> StartupProgress:
    """`advance` over many lines."""
    for line in lines:
        progress = advance(progress, line)
    return progress


def hang_lines(line: str) -> bool:
    """Whether `line` is vLLM's own sign of stuck workers. One alone is normal in a compile or a long prefill."""
    return "No available shared memory broadcast block found" in line


_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PROCESS = re.compile(r"^(?:\([^()]* pid=\d+(?:, [^()]*)?\)\s*)+")
_LOGGER = re.compile(r"^[A-Z]+ (?P<at>\d\d-\d\d \d\d:\d\d:\d\d)\S* (?:\[[^\]]*\] )?")
_UVICORN = re.compile(r"^INFO:\s+")
_BAR = re.compile(r"\| (?P<done>\d+)/(?P<total>\d+) \[")


def _advance_part(progress: StartupProgress, part: str) -> StartupProgress:
    body, at = _strip(part)
    for pattern, step in _STEPS:
        match = pattern.match(body)
        if match:
            return _keep_order(progress, replace(step(progress, match), at=at))
    return progress


def _strip(part: str) -> tuple[str, str]:
    """Take colours, the process prefix and the logger's head from a line; return the message and its time stamp."""
    body = _PROCESS.sub("", _ANSI.sub("", part).strip())
    head = _LOGGER.match(body)
    if head:
        return body[head.end() :], head["at"]
    return _UVICORN.sub("", body), ""


def _keep_order(before: StartupProgress, after: StartupProgress) -> StartupProgress:
    order = STAGES.index(after.stage) - STAGES.index(before.stage)
    if order < 0 or (order == 0 and _shards_fall(before.detail, after.detail)):
        return before
    return after if after.at else replace(after, at=before.at)


def _shards_fall(before: str, after: str) -> bool:
    """Whether the bar of a second engine on the same server is behind the one already shown."""
    counts = [re.match(r"(\d+)/(\d+) ", detail) for detail in (before, after)]
    old, new = counts
    return bool(old and new and old[2] == new[2] and int(new[1]) < int(old[1]))


def _launch_headless(progress: StartupProgress, match: re.Match[str]) -> StartupProgress:
    # This line precedes the handshake: a headless server waits here, silently, for a primary that is late.
    detail = f"waits for the primary at {match['address']}"
    return replace(
        progress, stage="engine connected", detail=detail, headless_engines=int(match["n"])
    )


def _connect(progress: StartupProgress, match: re.Match[str]) -> StartupProgress:
    return replace(progress, stage="engine connected", detail=f"vLLM {match['version']}")


def _load(progress: StartupProgress, match: re.Match[str]) -> StartupProgress:
    bar = _BAR.search(match.string)
    return replace(
        progress, stage="weights", detail=f"{bar['done']}/{bar['total']} shards" if bar else ""
    )


def _capture(progress: StartupProgress, match: re.Match[str]) -> StartupProgress:
    bar = _BAR.search(match.string)
    return replace(
        progress,
        stage="warm-up",
        detail=f"{bar['done']}/{bar['total']} graphs" if bar else "graphs",
    )


def _finish_engine(progress: StartupProgress, match: re.Match[str]) -> StartupProgress:
    up = progress.engines_up + 1
    all_up = bool(progress.headless_engines) and up >= progress.headless_engines
    detail = f"engine ready in {float(match['s']):.1f} s"
    return replace(
        progress, stage="engine up" if all_up else "warm-up", detail=detail, engines_up=up
    )


def _warm_up(text: str) -> Callable[[StartupProgress, re.Match[str]], StartupProgress]:
    return lambda progress, match: replace(progress, stage="warm-up", detail=match.expand(text))


def _api_up(progress: StartupProgress, _match: re.Match[str]) -> StartupProgress:
    return replace(progress, stage="API up", detail="")


_STEPS: tuple[
    tuple[re.Pattern[str], Callable[[StartupProgress, re.Match[str]], StartupProgress]], ...
] = (
    (
        re.compile(
            r"Launching (?P<n>\d+) data parallel engine\(s\).* address (?P<address>\S+?)\.?$"
        ),
        _launch_headless,
    ),
    (re.compile(r"Initializing a V1 LLM engine \((?P<version>v[^)]*)\)"), _connect),
    (re.compile(r"Starting to load model "), _load),
    (
        re.compile(r"(?:Loading|Multi-thread loading) (?:\w+ )?(?:checkpoint )?shards.*:\s+\d+%"),
        _load,
    ),
    (re.compile(r"Loading safetensors using .*:\s+\d+%"), _load),
    (re.compile(r"Loading weights took (?P<s>[\d.]+) seconds"), _warm_up(r"weights took \g<s> s")),
    (
        re.compile(r"Loading model weights took (?P<gb>[\d.]+) GB"),
        _warm_up(r"weights: \g<gb> GB"),
    ),  # vllm-ascend
    (
        re.compile(r"Model loading took .*? and (?P<s>[\d.]+) seconds"),
        _warm_up(r"model took \g<s> s"),
    ),
    (re.compile(r"(?:Start compiling|Dynamo bytecode|torch\.compile t)"), _warm_up("compiling")),
    (re.compile(r"Available KV cache memory"), _warm_up("profiled")),
    (
        re.compile(r"\w+ KV cache size: (?P<n>[\d,]+) tokens"),
        _warm_up(r"KV cache for \g<n> tokens"),
    ),
    (re.compile(r"Capturing (?:CUDA|ACL|NPU) graphs"), _capture),
    (re.compile(r"Graph capturing finished in (?P<s>\d+) secs"), _warm_up(r"graphs took \g<s> s")),
    (re.compile(r"init engine \(.*\) took (?P<s>[\d.]+) s"), _finish_engine),
    (re.compile(r"Application startup complete"), _api_up),
)
"""First match wins. Patterns are anchored to the start of the message: the configuration dump names many of them."""
