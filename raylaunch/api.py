"""The verbs: plan, deploy, attach, diagnose. Wires the rooms together; loads Ray only where it is needed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from raylaunch.errors import (
    BusyError,
    ClusterError,
    LaunchError,
    NotReadyError,
    RaylaunchError,
    RecipeError,
    UnknownDeploymentError,
    from_dict,
)
from raylaunch.plan.checks import check_nodes, check_recipe
from raylaunch.plan.facts import Facts
from raylaunch.plan.findings import Finding
from raylaunch.plan.planner import build_plan
from raylaunch.plan.spec import LaunchPlan
from raylaunch.recipe.catalog import read
from raylaunch.recipe.load import LoadedRecipe, recipe_from_mapping
from raylaunch.recipe.model import Recipe
from raylaunch.supervise.state import Phase
from raylaunch.supervise.status import Event, Status, StopReport

if TYPE_CHECKING:
    from raylaunch.runtime.drill import Outcome
    from raylaunch.supervise.diagnose import Diagnosis

EXAMPLE_NIC = "enp67s0f0np0"
POLL_S = 2.0
"""Longest wait of one long poll; a change is answered at once."""
CALL_TIMEOUT_S = 90.0
LOCAL = "local"
"""Address that always means an embedded cluster of our own."""

OnUpdate = Callable[[Status], None]


def load(recipe: str | Recipe | Mapping[str, Any], sets: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe by name or path, or take one given as a value.

    Raises:
        RecipeError: unknown or malformed.
    """
    if isinstance(recipe, str):
        return read(recipe, tuple(sets))
    values = recipe.model_dump(exclude_unset=True) if isinstance(recipe, Recipe) else dict(recipe)
    if sets:
        raise RecipeError("--set works on recipes by name or path", todo="put the values into the recipe itself")
    return recipe_from_mapping(values, "custom")


def make_plan(
    name: str | Recipe | Mapping[str, Any],
    *,
    hosts: Sequence[str] = (),
    primary: str | None = None,
    sets: Sequence[str] = (),
    deployment: str | None = None,
) -> tuple[LoadedRecipe, LaunchPlan, list[Finding]]:
    """Plan a recipe on given hosts, without any cluster.

    Args:
        name: Recipe by name or path, or as a value.
        hosts: "IP%NIC", one per server or node; without any, documentation addresses (a CPU recipe: this machine).
        primary: Address of the host that shall be the primary instead of the first.
        sets: Assignments such as "parallel.data=4".
        deployment: Name; by default the recipe's.

    Raises:
        RecipeError: the recipe is wrong.
        PlanError: the hosts cannot hold it.
    """
    loaded = load(name, sets)
    nodes = [_host(text) for text in hosts] or _default_nodes(loaded.recipe)
    plan = build_plan(loaded, nodes, deployment=deployment or "", primary=primary)
    findings = [*check_recipe(loaded, nodes[0].versions), *check_nodes(loaded, nodes, plan)]
    return loaded, plan, findings


def plan(name: str | Recipe | Mapping[str, Any], *, hosts: Sequence[str] = (), **options: Any) -> LaunchPlan:  # noqa: ANN401
    """As `make_plan`, but only the plan."""
    return make_plan(name, hosts=hosts, **options)[1]


def check(name: str | Recipe | Mapping[str, Any], *, hosts: Sequence[str] = (), **options: Any) -> list[Finding]:  # noqa: ANN401
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
    secrets = _read_secrets(loaded.recipe)
    embedded = _starts_local(loaded.recipe, address)
    if embedded:
        _start_local(title, loaded.recipe)
    else:
        _connect(title, address)
    handle = Deployment(title)
    try:
        _create_controller(title, loaded, primary, skip_checks, secrets)
    except RaylaunchError:
        if embedded:
            _stop_local(title)
        raise
    if wait:
        handle.wait_ready(timeout, on_update, own=True)
    return handle


def attach(deployment: str, address: str | None = None) -> Deployment:
    """Find a running deployment by name.

    Raises:
        UnknownDeploymentError: there is none of that name.
        ClusterError: the cluster does not answer.
    """
    _connect(deployment, address)
    handle = Deployment(deployment)
    handle._controller()  # noqa: SLF001 - refuses an unknown name here, not at the first question
    return handle


