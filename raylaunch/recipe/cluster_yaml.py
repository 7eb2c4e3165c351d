"""Files for `ray up`, as far as raylaunch reads them: where the head is, how it is reached, which workers there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from raylaunch.errors import ClusterFileError

NODE_TYPE = "local.cluster.node"
"""Under this key `ray up` writes the number of workers into ~/ray_bootstrap_config.yaml (Ray 2.60, local/config.py)."""

GIVEN = "{given}"
"""In a command line for the head of a cluster: the folder of the files that were brought along."""


@dataclass(frozen=True)
class RayFile:
    """A cluster of provider `local`."""

    name: str
    head_ip: str
    """The head's address among the hosts."""
    workers: tuple[str, ...]
    min_workers: int
    """How many of `workers` Ray's autoscaler starts by itself."""
    user: str
    key: str | None = None
    proxy: str | None = None
    outer_ip: str | None = None
    """The head's address for machines outside the hosts' network."""
    container: str | None = None
    docker: str = "docker"


def read_ray_file(text: str, file: str) -> RayFile:
    """Read a file for `ray up`, or the ~/ray_bootstrap_config.yaml that `ray up` makes of it on the head.

    Raises:
        ClusterFileError: no YAML, not such a file, or of another provider.
    """
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ClusterFileError(f"{file} is not valid YAML", why=str(error)) from error
    provider, auth = _part(config, "provider"), _part(config, "auth")
    if "type" not in provider:
        raise _not_for_ray(file, "it has no provider.type")
    if provider["type"] != "local" or "coordinator_address" in provider:
        raise ClusterFileError(
            f"{file} is for Ray's provider {provider['type']!r}, and raylaunch finds heads of provider 'local' only",
            todo=f"`ray attach {file}` opens a shell on the head: run raylaunch there, without --cluster",
        )
    for section, key in ((provider, "head_ip"), (auth, "ssh_user"), (config, "cluster_name")):
        if not isinstance(section.get(key), str):
            raise _not_for_ray(file, f"it has no {key}")
    return _build(config, provider, auth)


def _build(
    config: Mapping[str, Any], provider: Mapping[str, Any], auth: Mapping[str, Any]
) -> RayFile:
    docker = _part(config, "docker")
    workers = tuple(str(ip) for ip in provider.get("worker_ips") or ())
    wanted = _part(_part(config, "available_node_types"), NODE_TYPE).get(
        "min_workers", config.get("min_workers")
    )
    return RayFile(
        name=config["cluster_name"],
        head_ip=provider["head_ip"],
        workers=workers,
        min_workers=min(wanted, len(workers)) if isinstance(wanted, int) else len(workers),
        user=auth["ssh_user"],
        key=auth.get("ssh_private_key"),
        proxy=auth.get("ssh_proxy_command"),
        outer_ip=provider.get("external_head_ip"),
        container=docker.get("container_name"),
        docker="podman" if docker.get("use_podman") else "docker",
    )


def _part(config: Any, key: str) -> Mapping[str, Any]:  # noqa: ANN401 - YAML holds anything
    found = config.get(key) if isinstance(config, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _not_for_ray(file: str, why: str) -> ClusterFileError:
    return ClusterFileError(
        f"{file} is not a file for `ray up`",
        why=why,
        todo="`raylaunch cluster NAME --head IP --worker IP --ssh-user USER -o FILE` writes one",
    )
