"""The dry run of a whole group: each node's vLLM builds the configuration of the servers there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raylaunch.errors import RaylaunchError
from raylaunch.node.probe.engine_dry_run import DRY_RUN_TIMEOUT_S, PROBE
from raylaunch.plan.engine_answer import EngineAnswer, EngineReport
from raylaunch.plan.facts import Facts, ProbeFailure
from raylaunch.plan.known_flags import KnownFlags
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.runtime.agent.flag_lookup import ANSWER_S, with_flags
from raylaunch.runtime.agent.gang import Gang
from raylaunch.runtime.agent.probe_actor import RecalledFlags


@dataclass(frozen=True)
class GroupReport:
    """The answers of all nodes, by server."""

    answers: Mapping[int, EngineAnswer | ProbeFailure] = field(default_factory=dict)
    known_flags: Mapping[int, KnownFlags | ProbeFailure] = field(default_factory=dict)

    def add_to(self, nodes: Mapping[int, Facts]) -> dict[int, Facts]:
        """Put into the facts what each vLLM knows, and the dry runs that failed."""
        known = with_flags(nodes, self.known_flags)
        failed = {
            index: answer
            for index, answer in self.answers.items()
            if isinstance(answer, ProbeFailure)
        }
        return with_flags(known, failed)


async def dry_run_engines(
    gang: Gang, plan: LaunchPlan, timeout_s: float = DRY_RUN_TIMEOUT_S, niceness: int = 0
) -> GroupReport:
    """Ask every vLLM once per machine for its servers, in parallel.

    An agent that fails is a ProbeFailure for its servers.
    """
    members = await _members(gang)
    reports = await gang.ask_all(
        lambda agent: agent.dry_run_engine(
            plan=plan, servers=members[agent.index], timeout_s=timeout_s, niceness=niceness
        ),
        servers=members,
    )
    answers: dict[int, EngineAnswer | ProbeFailure] = {}
    known: dict[int, KnownFlags | ProbeFailure] = {}
    for first, report in reports.items():
        answers.update(_answers(report, members[first]))
        if isinstance(report, EngineReport) and report.known_flags is not None:
            known.update(dict.fromkeys(members[first], report.known_flags))
    return GroupReport(answers, known)


async def _members(gang: Gang) -> dict[int, tuple[int, ...]]:
    """Return, for the server whose agent asks, all servers with its machine and its vLLM.

    Agents of two Ray nodes on one machine may have different images.
    """
    recalled = await gang.ask_all(lambda agent: agent.recall_flags(timeout_s=ANSWER_S))
    alike: dict[tuple[str, str], list[int]] = {}
    for index, one in sorted(recalled.items()):
        # Without a vLLM there is nothing to ask, and that is a finding of its own.
        if isinstance(one, RecalledFlags) and one.key:
            alike.setdefault((one.host, one.key), []).append(index)
    return {servers[0]: tuple(servers) for servers in alike.values()}


def _answers(
    report: EngineReport | RaylaunchError, servers: tuple[int, ...]
) -> Mapping[int, EngineAnswer | ProbeFailure]:
    if isinstance(report, EngineReport):
        return report.answers
    return dict.fromkeys(servers, ProbeFailure(PROBE, report.what))
