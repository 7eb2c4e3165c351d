"""The handle to a running deployment, and how this process finds the cluster that it runs on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from raylaunch.errors import (
    ClusterError,
    LaunchError,
    NotReadyError,
    RaylaunchError,
    RecipeError,
    UnknownDeploymentError,
    from_dict,
)
from raylaunch.recipe.model import Recipe
from raylaunch.supervise.deployment_status import Event, Status, StopReport
from raylaunch.supervise.state import Phase

if TYPE_CHECKING:
    from raylaunch.bench.result import Run
    from raylaunch.plan.launch_plan import LaunchPlan
    from raylaunch.runtime.bench.bench_run import OnProgress
    from raylaunch.verify.verification import OnProof, Verification

POLL_S = 2.0
"""Longest wait of one long poll; a change is answered at once."""
CALL_TIMEOUT_S = 90.0
LOCAL = "local"
"""Address that always means an embedded cluster of our own."""

OnUpdate = Callable[[Status], None]


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

    def verify(self, timeout: float | None = None, on_proof: OnProof | None = None) -> Verification:
        """Prove the service as a client sees it, from this machine: model, every rank, chat, stream, tools, reasoning.

        Args:
            timeout: Seconds for one answer; by default 60.
            on_proof: Called after each check.

        Raises:
            NotReadyError: it is not ready.
            RecipeError: the service asks for a key that is not in this environment.
            RaylaunchError: the `openai` client is not installed.
        """
        from raylaunch.verify import verification as verify

        status = self.status()
        if status.phase is not Phase.READY:
            raise NotReadyError(
                f"{self.name} is {status.phase}, and only a service that is ready can be verified",
                todo=f"`raylaunch status {self.name}` shows what it waits for",
            )
        loaded, plan, _ = self._ask("describe")
        return verify.verify(
            plan,
            _read_key(plan),
            random_weights=loaded.recipe.model.tiny is not None,
            timeout_s=timeout or verify.TIMEOUT_S,
            on_proof=on_proof,
        )

    def bench(
        self,
        scenario: str | None = None,
        *,
        concurrency: Sequence[int] = (),
        set: Mapping[str, Any] | None = None,  # noqa: A002 - reads as the command line does
        on_progress: OnProgress | None = None,
        on_run: Callable[[Run], None] | None = None,
    ) -> list[Run]:
        """Measure the deployment with `vllm bench serve` on the node of its primary, and keep each result.

        Args:
            scenario: Its name; by default the first that the recipe names.
            concurrency: Instead of the scenario's; one run each.
            set: Changes to the scenario's flags.
            on_progress: Called with the scenario and how far it is.
            on_run: Called after each run.

        Raises:
            BusyError: it is not ready, or somebody else measures it.
            RecipeError: no such scenario, or the servers would refuse its requests.
            LaunchError: the benchmark failed, or the deployment did meanwhile.
        """
        from raylaunch.runtime.bench.bench_run import run_bench

        return run_bench(self.name, scenario, concurrency, set or {}, home(), on_progress, on_run)

    def stop(self, on_update: OnUpdate | None = None) -> StopReport:
        """End every process of the deployment, prove it, and end the embedded cluster if there is one."""
        from raylaunch.runtime.cluster.connection import disconnect
        from raylaunch.runtime.controller.controller_client import stop_controller

        report = stop_controller(self._controller(), on_update)
        local_left = _find_embedded(self.name)
        if local_left is None:
            return report
        disconnect()
        left = stop_embedded(self.name)
        return replace(report, left=(*report.left, *left), local_cluster_stopped=not left)

    def _controller(self) -> Any:  # noqa: ANN401
        from raylaunch.runtime.controller.controller_client import find_controller

        found = find_controller(self.name)
        if found is None:
            raise unknown_name(self.name)
        return found

    def _wait_change(self, version: int) -> tuple[int, Status]:
        answer: tuple[int, Status] = self._ask("wait_change", version, POLL_S)
        return answer

    def _ask(self, question: str, *args: Any) -> Any:  # noqa: ANN401
        from raylaunch.runtime.controller.controller_client import ask

        return ask(self._controller(), question, *args, timeout_s=CALL_TIMEOUT_S)

    def _explain_end(self, status: Status, *, own: bool) -> RaylaunchError:
        error = (
            from_dict(status.error)
            if status.error
            else LaunchError(f"{self.name} was stopped while it started")
        )
        if own:
            with contextlib.suppress(
                UnknownDeploymentError
            ):  # whoever stopped it has cleaned up already
                self.stop()
        return error

    def _late(self, status: Status, timeout: float) -> NotReadyError:
        return NotReadyError(
            f"{self.name} is not ready after {timeout:g} s",
            why=f"{status.phase}; still missing: {'; '.join(status.waiting_for) or 'unknown'}",
            todo=f"it goes on: `raylaunch status {self.name}` follows it, `raylaunch stop {self.name}` ends it",
        )


def _read_key(plan: LaunchPlan) -> str | None:
    from raylaunch.verify.verification import key_variable

    name = key_variable(plan)
    if name and name not in os.environ:
        raise RecipeError(
            f"{plan.deployment} asks for an API key, and {name} is not set",
            why="its value is taken from the environment of this command",
            todo=f"export {name}=... and try again",
        )
    return os.environ[name] if name else None


def home() -> Path:
    """Folder of this user's raylaunch: $RAYLAUNCH_HOME, or ~/.raylaunch."""
    return Path(os.environ.get("RAYLAUNCH_HOME") or Path.home() / ".raylaunch")


