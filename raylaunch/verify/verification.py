"""Proves a service as a client sees it: the questions are asked with the `openai` client and the answers judged.

The ranks are asked first, all at once. When one of them is silent or wrong, the other questions go to a rank that is
well, so that they show what else is wrong instead of the same again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raylaunch.errors import RaylaunchError
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.verify import cases, grading
from raylaunch.verify.cases import Question
from raylaunch.verify.chat_client import KEY_VARIABLE, Answer, Asker
from raylaunch.verify.grading import Result, Verdict
from raylaunch.vllm_api.vllm_client import VllmClient

TIMEOUT_S = 60.0
COUNTED_S = 3.0
"""How long a finished request may take to show in `/metrics`."""
COUNTED_POLL_S = 0.1


@dataclass(frozen=True)
class Proof:
    """One check: what came of it, what was seen, and how a person repeats it. `seconds`: of the answer; None: none."""

    check: str
    result: Result
    detail: str
    seconds: float | None
    curl: str
    rank: int | None = None


@dataclass(frozen=True)
class Verification:
    """All checks of one deployment, in the order in which they were made."""

    deployment: str
    endpoint: str
    model: str
    proofs: tuple[Proof, ...] = ()

    @property
    def failed(self) -> tuple[Proof, ...]:
        """The checks that failed."""
        return tuple(proof for proof in self.proofs if proof.result == "failed")

    @property
    def result(self) -> Result:
        """The worst result; `skipped` counts as passed."""
        results = {proof.result for proof in self.proofs}
        return "failed" if "failed" in results else "unclear" if "unclear" in results else "passed"


OnProof = Callable[[Proof], None]


def verify(
    plan: LaunchPlan,
    api_key: str | None = None,
    *,
    random_weights: bool = False,
    timeout_s: float = TIMEOUT_S,
    on_proof: OnProof | None = None,
) -> Verification:
    """Ask a running deployment everything that its plan promises.

    Args:
        plan: Of the deployment: endpoint, served name, ranks, and the parsers among the primary's flags.
        api_key: Sent as a bearer token, never shown.
        random_weights: The model is a generated one: what it says is not judged.
        timeout_s: Seconds for one answer.
        on_proof: Called after each check.

    Raises:
        RaylaunchError: the `openai` client is not installed.
    """
    _require_client()
    return _run(_verify(plan, api_key, random_weights, timeout_s, on_proof or _ignore))


def key_variable(plan: LaunchPlan) -> str:
    """The variable that holds the key the service asks for; "" when it asks for none."""
    asked = (
        KEY_VARIABLE in plan.secrets
        or KEY_VARIABLE in plan.primary.env
        or plan.primary.flag("--api-key")
    )
    return KEY_VARIABLE if asked else ""


async def _verify(
    plan: LaunchPlan, api_key: str | None, random_weights: bool, timeout_s: float, on_proof: OnProof
) -> Verification:
    proofs: list[Proof] = []
    async with Asker(plan.endpoint, api_key, timeout_s) as asker:
        service = _Service(plan, asker, random_weights, timeout_s)
        async for proof in _prove(service):
            proofs.append(proof)
            on_proof(proof)
    return Verification(plan.deployment, plan.endpoint, plan.served_name, tuple(proofs))


async def _prove(service: _Service) -> AsyncIterator[Proof]:
    listed, open_to_us = await _prove_models(service)
    yield listed
    if not open_to_us:
        return
    ranks, answered = await _prove_ranks(service)
    for proof in ranks:
        yield proof
    if not answered:
        return
    sound = [proof.rank for proof in ranks if proof.result != "failed"]
    asked = replace(service, rank=sound[0] if sound and len(sound) < len(ranks) else None)
    for prove in (_prove_english, _prove_chinese, _prove_stream, _prove_call, _prove_reasoning):
        yield await prove(asked)


@dataclass(frozen=True)
class _Service:
    """The service that is asked. `rank`: the one that shall answer where a question names none."""

    plan: LaunchPlan
    asker: Asker
    random_weights: bool
    timeout_s: float
    rank: int | None = None

    @property
    def model(self) -> str:
        return self.plan.served_name

    async def ask(self, question: Question) -> Answer:
        anywhere = question.rank is None and question.body is not None
        return await self.asker.ask(replace(question, rank=self.rank) if anywhere else question)

    def proof(self, check: str, answer: Answer, verdict: Verdict | None) -> Proof:
        """The proof that an answer is; `verdict` None: there was none to judge."""
        verdict = verdict or Verdict("failed", answer.problem)
        other = f" (asked of rank {self.rank})" if self.rank is not None else ""
        line = self.curl(answer.question)
        return Proof(
            check,
            verdict.result,
            verdict.detail + other,
            answer.seconds,
            line,
            answer.question.rank,
        )

    def skip(self, check: str, why: str, question: Question) -> Proof:
        return Proof(check, "skipped", why, None, self.curl(question))

    def curl(self, question: Question) -> str:
        return cases.curl(self.plan.endpoint, question, key_variable(self.plan), self.timeout_s)


async def _prove_models(service: _Service) -> tuple[Proof, bool]:
    """The model is listed; and whether it makes sense to ask on."""
    answer = await service.ask(cases.models())
    verdict = None if answer.problem else grading.judge_models(answer.value, service.model)
    return service.proof("models", answer, verdict), not answer.closed


async def _prove_ranks(service: _Service) -> tuple[list[Proof], bool]:
    """One proof per rank; and whether any of them answers."""
    before = await _count_finished(service)
    asked = [cases.fixed_prompt(service.model, rank) for rank in range(service.plan.ranks)]
    answers = {
        answer.question.rank or 0: answer
        for answer in await asyncio.gather(*map(service.ask, asked))
    }
    texts = {rank: answer.value.content for rank, answer in answers.items() if not answer.problem}
    verdicts = grading.judge_ranks(
        texts, await _ask_again(service, texts), random_weights=service.random_weights
    )
    uncounted = await _find_uncounted(service, before, set(texts))
    proofs = [
        service.proof(
            f"rank {rank}", answer, _say_where(service, rank, answer, verdicts.get(rank), uncounted)
        )
        for rank, answer in answers.items()
    ]
    return proofs, not all(answer.closed for answer in answers.values())


async def _ask_again(service: _Service, texts: Mapping[int, str]) -> dict[int, str]:
    """Ranks that differ are asked again, one by one: what else runs changes a batch, and with it the last digits."""
    if len(set(texts.values())) < 2:
        return {}
    answers = [await service.ask(cases.fixed_prompt(service.model, rank)) for rank in texts]
    return {
        answer.question.rank or 0: answer.value.content for answer in answers if not answer.problem
    }


def _say_where(
    service: _Service, rank: int, answer: Answer, verdict: Verdict | None, uncounted: set[int]
) -> Verdict:
    """Name the server of a rank that failed, and doubt an answer that the rank has not counted."""
    verdict = verdict or Verdict("failed", answer.problem)
    server = next(one for one in service.plan.servers if rank in one.ranks)
    if verdict.result == "failed":
        return replace(
            verdict, detail=f"{verdict.detail} (server {server.index} on {server.node.ip})"
        )
    if verdict.result == "passed" and rank in uncounted:
        detail = f"{verdict.detail}, but /metrics counts no request of rank {rank}: was it this one that answered?"
        return Verdict("unclear", detail)
    return verdict


async def _find_uncounted(
    service: _Service, before: Mapping[int, int], ranks: set[int]
) -> set[int]:
    """Ranks whose count of finished requests has not moved; none where there are no counts at all."""
    deadline = time.monotonic() + COUNTED_S
    while before:
        after = await _count_finished(service)
        still = {rank for rank in ranks if after.get(rank, 0) <= before.get(rank, 0)}
        if not still or time.monotonic() > deadline:
            return still
        await asyncio.sleep(COUNTED_POLL_S)  # the engines report their counts on their own time
    return set()


async def _count_finished(service: _Service) -> dict[int, int]:
    async with VllmClient(service.plan.endpoint) as client:
        seen = await client.metrics(timeout_s=service.timeout_s)
    return {rank: counters.finished for rank, counters in seen.ranks.items()}


async def _prove_english(service: _Service) -> Proof:
    answer = await service.ask(cases.english(service.model))
    verdict = (
        None
        if answer.problem
        else grading.judge_chat(answer.value, random_weights=service.random_weights)
    )
    return service.proof("chat", answer, verdict)


async def _prove_chinese(service: _Service) -> Proof:
    answer = await service.ask(cases.chinese(service.model))
    verdict = (
        None
        if answer.problem
        else grading.judge_chinese(answer.value, random_weights=service.random_weights)
    )
    return service.proof("chinese", answer, verdict)


async def _prove_stream(service: _Service) -> Proof:
    answer = await service.ask(cases.stream(service.model))
    return service.proof(
        "stream", answer, None if answer.problem else grading.judge_stream(answer.value)
    )


async def _prove_call(service: _Service) -> Proof:
    """First as the guide does, then by name: a model may well decide to call nothing."""
    flags = service.plan.primary
    if flags.flag("--enable-auto-tool-choice") is None or not flags.flag("--tool-call-parser"):
        return service.skip(
            "tool call", "the recipe has no tool calling", cases.tool_call(service.model)
        )
    answer = await service.ask(cases.tool_call(service.model))
    verdict = None if answer.problem else grading.judge_call(answer.value, cases.TOOL)
    if answer.problem or verdict is not None:
        return service.proof("tool call", answer, verdict)
    named = await service.ask(cases.named_tool_call(service.model))
    told = None if named.problem else grading.judge_named_call(named.value, cases.CLOSED_TOOL)
    return service.proof("tool call", named, told)


async def _prove_reasoning(service: _Service) -> Proof:
    question = cases.reasoning(service.model)
    parser = service.plan.primary.flag("--reasoning-parser")
    if not parser:
        return service.skip("reasoning", "the recipe has no reasoning parser", question)
    answer = await service.ask(question)
    return service.proof(
        "reasoning",
        answer,
        None if answer.problem else grading.judge_reasoning(answer.value, parser),
    )


def _require_client() -> None:
    from importlib.util import find_spec

    if find_spec("openai") is None:
        raise RaylaunchError(
            "the openai client is not installed here",
            why="verify asks the service as its users do; vLLM brings the client, raylaunch alone does not",
            todo="pip install openai, or run verify where vLLM is installed",
        )


def _run(work: Coroutine[Any, Any, Verification]) -> Verification:
    """Run to the end, also when the caller's thread has an event loop of its own, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _ignore(_: Proof) -> None:
    return None
