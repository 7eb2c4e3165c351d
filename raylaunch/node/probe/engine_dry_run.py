"""The dry run: what this node's own vLLM makes of the servers of a plan, before any is started.

An accepted command line is cached by what the answer depends on: the vLLM, the command line, the
environment, and the files that the command line names. A refusal is not: what it is about may lie
outside of these.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict, cast

from raylaunch.errors import NodeError
from raylaunch.node.probe import vllm_flags
from raylaunch.node.probe.vllm_question import (
    UNREADABLE,
    RawAnswers,
    Vllm,
    find,
    put_question,
    store,
)
from raylaunch.node.process.server_env import put_first_in_path, unmarked_env
from raylaunch.plan.engine_answer import EngineAnswer, EngineReport, Message, Refusal
from raylaunch.plan.facts import ProbeFailure
from raylaunch.plan.known_flags import KnownFlags
from raylaunch.plan.launch_plan import LaunchPlan, ServerPlan

log = logging.getLogger(__name__)

FOLDER = "vllm-engine"
"""Below the node's state folder; one file per accepted command line."""
KEPT = 32
PROBE = "vLLM's engine configuration"
DRY_RUN_TIMEOUT_S = 300.0
"""For a dry run in the foreground. The first one of a model class may take 100 s: vLLM inspects
the class in a process of its own, and caches that (measured, vLLM 0.23)."""

_OF_THE_CALLER = frozenset({"PWD", "OLDPWD", "SHLVL", "_", "TERM", "COLUMNS", "LINES"})
"""Variables of the shell that started the program; no vLLM reads them."""


class _Answer(TypedDict, total=False):
    """The JSON that `ask_vllm.py` prints for a command line."""

    became: dict[str, str]
    refusal: dict[str, object]
    messages: list[dict[str, str]]
    crashed: str


def dry_run(
    plan: LaunchPlan,
    servers: Sequence[int],
    environ: Mapping[str, str],
    state_dir: Path,
    *,
    timeout_s: float = DRY_RUN_TIMEOUT_S,
    niceness: int = 0,
) -> EngineReport:
    """Have this node's vLLM build the engine configuration of servers that run on this node.

    No device is opened, and nothing is started but one process per environment, which imports vLLM
    once. Secrets of the recipe are not in its environment.

    Args:
        plan: The plan.
        servers: Indices of the servers.
        environ: What a server on this node inherits.
        state_dir: The node's state folder, with the cache.
        timeout_s: Limits each process.
        niceness: 19 for a dry run in the background.
    """
    vllm = find(environ, state_dir)
    if vllm is None:
        return EngineReport()
    known: KnownFlags | ProbeFailure | None = vllm_flags.recall(vllm)
    answers: dict[int, EngineAnswer | ProbeFailure] = {}
    for env, members in _by_environment(plan, servers, environ, vllm):
        missing: dict[str, tuple[str, ...]] = {}
        for server in members:
            recalled = recall(vllm, env, server.argv)
            if recalled is not None:
                answers[server.index] = recalled
            elif has_model(server):
                missing[str(server.index)] = server.argv
        if missing:
            raw = _put(vllm, env, known is None, missing, timeout_s, niceness)
            known = known or vllm_flags.read_answer(vllm, raw.names)
            answers.update(_read_answers(vllm, env, raw, missing))
    if known is None and not answers:
        # No model is here: the flags can be judged all the same.
        known = vllm_flags.answer(vllm, environ, timeout_s, niceness)
    return EngineReport(answers, known)


def has_model(server: ServerPlan) -> bool:
    """Return whether the configuration of the server's model is on this node.

    Without it vLLM would ask a hub, and refuse for a reason that is not the command line's.
    """
    return (Path(_model(server.argv)) / "config.json").is_file()


def recall(vllm: Vllm, env: Mapping[str, str], argv: Sequence[str]) -> EngineAnswer | None:
    """Return the cached answer of this vLLM, in milliseconds; None when there is none."""
    try:
        text = _cache_file(vllm, env, argv).read_text(encoding="utf-8")
        return _engine_answer(json.loads(text))
    except (OSError, *UNREADABLE):
        return None


def _by_environment(
    plan: LaunchPlan, servers: Sequence[int], environ: Mapping[str, str], vllm: Vllm
) -> list[tuple[dict[str, str], list[ServerPlan]]]:
    """Group servers with equal environments: they share one import of vLLM."""
    groups: list[tuple[dict[str, str], list[ServerPlan]]] = []
    for index in servers:
        server = plan.servers[index]
        env = unmarked_env(environ, server.environ, server.unset)
        env = put_first_in_path(env, vllm.executable)
        for other, members in groups:
            if other == env:
                members.append(server)
                break
        else:
            groups.append((env, [server]))
    return groups


