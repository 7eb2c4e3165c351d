"""The verbs: plan, deploy, attach, diagnose. Wires the rooms together; loads Ray only where it is needed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylaunch.checks.check_all import check_nodes, check_recipe
from raylaunch.checks.findings import Finding, forgive, refuse_unknown
from raylaunch.deployment import (
    LOCAL,
    Deployment,
    OnUpdate,
    connect_to,
    embedded_names,
    embedded_problems,
    home,
    start_embedded,
    stop_deployment,
    stop_embedded,
)
from raylaunch.errors import BusyError, ClusterError, RaylaunchError, RecipeError
from raylaunch.plan.facts import Facts
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read
from raylaunch.recipe.load import LoadedRecipe, recipe_from_mapping
from raylaunch.recipe.model import Recipe
from raylaunch.supervise.deployment_status import Status, StopReport

if TYPE_CHECKING:
    from raylaunch.plan.facts import TuningStep
    from raylaunch.plan.wanted_weights import WeightsReport
    from raylaunch.supervise.deployment_status import CleanReport
    from raylaunch.supervise.diagnosis.root_cause import Diagnosis
    from raylaunch.supervise.drills import Outcome
    from raylaunch.verify.verification import OnProof, Verification

record_problems = embedded_problems
"""Describes the records of embedded clusters that cannot be read."""
EXAMPLE_NIC = "enp67s0f0np0"


def load(recipe: str | Recipe | Mapping[str, Any], sets: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe by name or path, or take one given as a value.

    Raises:
        RecipeError: unknown or malformed.
    """
    if isinstance(recipe, str):
        return read(recipe, tuple(sets))
    values = recipe.model_dump(exclude_unset=True) if isinstance(recipe, Recipe) else dict(recipe)
    if sets:
        raise RecipeError(
            "--set works on recipes by name or path", todo="put the values into the recipe itself"
        )
    return recipe_from_mapping(values, "custom")


def make_plan(
    name: str | Recipe | Mapping[str, Any],
    *,
    hosts: Sequence[str] = (),
    primary: str | None = None,
    sets: Sequence[str] = (),
    deployment: str | None = None,
    ask_vllm: bool = False,
) -> tuple[LoadedRecipe, LaunchPlan, list[Finding]]:
    """Plan a recipe on given hosts, without any cluster.

    Args:
        name: Recipe by name or path, or as a value.
        hosts: "IP%NIC", one per server or node; without any, documentation addresses (a CPU recipe: this machine).
        primary: Address of the host that shall be the primary instead of the first.
        sets: Assignments such as "parallel.data=4".
        deployment: Name; by default the recipe's.
        ask_vllm: Ask this machine's vLLM which flags it knows, if it is this machine and the answer not remembered.

    Raises:
        RecipeError: the recipe is wrong.
        PlanError: the hosts cannot hold it.
    """
    loaded = load(name, sets)
    nodes = [_host(text) for text in hosts] or _default_nodes(loaded.recipe, ask_vllm)
    plan = build_plan(loaded, nodes, deployment=deployment or "", primary=primary)
    asked = all(node.known_flags for node in nodes)
    findings = [
        *check_recipe(loaded, nodes[0].versions, flags_asked=asked),
        *check_nodes(loaded, nodes, plan),
    ]
    return loaded, plan, findings


def plan(
    name: str | Recipe | Mapping[str, Any],
    *,
    hosts: Sequence[str] = (),
    **options: Any,  # noqa: ANN401
) -> LaunchPlan:
    """As `make_plan`, but only the plan."""
    return make_plan(name, hosts=hosts, **options)[1]


def check(
    name: str | Recipe | Mapping[str, Any],
    *,
    hosts: Sequence[str] = (),
    **options: Any,  # noqa: ANN401
) -> list[Finding]:
    """As `make_plan`, but only the findings."""
    return make_plan(name, hosts=hosts, **options)[2]