def deployments(address: str | None = None) -> list[Status]:
    """The status of every deployment of the cluster, and of those on embedded clusters of this machine."""
    from raylaunch.runtime.remote import running_names
    from raylaunch.runtime.session import disconnect

    found = []
    for name in _local_names() if address is None else []:
        with contextlib.suppress(RaylaunchError):
            found.append(attach(name).status())
        disconnect()
    try:
        _connect("", address)
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
    from raylaunch.runtime import bundles

    path = Path(target)
    if path.is_file():
        from raylaunch.supervise.diagnose import diagnose_text

        return diagnose_text(path.read_text(encoding="utf-8", errors="replace"), path.name)
    if path.is_dir():
        return bundles.diagnose_bundle(path)
    return bundles.diagnose_deployment(target, lambda: attach(target, address), _home())


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
    from raylaunch.runtime.drill import choose, run_drill

    chosen = choose(faults)
    attach(deployment, address)
    return run_drill(deployment, chosen, on_outcome)


class Deployment:
    """A named, running recipe: the handle to its controller."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Deployment({self.name!r})"

    @property
    def endpoint(self) -> str:
        """Base URL of the OpenAI API."""
        return self.status().endpoint

    def status(self) -> Status:
        """Where the deployment is now."""
        status: Status = self._ask("status")
        return status

    def wait_ready(
        self, timeout: float | None = None, on_update: OnUpdate | None = None, *, own: bool = False
    ) -> Status:
        """Wait until the deployment is ready.

        Args:
            timeout: Seconds; None waits as long as the deployment's own deadlines allow.
            on_update: Called with every new status.
            own: The caller has just started it: a failure then also ends what is left of it.

        Raises:
            NotReadyError: not ready in time; it goes on starting.
            RaylaunchError: the start failed, as the controller says.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        version = -1
        while True:
            version, status = self._wait_change(version)
            if on_update is not None:
                on_update(status)
            if status.phase is Phase.READY:
                return status
            if status.phase in (Phase.FAILED, Phase.STOPPING, Phase.STOPPED):
                raise self._explain_end(status, own=own)
            if deadline is not None and time.monotonic() >= deadline:
                raise self._late(status, timeout or 0)

    def logs(self, server: int = 0, lines: int = 100) -> str:
        """The last lines of a server's log, from wherever it runs."""
        chunk = self._ask("read_log", server, None, lines, 0.0)
        return chunk.text if chunk is not None else ""

    def follow_logs(self, server: int = 0, lines: int = 0) -> Iterator[str]:
        """New lines of a server's log as they are written, for ever; `lines` old ones first."""
        cursor = None
        while True:
            chunk = self._ask("read_log", server, cursor, lines, POLL_S)
            if chunk is not None:
                cursor = chunk.cursor
                yield from chunk.text.splitlines()
            else:
                time.sleep(POLL_S)  # between two attempts the server has no agent

    def events(self, after: int = 0) -> list[Event]:
        """What happened, oldest first; only events with a number above `after`."""
        events: list[Event] = self._ask("events", after)
        return events

    def follow_events(self, after: int = 0) -> Iterator[Event]:
        """New events as they happen, until the deployment is stopped."""
        version = -1
        while True:
            for event in self.events(after):
                after = event.number
                yield event
            version, status = self._wait_change(version)
            if status.phase is Phase.STOPPED:
                return

    def stop(self, on_update: OnUpdate | None = None) -> StopReport:
        """End every process of the deployment, prove it, and end the embedded cluster if there is one."""
        from raylaunch.runtime.remote import stop_controller
        from raylaunch.runtime.session import disconnect

        report = stop_controller(self._controller(), on_update)
        local_left = _local_left(self.name)
        if local_left is None:
            return report
        disconnect()
        left = _stop_local(self.name)
        return replace(report, left=(*report.left, *left), local_cluster_stopped=not left)

    def _controller(self) -> Any:  # noqa: ANN401
        from raylaunch.runtime.remote import find_controller

        found = find_controller(self.name)
        if found is None:
            raise _unknown(self.name)
        return found

    def _wait_change(self, version: int) -> tuple[int, Status]:
        answer: tuple[int, Status] = self._ask("wait_change", version, POLL_S)
        return answer

    def _ask(self, question: str, *args: Any) -> Any:  # noqa: ANN401
        from raylaunch.runtime.remote import ask

        return ask(self._controller(), question, *args, timeout_s=CALL_TIMEOUT_S)

    def _explain_end(self, status: Status, *, own: bool) -> RaylaunchError:
        error = from_dict(status.error) if status.error else LaunchError(f"{self.name} was stopped while it started")
        if own:
            with contextlib.suppress(UnknownDeploymentError):  # whoever stopped it has cleaned up already
                self.stop()
        return error

    def _late(self, status: Status, timeout: float) -> NotReadyError:
        return NotReadyError(
            f"{self.name} is not ready after {timeout:g} s",
            why=f"{status.phase}; still missing: {'; '.join(status.waiting_for) or 'unknown'}",
            todo=f"it goes on: `raylaunch status {self.name}` follows it, `raylaunch stop {self.name}` ends it",
        )


