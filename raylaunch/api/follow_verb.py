"""`start --follow`: start a deployment, or find it running, and follow it until it fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence

from raylaunch.api.deployment_verbs import deploy
from raylaunch.api.earlier_starts import find_running, stop_running
from raylaunch.api.recipe_arguments import RecipeLike, Settings, load, starts_embedded
from raylaunch.deployment import Deployment, OnUpdate, checked_name, find_embedded
from raylaunch.deployment.awaited_hosts import WaitingNote
from raylaunch.deployment.deployment_handle import POLL_S
from raylaunch.deployment.follower import follow_changes, wait_for_hosts
from raylaunch.deployment.service_manager import ServiceManager
from raylaunch.errors import RaylaunchError, UnknownDeploymentError
from raylaunch.home import home
from raylaunch.plan.layout import nodes_needed
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.supervise.deployment_status import Status


def follow(
    name: RecipeLike,
    *,
    set: Settings | None = None,  # noqa: A002 - named as on the command line
    deployment: str | None = None,
    address: str | None = None,
    await_hosts: Sequence[str] = (),
    on_update: OnUpdate | None = None,
    on_wait: Callable[[str], None] | None = None,
    primary: str | None = None,
    skip_checks: Mapping[str, str] | None = None,
    dry_run_engine: bool = True,
) -> None:
    """Start a recipe, or find the deployment running, and follow it until it fails or is stopped.

    As a systemd unit of `Type=notify` it reports readiness, status and watchdog. An interrupt ends
    the following alone: the deployment keeps running.

    A deployment that is found, and fails before it was ready, is stopped and started again, once:
    after a power cut Ray restarts a controller that finds nothing of its servers.

    Args:
        name: Recipe by name or path, or as a value.
        set: Changes to the recipe, as for `deploy`.
        deployment: Name; by default the recipe's.
        address: Ray cluster, as for `deploy`. It is awaited while it does not answer.
        await_hosts: Addresses of nodes. Before a start as many of them as the recipe needs must
            have joined the cluster.
        on_update: Called with every new status.
        on_wait: Called with what the cluster lacks, from 30 s on. `status` shows it meanwhile, and
            afterwards it is an event of the deployment.
        primary: Address of the node that becomes the primary.
        skip_checks: Ids of checks whose errors count as warnings, with the reason.
        dry_run_engine: Have the nodes' vLLM build the engine configuration beside the start.

    Raises:
        UnknownDeploymentError: it was stopped by another command.
        RaylaunchError: why it failed. One that was never ready is stopped, as by `deploy`.
    """
    loaded = load(name, set=set)
    title = checked_name(deployment or loaded.name)
    manager = ServiceManager.from_environment(os.environ)

    def report(text: str) -> None:
        manager.notify_status(text)
        if on_wait is not None:
            on_wait(text)

    def start() -> Deployment:
        waited = _wait_for(await_hosts, loaded, title, address, report) if await_hosts else ""
        handle = deploy(
            name,
            set=set,
            deployment=title,
            address=address,
            wait=False,
            primary=primary,
            skip_checks=skip_checks,
            dry_run_engine=dry_run_engine,
            adopt=True,
        )
        if waited:
            _note_wait(handle, waited)
        return handle

    try:
        if not _is_embedded(title, loaded, address):
            _wait_for((), loaded, title, address, report)
        raise _follow_until_error(title, address, start, manager, on_update, report)
    finally:
        manager.notify_stopping()


def _wait_for(
    hosts: Sequence[str],
    loaded: LoadedRecipe,
    title: str,
    address: str | None,
    report: Callable[[str], None],
) -> str:
    """Wait for the cluster and these hosts; what is missing is reported, and shown by `status`."""
    needed = nodes_needed(expand_groups(loaded))
    with WaitingNote(home(), title) as note:

        def show(text: str) -> None:
            report(text)
            note.show(text)

        return wait_for_hosts(hosts, needed, lambda: _list_alive(address), show)


def _note_wait(handle: Deployment, text: str) -> None:
    from raylaunch.runtime.controller.controller_client import require_controller

    require_controller(handle.name).note_wait(text)


def _follow_until_error(
    title: str,
    address: str | None,
    start: Callable[[], Deployment],
    manager: ServiceManager,
    on_update: OnUpdate | None,
    report: Callable[[str], None],
) -> RaylaunchError:
    """Follow what runs, else what `start` starts; return why it does not run any more."""
    running = find_running(title, address)
    if running is not None:
        found = follow_changes(_changes_of(running), manager, on_update)
        if found.was_ready or found.was_stopped:
            return found.error
        report(f"{title} is started again: what was found of it has failed: {found.error.what}")
        stop_running(title, address)
    handle = start()
    followed = follow_changes(_changes_of(handle), manager, on_update)
    if not (handle.adopted or followed.was_ready):
        _remove(handle)
    return followed.error


def _remove(handle: Deployment) -> None:
    """Stop a deployment that failed, if no other command has done so."""
    with contextlib.suppress(UnknownDeploymentError):
        handle.stop()


def _is_embedded(title: str, loaded: LoadedRecipe, address: str | None) -> bool:
    if starts_embedded(loaded.recipe, address):
        return True
    return address is None and find_embedded(title) is not None


def _changes_of(handle: Deployment) -> Callable[[int], tuple[int, Status]]:
    from raylaunch.runtime.controller.controller_client import require_controller

    controller = require_controller(handle.name)
    return lambda version: controller.wait_change(version, POLL_S)


def _list_alive(address: str | None) -> Collection[str]:
    from raylaunch.runtime.cluster.connection import alive_nodes, connect

    connect(address)
    return {str(node["NodeManagerAddress"]) for node in alive_nodes()}
