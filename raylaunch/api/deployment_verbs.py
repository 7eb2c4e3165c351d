"""The verbs on deployments: start, attach, list, diagnose, drill, verify."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raylaunch.api.earlier_starts import find_running, request_to_adopt, stop_running
from raylaunch.api.recipe_arguments import (
    RecipeLike,
    Settings,
    load,
    merge_settings,
    starts_embedded,
)
from raylaunch.checks.findings import refuse_unknown_ids
from raylaunch.deployment import (
    LOCAL,
    Deployment,
    OnUpdate,
    Overview,
    Silent,
    checked_name,
    choose_address,
    connect_to,
    embedded_names,
    start_embedded,
    stop_deployment,
    stop_embedded,
    unknown_name,
)
from raylaunch.deployment.awaited_hosts import START_HOST, read_all_waiting
from raylaunch.deployment.deployment_records import (
    Record,
    read_records,
    remove_record,
    write_record,
)
from raylaunch.deployment.names import check_primary, is_name, split_target
from raylaunch.errors import (
    BusyError,
    ClusterError,
    NotReadyError,
    RaylaunchError,
    RecipeError,
    UnknownDeploymentError,
)
from raylaunch.home import home
from raylaunch.interrupts import StartUndone, signals_as_interrupt
from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.model import Recipe
from raylaunch.supervise.deployment_status import Status, StopReport

if TYPE_CHECKING:
    from raylaunch.runtime.controller.launch_request import Request
    from raylaunch.supervise.drills import Outcome
    from raylaunch.verify.verification import OnProof, Verification

log = logging.getLogger(__name__)


def deploy(
    name: RecipeLike,
    *,
    set: Settings | None = None,  # noqa: A002 - named as on the command line
    sets: Sequence[str] | None = None,
    deployment: str | None = None,
    address: str | None = None,
    wait: bool = True,
    timeout: float | None = None,
    on_update: OnUpdate | None = None,
    primary: str | None = None,
    skip_checks: Mapping[str, str] | None = None,
    dry_run_engine: bool = True,
    adopt: bool | None = None,
) -> Deployment:
    """Start a recipe on a Ray cluster and, with `wait`, return when it is ready.

    A recipe for CPU gets a small embedded cluster if none is named. The deployment outlives this
    process.

    Args:
        name: Recipe by name or path, or as a value.
        set: Changes to the recipe: {"parallel.data": 4} or ["parallel.data=4"].
        sets: Deprecated spelling of `set`.
        deployment: Name; by default the recipe's.
        address: Ray cluster as host:port, "auto" for the one on this machine, "local" for an
            embedded one; by default RAY_ADDRESS, then "auto".
        wait: Wait until ready.
        timeout: Seconds to wait; by default the recipe's `timeouts.start` and a margin.
        on_update: Called with every new status while waiting.
        primary: Address of the node that becomes the primary.
        skip_checks: Ids of checks whose errors count as warnings, with the reason.
        dry_run_engine: Have the nodes' vLLM build the engine configuration beside the start, which
            does not wait for it.
        adopt: True adopts the deployment of that name as it runs, with a controller too; False
            stops it first. None adopts servers that have outlived Ray or their controller.

    Raises:
        RaylaunchError: see `raylaunch.errors`; when waiting, a failed start leaves nothing running.
        StartUndone: Ctrl-C before a controller took over, on an embedded cluster.
    """
    from raylaunch.runtime.controller.launch_request import Request

    check_primary(primary)
    loaded = load(name, set=merge_settings(set, sets))
    title = checked_name(deployment or loaded.name)
    refuse_unknown_ids(skip_checks or {})
    refuse_unsupported(loaded, primary)
    secrets = read_secrets(loaded.recipe)
    cluster = choose_address(address)
    is_embedded = starts_embedded(loaded.recipe, address)
    if adopt is False:
        stop_running(title, address)
    elif adopt and (running := find_running(title, address)) is not None:
        if wait:
            running.wait_ready(timeout, on_update)
        return running
    request = Request(title, loaded, primary, dict(skip_checks or {}), dry_run_engine)
    if is_embedded:
        with signals_as_interrupt():
            handle = _start_embedded(request, secrets, adopt)
    else:
        from raylaunch.runtime.cluster.connection import connect

        connect(address)
        handle = _create_controller(request, secrets, adopt)
    log.info("%s: the controller has taken over", title)
    if not is_embedded:
        write_record(home(), Record(title, loaded.name, cluster, time.time()))
    if wait:
        handle.wait_ready(timeout, on_update, own=not handle.adopted)
    return handle


def attach(deployment: str, address: str | None = None) -> Deployment:
    """Find a running deployment by name.

    Args:
        deployment: Its name, or NAME/GROUP for one of its groups.
        address: Ray cluster as host:port, "auto" or "local"; by default the deployment's embedded
            cluster, then RAY_ADDRESS, then "auto".

    Raises:
        UnknownDeploymentError: there is none of that name, or it has no such group.
        ClusterError: the cluster does not answer.
    """
    name, group = split_target(deployment)
    if not is_name(name):
        raise unknown_name(deployment)
    connect_to(name, address)
    handle = Deployment(name, group)
    handle._controller()  # noqa: SLF001 - refuses an unknown name here, not at the first call
    if group is not None:
        handle.status()  # refuses an unknown group
    return handle


def stop(
    deployment: str, address: str | None = None, on_update: OnUpdate | None = None
) -> StopReport:
    """Stop a deployment and verify that nothing of it is left.

    Args:
        deployment: Its name.
        address: Ray cluster, as for `attach`.
        on_update: Called with every new status.

    Raises:
        UnknownDeploymentError: there is none of that name.
        ClusterError: the cluster does not answer.
    """
    return stop_deployment(deployment, address, on_update)


def deployments(address: str | None = None) -> list[Status]:
    """Return the status of every deployment that answers; arguments as for `overview`."""
    return list(overview(address).running)


def overview(address: str | None = None) -> Overview:
    """Return the deployments of the cluster and of the embedded clusters of this machine.

    Deployments that were started from this machine and do not answer are part of it.

    Args:
        address: Ray cluster as host:port or "auto"; then embedded clusters are left out.

    Raises:
        ClusterError: the named cluster does not answer.
    """
    running: list[Status] = []
    silent: list[Silent] = []
    if address in (None, LOCAL):
        _ask_embedded(running, silent)
    if address != LOCAL:
        _ask_cluster(address, running, silent)
    known = {status.deployment for status in running}
    starts = {name: text for name, text in read_all_waiting(home()).items() if name not in known}
    silent = [one for one in silent if one.deployment not in starts]
    silent += [
        Silent(name, f"its start is {text}", "", START_HOST) for name, text in starts.items()
    ]
    return Overview(tuple(running), tuple(silent))


def _ask_embedded(running: list[Status], silent: list[Silent]) -> None:
    """Ask every deployment on an embedded cluster. One that fails does not hide the others."""
    from raylaunch.runtime.cluster.connection import disconnect

    for name in embedded_names():
        try:
            running.append(attach(name, LOCAL).status())
        except (NotReadyError, UnknownDeploymentError) as error:
            silent.append(Silent(name, error.what, error.why, error.todo))
        except RaylaunchError as error:
            todo = error.todo or f"`raylaunch stop {name}` removes what is left of it"
            what = f"its embedded Ray cluster does not answer: {error.what}"
            silent.append(Silent(name, what, error.why, todo))
        disconnect()


def _ask_cluster(address: str | None, running: list[Status], silent: list[Silent]) -> None:
    from raylaunch.runtime.controller.port_turns import running_names

    cluster = choose_address(address)
    records = read_records(home())
    if cluster:
        records = [record for record in records if record.address == cluster]
    try:
        connect_to("", address)
    except ClusterError as error:
        if address is not None:
            raise _with_records(error, records) from error
        silent.extend(
            Silent(record.deployment, record.origin, error.what, record.todo) for record in records
        )
        return
    names = running_names()
    for name in names:
        try:
            running.append(Deployment(name).status())
        except RaylaunchError as error:
            todo = error.todo or f"`raylaunch stop {name}`"
            silent.append(Silent(name, error.what, error.why, todo))
    for record in records:
        if record.deployment not in names:
            # Stopped from another machine.
            remove_record(home(), record.deployment)


def _with_records(error: ClusterError, records: Sequence[Record]) -> ClusterError:
    """Name the deployments that were started on a cluster that does not answer."""
    if not records:
        return error
    started = "\n".join(f"{record.deployment}: {record.origin}" for record in records)
    return ClusterError(error.what, why=error.why, todo=records[0].todo, evidence=started)


def run_on_head(
    file: Path, words: Sequence[str], given: Mapping[str, Path], env: Mapping[str, str]
) -> int:
    """Run a command line on the head of the cluster that `ray up FILE` started; see ssh_client."""
    from raylaunch.runtime.ssh import ssh_client

    return ssh_client.run_on_head(file, words, given, env)


def drill(
    deployment: str,
    faults: Sequence[str] = (),
    address: str | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Break a running deployment on purpose, one fault at a time, and measure its recovery.

    Args:
        deployment: Its name, or NAME/GROUP; by default the first group is drilled.
        faults: Names of faults; by default all that affect nothing but the deployment.
        address: Ray cluster, as for `attach`.
        on_outcome: Called after each fault.

    Raises:
        BusyError: it is not ready, or another command is in progress.
        RaylaunchError: no such fault or deployment, or it failed for good.
    """
    from raylaunch.runtime.drill.drill_run import choose, run_drill

    chosen = choose(faults)
    handle = attach(deployment, address)
    return run_drill(
        handle.name,
        chosen,
        on_outcome,
        handle.group,
        reconnect=lambda: connect_to(handle.name, address),
    )


