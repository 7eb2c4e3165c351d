"""The driver's side of a benchmark: choose the load, run it by the primary, store the run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from raylaunch.bench.bench_output import BenchProgress
from raylaunch.bench.result import Run, run_id
from raylaunch.bench.scenario import Scenario, build_argv, choose, refuse_too_long
from raylaunch.errors import BusyError, LaunchError
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.plan.plan_json import plan_to_dict
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.runtime.bench import bench_store
from raylaunch.runtime.bench.bench_actor import BenchExit, BenchLaunch
from raylaunch.runtime.bench.bench_handle import BenchActorHandle, bench_actor
from raylaunch.runtime.cluster.remote_call import ActorError
from raylaunch.runtime.controller.controller_client import require_controller
from raylaunch.supervise.deployment_status import Status
from raylaunch.supervise.state import Phase

log = logging.getLogger(__name__)

POLL_S = 0.5
"""Between two checks that the deployment has neither restarted nor stopped.

Short, so that `stop` finds no client of the servers left.
"""

OnProgress = Callable[[Scenario, BenchProgress], None]


@dataclass(frozen=True)
class _Subject:
    """The deployment under test."""

    status: Status
    loaded: LoadedRecipe
    plan: LaunchPlan
    versions: Mapping[str, str]
    api_key: str = field(repr=False)
    """Of the service; "" if it requires none."""


def run_bench(
    deployment: str,
    scenario: str | None,
    concurrency: Sequence[int],
    changes: Mapping[str, Any],
    home: Path,
    read_key: Callable[[LaunchPlan], str | None],
    on_progress: OnProgress | None = None,
    on_run: Callable[[Run], None] | None = None,
) -> list[Run]:
    """Run the scenario against the deployment, once per concurrency; store each run below `home`.

    `read_key` returns the API key that the service requires; None if it requires none.

    Raises:
        BusyError: the deployment is not ready, or another command runs a benchmark of it.
        RecipeError: there is no such scenario, the servers would refuse its requests, or their API
            key is not known here.
        LaunchError: the benchmark failed, or the deployment restarted or stopped meanwhile.
    """
    subject = _require_ready(deployment, read_key)
    chosen = choose(scenario, subject.loaded.recipe.bench).changed(changes)
    loads = [chosen.at(count) for count in concurrency] or [chosen]
    for load in loads:
        refuse_too_long(subject.plan, load)
    runs = []
    with bench_actor(subject.plan, subject.status.attempt) as actor:
        for load in loads:
            run = _run_one(actor, subject, load, on_progress or _ignore)
            runs.append(run)
            bench_store.save(home, run)
            if on_run is not None:
                on_run(run)
    return runs


def _ignore(_load: Scenario, _progress: BenchProgress) -> None:
    """Ignore the progress."""


def _require_ready(deployment: str, read_key: Callable[[LaunchPlan], str | None]) -> _Subject:
    controller = require_controller(deployment)
    status = controller.status()
    loaded, plan, versions = controller.describe()
    if status.phase is not Phase.READY or plan is None:
        raise BusyError(
            f"{deployment} is {status.phase}, and a benchmark needs it ready",
            todo=f"`raylaunch status {deployment}` shows why; try again when it is ready",
        )
    on_primary = versions.get(0, {})
    all_versions = {"raylaunch": metadata.version("raylaunch"), **on_primary}
    return _Subject(status, loaded, plan, all_versions, read_key(plan) or "")


def _run_one(
    actor: BenchActorHandle, subject: _Subject, load: Scenario, on_progress: OnProgress
) -> Run:
    began = time.time()
    try:
        launch, ended = _measure(actor, subject, load, on_progress)
    except ActorError as error:
        log.warning("the benchmark of %s is lost: %s", subject.plan.deployment, error.what)
        why = f"{error.what}: {error.why}" if error.why else error.what
        raise LaunchError(
            "the benchmark was lost",
            why=why,
            todo="`ray status` shows whether the node of the primary is alive",
        ) from error
    if ended.problem or ended.result is None:
        raise LaunchError(
            f"the benchmark of {subject.plan.deployment} failed: {ended.problem}",
            evidence=ended.tail,
            todo=f"its whole output is in {launch.log} on {subject.plan.primary.node.ip}",
        )
    return _describe_run(subject, load, launch, ended, began)


def _describe_run(
    subject: _Subject, load: Scenario, launch: BenchLaunch, ended: BenchExit, began: float
) -> Run:
    """Return the run with everything that is needed to repeat it. `began` is in Unix time."""
    assert ended.result is not None
    started_at = time.strftime("%Y%m%d-%H%M%S", time.gmtime(began))
    return Run(
        id=run_id(started_at, load),
        deployment=subject.plan.deployment,
        recipe=subject.loaded.name,
        scenario=load.name,
        description=load.description,
        args=dict(load.args),
        seed=launch.seed,
        concurrency=load.concurrency,
        at=began,
        seconds=time.time() - began,
        attempt=subject.status.attempt,
        node=subject.plan.primary.node.ip,
        niceness=ended.niceness,
        command=launch.command,
        versions=dict(subject.versions),
        plan=plan_to_dict(subject.plan),
        result=ended.result,
        prefix_hit_rate=ended.prefix_hit_rate,
        reference=dict(load.reference),
    )


def _measure(
    actor: BenchActorHandle, subject: _Subject, load: Scenario, on_progress: OnProgress
) -> tuple[BenchLaunch, BenchExit]:
    """Launch one benchmark and wait for its exit."""
    launch = actor.launch(
        argv=build_argv(subject.plan, load),
        seed=load.seed,
        prompts=load.prompts,
        api_key=subject.api_key,
    )
    exited = False
    while not exited:
        progress, exited = actor.watch(wait_s=POLL_S)
        on_progress(load, progress)
        _require_same_attempt(subject)
    return launch, actor.read_exit()


def _require_same_attempt(subject: _Subject) -> None:
    """Refuse to measure across a restart: answers of servers that restart or stop mean nothing."""
    name = subject.plan.deployment
    first = subject.status.attempt
    status = require_controller(name).status()
    if status.phase is not Phase.READY or status.attempt != first:
        raise LaunchError(
            f"the benchmark was stopped: {name} is {status.phase}, attempt {status.attempt}",
            why=f"it began on attempt {first}, and figures across a restart mean nothing",
            todo=f"`raylaunch events {name}` shows what happened",
        )
