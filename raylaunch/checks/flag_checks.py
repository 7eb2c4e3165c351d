"""Checks of the plan's flags against the vLLM that is installed on each server's node.

vLLM refuses a wrong flag too, but some 12 s after its start (measured), and names no host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raylaunch.checks.check_context import CheckContext, Node
from raylaunch.checks.findings import Finding
from raylaunch.checks.node_checks import shorten_node_names
from raylaunch.plan.known_flags import KnownFlags, nearest
from raylaunch.plan.launch_plan import Flag

_PARSERS = {
    "tool-call-parser": ("tool", "tool-parser-plugin"),
    "reasoning-parser": ("reasoning", "reasoning-parser-plugin"),
}
"""Flag -> the kind of parser it names, and the flag of a plug-in that may register more of them.

With such a plug-in the names are unknown before the start.
"""


def check_known_flags(context: CheckContext) -> Iterator[Finding]:
    """Find flags that a node's own vLLM does not know: the server exits before it reads weights."""
    for flag, nodes in _planned_flags(context).items():
        name = _name(flag)
        without = [node for node in nodes if name not in _known(node).flags]
        if not without:
            continue
        close = nearest(name, _known(without[0]).flags)
        others_know = any(name in _known(node).flags for node in _asked(context))
        where, seen = _where_and_seen(flag, without, others_know)
        yield Finding(
            id="unknown-flag",
            level="error",
            what=f"`vllm serve` has no flag --{name} on {shorten_node_names(without)}",
            todo=_remedy(close, others_know),
            where=where,
            seen=seen,
        )


def check_flag_values(context: CheckContext) -> Iterator[Finding]:
    """Find values that a flag does not take, and missing ones: the server exits just the same."""
    for flag, nodes in _planned_flags(context).items():
        complaints = {node.name: _complaint(flag, _known(node)) for node in nodes}
        refusing = [node for node in nodes if complaints[node.name] is not None]
        if not refusing:
            continue
        first_complaint = complaints[refusing[0].name]
        assert first_complaint is not None
        problem, close = first_complaint
        others_take = any(_complaint(flag, _known(node)) is None for node in _asked(context))
        where, seen = _where_and_seen(flag, refusing, others_take)
        words = " ".join(flag.words())
        names = shorten_node_names(refusing)
        yield Finding(
            id="flag-value",
            level="error",
            what=f"`vllm serve` does not take `{words}` on {names}: {problem}",
            todo=_remedy(close, others_take),
            where=where,
            seen=seen,
        )


def check_parsers(context: CheckContext) -> Iterator[Finding]:
    """Find parsers that are not in vLLM's registry: the server exits."""
    for flag, nodes in _planned_flags(context).items():
        kind, plugin = _PARSERS.get(_name(flag), ("", ""))
        if not kind or context.plan.primary.flag(f"--{plugin}") is not None:
            continue
        parser = flag.value or ""
        without = [
            node for node in nodes if _parsers(node, kind) and parser not in _parsers(node, kind)
        ]
        if not without:
            continue
        close = nearest(parser, _parsers(without[0], kind))
        others_know = any(parser in _parsers(node, kind) for node in _asked(context))
        where, seen = _where_and_seen(flag, without, others_know)
        yield Finding(
            id="unknown-parser",
            level="error",
            what=f"vLLM has no {kind} parser called {parser} on {shorten_node_names(without)}",
            todo=_remedy(close, others_know),
            where=where,
            seen=seen,
        )


FLAG_CHECKS: tuple[Callable[[CheckContext], Iterator[Finding]], ...] = (
    check_known_flags,
    check_flag_values,
    check_parsers,
)


def _asked(context: CheckContext) -> list[Node]:
    """Return the nodes whose vLLM has listed its flags."""
    return [node for node in context.nodes if node.facts.known_flags]


def _planned_flags(context: CheckContext) -> dict[Flag, list[Node]]:
    """Return each flag of the plan with the nodes that would get it, among the asked ones."""
    planned: dict[Flag, list[Node]] = {}
    for node in _asked(context):
        flags = [flag for server in node.servers for flag in server.flags if flag.name]
        for flag in dict.fromkeys(flags):
            planned.setdefault(flag, []).append(node)
    return planned


def _name(flag: Flag) -> str:
    return flag.name.removeprefix("--")


def _known(node: Node) -> KnownFlags:
    assert node.facts.known_flags is not None
    return node.facts.known_flags


def _parsers(node: Node, kind: str) -> tuple[str, ...]:
    known = _known(node)
    return known.tool_parsers if kind == "tool" else known.reasoning_parsers


def _complaint(flag: Flag, known: KnownFlags) -> tuple[str, str] | None:
    """Return what is wrong with a flag's value, and what to do.

    None when nothing is wrong, or when the flag is unknown anyway.
    """
    option = known.flags.get(_name(flag))
    if option is None or _name(flag) in _PARSERS:
        return None
    if flag.value is None:
        return ("it needs a value", "give it one") if option.takes == "one" else None
    if option.takes == "none":
        return "it takes no value", "write true for a bare flag"
    if option.takes != "one" or not option.choices:
        return None
    if _fold(flag.value) in map(_fold, option.choices):
        return None
    close = nearest(flag.value, option.choices)
    return "this is none of its values", f"{close} (it takes {', '.join(option.choices)})"


def _fold(value: str) -> str:
    """Normalise a value: some flags of vLLM read theirs in any case, and `-` as `_`."""
    return value.lower().replace("-", "_")


def _remedy(close: str, others_know: bool) -> str:
    if others_know:
        return (
            f"other nodes know it: install one version of vLLM everywhere, best by one image "
            f"({close})"
        )
    return close


def _where_and_seen(flag: Flag, without: list[Node], others_know: bool) -> tuple[str, str]:
    """Return the place to correct, and the evidence.

    The place is the host when it alone differs from the others, else the origin of the flag.
    """
    versions = {node.facts.versions.get("vllm", "?") for node in without}
    installed = ", ".join(f"vLLM {version}" for version in sorted(versions))
    words = " ".join(flag.words())
    where = flag.origin
    # One node that differs from the rest was installed differently: the flag itself is fine.
    if others_know and len(without) == 1:
        where = without[0].facts.ip
    return where, f"{words} ({flag.origin}); {installed}"
