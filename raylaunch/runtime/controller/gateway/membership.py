"""Which servers are behind the gateway, from raylaunch's own observations.

`/health` is not asked: a server whose engine has just died still answers 200 for seconds (measured,
vLLM 0.32), while its exit is observed within milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from raylaunch.gateway.gateway_messages import Member, MemberState
from raylaunch.plan.launch_plan import ServerPlan
from raylaunch.runtime.agent.server_launch import api_url
from raylaunch.runtime.controller.group.group_supervisor import GroupSupervisor
from raylaunch.supervise.state import Phase, ServerSeen


def members_of(groups: Iterable[GroupSupervisor], draining: Collection[str]) -> tuple[Member, ...]:
    """Return every server with an API, and whether it may get requests.

    Args:
        groups: Those of the deployment.
        draining: Names of groups that get no new request.
    """
    members = []
    groups = list(groups)
    have_failed = all(has_failed(group) for group in groups)
    for group in groups:
        plan = group.journal.plan
        if plan is None:
            continue
        state: MemberState = "ready" if can_answer(group) else "down"
        if state == "ready" and group.name in draining:
            state = "draining"
        elif have_failed:
            state = "failed"
        seen = group.loop.record.seen
        members += [
            _member(group.name, server, state, seen.get(server.index))
            for server in plan.servers
            if server.role == "primary"
        ]
    return tuple(members)


def has_failed(group: GroupSupervisor) -> bool:
    """Return whether nothing but a command starts a group again, or others in its place."""
    return group.journal.phase is Phase.FAILED and not group.is_on_trial


def can_answer(group: GroupSupervisor) -> bool:
    """Return whether a group serves, as far as is known at this moment.

    The death of one of its processes counts from its observation on, before the policy has decided
    what follows. A server that waits for another agent serves.
    """
    record = group.loop.record
    if record.journal.phase is not Phase.READY or record.is_failing:
        return False
    return not any(one.exit or one.agent_lost for one in group.loop.adoption.judged())


def _member(group: str, server: ServerPlan, state: MemberState, seen: ServerSeen | None) -> Member:
    ranks = seen.ranks if seen is not None else ()
    return Member(
        id=f"{group}/{server.index}",
        url=api_url(server),
        ranks=tuple(rank.rank for rank in ranks) or server.ranks,
        state=state,
        running=sum(rank.running for rank in ranks),
        waiting=sum(rank.waiting for rank in ranks),
    )
