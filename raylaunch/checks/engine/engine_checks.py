"""Checks of what each node's own vLLM made of its servers: refused, warned of, or different."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from raylaunch.checks.check_context import CheckContext, Node, build_context
from raylaunch.checks.engine.setting_search import (
    NAMED,
    Setting,
    find_settings,
    first_of_each,
    missing_flag,
    settings_of,
    text_points,
)
from raylaunch.checks.findings import Finding, Level
from raylaunch.checks.node_checks import shorten_node_names
from raylaunch.checks.secret_checks import MASK, mask_secrets
from raylaunch.plan.engine_answer import EngineAnswer, EngineAnswers, Message, Refusal
from raylaunch.plan.facts import Facts, ProbeFailure
from raylaunch.plan.known_flags import KnownFlags
from raylaunch.plan.launch_plan import LaunchPlan, ServerPlan
from raylaunch.plan.spelling import closest
from raylaunch.recipe.load import LoadedRecipe

_MAX_WORDS = 400
_MAX_NAMED = 3

OF_ONE_SERVER = frozenset({"data_parallel_rank", "data_parallel_local"})
"""Settings that differ between the servers of a group by design."""

_IGNORED = re.compile(
    r"\bignor|\bunsupported\b|not support|no effect|cannot be|adjusted|overrid|overwrit|clamp"
    r"|falls? ?back|resetting",
    re.IGNORECASE,
)
_CHANGED = re.compile(r"\bset(ting)? .*\bto\b|\binstead\b", re.IGNORECASE)
_SWITCHED_OFF = re.compile(r"disabl", re.IGNORECASE)
_DEPRECATED = re.compile(r"deprecat|will be removed", re.IGNORECASE)


@dataclass(frozen=True)
class _Case:
    """A server, the node that it runs on, and what that node's vLLM answered."""

    node: Node
    server: ServerPlan
    answer: EngineAnswer


def check_engines(
    loaded: LoadedRecipe,
    nodes: Sequence[Facts],
    plan: LaunchPlan,
    answers: EngineAnswers,
    found: Sequence[Finding] = (),
) -> Iterator[Finding]:
    """Yield what the dry runs found. Those that failed are in the facts of their nodes.

    Args:
        loaded: The recipe with the origin of each value.
        nodes: Facts that the plan was built from.
        plan: The plan.
        answers: By server.
        found: Findings of the other checks: what they report already is not repeated.
    """
    context = build_context(loaded, nodes, mask_secrets(plan))
    answers = _without_secrets(plan, answers)
    cases = [
        _Case(node, server, answer)
        for node in context.nodes
        for server in node.servers
        if isinstance(answer := answers.get(server.index), EngineAnswer)
    ]
    yield from _not_asked(context, answers)
    yield from _refusals(cases, found)
    yield from _warnings(cases)
    yield from _differences(cases)


def _without_secrets(plan: LaunchPlan, answers: EngineAnswers) -> EngineAnswers:
    """Return the answers without the secrets of the plan, which vLLM may quote."""
    secrets = {
        setting.value
        for server, masked in zip(plan.servers, mask_secrets(plan).servers, strict=True)
        for setting in settings_of(server)
        if len(setting.value) > 3 and setting not in settings_of(masked)
    }
    if not secrets:
        return answers

    def hide(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, MASK)
        return text

    hidden: dict[int, EngineAnswer | ProbeFailure] = {}
    for index, answer in answers.items():
        if isinstance(answer, EngineAnswer):
            refusal = answer.refusal
            if refusal is not None:
                refusal = replace(refusal, words=hide(refusal.words))
            messages = tuple(replace(one, text=hide(one.text)) for one in answer.messages)
            hidden[index] = replace(answer, refusal=refusal, messages=messages)
        else:
            hidden[index] = answer
    return hidden


def _not_asked(context: CheckContext, answers: EngineAnswers) -> Iterator[Finding]:
    """Report servers without an answer on nodes that have a vLLM: their model is not there."""
    for node in context.nodes:
        silent = [server for server in node.servers if server.index not in answers]
        if silent and node.facts.vllm_executable:
            yield Finding(
                id="engine-not-asked",
                level="info",
                what=(
                    f"the engine configuration was not checked on {node.name}: there is no "
                    f"config.json at {context.plan.model}"
                ),
                todo="it is checked once the model is there",
                where=node.facts.ip,
            )