def kept_runs(deployment: str) -> tuple[list[Run], list[str]]:
    """The benchmarks of a deployment that were kept here, oldest first, and the files that could not be read."""
    from raylaunch.runtime.bench import bench_store

    return bench_store.load(home(), deployment)


def run_file(run: Run) -> Path:
    """Where a benchmark is kept."""
    from raylaunch.runtime.bench import bench_store

    return bench_store.file_of(home(), run)


def embedded_names() -> list[str]:
    """Names of the deployments on embedded clusters of this machine."""
    return sorted(path.stem for path in (home() / "clusters").glob("*.json"))


def connect_to(deployment: str, address: str | None) -> None:
    """Connect to the cluster a deployment runs on: its embedded one, or the one that `address` names.

    Raises:
        UnknownDeploymentError: there is no cluster that could hold it.
        NotReadyError: its embedded cluster is being started.
        ClusterError: the named cluster does not answer.
    """
    from raylaunch.runtime.cluster.connection import connect
    from raylaunch.runtime.cluster.local_cluster import require_started

    local = None
    if deployment and address in (None, LOCAL):
        local = require_started(home(), deployment)
    if local is not None:
        connect(local.address, token_file=local.token_file)
    elif address == LOCAL:
        raise unknown_name(deployment)
    else:
        try:
            connect(address)
        except ClusterError as error:
            if address is None and "RAY_ADDRESS" not in os.environ and deployment:
                raise unknown_name(deployment) from error
            raise


def start_embedded(deployment: str, recipe: Recipe) -> None:
    """Start an embedded cluster for the recipe and connect to it."""
    from raylaunch.runtime.cluster.connection import connect
    from raylaunch.runtime.cluster.local_cluster import start_local

    cluster = start_local(
        home(),
        deployment,
        nodes=recipe.parallel.servers,
        npus_per_node=recipe.npus_per_node,
        secret_names=recipe.secrets,
    )
    connect(cluster.address, token_file=cluster.token_file)


def _find_embedded(deployment: str) -> object | None:
    from raylaunch.runtime.cluster.local_cluster import find_local

    return find_local(home(), deployment)


def stop_embedded(deployment: str) -> list[str]:
    """End the embedded cluster of a deployment; returns what resisted."""
    from raylaunch.runtime.cluster.local_cleanup import stop_local

    return stop_local(home(), deployment)


def embedded_problems() -> list[str]:
    """Describe the records of embedded clusters that cannot be read, and what to do."""
    from raylaunch.runtime.cluster.local_cleanup import describe_problems

    return describe_problems(home())


def stop_deployment(
    name: str, address: str | None = None, on_update: OnUpdate | None = None
) -> StopReport:
    """Stop a deployment in every phase; see `runtime.controller.embedded_stop`.

    Raises:
        UnknownDeploymentError: there is none of that name.
        ClusterError: the cluster does not answer, and it is not an embedded one of this machine.
    """
    from raylaunch.runtime.controller.embedded_stop import stop_embedded as stop_with_cluster

    report = None
    if address in (None, LOCAL):
        report = stop_with_cluster(home(), name, on_update)
    if report is not None:
        return report
    connect_to(name, address)
    return Deployment(name).stop(on_update)


def unknown_name(name: str) -> UnknownDeploymentError:
    """The error for a deployment that nobody knows."""
    return UnknownDeploymentError(
        f"there is no deployment named {name!r}",
        todo="`raylaunch list --running` shows those of this cluster; --address names another cluster",
    )