def _put(
    vllm: Vllm,
    env: Mapping[str, str],
    names: bool,
    argvs: Mapping[str, Sequence[str]],
    timeout_s: float,
    niceness: int,
) -> RawAnswers:
    try:
        return put_question(
            vllm, env, names=names, argvs=argvs, timeout_s=timeout_s, niceness=niceness
        )
    except NodeError as error:
        reasons = [part for part in (error.what, error.why) if part]
        return RawAnswers(failure=": ".join(reasons))


def _read_answers(
    vllm: Vllm, env: Mapping[str, str], raw: RawAnswers, argvs: Mapping[str, Sequence[str]]
) -> dict[int, EngineAnswer | ProbeFailure]:
    answers: dict[int, EngineAnswer | ProbeFailure] = {}
    for server, argv in argvs.items():
        content = raw.engines.get(server)
        if content is None:
            reason = raw.failure or "vLLM gave no answer"
            answers[int(server)] = ProbeFailure(PROBE, reason)
            continue
        try:
            answer = _engine_answer(content)
        except UNREADABLE as error:
            answers[int(server)] = ProbeFailure(PROBE, f"the answer cannot be read: {error!r}")
            continue
        answers[int(server)] = answer
        if isinstance(answer, EngineAnswer) and answer.refusal is None:
            _cache(vllm, env, argv, answer)
    return answers


def _engine_answer(content: object) -> EngineAnswer:
    """Build an answer from JSON; content of another shape raises one of `UNREADABLE`."""
    values = cast("_Answer", content)
    if values.get("crashed"):
        raise ValueError(f"the process of the dry run died, {values['crashed']}")
    messages = [Message(one["level"], one["text"]) for one in values["messages"]]
    refusal = _refusal(values["refusal"]) if values.get("refusal") else None
    became = {name: str(value) for name, value in values.get("became", {}).items()}
    if refusal is None and not became:
        raise ValueError("neither a configuration nor a refusal")
    return EngineAnswer(became, refusal, tuple(messages))


def _refusal(values: Mapping[str, object]) -> Refusal:
    choices = cast("Mapping[str, Mapping[str, Sequence[str]]]", values["choices"])
    return Refusal(
        stage=str(values["stage"]),
        kind=str(values["kind"]),
        words=str(values["words"]),
        fields=_texts_in(values["fields"]),
        conditions=_texts_in(values["conditions"]),
        files=_texts_in(values["files"]),
        choices={
            flag: {key: tuple(allowed) for key, allowed in keys.items()}
            for flag, keys in choices.items()
        },
    )


def _texts_in(values: object) -> tuple[str, ...]:
    return tuple(map(str, cast("Sequence[object]", values)))


# -- the cache ---------------------------------------------------------------------------------


def _cache(vllm: Vllm, env: Mapping[str, str], argv: Sequence[str], answer: EngineAnswer) -> None:
    content = {
        "became": dict(answer.became),
        "messages": [asdict(message) for message in answer.messages],
    }
    try:
        store(_cache_file(vllm, env, argv), content, KEPT)
    except OSError as error:
        log.warning("cannot cache the engine configuration of %s: %s", vllm.executable, error)


def _cache_file(vllm: Vllm, env: Mapping[str, str], argv: Sequence[str]) -> Path:
    variables = sorted(one for one in env.items() if one[0] not in _OF_THE_CALLER)
    parts = [vllm.key, list(argv), variables, sorted(_named_files(argv))]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
    return vllm.state_dir / FOLDER / f"{digest}.json"


def _named_files(argv: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Yield path, size and time of change of the files that a command line names.

    Of a folder these are its JSON files: config.json of a model, and the description of its
    quantisation.
    """
    for text in _texts(argv):
        if not text.startswith("/"):
            continue
        path = Path(text)
        try:
            files = sorted(path.glob("*.json")) if path.is_dir() else [path]
            for file in files:
                status = file.stat()
                yield str(file), status.st_size, status.st_mtime_ns
        except (OSError, ValueError):  # ValueError: a null character in a name
            yield text, -1, 0


def _texts(argv: Sequence[str]) -> Iterator[str]:
    """Yield the words, and the texts inside of those that are JSON."""
    for word in argv:
        yield word
        if word.startswith("{"):
            try:
                values = [json.loads(word)]
            except (ValueError, RecursionError):
                continue
            while values:
                value = values.pop()
                if isinstance(value, str):
                    yield value
                elif isinstance(value, dict):
                    values += value.values()
                elif isinstance(value, list):
                    values += value


def _model(argv: Sequence[str]) -> str:
    """Return the positional word of `vllm serve MODEL`, which the planner puts first."""
    return argv[2] if len(argv) > 2 else ""
