"""Checks on the flags of the plan: each must be one that the vLLM installed on the server's node knows.

vLLM itself refuses a wrong flag too, some 12 s after its start (measured), and names no host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raylaunch.checks.check_context import Node, View
from raylaunch.checks.findings import Finding
from raylaunch.checks.node_checks import node_names
from raylaunch.plan.known_flags import KnownFlags, nearest
from raylaunch.plan.launch_plan import Flag

_PARSERS = {
    "tool-call-parser": ("tool", "tool-parser-plugin"),
    "reasoning-parser": ("reasoning", "reasoning-parser-plugin"),
}
"""Flag -> the kind of parser it names, and the flag that brings parsers which nobody knows before the start."""


def check_known_flags(view: View) -> Iterator[Finding]:
    """What the parser of a node's own vLLM does not know, it refuses: the server ends before it reads a weight."""
    for flag, nodes in _planned(view).items():
        name = _name(flag)
        if without := [node for node in nodes if name not in _known(node).flags]:
            what = f"`vllm serve` has no flag --{name} on {node_names(without)}"
            close = nearest(name, _known(without[0]).flags)
            others = any(name in _known(node).flags for node in _asked(view))
            yield Finding(
                "unknown-flag",
                "error",
                what,
                _remedy(close, others),
                *_traces(flag, without, others),
            )


def check_flag_values(view: View) -> Iterator[Finding]:
    """A value that the flag does not take, or none where it wants one, ends the server as an unknown flag does."""
    for flag, nodes in _planned(view).items():
        complaints = {node.name: said for node in nodes if (said := _complaint(flag, _known(node)))}
        if without := [node for node in nodes if node.name in complaints]:
            wrong, close = complaints[without[0].name]
            what = f"`vllm serve` does not take `{' '.join(flag.words())}` on {node_names(without)}: {wrong}"
            others = any(_complaint(flag, _known(node)) is None for node in _asked(view))
            yield Finding(
                "flag-value", "error", what, _remedy(close, others), *_traces(flag, without, others)
            )


def check_parsers(view: View) -> Iterator[Finding]:
    """Parsers of vLLM stand in registries; a name that is not there ends the server."""
    for flag, nodes in _planned(view).items():
        kind, plugin = _PARSERS.get(_name(flag), ("", ""))
        if not kind or view.plan.primary.flag(f"--{plugin}") is not None:
            continue
        value = flag.value or ""
        if without := [
            node for node in nodes if _parsers(node, kind) and value not in _parsers(node, kind)
        ]:
            what = f"vLLM has no {kind} parser called {value} on {node_names(without)}"
            close = nearest(value, _parsers(without[0], kind))
            others = any(value in _parsers(node, kind) for node in _asked(view))
            yield Finding(
                "unknown-parser",
                "error",
                what,
                _remedy(close, others),
                *_traces(flag, without, others),
            )


FLAG_CHECKS: tuple[Callable[[View], Iterator[Finding]], ...] = (
    check_known_flags,
    check_flag_values,
    check_parsers,
)


def _asked(view: View) -> list[Node]:
    """The nodes whose vLLM said what it knows."""
    return [node for node in view.nodes if node.facts.known_flags]


def _planned(view: View) -> dict[Flag, list[Node]]:
    """Each flag of the plan, with the nodes that would be given it, of those whose vLLM said what it knows."""
    planned: dict[Flag, list[Node]] = {}
    for node in _asked(view):
        for flag in dict.fromkeys(
            flag for server in node.servers for flag in server.flags if flag.name
        ):
            planned.setdefault(flag, []).append(node)
    return planned


def _name(flag: Flag) -> str:
    return flag.name.removeprefix("--")


def _known(node: Node) -> KnownFlags:
    assert node.facts.known_flags is not None
    return node.facts.known_flags


def _parsers(node: Node, kind: str) -> tuple[str, ...]:
    return _known(node).tool_parsers if kind == "tool" else _known(node).reasoning_parsers


def _complaint(flag: Flag, known: KnownFlags) -> tuple[str, str] | None:
    """What is wrong with a flag's value, and what to do; None when nothing is, or when the flag is not known at all."""
    option = known.flags.get(_name(flag))
    if option is None or _name(flag) in _PARSERS:
        return None
    if flag.value is None:
        return ("it wants a value", "give it one") if option.takes == "one" else None
    if option.takes == "none":
        return "it takes no value", "write true for a bare flag"
    if (
        option.takes != "one"
        or not option.choices
        or _fold(flag.value) in map(_fold, option.choices)
    ):
        return None
    close = nearest(flag.value, option.choices)
    return "this is none of its values", f"{close} (it takes {', '.join(option.choices)})"


def _fold(value: str) -> str:
    """Some flags of vLLM read their values in any case, and `-` as `_`."""
    return value.lower().replace("-", "_")


def _remedy(close: str, others: bool) -> str:
    if others:
        return f"other nodes know it: bring vLLM to one version everywhere, best by one image ({close})"
    return close


def _traces(flag: Flag, without: list[Node], others: bool) -> tuple[str, str]:
    """Where to look: at the host when it differs from the others, else at what wrote the flag; and the evidence."""
    versions = sorted({f"vLLM {node.facts.versions.get('vllm', '?')}" for node in without})
    where = without[0].facts.ip if others and len(without) == 1 else flag.origin
    return where, f"{' '.join(flag.words())} ({flag.origin}); {', '.join(versions)}"
