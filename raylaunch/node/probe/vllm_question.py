"""Questions to an installed vLLM: which one is asked, how, and where its answers are cached.

A question costs an import of vLLM. So it runs in a process of its own (`ask_vllm.py`, with vLLM's
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raylaunch.errors import NodeError
from raylaunch.node.probe import software, tool_text
from raylaunch.node.probe.vllm_cpu_metadata import ensure_vllm_metadata
from raylaunch.plan.environment import cpu_metadata_dir
from raylaunch.plan.facts import Facts

log = logging.getLogger(__name__)

QUESTION = Path(__file__).with_name("ask_vllm.py")
_VERSIONS = ("vllm", "vllm-cpu", "vllm-ascend")
_HEAD_BYTES = 4096
_MESSAGE_CHARS = 300

UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""What reading JSON of the wrong shape raises. RecursionError: brackets nested too deep."""


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


@dataclass
class RawAnswers:
    """What the process printed, as JSON values. `failure` is "" when it answered everything."""

    names: object = None
    engines: dict[str, object] = field(default_factory=dict)
    failure: str = ""


def find(env: Mapping[str, str], state_dir: Path) -> Vllm | None:
    """Find the command that a server is started with: $RAYLAUNCH_VLLM, or as the probe does."""
    executable = software.find_vllm(env)
    named = env.get("RAYLAUNCH_VLLM")
    if named:
        executable = shutil.which(named) or named
    if not executable:
        return None
    return Vllm(executable, software.read_versions(env), state_dir)


def put_question(
    vllm: Vllm,
    env: Mapping[str, str],
    *,
    names: bool,
    argvs: Mapping[str, Sequence[str]],
    timeout_s: float,
    niceness: int = 0,
) -> RawAnswers:
    """Ask a vLLM for its names, and for the configuration of each command line.

    Takes 7 s and 540 MiB on a quiet machine (measured, vLLM 0.32 on CPU), and 1 to 3 s more for
    each command line (vLLM 0.23 with vllm-ascend).

    Args:
        vllm: The vLLM to ask.
        env: The environment of the server.
        names: Whether to list flags, parsers, variables and keys.
        argvs: Command lines, by a name that the answer repeats.
        timeout_s: After this many seconds the process group of the question is killed.
        niceness: 19 for a question in the background.

    Raises:
        NodeError: No Python is known for this vLLM, or it cannot be run.
    """
    command = [*interpreter(vllm.executable), str(QUESTION)]
    question = json.dumps({"names": names, "argvs": argvs})
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="raylaunch-ask-") as folder:
        # vllm-ascend 0.23 writes files of additional-config into the working folder.
        environment = _environment(vllm, env)
        out, failure = _run(command, question, environment, folder, timeout_s, niceness)
    log.info("%s answered in %.1f s", vllm.executable, time.monotonic() - began)
    return _parse(out, failure)


def _parse(text: str, failure: str) -> RawAnswers:
    answers = RawAnswers(failure=failure)
    try:
        for line in text.splitlines():
            value = json.loads(line)
            if "names" in value:
                answers.names = value["names"]
            else:
                answers.engines[value["server"]] = value["engine"]
    except UNREADABLE as error:
        answers.failure = failure or f"vLLM's answer cannot be read: {error!r}"
    return answers


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
        others = [one for one in kept.get("PYTHONPATH", "").split(os.pathsep) if one]
        kept["PYTHONPATH"] = os.pathsep.join(dict.fromkeys((folder, *others)))
    return kept


def _run(
    command: list[str],
    question: str,
    env: dict[str, str],
    folder: str,
    timeout_s: float,
    niceness: int,
) -> tuple[str, str]:
    """Run the question; return its stdout, and why it did not answer everything ("" if it did).

    It exits when the other end of its stdin closes, so also when this process is killed.
    """
    theirs, ours = os.pipe()
    try:
        process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=folder,
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
        if niceness:
            _lower_priority(process.pid, niceness)
        # A question has a few kilobytes, and a pipe takes 64: this never blocks.
        with contextlib.suppress(BrokenPipeError):
            os.write(ours, f"{question}\n".encode())
        return _await(process, timeout_s)
    finally:
        os.close(ours)


def _await(process: subprocess.Popen[str], timeout_s: float) -> tuple[str, str]:
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        return tool_text.clean(out), f"no answer in {timeout_s:g} s"
    failure = ""
    if process.returncode != 0:
        lines = [line for line in tool_text.clean(err).splitlines() if line.strip()]
        last = lines[-1][-_MESSAGE_CHARS:] if lines else "no output"
        failure = f"asking vLLM failed with code {process.returncode}: {last}"
    return tool_text.clean(out), failure


def _lower_priority(pid: int, niceness: int) -> None:
    """Set the niceness of a process and of its session.

    Outside of a container the kernel weighs whole sessions (autogroups), and the niceness of a
    process counts within its session only.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))


def store(path: Path, answer: object, kept: int) -> None:
    """Cache an answer as JSON, and remove the oldest ones of its folder.

    It is put in place by a rename, so no reader gets half of it.

    Raises:
        OSError: The folder cannot be written.
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
        json.dump(answer, scratch)
    os.replace(scratch.name, path)  # noqa: PTH105
    newest_first = sorted(
        path.parent.iterdir(),
        key=lambda file: file.stat().st_mtime,
        reverse=True,
    )
    for old in newest_first[kept:]:
        old.unlink(missing_ok=True)
