"""A benchmark from the driver's side: what runs, what to send at it, and its end with whatever ends the command."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from raylaunch.bench.bench_output import BenchProgress
from raylaunch.bench.result import Run, run_id
from raylaunch.bench.scenario import Scenario, build_argv, choose, refuse_too_long
from raylaunch.errors import BusyError, LaunchError, RaylaunchError
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.plan.plan_json import plan_to_dict
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.bench import bench_store
from raylaunch.runtime.bench.bench_actor import Begun, Bencher, Ended
from raylaunch.runtime.cluster.connection import NAMESPACE
from raylaunch.runtime.cluster.packaging import packaged
from raylaunch.runtime.controller.controller_client import require_controller
from raylaunch.supervise.deployment_status import Status
from raylaunch.supervise.state import Phase

CALL_TIMEOUT_S = 120.0
POLL_S = 0.5
"""Between two looks whether the deployment is still what it was: its `stop` should find no client left."""
END_S = 30.0

OnProgress = Callable[[Scenario, BenchProgress], None]


@dataclass(frozen=True)
class _Subject:
    """The deployment under test."""

    status: Status
    loaded: LoadedRecipe
    plan: LaunchPlan
    versions: Mapping[str, str]


def run_bench(
    deployment: str,
    scenario: str | None,
    concurrency: Sequence[int],
    changes: Mapping[str, Any],
    home: Path,
    on_progress: OnProgress | None = None,
    on_run: Callable[[Run], None] | None = None,
) -> list[Run]:
    """Send the scenario at the deployment, once per concurrency, and keep each result below `home`.

    Raises:
        BusyError: the deployment is not ready, or somebody else measures it.
        RecipeError: no such scenario, or the servers would refuse its requests.
        LaunchError: the benchmark failed, or the deployment did meanwhile.
    """
    subject = _look(deployment)
    chosen = choose(scenario, subject.loaded.recipe.bench).changed(changes)
    loads = [chosen.at(count) for count in concurrency] or [chosen]
    for load in loads:
        refuse_too_long(subject.plan, load)
    runs = []
    with _bencher(subject) as actor:
        for load in loads:
            runs.append(_run_one(actor, subject, load, on_progress or (lambda _, __: None)))
            bench_store.save(home, runs[-1])
            if on_run is not None:
                on_run(runs[-1])
    return runs


def _look(deployment: str) -> _Subject:
    controller = require_controller(deployment)
    status = controller.status()
    loaded, plan, versions = controller.describe()
    if status.phase is not Phase.READY or plan is None:
        raise BusyError(
            f"{deployment} is {status.phase}, and a benchmark needs it ready",
            todo=f"`raylaunch status {deployment}` shows why; try again when it is ready",
        )
    return _Subject(
        status, loaded, plan, {"raylaunch": metadata.version("raylaunch"), **versions.get(0, {})}
    )


@contextlib.contextmanager
def _bencher(subject: _Subject) -> Iterator[Any]:
    """An actor on the primary's node; gone with the block, and with this process if that comes first."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    name, primary = subject.plan.deployment, subject.plan.primary
    options = ray.remote(packaged(Bencher)).options(
        name=f"bench:{name}",
        namespace=NAMESPACE,
        num_cpus=0,
        max_restarts=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(primary.node.node_id, soft=False),
    )
    try:
        actor = options.remote(name, plan_to_dict(subject.plan), subject.status.attempt)
    except ValueError as error:  # Ray: the name is taken
        raise BusyError(
            f"somebody else is measuring {name}",
            why="two benchmarks at once measure each other",
            todo="try later",
        ) from error
    try:
        yield actor
    finally:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(actor.end.remote(), timeout=END_S)
        ray.kill(actor)


def _run_one(actor: Any, subject: _Subject, load: Scenario, on_progress: OnProgress) -> Run:  # noqa: ANN401
    began = time.time()
    begun: Begun = _get(
        actor.launch.remote(build_argv(subject.plan, load), load.seed, load.prompts)
    )
    over = False
    while not over:
        progress, over = _get(actor.watch.remote(POLL_S))
        on_progress(load, progress)
        _require_same(subject)
    ended: Ended = _get(actor.ended.remote())
    if ended.problem or ended.result is None:
        raise LaunchError(
            f"the benchmark of {subject.plan.deployment} failed: {ended.problem}",
            evidence=ended.tail,
            todo=f"its whole output is in {begun.log} on {subject.plan.primary.node.ip}",
        )
    return Run(
        id=run_id(time.strftime("%Y%m%d-%H%M%S", time.gmtime(began)), load),
        deployment=subject.plan.deployment,
        recipe=subject.loaded.name,
        scenario=load.name,
        description=load.description,
        args=dict(load.args),
        seed=begun.seed,
        concurrency=load.concurrency,
        at=began,
        seconds=time.time() - began,
        attempt=subject.status.attempt,
        node=subject.plan.primary.node.ip,
        niceness=ended.niceness,
        command=begun.command,
        versions=dict(subject.versions),
        plan=plan_to_dict(subject.plan),
        result=ended.result,
        prefix_hit_rate=ended.prefix_hit_rate,
        reference=dict(load.reference),
    )


def _require_same(subject: _Subject) -> None:
    """What a deployment answers while it restarts or stops measures nothing."""
    name = subject.plan.deployment
    status = require_controller(name).status()
    if status.phase is not Phase.READY or status.attempt != subject.status.attempt:
        raise LaunchError(
            f"the benchmark was ended: {name} is {status.phase}, attempt {status.attempt}",
            why=f"it began on attempt {subject.status.attempt}, and figures across a restart mean nothing",
            todo=f"`raylaunch events {name}` shows what happened",
        )


def _get(answer: Any) -> Any:  # noqa: ANN401
    import ray

    try:
        return ray.get(answer, timeout=CALL_TIMEOUT_S)
    except RaylaunchError as error:
        raise getattr(error, "cause", error) from None  # Ray wraps it once
    except (
        ray.exceptions.RayActorError,
        ray.exceptions.ActorUnschedulableError,
        ray.exceptions.GetTimeoutError,
    ) as error:
        said = str(error).strip().splitlines() or ["no answer"]
        raise LaunchError(
            "the benchmark was lost",
            why=f"{type(error).__name__}: {said[0]}",
            todo="`ray status` shows whether the node of the primary is alive",
        ) from error
