"""The plan for people: what all servers share once, then what sets each one apart, every value with its origin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from raylaunch.checks.findings import Finding
from raylaunch.cli.output import Style, table
from raylaunch.plan.launch_plan import LaunchPlan, ServerPlan
from raylaunch.plan.ports import HCCL_PORTS

Row = tuple[str, str, str]
"""Name, value, origin."""

KINDS = ("name", "", "dim")
LEVEL_KINDS = {"error": "bad", "warning": "warn", "info": "dim"}


def plan_lines(plan: LaunchPlan, style: Style) -> Iterator[str]:
    """Lay out a plan."""
    yield from _head(plan, style)
    yield ""
    yield from table([_seat(server) for server in plan.servers], style, header=_SEAT)
    parts = [[rows(server) for server in plan.servers] for rows in (_env, _flags, _unset)]
    if len(plan.servers) == 1:
        yield from _block(f"Server 0 ({plan.primary.node.ip})", [part[0] for part in parts], style)
        return
    shared = [set(part[0]).intersection(*part[1:]) for part in parts]
    same = [
        [row for row in part[0] if row in common]
        for part, common in zip(parts, shared, strict=True)
    ]
    yield from _block("Same on all servers", same, style)
    for number, server in enumerate(plan.servers):
        own = [
            [row for row in part[number] if row not in common]
            for part, common in zip(parts, shared, strict=True)
        ]
        yield from _block(
            f"Only on server {server.index} ({server.role}, {server.node.ip})", own, style
        )


def finding_lines(findings: Iterable[Finding], style: Style) -> Iterator[str]:
    """One block per finding: level, id, where, what; then what was seen and what to do."""
    for finding in findings:
        where = f" ({finding.where})" if finding.where else ""
        yield f"{style.paint(finding.level + ':', LEVEL_KINDS[finding.level])} {finding.what}{where} [{finding.id}]"
        if finding.seen:
            yield f"  {style.paint('seen', 'title')}  {finding.seen}"
        if finding.todo:
            yield f"  {style.paint('next', 'title')}  {finding.todo}"


def compress(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ranges: (0, 1, 2, 5) -> "0-2,5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or "-"


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 server", "2 servers"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_SEAT = ("SERVER", "ROLE", "NODE", "INTERFACE", "RANKS", "NPUS", "PORTS")


def _head(plan: LaunchPlan, style: Style) -> Iterator[str]:
    npus = sum(len(server.devices) for server in plan.servers)
    sizes = [
        count(len(plan.servers), "server"),
        count(plan.ranks, "data-parallel rank"),
        count(npus, "NPU"),
    ]
    recipe = "" if plan.recipe == plan.deployment else f" (recipe {plan.recipe})"
    yield f"{style.paint(plan.deployment, 'title')}{recipe}: {', '.join(sizes)} on {plan.platform}"
    yield f"endpoint  {style.paint(plan.endpoint, 'good')}  (model {plan.served_name})"
    if plan.secrets:
        yield f"secrets   {', '.join(plan.secrets)}  (from the launching environment, never shown)"


def _seat(server: ServerPlan) -> tuple[str, ...]:
    ports = f"http {server.ports.http}, rpc {server.ports.rpc}"
    if server.ports.hccl_base is not None:
        ports += f", hccl {server.ports.hccl_base}-{server.ports.hccl_base + HCCL_PORTS - 1}"
    place = (server.node.ip, server.node.interface)
    return (
        str(server.index),
        server.role,
        *place,
        compress(server.ranks),
        compress(server.devices),
        ports,
    )


def _env(server: ServerPlan) -> list[Row]:
    return [(name, value.value, value.origin) for name, value in server.env.items()]


def _flags(server: ServerPlan) -> list[Row]:
    return [(flag.name or "MODEL", flag.value or "", flag.origin) for flag in server.flags]


def _unset(server: ServerPlan) -> list[Row]:
    return [(name, "", value.origin) for name, value in server.unset.items()]


def _block(title: str, parts: list[list[Row]], style: Style) -> Iterator[str]:
    env, flags, unset = parts
    if not any(parts):
        return
    yield ""
    yield style.paint(title, "title")
    for heading, rows in (("environment", env), ("vllm serve", flags)):
        if rows:
            yield f"  {heading}"
            yield from table(rows, style, indent=4, kinds=KINDS)
    if unset:
        yield "  removed from the environment"
        yield from table(
            [(name, origin) for name, _, origin in unset], style, indent=4, kinds=("name", "dim")
        )
