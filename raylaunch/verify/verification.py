"""Verifies a service as a client sees it: sends requests with the `openai` client, grades answers.

All ranks are asked first and at the same time. If one of them is silent or wrong, the other
requests go to a healthy rank, so that they show further faults instead of the same one again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raylaunch.errors import RaylaunchError
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.verify import cases, grading
from raylaunch.verify.cases import Request
from raylaunch.verify.chat_client import KEY_VARIABLE, Answer, ChatClient
from raylaunch.verify.grading import ChatReply, Result, Verdict
from raylaunch.vllm_api.vllm_client import VllmClient

TIMEOUT_S = 60.0
METRICS_WAIT_S = 3.0
"""Seconds until a finished request must be counted in `/metrics`."""
METRICS_POLL_S = 0.1


@dataclass(frozen=True)
class Proof:
    """One check: its result, the observation, and the curl line that repeats it."""

    check: str
    result: Result
    detail: str
    seconds: float | None
    """Seconds until the answer was complete; None if no request was sent."""
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
        if "failed" in results:
            return "failed"
        if "unclear" in results:
            return "unclear"
        return "passed"


OnProof = Callable[[Proof], None]


def verify(
    plan: LaunchPlan,
    api_key: str | None = None,
    *,
    random_weights: bool = False,
    timeout_s: float = TIMEOUT_S,
    on_proof: OnProof | None = None,
) -> Verification:
    """Check everything that the plan of a running deployment promises to a client.

    Args:
        plan: The running plan: endpoint, served name, ranks, and the primary's parser flags.
        api_key: Sent as a bearer token, never shown.
        random_weights: Whether the model is a generated one; its text is then not graded.
        timeout_s: Seconds for one answer.
        on_proof: Called after each check.

    Raises:
        RaylaunchError: the `openai` client is not installed.
    """
    _require_client()
    return _run(
        _verify(
            plan,
            api_key,
            random_weights,
            timeout_s,
            on_proof or _ignore,
        )
    )


def key_variable(plan: LaunchPlan) -> str:
    """Return the variable that holds the service's API key; "" if it requires none."""
    required = (
        KEY_VARIABLE in plan.secrets
        or KEY_VARIABLE in plan.primary.env
        or plan.primary.flag("--api-key")
    )
    return KEY_VARIABLE if required else ""


async def _verify(
    plan: LaunchPlan,
    api_key: str | None,
    random_weights: bool,
    timeout_s: float,
    on_proof: OnProof,
) -> Verification:
    proofs: list[Proof] = []
    async with ChatClient(plan.endpoint, api_key, timeout_s) as client:
        service = _Service(plan, client, random_weights, timeout_s)
        async for proof in _prove(service):
            proofs.append(proof)
            on_proof(proof)
    return Verification(plan.deployment, plan.endpoint, plan.served_name, tuple(proofs))


async def _prove(service: _Service) -> AsyncIterator[Proof]:
    """Yield one proof per check; stops early where every further request would fail too."""
    models, reachable = await _prove_models(service)
    yield models
    if not reachable:
        return
    ranks, answered = await _prove_ranks(service)
    for proof in ranks:
        yield proof
    if not answered:
        return
    healthy = [proof.rank for proof in ranks if proof.result != "failed"]
    if healthy and len(healthy) < len(ranks):
        service = replace(service, rank=healthy[0])
    yield await _prove_english(service)
    yield await _prove_chinese(service)
    yield await _prove_stream(service)
    yield await _prove_call(service)
    yield await _prove_reasoning(service)


@dataclass(frozen=True)
class _Service:
    """The service under test.

    `rank` answers the requests that name none; None: vLLM's load balancing chooses.
    """

    plan: LaunchPlan
    client: ChatClient
    random_weights: bool
    timeout_s: float
    rank: int | None = None

    @property
    def model(self) -> str:
        return self.plan.served_name

    async def ask(self, request: Request) -> Answer:
        """Send the request, to the chosen rank if it names none."""
        # A GET is answered by the API server itself, not by a rank.
        if request.rank is None and request.body is not None:
            request = replace(request, rank=self.rank)
        return await self.client.ask(request)

    def grade(self, check: str, answer: Answer, judge: Callable[[Any], Verdict]) -> Proof:
        """Grade the answer with `judge`. A request without an answer has failed."""
        if answer.problem:
            return self.proof(check, answer, Verdict("failed", answer.problem))
        return self.proof(check, answer, judge(answer.value))

    def proof(self, check: str, answer: Answer, verdict: Verdict) -> Proof:
        """Return the proof for a graded answer."""
        detail = verdict.detail
        if self.rank is not None:
            detail += f" (asked of rank {self.rank})"
        return Proof(
            check=check,
            result=verdict.result,
            detail=detail,
            seconds=answer.seconds,
            curl=self.curl(answer.request),
            rank=answer.request.rank,
        )

    def skip(self, check: str, why: str, request: Request) -> Proof:
        return Proof(
            check=check,
            result="skipped",
            detail=why,
            seconds=None,
            curl=self.curl(request),
        )

    def curl(self, request: Request) -> str:
        return cases.curl(
            self.plan.endpoint,
            request,
            key_variable(self.plan),
            self.timeout_s,
        )


async def _prove_models(service: _Service) -> tuple[Proof, bool]:
    """Check the list of models. The second value: whether further requests make sense."""

    def judge(names: tuple[str, ...]) -> Verdict:
        return grading.judge_models(names, service.model)

    answer = await service.ask(cases.models())
    return service.grade("models", answer, judge), not answer.closed