def deploy(
    name: str | Recipe | Mapping[str, Any],
    *,
    set: Mapping[str, Any] | None = None,  # noqa: A002 - reads as the command line does
    sets: Sequence[str] = (),
    deployment: str | None = None,
    address: str | None = None,
    wait: bool = True,
    timeout: float | None = None,
    on_update: OnUpdate | None = None,
    primary: str | None = None,
    skip_checks: Mapping[str, str] | None = None,
) -> Deployment:
    """Start a recipe on a Ray cluster and, with `wait`, return when it is ready.

    A recipe for CPU without any cluster named gets a small embedded one. The deployment outlives this process.

    Args:
        name: Recipe by name or path, or as a value.
        set: Changes to the recipe, by dotted path: {"parallel.data": 4}.
        sets: The same as text: "parallel.data=4".
        deployment: Name; by default the recipe's.
        address: Ray cluster as host:port, "auto" for the one on this machine; by default RAY_ADDRESS, then "auto".
        wait: Wait until ready.
        timeout: Seconds to wait; by default the recipe's `timeouts.start` and a little.
        on_update: Called with every new status while waiting.
        primary: Address of the node that shall be the primary.
        skip_checks: Ids of checks whose errors do not count, with the reason.

    Raises:
        RaylaunchError: see `raylaunch.errors`; when waiting, a failed start leaves nothing running.
    """
    loaded = load(name, [*sets, *_as_sets(set or {})])
    title = _checked_name(deployment or loaded.name)
    refuse_unknown(skip_checks or {})
    secrets = _read_secrets(loaded.recipe)
    if _starts_local(loaded.recipe, address):
        from raylaunch.runtime.cluster.local_cluster import signals_as_interrupt

        with signals_as_interrupt():
            start_embedded(title, loaded.recipe)
            try:
                _create_controller(title, loaded, primary, skip_checks, secrets)
            except BaseException:
                # Ctrl-C too: a cluster without a controller would belong to nobody.
                stop_embedded(title)
                raise
    else:
        from raylaunch.runtime.cluster.connection import connect

        connect(address)
        _create_controller(title, loaded, primary, skip_checks, secrets)
    handle = Deployment(title)
    if wait:
        handle.wait_ready(timeout, on_update, own=True)
    return handle


def attach(deployment: str, address: str | None = None) -> Deployment:
    """Find a running deployment by name.

    Raises:
        UnknownDeploymentError: there is none of that name.
        ClusterError: the cluster does not answer.
    """
    connect_to(deployment, address)
    handle = Deployment(deployment)
    handle._controller()  # noqa: SLF001 - refuses an unknown name here, not at the first question
    return handle


def stop(
    deployment: str, address: str | None = None, on_update: OnUpdate | None = None
) -> StopReport:
    """Stop a deployment and prove that nothing of it is left; see `deployment.stop_deployment`."""
    return stop_deployment(deployment, address, on_update)


def deployments(address: str | None = None) -> list[Status]:
    """The status of every deployment of the cluster, and of those on embedded clusters of this machine."""
    from raylaunch.runtime.cluster.connection import disconnect
    from raylaunch.runtime.controller.port_turns import running_names

    found = []
    for name in embedded_names() if address is None else []:
        with contextlib.suppress(RaylaunchError):
            found.append(attach(name).status())
        disconnect()
    try:
        connect_to("", address)
    except ClusterError:
        if address is not None:
            raise
        return found
    return [*found, *(attach(name, address).status() for name in running_names())]


def diagnose(target: str, address: str | None = None) -> Diagnosis | None:
    """Name the failure of a deployment, of a bundle (folder), or of a log file.

    Returns None when nothing known is wrong.

    Raises:
        UnknownDeploymentError: no such deployment, bundle or file.
    """
    from raylaunch.runtime.controller import bundle_reader

    path = Path(target)
    if path.is_file():
        from raylaunch.supervise.diagnosis.root_cause import diagnose_text

        return diagnose_text(path.read_text(encoding="utf-8", errors="replace"), path.name)
    if (path / "diagnosis.json").is_file() or "/" in target:
        return bundle_reader.diagnose_bundle(path)
    return bundle_reader.diagnose_deployment(target, lambda: attach(target, address), home())


