"""The handle to a running deployment."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from raylaunch.deployment.awaited_hosts import add_awaited
from raylaunch.deployment.cluster_choice import (
    find_embedded,
    stop_embedded,
    unknown_name,
    writable_home,
)
from raylaunch.deployment.deployment_records import remove_record
from raylaunch.deployment.service_key import read_key
from raylaunch.deployment.start_errors import explain_degraded, explain_late
from raylaunch.errors import (
    LaunchError,
    NotReadyError,
    RaylaunchError,
    RecipeError,
    UnknownDeploymentError,
    from_dict,
)
from raylaunch.home import home
from raylaunch.supervise.deployment_status import Event, Status, StopReport
from raylaunch.supervise.deployment_summary import is_settled, narrow
from raylaunch.supervise.state import Phase

if TYPE_CHECKING:
    from raylaunch.bench.result import Run
    from raylaunch.plan.launch_plan import LaunchPlan
    from raylaunch.plan.node_usage import NodeUsage
    from raylaunch.recipe.load import LoadedRecipe
    from raylaunch.runtime.bench.bench_run import OnProgress
    from raylaunch.runtime.controller.controller_client import ControllerClient
    from raylaunch.supervise.diagnosis.root_cause import Diagnosis
    from raylaunch.verify.verification import OnProof, Verification

POLL_S = 2.0
"""Longest wait of one long poll; a change is answered immediately."""

OnUpdate = Callable[[Status], None]


class Deployment:
    """A named, running recipe: the handle to its controller.

    As a context manager it stops the deployment when the block is left.

    Args:
        name: The deployment.
        group: Only this group of it: what is asked is asked of that group. Without it, questions
            about servers and plans are about the first group.
    """

    def __init__(self, name: str, group: str | None = None) -> None:
        self.name = name
        self.group = group
        self.adopted = False  # whether `start` has found it running, and started no server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Deployment({self.title!r})"

    @property
    def title(self) -> str:
        """The name for people: "NAME", or "NAME/GROUP"."""
        return self.name if self.group is None else f"{self.name}/{self.group}"

    @property
    def endpoint(self) -> str:
        """Base URL of the OpenAI API."""
        return self.status().endpoint

    def status(self) -> Status:
        """Return where the deployment, or the group, is now."""
        return add_awaited(narrow(self._controller().status(), self.group), home())

    def wait_change(self, version: int = -1, timeout: float = POLL_S) -> tuple[int, Status]:
        """Return version and status as soon as they are newer than `version`.

        Args:
            version: As returned by the last call.
            timeout: Seconds, after which they are returned in any case.
        """
        newest, status = self._controller().wait_change(version, timeout)
        return newest, narrow(status, self.group)

    def usage(self) -> Mapping[tuple[str, int], NodeUsage]:
        """Return what the servers and their nodes use now, by group and server.

        What does not answer within a second is left out.
        """
        found = self._controller().usage()
        if self.group is None:
            return found
        return {place: usage for place, usage in found.items() if place[0] == self.group}

    def of_group(self, name: str) -> Deployment:
        """Return the handle to one group of the deployment."""
        return Deployment(self.name, name)

    def diagnosis(self) -> Diagnosis | None:
        """Return the diagnosis of the last failure, else of the present logs; None for no match."""
        return self._controller().diagnosis(self.group)

    def wait_ready(
        self, timeout: float | None = None, on_update: OnUpdate | None = None, *, own: bool = False
    ) -> Status:
        """Wait until the deployment is ready.

        Args:
            timeout: Seconds; None waits as long as the deployment's own deadlines allow.
            on_update: Called with every new status.
            own: The caller has just started it: after a failure also stop what is left of it.

        Raises:
            NotReadyError: not ready in time, and it keeps starting; or some of its groups failed,
                while the others serve.
            RaylaunchError: the start failed, as the controller reports.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        version = -1
        while True:
            version, whole = self._controller().wait_change(version, POLL_S)
            status = narrow(whole, self.group)
            if on_update is not None:
                on_update(status)
            if status.serves_all:
                return status
            if status.phase in (Phase.FAILED, Phase.STOPPING, Phase.STOPPED):
                raise self._explain_stopped(status, own=own)
            if status.phase is Phase.DEGRADED and is_settled(status):
                raise explain_degraded(status)
            if deadline is not None and time.monotonic() >= deadline:
                raise explain_late(status, timeout or 0)

    def logs(self, server: int = 0, lines: int = 100) -> str:
        """Return the last lines of a server's log, from whichever node it is on."""
        chunk = self._controller().read_log(server, None, lines, 0.0, self.group)
        return chunk.text if chunk is not None else ""

    def follow_logs(self, server: int = 0, lines: int = 0) -> Iterator[str]:
        """Yield new lines of a server's log without end; `lines` old ones first."""
        for piece in self.poll_logs(server, lines):
            yield from piece

    def poll_logs(self, server: int = 0, lines: int = 0) -> Iterator[list[str]]:
        """Yield the new lines after each poll, without end: an empty list after 2 s without any.

        A reader that wants to stop can do so between two polls.
        """
        cursor = None
        while True:
            chunk = self._controller().read_log(server, cursor, lines, POLL_S, self.group)
            if chunk is None:
                # Between two attempts the server has no agent.
                time.sleep(POLL_S)
                yield []
                continue
            cursor = chunk.cursor
            yield chunk.text.splitlines()

    def controller_log(self, lines: int = 100) -> str:
        """Return the last lines of the controller's own log, from the node that it runs on."""
        return self._controller().read_log_of_controller(lines)

    def events(self, after: int = 0) -> list[Event]:
        """Return what happened, oldest first; only events with a number above `after`.

        Of one group, its own and those of the whole deployment.
        """
        events = self._controller().events(after)
        if self.group is None:
            return events
        return [event for event in events if event.group in ("", self.group)]

    def follow_events(self, after: int = 0) -> Iterator[Event]:
        """Yield events as they happen, until the deployment is stopped."""
        version = -1
        while True:
            for event in self.events(after):
                after = event.number
                yield event
            version, status = self._controller().wait_change(version, POLL_S)
            if status.phase is Phase.STOPPED:
                return

    def describe(self) -> tuple[LoadedRecipe, LaunchPlan | None, dict[int, dict[str, str]]]:
        """Return the recipe, the plan (None before the first), and versions per server."""
        return self._controller().describe(self.group)

    def verify(self, timeout: float | None = None, on_proof: OnProof | None = None) -> Verification:
        """Prove the service as a client sees it, from this machine.

        Checks the list of models, every rank, a chat, a stream, tool calls and reasoning.

        Args:
            timeout: Seconds for one answer; by default 60.
            on_proof: Called after each check.

        Raises:
            NotReadyError: it is not ready.
            RecipeError: the service requires a key that is not in this environment.
            RaylaunchError: the `openai` client is not installed.
        """
        from raylaunch.verify import verification as verify

        status = self.status()
        if not status.serves_all:
            raise NotReadyError(
                f"{self.title} is {status.phase}, and only a service that is ready can be verified",
                todo=f"`raylaunch status {self.name}` shows what it waits for",
            )
        loaded, plan, _ = self.describe()
        assert plan is not None, "a deployment that is ready has a plan"
        return verify.verify(
            plan,
            read_key(plan),
            random_weights=loaded.recipe.model.tiny is not None,
            timeout_s=timeout or verify.TIMEOUT_S,
            on_proof=on_proof,
        )

    def bench(
        self,
        scenario: str | None = None,
        *,
        concurrency: Sequence[int] = (),
        set: Mapping[str, object] | None = None,  # noqa: A002 - named as on the command line
        on_progress: OnProgress | None = None,
        on_run: Callable[[Run], None] | None = None,
    ) -> list[Run]:
        """Measure the deployment with `vllm bench serve` on the primary's node; keep each result.

        Args:
            scenario: Its name; by default the first that the recipe names.
            concurrency: Instead of the scenario's; one run each.
            set: Changes to the scenario's flags.
            on_progress: Called with the scenario and how far it is.
            on_run: Called after each run.

        Raises:
            BusyError: it is not ready, or another benchmark of it runs.
            RecipeError: no such scenario, the servers would refuse its requests, or they require a
                key that is not in this environment.
            LaunchError: the benchmark failed, or the deployment did meanwhile.
            NodeError: RAYLAUNCH_HOME cannot be used.
        """
        from raylaunch.runtime.bench.bench_run import run_bench

        return run_bench(
            self.name,
            self.group,
            scenario,
            concurrency,
            set or {},
            writable_home(),
            read_key,
            on_progress,
            on_run,
        )

    def restart(self, on_update: OnUpdate | None = None) -> Status:
        """Restart the group, or all groups one after the other; return when they serve again.

        Args:
            on_update: Called with every new status.

        Raises:
            BusyError: another operation is under way.
            RaylaunchError: a group failed; those that were to follow were not touched.
        """
        self._controller().restart(self.group)
        return self._await_operation(on_update)

    def scale(self, replicas: int, on_update: OnUpdate | None = None) -> Status:
        """Add or remove replicas; return when there are so many.

        Raises:
            BusyError: another operation is under way.
            RecipeError: the groups of the recipe differ.
            RaylaunchError: a new group failed; the deployment stays as it was.
        """
        self._controller().scale(replicas)
        return self._await_operation(on_update)

    def upgrade(
        self,
        loaded: LoadedRecipe,
        secrets: Mapping[str, str],
        on_update: OnUpdate | None = None,
        verify: Callable[[str], str] | None = None,
    ) -> Status:
        """Replace the groups that differ in another recipe; return when it is served.

        Args:
            loaded: The other recipe.
            secrets: Values of its secrets.
            on_update: Called with every new status.
            verify: Called with the name of each new group before it gets traffic; returns what is
                wrong with it, "" for nothing. By default nothing is asked.

        Raises:
            BusyError: another operation is under way.
            RecipeError: the recipes differ in what an upgrade cannot change.
            RaylaunchError: a new group failed, or was refused; the old ones serve.
        """
        self._controller().upgrade(loaded, secrets)

        def confirm(status: Status) -> None:
            if on_update is not None:
                on_update(status)
            if status.awaits:
                self._controller().confirm(_verdict(status.awaits, verify))

        return self._await_operation(confirm)

    def rotate_keys(self, keys: Mapping[str, str]) -> None:
        """Replace API keys of the gateway by name; see `ControllerClient.rotate_keys`."""
        self._controller().rotate_keys(keys)

    def recipe(self) -> LoadedRecipe:
        """Return the recipe of the whole deployment."""
        return self._controller().recipe()

    def _await_operation(self, on_update: OnUpdate | None) -> Status:
        version = -1
        while True:
            version, status = self._controller().wait_change(version, POLL_S)
            if on_update is not None:
                on_update(status)
            if not status.operation:
                break
        if status.operation_error:
            raise from_dict(status.operation_error)
        return status

    def stop(self, on_update: OnUpdate | None = None) -> StopReport:
        """Stop every process of the deployment and its embedded cluster; verify the exits.

        Raises:
            RecipeError: this is the handle to one group.
        """
        from raylaunch.runtime.cluster.connection import disconnect

        if self.group is not None:
            raise RecipeError(
                f"{self.title} is one group of a deployment, and groups are not stopped alone",
                todo=f"`raylaunch stop {self.name}` stops all of them",
            )
        report = self._controller().stop(on_update)
        remove_record(home(), self.name)
        if find_embedded(self.name) is None:
            return report
        disconnect()
        left = stop_embedded(self.name)
        return replace(report, left=(*report.left, *left), local_cluster_stopped=not left)

    def _controller(self) -> ControllerClient:
        from raylaunch.runtime.controller.controller_client import find_controller

        found = find_controller(self.name)
        if found is None:
            raise unknown_name(self.name)
        return found

    def _explain_stopped(self, status: Status, *, own: bool) -> RaylaunchError:
        error: RaylaunchError = LaunchError(f"{self.name} was stopped while it started")
        if status.error:
            error = from_dict(status.error)
        if own:
            # Another command that stopped it has cleaned up already.
            with contextlib.suppress(UnknownDeploymentError):
                self.stop()
        return error


def _verdict(groups: Sequence[str], verify: Callable[[str], str] | None) -> str:
    """Return what is wrong with new groups, "" for nothing; Ctrl-C refuses them."""
    if verify is None:
        return ""
    try:
        return "; ".join(filter(None, (verify(group) for group in groups)))
    except KeyboardInterrupt:
        return "the command that verifies them was interrupted"
