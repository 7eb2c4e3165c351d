"""The service of a deployment on a cluster: units and scripts for each of its hosts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from raylaunch.errors import ClusterFileError
from raylaunch.recipe.cluster_yaml import ClusterFile
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.render.cluster_site import FIXED_PORTS, Site, check_site
from raylaunch.render.host_service import (
    CODE,
    FOLDER,
    INSTALL,
    LABEL,
    UNITS,
    HostFile,
    HostService,
    cluster_folder,
    cluster_unit,
    deployment_folder,
    deployment_unit,
    follow_settings,
    mark,
    outlived_settings,
)
from raylaunch.render.ray_cluster import ROOT_HOME
from raylaunch.render.ray_commands import foreground_commands, kill_marked, token_folder
from raylaunch.render.systemd_unit import escape_specifiers, quote_word, render_unit

FOLLOWER = "RAYLAUNCH_FOLLOWER"
"""Marker variable of `start --follow` in a container."""
LOGIN_SHELL = "/bin/bash --login -i"
"""As Ray's launcher runs its commands: only an interactive shell reads ~/.bashrc."""
STOPPABLE = "trap 'exit 0' TERM  # an interactive shell ignores it otherwise"
"""Before `exec` the shell is the unit's main process: systemd would wait for its time-out."""
BASHRC = "source ~/.bashrc"
"""Of a login shell it may have been left out."""
INSIDE = "RAYLAUNCH_INSIDE"
"""Delimiter of the here-document with the commands for the container."""


@dataclass(frozen=True)
class ServiceOrder:
    """A service that was asked for.

    Args:
        deployment: Its name.
        recipe: Name of a shipped recipe, or path of one of `recipe_files`.
        recipe_files: Texts of the user's recipe files, by path relative to a common folder.
        sets: Changes to the recipe, as for `--set`.
    """

    deployment: str
    recipe: str
    recipe_files: Mapping[str, str]
    sets: Sequence[str] = ()


def render_cluster_service(
    loaded: LoadedRecipe, order: ServiceOrder, cluster: ClusterFile
) -> list[HostService]:
    """Return the files for each host, the head first.

    Raises:
        ClusterFileError: the file names a container without an image.
        PlanError: the cluster has too few hosts, or a name or address that Ray cannot use.
        RecipeError: a port of the recipe that Ray needs.
        NodeError: a value that cannot be written into a unit.
    """
    site = Site(
        name=cluster.name,
        head=cluster.head_ip,
        workers=cluster.workers,
        ssh_user=cluster.user,
        ssh_key=None,
        bare=cluster.container is None,
        asked=(),
    )
    check_site(loaded, site)
    if cluster.container is not None and cluster.image is None:
        raise ClusterFileError(
            "the cluster's file names a container and no image",
            why="the unit starts the container, and `docker.head` or `docker.worker_image` of "
            "another file are not read",
            todo="give it docker.image",
        )
    services = []
    for host in (cluster.head_ip, *cluster.workers):
        is_head = host == cluster.head_ip
        files = list(_ray_files(loaded, order, cluster, site, "head" if is_head else "worker"))
        units = [cluster_unit(cluster.name)]
        if is_head:
            files += _deployment_files(loaded, order, cluster)
            units.append(deployment_unit(order.deployment))
        services.append(HostService(host, tuple(files), tuple(units)))
    return services


# -- Ray -------------------------------------------------------------------------------------------


def _ray_files(
    loaded: LoadedRecipe, order: ServiceOrder, cluster: ClusterFile, site: Site, role: str
) -> Iterator[HostFile]:
    script = f"{cluster_folder(cluster.name)}/ray.sh"
    comments = mark(order.deployment, loaded.name, f"Ray's {role} in the foreground, for systemd")
    inside = [STOPPABLE, BASHRC, *foreground_commands(loaded, site, role)]
    lines = inside if cluster.container is None else list(_in_container(inside, cluster))
    yield HostFile(script, _script(comments, lines), 0o755)
    unit = cluster_unit(cluster.name)
    yield HostFile(f"{UNITS}/{unit}", _ray_unit(loaded, order, cluster, script))


