"""`start --follow`: start a deployment, or find it running, and follow it until it fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial

from raylaunch.api.deployment_verbs import deploy
from raylaunch.api.earlier_starts import find_running, stop_running
from raylaunch.api.recipe_arguments import RecipeLike, Settings, load, starts_embedded
from raylaunch.deployment import Deployment, OnUpdate, checked_name, find_embedded
from raylaunch.deployment.awaited_hosts import WaitingNote
from raylaunch.deployment.deployment_handle import POLL_S
from raylaunch.deployment.follower import HostWatch, OnWait, follow_changes, wait_for_hosts
from raylaunch.deployment.service_manager import ServiceManager
from raylaunch.errors import RaylaunchError, UnknownDeploymentError
from raylaunch.home import home
from raylaunch.plan.layout import nodes_needed
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.supervise.deployment_status import Status

FOUND_S = 300.0
"""How long a controller that Ray restarts may search for its servers, before it is given up."""


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

    needed = nodes_needed(expand_groups(loaded))
    hosts = HostWatch(await_hosts, needed, lambda: _list_alive(address))

    def find() -> Deployment | None:
        if not await_hosts:
            return find_running(title, address)
        # After a power cut Ray restarts a controller that waits for nodes before it answers.
        with _shown(title, hosts, report) as show:
            on_silence = partial(hosts.check, show)
            return find_running(title, address, patience_s=FOUND_S, on_silence=on_silence)

    def start() -> Deployment:
        waited = _wait_for(hosts, title, report) if await_hosts else ""
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
            _wait_for(HostWatch((), 0, lambda: _list_alive(address)), title, report)
        restart = partial(_start_again, title, address, start, report)
        raise _follow_until_error(find, start, restart, manager, on_update)
    finally:
        manager.notify_stopping()


def _wait_for(watch: HostWatch, title: str, report: OnWait) -> str:
    """Wait for the cluster and its hosts; what is missing is reported, and shown by `status`."""
    with _shown(title, watch, report) as show:
        return wait_for_hosts(watch, show)


@contextlib.contextmanager
def _shown(title: str, watch: HostWatch, report: OnWait) -> Iterator[OnWait]:
    """Yield a function that reports what is missing and has `status` show it, in this block."""
    with WaitingNote(home(), title) as note:
        if watch.reported:
            note.show(watch.reported)

        def show(text: str) -> None:
            report(text)
            note.show(text)

        yield show


def _note_wait(handle: Deployment, text: str) -> None:
    from raylaunch.runtime.controller.controller_client import require_controller

    require_controller(handle.name).note_wait(text)


def _start_again(
    title: str,
    address: str | None,
    start: Callable[[], Deployment],
    report: OnWait,
    error: RaylaunchError,
) -> Deployment:
    report(f"{title} is started again: what was found of it has failed: {error.what}")
    stop_running(title, address)
    return start()


def _follow_until_error(
    find: Callable[[], Deployment | None],
    start: Callable[[], Deployment],
    start_again: Callable[[RaylaunchError], Deployment],
    manager: ServiceManager,
    on_update: OnUpdate | None,
) -> RaylaunchError:
    """Follow what `find` finds, else what is started; return why it does not run any more."""
    running = find()
    if running is None:
        handle = start()
    else:
        found = follow_changes(_changes_of(running), manager, on_update)
        if found.was_ready or found.was_stopped:
            return found.error
        handle = start_again(found.error)
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
