"""The verb `service`: systemd units that bring a deployment back after a reboot."""

from __future__ import annotations

import contextlib
import getpass
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raylaunch.api.deployment_verbs import read_secrets
from raylaunch.api.recipe_arguments import load
from raylaunch.deployment import checked_name
from raylaunch.errors import NodeError, RaylaunchError, RecipeError, UnknownDeploymentError
from raylaunch.recipe.catalog import files_of
from raylaunch.recipe.cluster_yaml import ClusterFile, open_cluster_file
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.render.host_service import cluster_unit, deployment_unit

if TYPE_CHECKING:
    from raylaunch.render.host_service import HostService
    from raylaunch.runtime.ssh.service_hosts import UnitState

KEPT = ("PATH", "RAYLAUNCH_HOME", "PYTHONPATH", "LD_LIBRARY_PATH")
"""Variables of this process that the unit of an embedded cluster gets: it has no login shell."""


def service_files(
    name: str,
    *,
    cluster: Path | None = None,
    set: Sequence[str] = (),  # noqa: A002 - named as on the command line
    deployment: str | None = None,
) -> list[HostService]:
    """Return the units and scripts of a service, for each host; writes nothing.

    Args:
        name: Recipe by name or path.
        cluster: The cluster's file for `ray up`; without it an embedded cluster on this machine.
        set: Changes to the recipe.
        deployment: Name; by default the recipe's.

    Raises:
        RecipeError: the recipe needs a cluster, or a port that Ray needs.
        ClusterFileError: the file is missing or not one for `ray up`.
        PlanError: the cluster has too few hosts.
        NodeError: a value that cannot be written into a unit.
    """
    loaded = load(name, set=set)
    title = checked_name(deployment or loaded.name)
    if cluster is None:
        return [_local(name, loaded, title, set)]
    from raylaunch.render.cluster_service import ServiceOrder, render_cluster_service

    sent, files = files_of(name)
    texts = {path: file.read_text(encoding="utf-8") for path, file in files.items()}
    order = ServiceOrder(title, sent, texts, tuple(set))
    return render_cluster_service(loaded, order, _read_cluster(cluster))


def install_service(
    name: str,
    *,
    cluster: Path | None = None,
    set: Sequence[str] = (),  # noqa: A002 - named as on the command line
    deployment: str | None = None,
) -> list[HostService]:
    """Write the units and scripts of a service to its hosts, enable and start them.

    The values of the recipe's secrets are those of this environment; they go into a file of mode
    0600 on the head. All hosts get the service, or none.

    Args:
        name: Recipe by name or path.
        cluster: The cluster's file for `ray up`; without it an embedded cluster on this machine.
        set: Changes to the recipe.
        deployment: Name; by default the recipe's.

    Raises:
        RecipeError: as for `service_files`, or a secret that is not set.
        RaylaunchError: as for `service_files`.
        NodeError: a host refuses, or there is no token of the cluster.
        HeadError: a host cannot be reached.
    """
    from raylaunch.render.host_service import CODE, deployment_folder, environment_path
    from raylaunch.render.systemd_unit import environment_file
    from raylaunch.runtime.ssh.service_hosts import HostFiles, install

    loaded = load(name, set=set)
    title = checked_name(deployment or loaded.name)
    services = service_files(name, cluster=cluster, set=set, deployment=deployment)
    secrets = environment_file(read_secrets(loaded.recipe))
    file = None if cluster is None else _read_cluster(cluster)
    hosts = []
    for one in services:
        files = {each.path: (each.text, each.mode) for each in one.files}
        starts = deployment_unit(title) in one.units
        if starts and secrets:
            files[environment_path(title)] = (secrets, 0o600)
        code = f"{deployment_folder(title)}/{CODE}" if starts and file else ""
        hosts.append(HostFiles(one.host, files, one.units, code))
    install(hosts, file, None if file is None else _token(file))
    return services


def service_status(deployment: str, *, cluster: Path | None = None) -> dict[str, list[UnitState]]:
    """Return the state of the units of a service, by host ("" for this machine).

    Args:
        deployment: Its name.
        cluster: The cluster's file for `ray up`; without it the units of this machine.

    Raises:
        ClusterFileError: the file is missing or not one for `ray up`.
        HeadError: a host cannot be reached.
        NodeError: a host has no systemd.
    """
    from raylaunch.runtime.ssh.service_hosts import read_states

    title = checked_name(deployment)
    file = None if cluster is None else _read_cluster(cluster)
    return {host: read_states(file, host, units) for host, units in _units(title, file).items()}