def _ray_unit(loaded: LoadedRecipe, order: ServiceOrder, cluster: ClusterFile, script: str) -> str:
    after = ["network-online.target"]
    service = [("Type", "exec"), ("User", escape_specifiers(cluster.user))]
    if cluster.container is None:
        service.append(("ExecStart", f"{LOGIN_SHELL} {script}"))
    else:
        if cluster.docker == "docker":
            after.append("docker.service")
        service.append(("ExecStart", f"/bin/bash {script}"))
        # The container is in a control group of its own, so systemd does not reach Ray.
        service.append(("ExecStop", f"/bin/bash {script} stop"))
    mounts = [quote_word(path) for path in _mounts(loaded, cluster)]
    unit = [
        ("Description", escape_specifiers(f"Ray of the cluster {cluster.name}, for raylaunch")),
        ("Wants", " ".join(after)),
        ("After", " ".join(after)),
        *([("RequiresMountsFor", " ".join(mounts))] if mounts else []),
        ("StartLimitIntervalSec", "0"),
    ]
    service += [
        # Guards and servers are in this control group: only `ray start` itself is signalled.
        ("KillMode", "process"),
        ("Restart", "always"),
        ("RestartSec", "2"),
        ("TimeoutStopSec", "60"),
        *outlived_settings(),
    ]
    comments = mark(order.deployment, loaded.name, "keeps Ray running on this host")
    return render_unit(comments, {"Unit": unit, "Service": service, "Install": INSTALL})


def _mounts(loaded: LoadedRecipe, cluster: ClusterFile) -> list[str]:
    """Return the folders of the host that must be mounted: weights and state."""
    paths = [] if cluster.user == "root" else ["/home"]
    if cluster.container is None:
        paths += [path for path in [loaded.recipe.model.path] if path.startswith("/")]
        return paths
    for option in cluster.run_options:
        words = shlex.split(option)
        if len(words) > 1 and words[0] in ("-v", "--volume"):
            path = words[1].partition(":")[0]
            paths += [path] if path.startswith("/") else []
    return list(dict.fromkeys(paths))


def _in_container(inside: Sequence[str], cluster: ClusterFile) -> Iterator[str]:
    """Yield a script of the host that starts the container if needed, and Ray in it.

    Ray's own launcher makes a container with `--rm`: it is gone after a reboot, and so are the
    files that were copied into it. This one has the host's folders for both.
    """
    docker = cluster.docker
    yield from _container_names(cluster)
    yield f"image={shlex.quote(cluster.image or '')}"
    yield 'if [ "${1-}" = stop ]; then'
    stop = "\n".join(kill_marked(cluster.name))
    yield f'  exec {docker} exec "$box" bash -c {shlex.quote(stop)}'
    yield "fi"
    yield f'mine=$({docker} ps -aq --filter "name=^/?$box\\$" --filter "label={LABEL}")'
    yield 'if [ -z "$mine" ]; then'
    yield '  mkdir -p "$HOME/.raylaunch" && chmod 700 "$HOME/.raylaunch" || exit 1'
    yield f'  {docker} run -d --init --net=host --name "$box" --label "{LABEL}={cluster.name}" \\'
    for option in cluster.run_options:
        yield f"    {option} \\"
    yield f'    -v "$HOME/.raylaunch:{ROOT_HOME}/.raylaunch" -v {FOLDER}:{FOLDER}:ro \\'
    yield '    "$image" sleep infinity || exit 1'
    yield "else"
    yield f'  {docker} start "$box" || exit 1'
    yield "fi"
    yield from _here_document(inside)
    yield f'exec {docker} exec "$box" bash --login -c -i "$inside"'


# -- the deployment --------------------------------------------------------------------------------


def _deployment_files(
    loaded: LoadedRecipe, order: ServiceOrder, cluster: ClusterFile
) -> Iterator[HostFile]:
    folder = deployment_folder(order.deployment)
    for name, text in order.recipe_files.items():
        yield HostFile(f"{folder}/recipe/{name}", text)
    script = f"{folder}/follow.sh"
    comments = mark(order.deployment, loaded.name, "starts it and follows it, for systemd")
    inside = list(_follow_commands(order, cluster))
    lines = inside
    if cluster.container is not None:
        lines = list(_follow_in_container(inside, loaded, order, cluster))
    yield HostFile(script, _script(comments, lines), 0o755)
    unit = f"{UNITS}/{deployment_unit(order.deployment)}"
    yield HostFile(unit, _follow_unit(loaded, order, cluster, script))