# -- refusals ----------------------------------------------------------------------------------


def _refusals(cases: Sequence[_Case], found: Sequence[Finding]) -> Iterator[Finding]:
    alike: dict[tuple[str, str], list[_Case]] = {}
    for case in cases:
        if case.answer.refusal is not None:
            refusal = case.answer.refusal
            alike.setdefault((refusal.stage, refusal.words), []).append(case)
    for group in alike.values():
        finding = _refused(group)
        if not _is_reported(finding, found):
            yield finding


def _refused(group: Sequence[_Case]) -> Finding:
    first = group[0]
    refusal = first.answer.refusal
    assert refusal is not None
    named = first_of_each(find_settings(refusal, first.server))
    names = shorten_node_names([case.node for case in group])
    subject = f" {named[0]}" if named else " its command line"
    words = shorten_words(refusal.words)
    others = ", ".join(f"{one} ({one.origin})" for one in named[1:_MAX_NAMED])
    return Finding(
        id="engine-refuses",
        level="error",
        what=f"vLLM on {names} refuses{subject}: {words}",
        todo=_remedy(refusal, named, first.node.facts.known_flags),
        where=named[0].origin if named else first.node.facts.ip,
        seen=f"{_as_given(named)} {refusal.kind} at {refusal.stage}"
        + (f"; also involved: {others}" if others else ""),
    )


def _as_given(named: Sequence[Setting]) -> str:
    if not named:
        return ""
    value = named[0].value
    given = f"{named[0]}={value}" if len(value) < 120 else str(named[0])
    return f"{given};"


def _is_reported(finding: Finding, found: Sequence[Finding]) -> bool:
    """Return whether another check reports the same flag already, in words of its own."""
    ids = ("unknown-flag", "flag-value", "unknown-parser", "dead-flag")
    return any(one.id in ids and one.where == finding.where for one in found)


def _remedy(refusal: Refusal, named: Sequence[Setting], known: KnownFlags | None) -> str:
    if not named:
        missing = missing_flag(refusal.words, known.flags if known is not None else ())
        if missing:
            return f"it is about {missing}, which is not given"
        return "correct the recipe; `raylaunch plan` shows the command line"
    near = nearest_valid(refusal, named[0], known)
    if near:
        return f"did you mean {near}?"
    return "correct it there, or take it out"


def nearest_valid(refusal: Refusal, setting: Setting, known: KnownFlags | None) -> str:
    """Return the nearest valid name or value for a refused setting; "" when none is near."""
    flag = setting.name.removeprefix("--")
    if setting.path:
        siblings = _siblings(refusal, setting, known)
        key = setting.path[-1]
        if siblings and key not in siblings:
            return _near(key, siblings)
    elif known is not None and setting.name.startswith("--") and flag not in known.flags:
        near = closest(flag, known.flags)
        return f"--{near}" if near else ""
    allowed = refusal.choices.get(flag, {}).get(setting.own_name, ())
    values = [*allowed, *listed_values(refusal.words)]
    if setting.value in values:
        return ""
    return _near(setting.value, values)


def _siblings(refusal: Refusal, setting: Setting, known: KnownFlags | None) -> tuple[str, ...]:
    """Return the valid keys beside the one of `setting`; () when they are not known."""
    flag = setting.name.removeprefix("--")
    if flag == "additional-config" and known is not None:
        if len(setting.path) == 1:
            return known.config_keys
        return known.config_keys_below.get(setting.path[0], ())
    return tuple(refusal.choices.get(flag, {})) if len(setting.path) == 1 else ()


def _near(word: str, words: Sequence[str]) -> str:
    """Return the nearest word, with case ignored, or one that contains it."""
    folded = {one.lower(): one for one in words}
    near = closest(word.lower(), folded)
    if near:
        return folded[near]
    longer = [one for one in folded if len(word) > 3 and word.lower() in one]
    return folded[min(longer, key=len)] if longer else ""