def _home() -> Path:
    return Path(os.environ.get("RAYLAUNCH_HOME") or Path.home() / ".raylaunch")


def _host(text: str) -> Facts:
    ip, _, interface = text.partition("%")
    return Facts(ip, interface=interface or None)


def _default_nodes(recipe: Recipe) -> list[Facts]:
    if recipe.hardware.platform == "cpu":
        from raylaunch.node.probe import probe

        facts = replace(probe("127.0.0.1", env=os.environ, npu=False), state_dir=str(_home()))
        return [facts] * recipe.parallel.servers
    return [Facts(f"192.0.2.{10 + index}", interface=EXAMPLE_NIC) for index in range(recipe.parallel.servers)]


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


def _local_names() -> list[str]:
    return sorted(path.stem for path in (_home() / "clusters").glob("*.json"))


def _connect(deployment: str, address: str | None) -> None:
    from raylaunch.runtime.local import find_local
    from raylaunch.runtime.session import connect

    local = find_local(_home(), deployment) if deployment and address in (None, LOCAL) else None
    if local is not None:
        connect(local.address, ship=False, token_file=local.token_file)
    elif address == LOCAL:
        raise _unknown(deployment)
    else:
        try:
            connect(address, ship=True)
        except ClusterError as error:
            if address is None and "RAY_ADDRESS" not in os.environ and deployment:
                raise _unknown(deployment) from error
            raise


def _start_local(deployment: str, recipe: Recipe) -> None:
    from raylaunch.runtime.local import start_local
    from raylaunch.runtime.session import connect

    cluster = start_local(_home(), deployment, nodes=recipe.parallel.servers, npus_per_node=recipe.npus_per_node)
    connect(cluster.address, ship=False, token_file=cluster.token_file)


def _local_left(deployment: str) -> object | None:
    from raylaunch.runtime.local import find_local

    return find_local(_home(), deployment)


def _stop_local(deployment: str) -> list[str]:
    from raylaunch.runtime.local import stop_local

    return stop_local(_home(), deployment)


def _create_controller(
    deployment: str,
    loaded: LoadedRecipe,
    primary: str | None,
    skipped: Mapping[str, str] | None,
    secrets: Mapping[str, str],
) -> None:
    from raylaunch.runtime.controller import Request
    from raylaunch.runtime.remote import create_controller, find_controller

    if find_controller(deployment) is not None:
        raise BusyError(
            f"a deployment named {deployment!r} is already there",
            todo=f"`raylaunch status {deployment}` shows it, `raylaunch stop {deployment}` ends it; or use --name",
        )
    create_controller(Request(deployment, loaded, primary, dict(skipped or {})), secrets)


def _unknown(name: str) -> UnknownDeploymentError:
    return UnknownDeploymentError(
        f"there is no deployment named {name!r}",
        todo="`raylaunch list --running` shows those of this cluster; --address names another cluster",
    )
