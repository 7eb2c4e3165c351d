"""Flags of each node's own vLLM: recalled for every launch, asked for a check and the next launch.

A launch does not wait for the question: vLLM would refuse a wrong flag in the time of the answer.
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
ANSWER_S = 30.0

Answers = Mapping[int, KnownFlags | ProbeFailure]


async def ask_flags(gang: Gang, timeout_s: float = PATIENCE_S, niceness: int = 0) -> Answers:
    """Return the flags that the vLLM of every agent's node knows, by server.

    Flags that are not remembered are asked now, once per vLLM and machine. A node that cannot
    answer is a ProbeFailure.
    """
    answers = await gang.ask_all(lambda agent: agent.recall_flags(timeout_s=ANSWER_S))
    recalled = {index: one for index, one in answers.items() if isinstance(one, RecalledFlags)}
    askers: dict[tuple[str, str], int] = {}
    for index, one in recalled.items():
        if one.known is None:
            askers.setdefault((one.host, one.key), index)
    asked = await gang.ask_all(
        lambda agent: agent.ask_flags(timeout_s=timeout_s, niceness=niceness),
        servers=askers.values(),
    )
    found = {}
    for index, one in recalled.items():
        # Without a vLLM there is nothing to ask, and that is a finding of its own.
        if one.key:
            found[index] = one.known or _as_answer(asked.get(askers[one.host, one.key]))
    return found


def with_flags(nodes: Mapping[int, Facts], answers: Answers) -> dict[int, Facts]:
    """Put the answers into the facts of the nodes."""
    return {index: with_answer(facts, answers.get(index)) for index, facts in nodes.items()}


async def remember_for_next(gang: Gang) -> None:
    """Ask what is not remembered, at the lowest priority; what fails is asked again next time."""
    await ask_flags(gang, LATER_S, BACKGROUND_NICENESS)


def _as_answer(answer: object) -> KnownFlags | ProbeFailure:
    """Return a failed question for an agent that did not answer."""
    if isinstance(answer, KnownFlags | ProbeFailure):
        return answer
    return ProbeFailure(PROBE, repr(answer))
