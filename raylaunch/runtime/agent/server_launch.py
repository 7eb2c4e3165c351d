"""What a launch of one server needs on its node: folders, environment, addresses. No Ray here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from raylaunch.node.process import log_files
from raylaunch.node.process.guard_socket import socket_path
from raylaunch.node.process.server_env import child_env, put_first_in_path
from raylaunch.node.process.server_process import ServerSpec
from raylaunch.plan.launch_plan import LaunchPlan, ServerPlan
from raylaunch.plan.layout import bracket
from raylaunch.runtime.agent.secret_keeper import SecretKeeper
from raylaunch.runtime.cluster.group_key import GroupKey

KEPT_ATTEMPTS = 5
"""Attempts of a group whose logs stay on the node."""
OWNER_LOST_GRACE_S = 1.0
"""SIGTERM to SIGKILL of a server whose agent died: its group is broken anyway, and the restart
waits for it."""


def build_spec(
    key: GroupKey,
    server: ServerPlan,
    attempt: int,
    *,
    instance: str,
    vllm: str,
    secrets: SecretKeeper,
    log: Path,
    cwd: Path,
    orphan_grace_s: float = 0.0,
    environ: Mapping[str, str] = os.environ,
) -> ServerSpec:
    """Build what the guard runs. The folder of `vllm` comes first in the server's PATH.

    `cwd` is raylaunch's folder of this user, where the guard has its socket too.
    """
    env = child_env(
        environ,
        server.environ,
        server.unset,
        deployment=key.deployment,
        group=key.group,
        instance=instance,
        attempt=attempt,
        server=server.index,
        secrets=secrets.secrets,
    )
    return ServerSpec(
        argv=server.argv,
        env=put_first_in_path(env, vllm),
        log=str(log),
        cwd=str(cwd),
        term_timeout_s=OWNER_LOST_GRACE_S,
        socket=str(socket_path(cwd, instance, key.group, server.index)),
        owner_wait_s=orphan_grace_s,
        memo=secrets.memo(),
    )


def prepare_node(plan: LaunchPlan, server: ServerPlan, attempt: int, *, state_dir: Path) -> None:
    """Create the folders of a launch and remove the logs of old attempts.

    Raises:
        OSError: A folder cannot be created: the disk is full or read-only.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    log = log_files.planned_log(log_files.log_root(os.environ), server.log, attempt)
    log_files.prune_attempts(log.parent.parent, KEPT_ATTEMPTS, attempt)
    if plan.platform == "cpu" and "PYTHONPATH" in server.env:
        from raylaunch.node.probe.vllm_cpu_metadata import ensure_vllm_metadata

        ensure_vllm_metadata(Path(server.env["PYTHONPATH"].value))


def is_first_on_its_node(plan: LaunchPlan, server: ServerPlan) -> bool:
    """Return whether no earlier server of the plan is on the same node: that one reads ahead."""
    earlier = plan.servers[: server.index]
    return all(other.node.ip != server.node.ip for other in earlier)


def api_url(server: ServerPlan) -> str:
    """Return the URL at which the agent probes its own API server."""
    host = server.flag("--host") or server.node.ip
    listens_everywhere = host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
    address = server.node.ip if listens_everywhere else host
    return f"http://{bracket(address)}:{server.ports.http}"