def remove_service(
    deployment: str,
    *,
    cluster: Path | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[str]:
    """Stop, disable and remove the units and files of a service; return the units.

    Before Ray's units the deployment is stopped as by `stop`. If that fails they are stopped all
    the same: without Ray its servers stop after `health.orphan_grace_s`, and with its container
    they are killed. Ray's units and containers stay while another deployment's service needs them,
    and then the deployment keeps running, as it does on an embedded cluster.

    Args:
        deployment: Its name.
        cluster: As for `service_status`.
        on_note: Called with why the deployment could not be stopped.

    Raises:
        ClusterFileError: the file is missing or not one for `ray up`.
        HeadError: a host cannot be reached; those before it have no units any more.
        NodeError: a unit of that name is not raylaunch's.
    """
    from raylaunch.render.host_service import LABEL, UNITS, cluster_folder, deployment_folder
    from raylaunch.runtime.ssh.service_hosts import HostFiles, find_other_users, remove

    title = checked_name(deployment)
    file = None if cluster is None else _read_cluster(cluster)
    units = _units(title, file)
    own = deployment_unit(title)
    label = ""
    if file is not None and cluster is not None:
        rays = cluster_unit(file.name)
        if find_other_users(file, rays, own):
            units = {file.head_ip: [own]}
        else:
            _stop_before_ray(cluster, title, on_note)
            label = "" if file.container is None else f"{LABEL}={file.name}"
    hosts = []
    for host, names in units.items():
        paths = [f"{UNITS}/{name}" for name in names]
        paths += [deployment_folder(title)] if own in names else []
        paths += [cluster_folder(file.name)] if file and own != names[0] else []
        hosts.append(HostFiles(host, dict.fromkeys(paths, ("", 0)), tuple(names)))
    remove(hosts, file, label)
    return [name for names in units.values() for name in names]


def _stop_before_ray(cluster: Path, deployment: str, on_note: Callable[[str], None] | None) -> None:
    from raylaunch.runtime.ssh import ssh_client

    try:
        # The report of `stop` is for people; stdout may be for a program.
        with contextlib.redirect_stdout(sys.stderr):
            code = ssh_client.run_on_head(cluster, ["stop", deployment], {}, {})
        problem = f"`raylaunch stop` exited with {code}"
    except RaylaunchError as error:
        code = error.exit_code
        problem = error.what
    if code == ssh_client.INTERRUPTED:
        raise KeyboardInterrupt
    if code not in (0, UnknownDeploymentError.exit_code) and on_note is not None:
        on_note(f"{deployment} was not stopped before its Ray: {problem}")


def _units(title: str, file: ClusterFile | None) -> dict[str, list[str]]:
    """Return the names of the units by host, the head first; Ray's is the first of its host."""
    if file is None:
        return {"": [deployment_unit(title)]}
    rays = cluster_unit(file.name)
    found = {file.head_ip: [rays, deployment_unit(title)]}
    return found | {host: [rays] for host in file.workers}


def _token(file: ClusterFile) -> tuple[str, str]:
    """Return where the token of the cluster is, below a home, and its text.

    Raises:
        NodeError: there is none on this machine.
    """
    from raylaunch.render.ray_commands import token_folder

    path = f"{token_folder(file.name)}/token"
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NodeError(
            f"the token of the cluster {file.name} cannot be read",
            why=str(error),
            todo="`raylaunch cluster` makes it when it writes the file",
        ) from error
    return path.removeprefix("~/"), text


def _local(name: str, loaded: LoadedRecipe, title: str, sets: Sequence[str]) -> HostService:
    from raylaunch.render.local_service import render_local_service

    if loaded.recipe.hardware.platform != "cpu":
        raise RecipeError(
            f"{loaded.name} needs NPUs, and an embedded cluster has none",
            todo="`raylaunch cluster` writes a file for the host, also for a single one: give it "
            "with --cluster",
        )
    sent, files = files_of(name)
    return render_local_service(
        loaded,
        title,
        python=sys.executable,
        recipe=str(files[sent].resolve()) if files else sent,
        user=getpass.getuser(),
        environment={variable: os.environ[variable] for variable in KEPT if variable in os.environ},
        sets=sets,
    )


def _read_cluster(file: Path) -> ClusterFile:
    return open_cluster_file(file, "give the file that `raylaunch cluster` wrote")