def listed_values(words: str) -> list[str]:
    """Return the values that a message lists as valid.

    argparse: `(choose from 'a', 'b')`; vLLM: `(chose from { a,b })`, `Available parsers: a, b`;
    pydantic: `Input should be 'a', 'b' or 'c'`.
    """
    lists = re.findall(
        r"(?:choo?se from|[Aa]vailable \w+:|should be|[Mm]ust be one of|[Vv]alid \w+ are)"
        r" *([^()\[\];]{1,4000})",
        words,
    )
    values: list[str] = []
    for text in lists:
        quoted = re.findall(r"'([^']+)'", text)
        plain = re.findall(r"[\w.+-]+", text.strip("{ }"))
        values += quoted or (plain if "," in text else [])
    return values


def shorten_words(words: str) -> str:
    """Return a message as one line of bounded length, without long lists of values."""
    text = " ".join(words.split())
    text = re.sub(r"((?:choo?se from|[Aa]vailable \w+:) *[^)]{60})[^)]+", r"\1 ...", text)
    return text if len(text) <= _MAX_WORDS else f"{text[:_MAX_WORDS]} ..."


# -- warnings ----------------------------------------------------------------------------------


def _warnings(cases: Sequence[_Case]) -> Iterator[Finding]:
    """Yield each message that is about a setting of the recipe once, with its nodes."""
    nodes: dict[tuple[Message, Setting], list[Node]] = {}
    for case in cases:
        settings = [one for one in settings_of(case.server) if _is_of_the_recipe(one)]
        for message in case.answer.messages:
            setting = _subject(message, settings)
            if setting is not None:
                nodes.setdefault((message, setting), []).append(case.node)
    for (message, setting), where in nodes.items():
        level = judge_message(message)
        if level is not None:
            yield _message_finding(message, level, setting, shorten_node_names(where))


def _message_finding(message: Message, level: Level, setting: Setting, names: str) -> Finding:
    words = shorten_words(message.text)
    seen = _as_given([setting]).removesuffix(";")
    if _DEPRECATED.search(message.text):
        return Finding(
            id="engine-deprecated",
            level=level,
            what=f"vLLM on {names}: {words}",
            todo="it works with this version; the next one may refuse it",
            where=setting.origin,
            seen=seen,
        )
    return Finding(
        id="engine-warns",
        level=level,
        what=f"vLLM on {names}: {words}",
        todo="take it out, or accept what vLLM makes of it",
        where=setting.origin,
        seen=seen,
    )


def judge_message(message: Message) -> Level | None:
    """Return the level of a finding for a message; None for one that changes nothing.

    Deprecated is a note: it works with the vLLM of the node. A setting that is ignored or not
    supported is a warning where vLLM itself warns. What a setting changes or switches off may be
    what it is for, so that is a note.
    """
    if _DEPRECATED.search(message.text):
        return "info"
    vllm_warns = message.level in ("warning", "error", "critical")
    if _IGNORED.search(message.text):
        return "warning" if vllm_warns else "info"
    if _CHANGED.search(message.text) or (vllm_warns and _SWITCHED_OFF.search(message.text)):
        return "info"
    return None


def _subject(message: Message, settings: Sequence[Setting]) -> Setting | None:
    if judge_message(message) is None:
        return None
    scored = [(text_points(message.text, one), one) for one in settings]
    best = max(scored, key=lambda one: one[0], default=(0, None))
    return best[1] if best[0] >= NAMED else None


def _is_of_the_recipe(setting: Setting) -> bool:
    """Return whether the recipe or its user chose a setting; about others nothing can be done."""
    return setting.name != "MODEL" and not setting.origin.startswith(("raylaunch", "node", "Ray"))


# -- the group ---------------------------------------------------------------------------------


def _differences(cases: Sequence[_Case]) -> Iterator[Finding]:
    """Find settings that vLLM made different on servers of one data-parallel group."""
    accepted = [case for case in cases if case.answer.became]
    if len(accepted) < 2:
        return
    names = dict.fromkeys(name for case in accepted for name in case.answer.became)
    for name in names:
        values = {case.server.index: case.answer.became.get(name, "-") for case in accepted}
        if name in OF_ONE_SERVER or len(set(values.values())) == 1:
            continue
        listed = ", ".join(f"server {index}: {value}" for index, value in values.items())
        yield Finding(
            id="engine-differs",
            level="error",
            what=f"the servers of the group would run with different {name}: {listed}",
            todo=(
                "install one version of vLLM and one copy of the model everywhere, "
                "or set the value in the recipe"
            ),
            seen=listed,
        )
