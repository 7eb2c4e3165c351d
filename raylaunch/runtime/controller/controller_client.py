"""The typed boundary to a controller: create it, find it by name, call it, stop it.

`ControllerClient` has one method per remote method of `Controller`. Time-outs and Ray's errors are
handled by `remote_call`; nothing else names a method of the controller or calls `.remote()` on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from raylaunch.errors import BusyError, RaylaunchError, UnknownDeploymentError
from raylaunch.gateway.gateway_messages import hash_key
from raylaunch.runtime.cluster.connection import NAMESPACE
from raylaunch.runtime.cluster.node_tasks import HEAD_RESOURCE
from raylaunch.runtime.cluster.packaging import packaged
from raylaunch.runtime.cluster.remote_call import (
    ActorError,
    ActorKilledError,
    ActorLostError,
    ActorTimeoutError,
    ActorUnavailableError,
    RemoteActor,
    RemoteMethod,
)
from raylaunch.runtime.controller.launch_request import Request
from raylaunch.runtime.controller.port_turns import CONTROLLER, Ticket
from raylaunch.supervise.deployment_status import Event, Status, StopReport
from raylaunch.supervise.diagnosis.root_cause import Diagnosis

if TYPE_CHECKING:
    from raylaunch.node.process.log_files import Chunk, Cursor
    from raylaunch.plan.launch_plan import LaunchPlan
    from raylaunch.plan.node_usage import NodeUsage
    from raylaunch.recipe.load import LoadedRecipe
    from raylaunch.runtime.agent.fault_injection import DrillLimits
    from raylaunch.runtime.controller.controller import Controller
else:
    from raylaunch.runtime.cluster.remote_call import MethodNames

    # Importing the actor's code takes 0.25 s, and a client needs only the names of its methods.
    Controller = MethodNames()

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

CALL_TIMEOUT_S = 90.0
"""For a question: longer than Ray needs to restart a controller, and it to adopt its agents."""
BEGIN_TIMEOUT_S = 60.0
STOP_POLL_S = 0.5
"""Between two status updates of a stop."""
HEAD_SHARE = 0.001
"""Keeps the controller on the head node, as Ray Serve does with its own.

