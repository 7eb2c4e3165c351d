"""What an upgrade changes in the command lines and environments of the servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raylaunch.plan.facts import Facts
from raylaunch.plan.host_spec import example_hosts
from raylaunch.plan.launch_plan import LaunchPlan, ServerPlan
from raylaunch.plan.planner import plan_group
from raylaunch.recipe.groups import GroupSpec

NONE = "-"
EXAMPLE_INTERFACE = "eth0"


@dataclass(frozen=True)
class PlanChange:
    """One flag, variable or property that differs between two plans; "-" where there is none."""

    where: tuple[str, ...]
    """Groups ("serve-0"), or servers ("serve-0 server 1") where those of a group differ."""
    name: str
    """A flag ("--max-num-seqs"), a variable ("HCCL_BUFFSIZE") or a property ("servers")."""
    old: str
    new: str


def plan_changes(
    old: Sequence[GroupSpec],
    new: Sequence[GroupSpec],
    places: Mapping[str, Sequence[Facts]],
) -> list[PlanChange]:
    """Return how the plans of two recipes differ, what is equal in several groups as one change.

    Both are planned on the same nodes, so ports and devices differ only where the recipes do.

    Args:
        old: The groups that run.
        new: The groups of the new recipe.
        places: The nodes of each group that runs, by its name without the generation.

    Raises:
        PlanError: A group cannot be laid out.
    """
    before, after = _by_base(old), _by_base(new)
    found: dict[tuple[str, str, str], list[str]] = {}
    for base in [*before, *(name for name in after if name not in before)]:
        nodes = places.get(base, ())
        for change in _group_changes(before.get(base), after.get(base), nodes):
            key = (change.name, change.old, change.new)
            found.setdefault(key, []).extend(_named(base, change.where))
    return [PlanChange(tuple(where), *key) for key, where in found.items()]


def _by_base(specs: Sequence[GroupSpec]) -> dict[str, GroupSpec]:
    return {base_name(spec.name): spec for spec in specs}


def base_name(group: str) -> str:
    """Return the name of a group without its generation: "serve-0" of "serve-0.g2"."""
    return group.partition(".")[0]


def _named(base: str, servers: Sequence[str]) -> list[str]:
    return [f"{base} {server}" for server in servers] or [base]


def _group_changes(
    old: GroupSpec | None, new: GroupSpec | None, nodes: Sequence[Facts]
) -> Iterator[PlanChange]:
    before = _servers(old, nodes)
    after = _servers(new, nodes)
    if len(before) != len(after):
        yield PlanChange((), "servers", str(len(before)), str(len(after)))
        # A new group is one line: all its flags would hide what differs elsewhere.
        if not before or not after:
            return
    by_change: dict[tuple[str, str, str], list[int]] = {}
    pairs = list(zip(before, after, strict=False))
    for number, (one, other) in enumerate(pairs):
        for change in _server_changes(_describe(one), _describe(other)):
            by_change.setdefault(change, []).append(number)
    for change, numbers in by_change.items():
        everywhere = len(numbers) == len(pairs)
        yield PlanChange(() if everywhere else tuple(f"server {n}" for n in numbers), *change)


def _servers(spec: GroupSpec | None, nodes: Sequence[Facts]) -> tuple[ServerPlan, ...]:
    return _plan(spec, nodes).servers if spec is not None else ()


def _plan(spec: GroupSpec, nodes: Sequence[Facts]) -> LaunchPlan:
    wanted = spec.loaded.recipe.parallel.servers
    more = max(0, wanted - len(nodes))
    return plan_group(spec, [*nodes, *example_hosts(more, EXAMPLE_INTERFACE)][:wanted])


def _describe(server: ServerPlan) -> dict[str, str]:
    """Return a server's command line and environment by name; a bare flag has the value "set"."""
    described: dict[str, list[str]] = {}
    for flag in server.flags:
        value = "set" if flag.value is None else flag.value
        described.setdefault(flag.name or "model", []).append(value)
    values = {name: " ".join(texts) for name, texts in described.items()}
    values["role"] = server.role
    values["NPUs"] = str(len(server.devices))
    return values | server.environ


def _server_changes(
    old: Mapping[str, str], new: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name, NONE), new.get(name, NONE)
        if before != after:
            yield name, before, after