def verify(
    deployment: str,
    *,
    timeout: float | None = None,
    address: str | None = None,
    on_proof: OnProof | None = None,
) -> Verification:
    """Prove the service of a running deployment as a client sees it; see `Deployment.verify`."""
    return attach(deployment, address).verify(timeout, on_proof)


def refuse_unsupported(loaded: LoadedRecipe, primary: str | None = None) -> None:
    """Refuse what a recipe can say and a running deployment cannot do yet.

    Raises:
        RecipeError: a primary for several groups.
    """
    groups = expand_groups(loaded)
    if primary is not None and len(groups) > 1:
        raise RecipeError(
            f"--primary {primary} does not say which of the {len(groups)} groups it is for",
            why="each group has a primary of its own, on the first of its nodes",
            todo="leave --primary out",
        )


def read_secrets(recipe: Recipe) -> dict[str, str]:
    """Return the values of a recipe's secrets from this environment.

    Raises:
        RecipeError: one is not set.
    """
    missing = [name for name in recipe.secrets if name not in os.environ]
    if missing:
        raise RecipeError(
            f"the recipe's secret {missing[0]} is not set",
            why="its value is taken from the environment of this command and given to the servers",
            todo=f"export {missing[0]}=... and try again",
        )
    return {name: os.environ[name] for name in recipe.secrets}


