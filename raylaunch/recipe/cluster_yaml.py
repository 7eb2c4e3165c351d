"""Cluster files for `ray up`, as far as raylaunch reads them: head, login and workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from raylaunch.errors import ClusterFileError
from raylaunch.recipe.yaml_limits import load_plain
from raylaunch.recipe.yaml_reader import describe_unprintable, shorten

NODE_TYPE = "local.cluster.node"
"""The key under which `ray up` stores the number of workers in ~/ray_bootstrap_config.yaml.

Source: Ray 2.60, local/config.py.
"""

GIVEN = "{given}"
"""Placeholder in a command line for the head: the folder of the files that were sent along."""


@dataclass(frozen=True)
class ClusterFile:
    """A cluster of Ray's provider `local`, as its file describes it."""

    name: str
    head_ip: str
    """The head's address among the hosts."""
    workers: tuple[str, ...]
    min_workers: int
    """Number of `workers` that Ray's autoscaler starts by itself."""
    user: str
    key: str | None = None
    proxy: str | None = None
    outer_ip: str | None = None
    """The head's address for machines outside the hosts' network."""
    container: str | None = None
    docker: str = "docker"
    image: str | None = None
    run_options: tuple[str, ...] = ()
    """Options of `docker run`, each with its value, quoted for a shell."""


def open_cluster_file(file: Path, todo: str) -> ClusterFile:
    """Read a file for `ray up` from its path, which may begin with "~".

    Args:
        file: The path.
        todo: What to do where it cannot be read.

    Raises:
        ClusterFileError: it cannot be read, or as for `read_cluster_file`.
    """
    try:
        text = file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterFileError(
            f"the cluster's file {file} cannot be read", why=str(error), todo=todo
        ) from error
    return read_cluster_file(text, str(file))


def read_cluster_file(text: str, file: str) -> ClusterFile:
    """Read a file for `ray up`, or the ~/ray_bootstrap_config.yaml that it becomes on the head.

    Raises:
        ClusterFileError: Not YAML, not a cluster file, or of another provider.
    """
    config = _load(text, file)
    provider = _section(config, "provider")
    auth = _section(config, "auth")
    if "type" not in provider:
        raise _not_a_cluster_file(file, "it has no provider.type")
    if provider["type"] != "local" or "coordinator_address" in provider:
        shown = shorten(str(provider["type"]))
        raise ClusterFileError(
            f"{file} is for Ray's provider {shown!r}, "
            "and raylaunch finds heads of provider 'local' only",
            todo=f"`ray attach {file}` opens a shell on the head: "
            "run raylaunch there, without --cluster",
        )
    found = ClusterFile(
        name=_text(config, "cluster_name", file),
        head_ip=_text(provider, "head_ip", file),
        workers=_workers(provider, file),
        min_workers=0,
        user=_text(auth, "ssh_user", file),
        key=_optional_text(auth, "ssh_private_key", file),
        proxy=_optional_text(auth, "ssh_proxy_command", file),
        outer_ip=_optional_text(provider, "external_head_ip", file),
        container=_optional_text(_section(config, "docker"), "container_name", file),
        docker="podman" if _section(config, "docker").get("use_podman") else "docker",
        image=_optional_text(_section(config, "docker"), "image", file),
        run_options=_run_options(_section(config, "docker"), file),
    )
    return replace(found, min_workers=_min_workers(config, len(found.workers)))


def _load(text: str, file: str) -> object:
    try:
        return load_plain(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ClusterFileError(
            f"{file} is not valid YAML",
            why=str(error),
            todo="`ray up` needs valid YAML too: fix the file, or write it again",
        ) from error


def _min_workers(config: object, workers: int) -> int:
    node_type = _section(_section(config, "available_node_types"), NODE_TYPE)
    top = config if isinstance(config, Mapping) else {}
    wanted = node_type.get("min_workers", top.get("min_workers"))
    if isinstance(wanted, int):
        return max(0, min(wanted, workers))
    return workers


def _workers(provider: Mapping[str, object], file: str) -> tuple[str, ...]:
    listed = provider.get("worker_ips") or ()
    if not isinstance(listed, list | tuple):
        raise _not_a_cluster_file(file, "its provider.worker_ips is not a list")
    return tuple(str(ip) for ip in listed)


def _run_options(docker: Mapping[str, object], file: str) -> tuple[str, ...]:
    listed = docker.get("run_options") or ()
    if not isinstance(listed, list | tuple) or not all(isinstance(one, str) for one in listed):
        raise _not_a_cluster_file(file, "its docker.run_options is not a list of text")
    for one in listed:
        if problem := describe_unprintable(one):
            raise _not_a_cluster_file(file, f"docker.run_options: {problem}")
    return tuple(listed)


def _section(config: object, key: str) -> Mapping[str, object]:
    found = config.get(key) if isinstance(config, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _text(section: object, key: str, file: str) -> str:
    found = section.get(key) if isinstance(section, Mapping) else None
    if not isinstance(found, str):
        raise _not_a_cluster_file(file, f"it has no {key}")
    if problem := describe_unprintable(found):
        raise _not_a_cluster_file(file, f"{key}: {problem}")
    return found


def _optional_text(section: Mapping[str, object], key: str, file: str) -> str | None:
    return None if section.get(key) is None else _text(section, key, file)


def _not_a_cluster_file(file: str, why: str) -> ClusterFileError:
    return ClusterFileError(
        f"{file} is not a file for `ray up`",
        why=why,
        todo="`raylaunch cluster NAME --head IP --worker IP --ssh-user USER -o FILE` writes one",
    )
