"""The environment of a server: the inherited one without Ray's part, the plan's, and the marker."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from raylaunch.node.process.process_markers import (
    ATTEMPT,
    DEPLOYMENT,
    EMBEDDED_IN,
    GROUP,
    INSTANCE,
    SERVER,
)

RAY_SETS = frozenset({"ASCEND_RT_VISIBLE_DEVICES", "OMP_NUM_THREADS"})
"""Ray sets these in its workers: the devices in an order of its own, and one thread (measured, Ray
2.60)."""


def child_env(
    base: Mapping[str, str],
    plan_env: Mapping[str, str],
    unset: Iterable[str] = (),
    *,
    deployment: str,
    instance: str,
    attempt: int,
    server: int,
    secrets: Mapping[str, str] | None = None,
    group: str = "",
) -> dict[str, str]:
    """Build the complete environment of a server.

    That is the inherited one without Ray's part, then the plan's variables, secrets, marker.

    Args:
        base: The inherited environment.
        plan_env: Variables of the plan.
        unset: Inherited names to remove. Names of the plan are kept.
        deployment: Name for the marker.
        instance: Random id of this start of the deployment (`process_markers.new_instance`), made
            once and kept over restarts and adoption.
        attempt: For the marker.
        server: Index of the server, for the marker.
        secrets: Values that the recipe only names.
        group: The server's group, for the marker; "" for a process of no group.

    SPT_NOENV keeps setproctitle, with which vLLM renames its processes, from writing the title over
    the environment block, where the marker is read from (measured, setproctitle 1.3.8).
    """
    marker = {
        DEPLOYMENT: deployment,
        INSTANCE: instance,
        ATTEMPT: str(attempt),
        SERVER: str(server),
        "SPT_NOENV": "1",
    }
    if group:
        marker[GROUP] = group
    # Ray's workers in an embedded cluster carry the cluster's marker in the deployment's place.
    if (cluster := base.get(DEPLOYMENT, "")).startswith("@"):
        marker[EMBEDDED_IN] = cluster
    return {**unmarked_env(base, plan_env, unset), **(secrets or {}), **marker}


def unmarked_env(
    base: Mapping[str, str], plan_env: Mapping[str, str], unset: Iterable[str] = ()
) -> dict[str, str]:
    """Build the environment of a server without secrets and marker; arguments as for `child_env`.

    What runs with it is no process of the deployment: a search for orphans passes it by.
    """
    dropped = RAY_SETS | frozenset(unset)
    inherited = {
        name: value
        for name, value in base.items()
        if name not in dropped and not name.startswith("RAY_")
    }
    return {**inherited, **plan_env}


def put_first_in_path(env: Mapping[str, str], program: str) -> dict[str, str]:
    """Return an environment in whose PATH the folder of `program` comes first."""
    inherited_path = env.get("PATH", os.defpath)
    return {**env, "PATH": f"{Path(program).parent}{os.pathsep}{inherited_path}"}