def _follow_unit(
    loaded: LoadedRecipe, order: ServiceOrder, cluster: ClusterFile, script: str
) -> str:
    after = f"network-online.target {cluster_unit(cluster.name)}"
    unit = [
        ("Description", escape_specifiers(f"raylaunch deployment {order.deployment}")),
        ("Wants", after),
        ("After", after),
        ("StartLimitIntervalSec", "0"),
    ]
    is_bare = cluster.container is None
    start = f"{LOGIN_SHELL if is_bare else '/bin/bash'} {script}"
    service = [
        ("User", escape_specifiers(cluster.user)),
        ("NotifyAccess", "main" if is_bare else "all"),
        *follow_settings(order.deployment, start, kill_mode="control-group"),
    ]
    if not is_bare:
        service.append(("ExecStopPost", f"/bin/bash {script} stop"))
    comments = mark(order.deployment, loaded.name, "starts it and follows it")
    return render_unit(comments, {"Unit": unit, "Service": service, "Install": INSTALL})


def _follow_commands(order: ServiceOrder, cluster: ClusterFile) -> Iterator[str]:
    """Yield shell lines that replace themselves by `raylaunch start --follow`.

    The Python is that of Ray's own program, as for `--cluster`.
    """
    folder = deployment_folder(order.deployment)
    recipe = f"{folder}/recipe/{order.recipe}" if order.recipe_files else order.recipe
    words = ["start", recipe, "--follow", "--name", order.deployment]
    words += ["--address", f"{cluster.head_ip}:{FIXED_PORTS['port']}"]
    for host in (cluster.head_ip, *cluster.workers):
        words += ["--await-host", host]
    for setting in order.sets:
        words += ["--set", setting]
    yield STOPPABLE
    yield BASHRC
    yield "cd /  # Ray's workers search the driver's working directory for modules"
    yield "program=$(command -v ray) ||"
    yield "{ echo 'no program named ray is in the PATH of a login shell' >&2; exit 127; }"
    yield 'read -r first < "$program"; python=${first#??}'
    yield "case $python in */python*) ;; *) python=python3;; esac"
    yield f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token_folder(cluster.name)}/token"
    yield f"export PYTHONPATH={folder}/{CODE}${{PYTHONPATH:+:$PYTHONPATH}}"
    yield "export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1"
    yield f"exec $python -m raylaunch {shlex.join(words)}"


def _follow_in_container(
    inside: Sequence[str], loaded: LoadedRecipe, order: ServiceOrder, cluster: ClusterFile
) -> Iterator[str]:
    """Yield a script of the host that follows in the container, and passes notifications on.

    systemd takes notifications from the control group of the unit alone, and the container is in
    another one. So they come on stdout.
    """
    docker = cluster.docker
    marker = f"{FOLLOWER}={order.deployment}"
    find = f"grep -lzsxF {marker} /proc/[0-9]*/environ | cut -d/ -f3 | xargs -r kill"
    yield from _container_names(cluster)
    yield f'stop() {{ {docker} exec "$box" bash -c {shlex.quote(find)} 2>/dev/null; true; }}'
    yield "stop"
    yield 'if [ "${1-}" = stop ]; then exit 0; fi'
    yield from _here_document(inside)
    secrets = "".join(f" -e {name}" for name in loaded.recipe.secrets)
    yield f"{docker} exec -e NOTIFY_SOCKET=stdout -e {marker}{secrets} \\"
    yield '  "$box" bash --login -c -i "$inside" |'
    yield "while IFS= read -r line; do"
    yield "  case $line in"
    yield "  'sd_notify: '*) systemd-notify \"${line#sd_notify: }\" ;;"
    yield "  *) printf '%s\\n' \"$line\" ;;"
    yield "  esac"
    yield "done"
    yield 'exit "${PIPESTATUS[0]}"'


def _container_names(cluster: ClusterFile) -> Iterator[str]:
    yield f"box={shlex.quote(cluster.container or '')}"


def _here_document(inside: Sequence[str]) -> Iterator[str]:
    yield f"inside=$(cat <<'{INSIDE}'"
    yield from inside
    yield INSIDE
    yield ")"


def _script(comments: Sequence[str], lines: Sequence[str]) -> str:
    return "\n".join(["#!/bin/bash", *(f"# {line}" for line in comments), *lines]) + "\n"