def run_on_head(
    file: Path, words: Sequence[str], given: Mapping[str, Path], env: Mapping[str, str]
) -> int:
    """Run a command line on the head of the cluster that `ray up FILE` started (ssh_client)."""
    from raylaunch.runtime.ssh import ssh_client

    return ssh_client.run_on_head(file, words, given, env)


def drill(
    deployment: str,
    faults: Sequence[str] = (),
    address: str | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Break a running deployment on purpose, one fault at a time, and measure how it comes back.

    Args:
        deployment: Its name.
        faults: Names of faults; without any, all that hit nothing but the deployment.
        address: Ray cluster, as for `attach`.
        on_outcome: Called after each fault.

    Raises:
        BusyError: it is not ready, or another command is under way.
        RaylaunchError: no such fault or deployment, or it failed for good.
    """
    from raylaunch.runtime.drill.drill_run import choose, run_drill

    chosen = choose(faults)
    attach(deployment, address)
    return run_drill(deployment, chosen, on_outcome)


def verify(
    deployment: str,
    *,
    timeout: float | None = None,
    address: str | None = None,
    on_proof: OnProof | None = None,
) -> Verification:
    """Prove the service of a running deployment as a client sees it; see `Deployment.verify`."""
    return attach(deployment, address).verify(timeout, on_proof)


def preflight(
    name: str | Recipe | Mapping[str, Any],
    *,
    sets: Sequence[str] = (),
    deployment: str | None = None,
    address: str | None = None,
    skip_checks: Mapping[str, str] | None = None,
) -> tuple[LaunchPlan, list[Finding]]:
    """Plan and check a recipe where `deploy` would run it, and launch nothing. Arguments as for `deploy`.

    The NPUs are reserved for as long as it takes. A recipe for CPU without a cluster is checked on this machine, no
    cluster is started.

    Raises:
        RaylaunchError: no cluster, too few NPUs, or no plan; what the checks find is no error.
    """
    loaded = load(name, sets)
    title = _checked_name(deployment or loaded.name)
    refuse_unknown(skip_checks or {})
    if _starts_local(loaded.recipe, address):
        _, plan, findings = make_plan(name, sets=sets, deployment=title, ask_vllm=True)
    else:
        from raylaunch.runtime.cluster.connection import connect
        from raylaunch.runtime.controller import preflight as room

        connect(address)
        plan, findings = room.preflight(loaded, title)
    return plan, forgive(findings, skip_checks or {})


def clean(
    deployment: str | None = None, *, address: str | None = None, end: bool = False
) -> CleanReport:
    """Find marked processes that belong to nothing that runs, and records of embedded clusters that are gone.

    Args:
        deployment: Only what is left of this one.
        address: Ray cluster whose nodes are looked at too; by default the one that is found, if any.
        end: End and remove what is found, and nothing else.

    Raises:
        ClusterError: the named cluster does not answer.
    """
    from raylaunch.runtime.cluster.connection import connect
    from raylaunch.runtime.controller import orphan_search

    asked = address or os.environ.get("RAY_ADDRESS") or "auto"
    try:
        connect(address)
    except ClusterError:
        if asked != "auto":
            raise
        asked = ""
    return orphan_search.clean(home(), asked=asked, deployment=deployment, end=end)


def tune(
    name: str | Recipe | Mapping[str, Any], *, sets: Sequence[str] = (), apply: bool = False
) -> list[TuningStep]:
    """Compare this machine with the host settings that a recipe wants; with `apply` set what may be set."""
    from raylaunch.node.probe import tuning

    wanted = load(name, sets).recipe.tuning
    settings: dict[str, str | int | bool] = {"governor": wanted.governor} if wanted.governor else {}
    settings |= wanted.sysctl
    if wanted.jemalloc:
        settings["jemalloc"] = "installed"
    return tuning.apply(settings) if apply else tuning.compare(settings)


def weights(
    name: str | Recipe | Mapping[str, Any],
    *,
    sets: Sequence[str] = (),
    address: str | None = None,
    **how: Any,  # noqa: ANN401
) -> WeightsReport:
    """Look at a recipe's weights on every node that could hold a server; `download=True` brings what is missing.

    A recipe for CPU without a cluster, or the address "local", means this machine; more in
    `raylaunch.runtime.weights.weights_fetch.bring`.
    """
    from raylaunch.runtime.cluster.connection import connect
    from raylaunch.runtime.weights import weights_fetch as room

    loaded = load(name, sets)
    if not (here := _starts_local(loaded.recipe, address)):
        connect(address)
    return room.bring(loaded, here=here, **how)


def _host(text: str) -> Facts:
    ip, _, interface = text.partition("%")
    return Facts(ip, interface=interface or None)


def _default_nodes(recipe: Recipe, ask_vllm: bool) -> list[Facts]:
    if recipe.hardware.platform == "cpu":
        from raylaunch.node.probe.node_probe import probe
        from raylaunch.node.probe.vllm_flags import learn

        seen = probe("127.0.0.1", env=os.environ, npu=False, model_path=recipe.model.path or None)
        vllm = os.environ.get("RAYLAUNCH_VLLM") or seen.vllm_executable
        facts = replace(seen, state_dir=str(home()), vllm_executable=vllm)
        return [learn(facts, os.environ, ask=ask_vllm)] * recipe.parallel.servers
    return [
        Facts(f"192.0.2.{10 + index}", interface=EXAMPLE_NIC)
        for index in range(recipe.parallel.servers)
    ]


def _as_sets(changes: Mapping[str, Any]) -> list[str]:
    import json

    return [f"{path}={json.dumps(value)}" for path, value in changes.items()]


def _checked_name(name: str) -> str:
    allowed = name.replace("-", "").replace("_", "").replace(".", "")
    if not allowed.isalnum() or not name[0].isalnum() or len(name) > 60:
        raise RecipeError(
            f"{name!r} cannot be the name of a deployment",
            why="it becomes part of paths and of a marker variable",
            todo="use letters, digits, '-', '_' and '.', beginning with a letter or digit, at most 60",
        )
    return name


def _read_secrets(recipe: Recipe) -> dict[str, str]:
    missing = [name for name in recipe.secrets if name not in os.environ]
    if missing:
        raise RecipeError(
            f"the recipe's secret {missing[0]} is not set",
            why="its value is taken from the environment of this command and given to the servers",
            todo=f"export {missing[0]}=... and try again",
        )
    return {name: os.environ[name] for name in recipe.secrets}


def _starts_local(recipe: Recipe, address: str | None) -> bool:
    named = address or os.environ.get("RAY_ADDRESS")
    return address == LOCAL or (recipe.hardware.platform == "cpu" and not named)


def _create_controller(
    deployment: str,
    loaded: LoadedRecipe,
    primary: str | None,
    skipped: Mapping[str, str] | None,
    secrets: Mapping[str, str],
) -> None:
    from raylaunch.runtime.controller.controller_client import create_controller, find_controller
    from raylaunch.runtime.controller.launch_request import Request

    if find_controller(deployment) is not None:
        raise BusyError(
            f"a deployment named {deployment!r} is already there",
            todo=f"`raylaunch status {deployment}` shows it, `raylaunch stop {deployment}` ends it; or use --name",
        )
    create_controller(Request(deployment, loaded, primary, dict(skipped or {})), secrets)