async def _prove_ranks(service: _Service) -> tuple[list[Proof], bool]:
    """Check each rank. The second value: whether at least one of them answered."""
    before = await _count_finished(service)
    ranks = range(service.plan.ranks)
    requests = [cases.fixed_prompt(service.model, rank) for rank in ranks]
    answers = await asyncio.gather(*map(service.ask, requests))
    texts = _texts_by_rank(answers)
    again = await _ask_again(service, texts)
    verdicts = grading.judge_ranks(texts, again, random_weights=service.random_weights)
    uncounted = await _find_uncounted(service, before, set(texts))
    proofs = []
    for rank, answer in zip(ranks, answers, strict=True):
        verdict = verdicts.get(rank) or Verdict("failed", answer.problem)
        verdict = _qualify(service, rank, verdict, uncounted)
        proofs.append(service.proof(f"rank {rank}", answer, verdict))
    return proofs, not all(answer.closed for answer in answers)


def _texts_by_rank(answers: Sequence[Answer]) -> dict[int, str]:
    """Return the text of each rank that answered."""
    texts = {}
    for answer in answers:
        rank = answer.request.rank
        if rank is not None and not answer.problem:
            texts[rank] = answer.value.content
    return texts


async def _ask_again(service: _Service, texts: Mapping[int, str]) -> dict[int, str]:
    """Ask ranks that differ once more, one by one.

    Concurrent requests change a batch, and with it the last digits of the logits.
    """
    if len(set(texts.values())) < 2:
        return {}
    answers = []
    for rank in texts:
        request = cases.fixed_prompt(service.model, rank)
        answers.append(await service.ask(request))
    return _texts_by_rank(answers)


def _qualify(service: _Service, rank: int, verdict: Verdict, uncounted: set[int]) -> Verdict:
    """Add the server to a failure; downgrade an answer that its rank did not count."""
    if verdict.result == "failed":
        server = next(server for server in service.plan.servers if rank in server.ranks)
        where = f"server {server.index} on {server.node.ip}"
        return Verdict("failed", f"{verdict.detail} ({where})")
    if verdict.result == "passed" and rank in uncounted:
        doubt = (
            f"/metrics counts no finished request for rank {rank}: another one may have answered"
        )
        return Verdict("unclear", f"{verdict.detail}, but {doubt}")
    return verdict


async def _find_uncounted(
    service: _Service, before: Mapping[int, int], ranks: set[int]
) -> set[int]:
    """Find the ranks whose count of finished requests has not increased.

    Empty if the service reports no counts at all.
    """
    if not before:
        return set()
    deadline = time.monotonic() + METRICS_WAIT_S
    while True:
        after = await _count_finished(service)
        uncounted = {rank for rank in ranks if after.get(rank, 0) <= before.get(rank, 0)}
        if not uncounted or time.monotonic() > deadline:
            return uncounted
        # The engines report their counts some time after the answer.
        await asyncio.sleep(METRICS_POLL_S)


async def _count_finished(service: _Service) -> dict[int, int]:
    async with VllmClient(service.plan.endpoint) as client:
        metrics = await client.metrics(timeout_s=service.timeout_s)
    return {rank: counters.finished for rank, counters in metrics.ranks.items()}


async def _prove_english(service: _Service) -> Proof:
    def judge(reply: ChatReply) -> Verdict:
        return grading.judge_chat(reply, random_weights=service.random_weights)

    answer = await service.ask(cases.english(service.model))
    return service.grade("chat", answer, judge)


async def _prove_chinese(service: _Service) -> Proof:
    def judge(reply: ChatReply) -> Verdict:
        return grading.judge_chinese(reply, random_weights=service.random_weights)

    answer = await service.ask(cases.chinese(service.model))
    return service.grade("chinese", answer, judge)


async def _prove_stream(service: _Service) -> Proof:
    answer = await service.ask(cases.stream(service.model))
    return service.grade("stream", answer, grading.judge_stream)


async def _prove_call(service: _Service) -> Proof:
    """Ask as the guide does; if the model calls no tool, ask again with the tool named."""
    check = "tool call"
    request = cases.tool_call(service.model)
    primary = service.plan.primary
    enabled = primary.flag("--enable-auto-tool-choice") is not None
    if not enabled or not primary.flag("--tool-call-parser"):
        return service.skip(check, "the recipe has no tool calling", request)
    answer = await service.ask(request)
    if answer.problem:
        return service.proof(check, answer, Verdict("failed", answer.problem))
    verdict = grading.judge_call(answer.value, cases.TOOL)
    if verdict is not None:
        return service.proof(check, answer, verdict)

    def judge_named(reply: ChatReply) -> Verdict:
        return grading.judge_named_call(reply, cases.CLOSED_TOOL)

    named = await service.ask(cases.named_tool_call(service.model))
    return service.grade(check, named, judge_named)


async def _prove_reasoning(service: _Service) -> Proof:
    request = cases.reasoning(service.model)
    parser = service.plan.primary.flag("--reasoning-parser")
    if not parser:
        return service.skip("reasoning", "the recipe has no reasoning parser", request)

    def judge(reply: ChatReply) -> Verdict:
        return grading.judge_reasoning(reply, parser)

    answer = await service.ask(request)
    return service.grade("reasoning", answer, judge)


def _require_client() -> None:
    from importlib.util import find_spec

    if find_spec("openai") is None:
        raise RaylaunchError(
            "the openai client is not installed here",
            why=(
                "verify sends requests as the service's users do; "
                "vLLM brings the client, raylaunch alone does not"
            ),
            todo="pip install openai, or run verify where vLLM is installed",
        )


def _run(work: Coroutine[Any, Any, Verification]) -> Verification:
    """Run the coroutine to its end, also if the calling thread runs an event loop (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _ignore(_: Proof) -> None:
    return None
