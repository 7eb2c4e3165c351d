"""What an upgrade does, as data: the steps from the groups that run to those of another recipe.

A group that does not change is not touched. The others are replaced, all beside the old ones where
there is room, else one after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from raylaunch.recipe.groups import GroupSpec
from raylaunch.recipe.load import LoadedRecipe

NO_SERVER_SETTINGS = (
    *("description", "good_for", "source", "bench"),
    *("gateway", "health", "timeouts", "fallback"),
    *("metrics", "notify", "tracing"),
)
"""Sections of a recipe that no server reads: they are changed without touching one."""


@dataclass(frozen=True)
class Start:
    """Start these groups, without traffic, and wait until they are ready."""

    specs: tuple[GroupSpec, ...]


@dataclass(frozen=True)
class Confirm:
    """Wait until the operator's command has verified these groups."""

    groups: tuple[str, ...]


@dataclass(frozen=True)
class Switch:
    """Send traffic to these groups."""

    groups: tuple[str, ...]


@dataclass(frozen=True)
class Remove:
    """Drain these groups, stop them and forget them."""

    groups: tuple[str, ...]


Step = Start | Confirm | Switch | Remove


def describe(step: Step) -> str:
    """Return a step in words, for the events."""
    match step:
        case Start(specs):
            return f"start {', '.join(spec.name for spec in specs)}"
        case Confirm(groups):
            return f"verify {', '.join(groups)}"
        case Switch(groups):
            return f"send traffic to {', '.join(groups)}"
        case Remove(groups):
            return f"remove {', '.join(groups)}"


def plan_upgrade(
    old: Sequence[GroupSpec], new: Sequence[GroupSpec], *, beside: bool
) -> tuple[Step, ...]:
    """Return the steps of an upgrade; none if no server changes.

    Args:
        old: The groups that run.
        new: The groups of the new recipe, under their names in this generation.
        beside: Whether the cluster has room for the new groups beside the old ones, and a gateway
            hides that their addresses are others.
    """
    outgoing = [spec for spec in old if not _has_equal(spec, new)]
    incoming = [spec for spec in new if not _has_equal(spec, old)]
    if beside and incoming:
        names = tuple(spec.name for spec in incoming)
        steps: list[Step] = [Start(tuple(incoming)), Confirm(names), Switch(names)]
        if outgoing:
            steps.append(Remove(tuple(spec.name for spec in outgoing)))
        return tuple(steps)
    return tuple(_one_after_the_other(outgoing, incoming))


def _one_after_the_other(
    outgoing: Sequence[GroupSpec], incoming: Sequence[GroupSpec]
) -> list[Step]:
    steps: list[Step] = []
    for index in range(max(len(outgoing), len(incoming))):
        if index < len(outgoing):
            steps.append(Remove((outgoing[index].name,)))
        if index < len(incoming):
            spec = incoming[index]
            steps += [Start((spec,)), Confirm((spec.name,)), Switch((spec.name,))]
    return steps


def find_gap(steps: Sequence[Step], serving: Collection[str]) -> str | None:
    """Return the group after whose removal no group serves until a new one does; None for none.

    Args:
        steps: Of the upgrade.
        serving: Names of the groups that serve now.
    """
    left = set(serving)
    for index, step in enumerate(steps):
        if isinstance(step, Switch):
            left |= set(step.groups)
        elif isinstance(step, Remove):
            removed = left & set(step.groups)
            left -= removed
            later = any(isinstance(one, Switch) for one in steps[index:])
            if removed and not left and later:
                return min(removed)
    return None


def name_generation(specs: Sequence[GroupSpec], generation: int) -> tuple[GroupSpec, ...]:
    """Return the groups of a recipe under their names in a generation: "serve-0.g2"."""
    if generation == 1:
        return tuple(specs)
    return tuple(
        # Their logs must not be mixed with those of the generation before.
        replace(spec, name=f"{spec.name}.g{generation}", alone=False)
        for spec in specs
    )


def kept_and_new(old: Sequence[GroupSpec], new: Sequence[GroupSpec]) -> tuple[GroupSpec, ...]:
    """Return the groups after an upgrade: those that do not change keep their names."""
    after = []
    for spec in new:
        equal = [one for one in old if _is_equal(one, spec)]
        after.append(equal[0] if equal else spec)
    return tuple(after)


def changes_servers(old: LoadedRecipe, new: LoadedRecipe) -> bool:
    """Return whether a server of the second recipe would differ from one of the first."""
    return _of_servers(old) != _of_servers(new)


def _of_servers(loaded: LoadedRecipe) -> dict[str, object]:
    return loaded.recipe.model_dump(exclude=set(NO_SERVER_SETTINGS))


def _has_equal(spec: GroupSpec, others: Sequence[GroupSpec]) -> bool:
    return any(_is_equal(spec, other) for other in others)


def _is_equal(one: GroupSpec, other: GroupSpec) -> bool:
    """Return whether two specs stand for the same group with the same servers."""
    same_place = _base(one) == _base(other)
    return same_place and not changes_servers(one.loaded, other.loaded)


def _base(spec: GroupSpec) -> str:
    return spec.name.partition(".")[0]