No cluster lives without its head, and a worker that is cut off takes no controller along. A soft
node affinity is not enough: Ray was seen to place the controller on a worker, and 62 s passed until
it was back after that worker's network had been cut.
"""


class ControllerClient:
    """A handle to the controller of one deployment.

    Where a method takes a group, None means the first one.
    A call waits while Ray restarts the controller. Every method raises, besides what it names:
        UnknownDeploymentError: another command stopped the deployment meanwhile.
        ActorLostError: the controller is dead for another reason.
        ActorTimeoutError, ActorUnavailableError: it did not answer in time.
    """

    def __init__(self, actor: object, deployment: str) -> None:
        self.deployment = deployment
        self._remote: RemoteActor[Controller] = RemoteActor(
            actor, f"the controller of {deployment}"
        )

    def begin(self, secrets: Mapping[str, str]) -> None:
        """Start the deployment; returns before it is ready."""
        self._ask(Controller.begin, timeout_s=BEGIN_TIMEOUT_S)(secrets=secrets)

    def note_wait(self, text: str) -> None:
        """Note what `raylaunch start` has waited for, as an event."""
        self._ask(Controller.note_wait, timeout_s=CALL_TIMEOUT_S)(text=text)

    def await_known(self, timeout_s: float) -> None:
        """Wait until the controller knows what it controls, and answers questions."""
        self._ask(Controller.wait_change, timeout_s=timeout_s)(version=-1, timeout_s=0.0)

    def status(self) -> Status:
        """Return where the deployment is now."""
        return self._ask(Controller.status, timeout_s=CALL_TIMEOUT_S)()

    def usage(self) -> Mapping[tuple[str, int], NodeUsage]:
        """Return what servers and nodes use, by group and server; silent agents are left out."""
        return self._ask(Controller.usage, timeout_s=CALL_TIMEOUT_S)()

    def wait_change(self, version: int, timeout_s: float) -> tuple[int, Status]:
        """Return the status as soon as it is newer than `version`, or after `timeout_s`."""
        call = self._ask(Controller.wait_change, timeout_s=timeout_s + CALL_TIMEOUT_S)
        return call(version=version, timeout_s=timeout_s)

    async def show_plans(self, ticket: Ticket, timeout_s: float) -> list[LaunchPlan]:
        """Return the plans of what runs, for another deployment that chooses its ports."""
        return await self._remote.call(Controller.show_plans, timeout_s=timeout_s)(ticket=ticket)

    def events(self, after: int = 0) -> list[Event]:
        """Return the events newer than number `after`."""
        return self._ask(Controller.events, timeout_s=CALL_TIMEOUT_S)(after=after)

    def read_log(
        self,
        server: int,
        cursor: Cursor | None,
        lines: int | None,
        timeout_s: float,
        group: str | None = None,
    ) -> Chunk | None:
        """Return a piece of a server's log; see `Agent.read_log`. None when its agent is lost."""
        call = self._ask(Controller.read_log, timeout_s=timeout_s + CALL_TIMEOUT_S)
        return call(server=server, cursor=cursor, lines=lines, timeout_s=timeout_s, group=group)

    def describe(
        self, group: str | None = None
    ) -> tuple[LoadedRecipe, LaunchPlan | None, dict[int, dict[str, str]]]:
        """Return a group's recipe, its plan, and the versions installed on each server's node."""
        return self._ask(Controller.describe, timeout_s=CALL_TIMEOUT_S)(group=group)

    def diagnosis(self, group: str | None = None) -> Diagnosis | None:
        """Return the diagnosis of the last failure, or of the current logs if there was none."""
        return self._ask(Controller.diagnosis, timeout_s=CALL_TIMEOUT_S)(group=group)

    def inject(self, fault: str, server: int, group: str | None = None) -> Event:
        """Inject a drill's fault and return the event.

        Raises:
            BusyError: the group is not ready.
        """
        call = self._ask(Controller.inject, timeout_s=CALL_TIMEOUT_S)
        return call(fault=fault, server=server, group=group)

    def drill_limits(self, server: int, group: str | None = None) -> DrillLimits:
        """Return what a drill may do to the server's node."""
        call = self._ask(Controller.drill_limits, timeout_s=CALL_TIMEOUT_S)
        return call(server=server, group=group)

    def node_ids(self, group: str | None = None) -> dict[int, str]:
        """Return Ray's id of each server's node."""
        return self._ask(Controller.node_ids, timeout_s=CALL_TIMEOUT_S)(group=group)

    def has_spare(self, group: str | None = None) -> bool:
        """Return whether another node could take a server's place."""
        return self._ask(Controller.has_spare, timeout_s=CALL_TIMEOUT_S)(group=group)

    def leftovers(self, group: str | None = None) -> list[str]:
        """Return the living processes of earlier attempts."""
        return self._ask(Controller.leftovers, timeout_s=CALL_TIMEOUT_S)(group=group)

    def read_log_of_controller(self, lines: int) -> str:
        """Return the last lines of the controller's own log."""
        return self._ask(Controller.read_controller_log, timeout_s=CALL_TIMEOUT_S)(lines=lines)

    def restart(self, group: str | None = None) -> None:
        """Begin to restart a group, or all of them one after the other; see `Status.operation`.

        Raises:
            BusyError: another operation is under way, or the deployment is being stopped.
        """
        self._ask(Controller.restart, timeout_s=CALL_TIMEOUT_S)(group=group)

    def scale(self, replicas: int) -> None:
        """Begin to add or remove replicas; see `Status.operation`.

        Raises:
            BusyError: another operation is under way, or the deployment is being stopped.
            RecipeError: the groups differ.
        """
        self._ask(Controller.scale, timeout_s=CALL_TIMEOUT_S)(replicas=replicas)

    def upgrade(self, loaded: LoadedRecipe, secrets: Mapping[str, str]) -> None:
        """Begin to replace what differs from another recipe; see `Status.operation`.

        Raises:
            BusyError: another operation is under way, or the deployment is being stopped.
            RecipeError: the recipes differ in what an upgrade cannot change.
        """
        call = self._ask(Controller.upgrade, timeout_s=CALL_TIMEOUT_S)
        call(loaded=loaded, secrets=secrets)

    def confirm(self, problem: str) -> None:
        """Give the verdict on the groups in `Status.awaits`; "" if nothing is wrong with them."""
        self._ask(Controller.confirm, timeout_s=CALL_TIMEOUT_S)(problem=problem)

    def rotate_keys(self, keys: Mapping[str, str]) -> None:
        """Replace API keys of the gateway: name of the secret -> value; only hashes are sent.

        Raises:
            RaylaunchError: there is no gateway, or it does not take them; the old ones stay.
        """
        hashes = {hash_key(value): name for name, value in keys.items()}
        self._ask(Controller.rotate_keys, timeout_s=CALL_TIMEOUT_S)(key_hashes=hashes)

    def recipe(self) -> LoadedRecipe:
        """Return the recipe of the whole deployment."""
        return self._ask(Controller.recipe, timeout_s=CALL_TIMEOUT_S)()

    def stop(self, on_update: Callable[[Status], None] | None = None) -> StopReport:
        """Stop every server, then the controller itself.

        Raises:
            RaylaunchError: it could not be stopped.
        """
        version = -1
        try:
            report = self._try_stop()
            while report is None:
                # Also shows that the controller lives: this call does not wait for the stop.
                version, status = self.wait_change(version, 0.0)
                if on_update is not None:
                    on_update(status)
                report = self._try_stop()
        except ActorLostError as error:
            raise self._stopped() from error
        self._remote.kill()
        return report

    def _ask(self, method: RemoteMethod[Controller, P, T], *, timeout_s: float) -> Callable[P, T]:
        """Return the blocking call of a method; a stopped controller is a stopped deployment."""
        call = self._remote.ask(method, timeout_s=timeout_s)

        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return call(*args, **kwargs)
            except ActorKilledError as error:
                raise self._stopped() from error

        return run

    def _stopped(self) -> UnknownDeploymentError:
        return UnknownDeploymentError(
            f"{self.deployment} was stopped by another command",
            why="its controller was ended while this command waited for an answer",
        )

    def _try_stop(self) -> StopReport | None:
        """Return the report of a stop; None while it is under way.

        The command is repeated: a controller that Ray restarted meanwhile has forgotten it.
        """
        try:
            return self._ask(Controller.stop, timeout_s=STOP_POLL_S)()
        except (ActorTimeoutError, ActorUnavailableError):
            return None

    def crash(self) -> None:
        """Kill the controller process, as an accident would: Ray starts it again."""
        import ray

        ray.kill(self._remote.actor, no_restart=False)

    def kill(self) -> None:
        """Kill the controller process for good."""
        self._remote.kill()


