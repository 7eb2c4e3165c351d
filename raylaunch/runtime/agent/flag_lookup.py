"""What each node's own vLLM knows of flags: recalled for every launch, asked for a check and for the next launch.

A launch does not wait for the question: vLLM would refuse a wrong flag in the time that the answer takes.
"""

from __future__ import annotations

from collections.abc import Mapping

from raylaunch.node.probe.vllm_flags import PATIENCE_S, PROBE, with_answer
from raylaunch.plan.facts import Facts, ProbeFailure
from raylaunch.plan.known_flags import KnownFlags
from raylaunch.runtime.agent.gang import Gang
from raylaunch.runtime.agent.probe_actor import RecalledFlags

LATER_S = 600.0
"""For a question in the background, which yields to everything else."""
BACKGROUND_NICENESS = 19
_ANSWER_S = 30.0

Answers = Mapping[int, KnownFlags | ProbeFailure]


async def ask_flags(gang: Gang, timeout_s: float = PATIENCE_S, niceness: int = 0) -> Answers:
    """What the vLLM of every agent's node knows, by server: as remembered, else asked now, once per vLLM and machine.

    A node that cannot say is a ProbeFailure.
    """
    recalled = await gang.ask_all(lambda agent: agent.recall_flags(timeout_s=_ANSWER_S))
    seen = {index: one for index, one in recalled.items() if isinstance(one, RecalledFlags)}
    askers: dict[tuple[str, str], int] = {}
    for index, one in seen.items():
        if one.known is None:
            askers.setdefault((one.host, one.key), index)
    said = await gang.ask_all(
        lambda agent: agent.ask_flags(timeout_s=timeout_s, niceness=niceness),
        servers=askers.values(),
    )
    return {
        index: one.known or _as_answer(said.get(askers[one.host, one.key]))
        for index, one in seen.items()
        if one.key  # without a vLLM there is nobody to ask, and that is a finding of its own
    }


def with_flags(nodes: Mapping[int, Facts], answers: Answers) -> dict[int, Facts]:
    """Put the answers into the facts of the nodes."""
    return {index: with_answer(facts, answers.get(index)) for index, facts in nodes.items()}


async def remember_for_next(gang: Gang) -> None:
    """Ask what is not remembered, at the lowest priority; who is not told now is asked before the next launch."""
    await ask_flags(gang, LATER_S, BACKGROUND_NICENESS)


def _as_answer(said: object) -> KnownFlags | ProbeFailure:
    """An agent that does not answer is a failed question too."""
    return said if isinstance(said, KnownFlags | ProbeFailure) else ProbeFailure(PROBE, repr(said))
