"""`start --follow`: start a deployment, or find it running, and follow it until it fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence

from raylaunch.api.deployment_verbs import attach, deploy
from raylaunch.api.recipe_arguments import RecipeLike, Settings, load, starts_embedded
from raylaunch.deployment import Deployment, OnUpdate, checked_name, find_embedded
from raylaunch.deployment.deployment_handle import POLL_S
from raylaunch.deployment.follower import follow_changes, wait_for_hosts
from raylaunch.deployment.service_manager import ServiceManager
from raylaunch.errors import ClusterError, UnknownDeploymentError
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

    Args:
        name: Recipe by name or path, or as a value.
        set: Changes to the recipe, as for `deploy`.
        deployment: Name; by default the recipe's.
        address: Ray cluster, as for `deploy`. It is awaited while it does not answer.
        await_hosts: Addresses of nodes that must have joined the cluster before the start.
        on_update: Called with every new status.
        on_wait: Called with what the cluster lacks, from 30 s on.
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

    try:
        if not _is_embedded(title, loaded, address):
            wait_for_hosts((), lambda: _list_alive(address), report)
        handle = _find_running(title, address)
        is_new = handle is None
        if handle is None:
            if await_hosts:
                wait_for_hosts(await_hosts, lambda: _list_alive(address), report)
            handle = deploy(
                name,
                set=set,
                deployment=title,
                address=address,
                wait=False,
                primary=primary,
                skip_checks=skip_checks,
                dry_run_engine=dry_run_engine,
            )
        followed = follow_changes(_changes_of(handle), manager, on_update)
        if is_new and not followed.was_ready:
            _remove(handle)
        raise followed.error
    finally:
        manager.notify_stopping()


def _remove(handle: Deployment) -> None:
    """Stop a deployment that failed, if no other command has done so."""
    with contextlib.suppress(UnknownDeploymentError):
        handle.stop()


def _is_embedded(title: str, loaded: LoadedRecipe, address: str | None) -> bool:
    if starts_embedded(loaded.recipe, address):
        return True
    return address is None and find_embedded(title) is not None


def _find_running(title: str, address: str | None) -> Deployment | None:
    try:
        return attach(title, address)
    except (ClusterError, UnknownDeploymentError):
        return None


def _changes_of(handle: Deployment) -> Callable[[int], tuple[int, Status]]:
    from raylaunch.runtime.controller.controller_client import require_controller

    controller = require_controller(handle.name)
    return lambda version: controller.wait_change(version, POLL_S)


def _list_alive(address: str | None) -> Collection[str]:
    from raylaunch.runtime.cluster.connection import alive_nodes, connect

    connect(address)
    return {str(node["NodeManagerAddress"]) for node in alive_nodes()}
