"""The plan for people: what all servers share, then what differs, each with its origin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from raylaunch.checks.findings import Finding
from raylaunch.cli.output import Style, table
from raylaunch.plan.deployment_plan import DeploymentPlan
from raylaunch.plan.launch_plan import LaunchPlan, ServerPlan
from raylaunch.plan.ports import HCCL_PORTS

Row = tuple[str, str, str]
"""Name, value, origin."""

KINDS = ("name", "", "dim")
LEVEL_KINDS = {"error": "bad", "warning": "warn", "info": "dim"}
SERVER_HEADER = ("SERVER", "ROLE", "NODE", "INTERFACE", "RANKS", "NPUS", "PORTS")


@dataclass(frozen=True)
class _Settings:
    """What is set for one server, or for all: environment, flags, removed variables."""

    env: list[Row]
    flags: list[Row]
    unset: list[Row]


@dataclass(frozen=True)
class _Planned:
    """A server of the plan, with the name that people know it by: "0", or "serve-1/0"."""

    name: str
    group: LaunchPlan
    server: ServerPlan


def plan_lines(plan: DeploymentPlan, style: Style) -> Iterator[str]:
    """Lay out a plan. A deployment's only group is not named."""
    planned = [
        _Planned(group.name_of(server.index), group, server)
        for group in plan.groups
        for server in group.servers
    ]
    yield from _head(plan, style)
    yield ""
    yield from table([_server_row(one) for one in planned], style, header=SERVER_HEADER)
    settings = [_settings(one.server) for one in planned]
    if len(settings) == 1:
        only = planned[0]
        title = f"Server {only.name} ({only.server.node.ip})"
        yield from _block(title, settings[0], style)
        return
    env = _shared([one.env for one in settings])
    flags = _shared([one.flags for one in settings])
    unset = _shared([one.unset for one in settings])
    first = settings[0]
    same = _Settings(
        env=[row for row in first.env if row in env],
        flags=[row for row in first.flags if row in flags],
        unset=[row for row in first.unset if row in unset],
    )
    yield from _block("Same on all servers", same, style)
    for one, own in zip(planned, settings, strict=True):
        different = _Settings(
            env=[row for row in own.env if row not in env],
            flags=[row for row in own.flags if row not in flags],
            unset=[row for row in own.unset if row not in unset],
        )
        title = f"Only on server {one.name} ({one.server.role}, {one.server.node.ip})"
        yield from _block(title, different, style)


def finding_lines(findings: Iterable[Finding], style: Style) -> Iterator[str]:
    """Lay out findings: level, what, where and id; then what was seen and what to do."""
    for finding in findings:
        level = style.paint(f"{finding.level}:", LEVEL_KINDS[finding.level])
        where = f" ({finding.where})" if finding.where else ""
        yield f"{level} {finding.what}{where} [{finding.id}]"
        if finding.seen:
            yield f"  {style.paint('seen', 'title')}  {finding.seen}"
        if finding.todo:
            yield f"  {style.paint('next', 'title')}  {finding.todo}"


def compress(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ranges: (0, 1, 2, 5) -> "0-2,5"; "-" for none."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ",".join(texts) or "-"


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: "1 server", "2 servers". `plural` is by default noun + s."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def _head(plan: DeploymentPlan, style: Style) -> Iterator[str]:
    is_alone = plan.groups[0].is_alone
    sizes = [] if is_alone else [count(len(plan.groups), "group")]
    sizes.append(count(len(plan.servers), "server"))
    if is_alone:
        sizes.append(count(plan.groups[0].ranks, "data-parallel rank"))
    # A CPU plan numbers Ray's stand-in resource "NPU"; there is no NPU behind it.
    npus = sum(len(one.devices) for group in plan.groups for one in _on_npus(group))
    if npus:
        sizes.append(count(npus, "NPU"))
    name = style.paint(plan.deployment, "title")
    recipe = "" if plan.recipe == plan.deployment else f" (recipe {plan.recipe})"
    platforms = ", ".join(dict.fromkeys(group.platform for group in plan.groups))
    yield f"{name}{recipe}: {', '.join(sizes)} on {platforms}"
    yield from _endpoints(plan, style)
    secrets = plan.groups[0].secrets
    if secrets:
        names = ", ".join(secrets)
        yield f"secrets   {names}  (from the launching environment, never shown)"


def _on_npus(group: LaunchPlan) -> tuple[ServerPlan, ...]:
    return () if group.platform == "cpu" else group.servers


def _endpoints(plan: DeploymentPlan, style: Style) -> Iterator[str]:
    """Yield the address of the gateway, and that of each group."""
    gateway = plan.gateway
    if gateway is not None:
        where = f"gateway on {', '.join(gateway.nodes)}, {gateway.policy}"
        yield f"endpoint  {style.paint(gateway.endpoint, 'good')}  ({where})"
    label = "endpoint" if gateway is None else "behind  "
    for group in plan.groups:
        about = f"model {group.served_name}"
        if not group.is_alone:
            role = "" if group.role == "serve" else f"{group.role}, "
            about = f"{group.group}, {role}{about}"
        yield f"{label}  {style.paint(group.endpoint, 'good')}  ({about})"


def _server_row(planned: _Planned) -> tuple[str, ...]:
    server = planned.server
    ports = f"http {server.ports.http}, rpc {server.ports.rpc}"
    base = server.ports.hccl_base
    if base is not None:
        ports += f", hccl {base}-{base + HCCL_PORTS - 1}"
    return (
        planned.name,
        server.role,
        server.node.ip,
        server.node.interface,
        compress(server.ranks),
        "-" if planned.group.platform == "cpu" else compress(server.devices),
        ports,
    )


def _settings(server: ServerPlan) -> _Settings:
    return _Settings(
        env=[(name, value.value, value.origin) for name, value in server.env.items()],
        flags=[(flag.name or "MODEL", flag.value or "", flag.origin) for flag in server.flags],
        unset=[(name, "", value.origin) for name, value in server.unset.items()],
    )


def _shared(rows_of_servers: Sequence[list[Row]]) -> set[Row]:
    """Return the rows that every server has."""
    first, *others = rows_of_servers
    return set(first).intersection(*others)


def _block(title: str, settings: _Settings, style: Style) -> Iterator[str]:
    if not (settings.env or settings.flags or settings.unset):
        return
    yield ""
    yield style.paint(title, "title")
    if settings.env:
        yield "  environment"
        yield from table(settings.env, style, indent=4, kinds=KINDS)
    if settings.flags:
        yield "  vllm serve"
        yield from table(settings.flags, style, indent=4, kinds=KINDS)
    if settings.unset:
        yield "  removed from the environment"
        rows = [(name, origin) for name, _, origin in settings.unset]
        yield from table(rows, style, indent=4, kinds=("name", "dim"))