def _start_embedded(request: Request, secrets: Mapping[str, str], adopt: bool | None) -> Deployment:
    name = request.deployment
    is_revived = start_embedded(name, request.loaded)
    try:
        return _create_controller(request, secrets, adopt, is_revived=is_revived)
    except KeyboardInterrupt as interrupt:
        if is_revived:
            raise
        raise StartUndone(stop_embedded(name)) from interrupt
    except BaseException:
        # A cluster without a controller would be an orphan. Around servers it is not.
        if not is_revived:
            stop_embedded(name)
        raise


def _create_controller(
    request: Request,
    secrets: Mapping[str, str],
    adopt: bool | None,
    *,
    is_revived: bool = False,
) -> Deployment:
    from raylaunch.runtime.controller.controller_client import create_controller, find_controller

    name = request.deployment
    handle = Deployment(name)
    if find_controller(name) is not None:
        if is_revived:  # Ray brings it back, and it takes over
            handle.adopted = True
            return handle
        raise BusyError(
            f"a deployment named {name!r} already exists",
            todo=f"`raylaunch status {name}` shows it, "
            f"`raylaunch stop {name}` stops it; or use --name",
        )
    request = request_to_adopt(request, adopt)
    handle.adopted = request.adopts
    create_controller(request, secrets)
    return handle