def create_controller(request: Request, secrets: Mapping[str, str]) -> None:
    """Create the detached controller and hand over to it; if that fails, remove what was created.

    Raises:
        BusyError: another command creates one of that name at the same moment, or an accident left
            agents of that name.
        ClusterError: the controller does not answer.
    """
    import ray

    from raylaunch.runtime.controller import controller

    if not request.adopts:
        _refuse_orphaned_reservation(request.deployment)
    actor = ray.remote(packaged(controller.Controller)).options(
        name=CONTROLLER + request.deployment,
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        resources={HEAD_RESOURCE: HEAD_SHARE},
    )
    try:
        client = ControllerClient(actor.remote(request), request.deployment)
    except ValueError as error:  # Ray: the name is taken
        raise BusyError(
            f"a deployment named {request.deployment!r} is being started by another command",
            todo=f"`raylaunch status {request.deployment}` follows it",
        ) from error
    try:
        client.begin(secrets)
    except BaseException as error:
        if not request.adopts:  # one that adopts may only be slow, and its servers serve
            _take_back(client, answers=not isinstance(error, ActorError))
        raise


def _refuse_orphaned_reservation(deployment: str) -> None:
    """Refuse a name under which NPUs are reserved without a controller.

    Raises:
        BusyError: there is such a reservation.
    """
    from raylaunch.runtime.cluster import placement

    if not placement.reserved_groups(deployment):
        return
    if find_controller(deployment) is not None:
        raise BusyError(
            f"a deployment named {deployment!r} is being started by another command",
            todo=f"`raylaunch status {deployment}` follows it",
        )
    raise placement.already_reserved(deployment)


def _take_back(client: ControllerClient, *, answers: bool) -> None:
    """Remove a controller that was not handed over to, with everything that it made.

    It may be reserving NPUs at this moment. One that answers is stopped, which waits for that; a
    kill alone could leave a reservation that nothing owns.
    """
    from raylaunch.runtime.controller.orphan_search import kill_agents

    try:
        if answers:
            client.stop()
    except RaylaunchError as error:
        log.warning("%s could not be stopped: %s", client.deployment, error)
    finally:
        client.kill()
        kill_agents(client.deployment)


def find_controller(deployment: str) -> ControllerClient | None:
    """Return the controller of a deployment, None when there is none."""
    import ray

    try:
        actor = ray.get_actor(CONTROLLER + deployment, NAMESPACE)
    except ValueError:
        return None
    return ControllerClient(actor, deployment)


def require_controller(deployment: str) -> ControllerClient:
    """Return the controller of a deployment that ran a moment ago.

    Raises:
        UnknownDeploymentError: it was stopped meanwhile.
    """
    found = find_controller(deployment)
    if found is None:
        raise UnknownDeploymentError(f"{deployment} was stopped")
    return found
