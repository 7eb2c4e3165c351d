"""The commands of a cluster file that stop and start Ray on a host, and what starts it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise

from raylaunch.recipe.groups import expand_groups
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.render.cluster_site import FIXED_PORTS, HEAD_PORTS, METRIC_PORTS, Site, recipe_ports

WORKER_PORTS = (10002, 19999)
OBJECT_STORE_BYTES = 200_000_000
"""raylaunch passes almost no objects.

Ray's default, 30 % of memory, does not fit into a container's /dev/shm.
"""

TOOLKIT_ENVIRONMENT = (
    "/usr/local/Ascend/cann/set_env.sh",
    "/usr/local/Ascend/ascend-toolkit/set_env.sh",
)
"""CANN's script since 8.5, and the one before that. The first that exists is sourced.

Where both exist, the older one is a link to the newer, or another version, whose libraries would
mix with these.
"""

ATB_ENVIRONMENT = "/usr/local/Ascend/nnal/atb/set_env.sh"
"""Extends the toolkit's environment, so it is sourced after it."""

STORE = "~/.raylaunch/gcs"
"""Of the user of Ray; in a container it lives as long as the container."""
GCS_AWAY_S = 600
START_S = 120
STARTED = "Ray runtime started"
"""What `ray start` prints when its node has joined (Ray 2.60)."""
MARKER = "RAYLAUNCH_CLUSTER"
DEPLOYMENT_MARKER = "RAYLAUNCH_DEPLOYMENT"


def token_folder(name: str) -> str:
    """Return the folder of a cluster's token, the same on every machine."""
    return f"~/.raylaunch/cluster/{name}"


START_COMMENT = """\
# Each command runs in a login shell of its own.
#   RAY_enable_autoscaler_v2=0   version 2, Ray's default, never starts workers of provider
#                                local (measured)
#   RAY_worker_niceness=0        the default runs Ray's workers, and so vLLM, at niceness 15
#   RAY_prestart_worker_first_driver=0   the default starts a worker per core for the first driver
#   ASCEND_RT_VISIBLE_DEVICES    Ray would shuffle a list that is set before it; raylaunch sets it
#   --resources                  the NPUs of one host, also where Ray's Python cannot count them
#   ports                        fixed, outside those of vLLM and HCCL
#   --include-log-monitor=false  on a worker the log monitor would survive `ray down` (measured)"""

_STOP_COMMENT = f"""\
#   RAY_gcs_storage=rocksdb      the GCS keeps its tables in a folder: actors and reservations are
#                                there again when it was killed (measured, Ray 2.60)
# The first command kills what an earlier `ray up` of this cluster left, by its marker
# {MARKER}. Servers of a deployment stay: they run on for their health.orphan_grace_s, and
# the controller adopts them. `ray stop` would stop every Ray of the host, also those of others."""

_BARE_COMMENT = """\
# `ray down` does so, on the head. On the workers Ray then exits by itself, within two minutes
# (measured). Nothing starts Ray again that has exited: that is a task for a service manager."""

_CONTAINER_COMMENT = """\
# In the container a loop starts Ray again when one of its daemons was killed or has failed
# (`ray start --block` then exits); not after SIGTERM, as `ray stop` sends it. The log of the loop
# is the file that the last lines name. `ray down` stops the container, and with it everything.
# RAY_gcs_rpc_server_reconnect_timeout_s: raylets and workers wait that long for the GCS."""


def start_commands(loaded: LoadedRecipe, site: Site) -> Iterator[str]:
    """Yield the lines of the start commands, for the head and for a worker, with their comments."""
    yield from START_COMMENT.splitlines()
    yield from _STOP_COMMENT.splitlines()
    yield from (_BARE_COMMENT if site.bare else _CONTAINER_COMMENT).splitlines()
    for role in ("head", "worker"):
        start = [*_environment(site, role, restarts="" if site.bare else "loop")]
        run = [*_ray_start(loaded, site, role)]
        start += run if site.bare else _loop(run, site)
        yield f"{role}_start_ray_commands:"
        for command in (kill_marked(site.name), start):
            yield "  - >-"
            for line in command:
                yield f"    {line}"


def _worker_ports(loaded: LoadedRecipe) -> tuple[int, int]:
    """Return the longest range of Ray's usual worker ports without a port of the recipe."""
    first, last = WORKER_PORTS
    ports: set[int] = set()
    for group in expand_groups(loaded):
        ports.update(recipe_ports(group.loaded.recipe))
    own = sorted(port for port in ports if first <= port <= last)
    edges = [first - 1, *own, last + 1]
    below, above = max(pairwise(edges), key=lambda gap: gap[1] - gap[0])
    return below + 1, above - 1


def foreground_commands(loaded: LoadedRecipe, site: Site, role: str) -> Iterator[str]:
    """Yield shell lines that replace the Ray of this cluster on a host, and stay with the new one.

    For systemd, which starts it again. There is no autoscaler: each host starts its own Ray.

    Args:
        loaded: The recipe.
        site: The cluster.
        role: "head" or "worker".
    """
    yield f"export RAY_HEAD_IP={site.head};"
    yield from kill_marked(site.name)
    yield from _environment(site, role, restarts="systemd")
    words = [*_ray_start(loaded, site, role), "--block"]
    kept = [word for word in words if not word.startswith("--autoscaling-config")]
    yield " \\\n  ".join(["exec " + kept[0], *kept[1:]])


def kill_marked(cluster: str) -> list[str]:
    """Return shell lines that kill the Ray of this cluster: SIGTERM, up to 30 s, SIGKILL.

    Guards and gateways of deployments have inherited the marker, and outlive Ray.
    """
    return [
        f"ours() {{ grep -lzsxF {MARKER}={cluster} /proc/[0-9]*/environ |",
        f"xargs -r grep -LzsE ^{DEPLOYMENT_MARKER}= | cut -d/ -f3; }};",
        "kill -TERM $(ours) 2>/dev/null;",
        'for second in $(seq 30); do [ -z "$(ours)" ] && break; sleep 1; done;',
        "kill -KILL $(ours) 2>/dev/null; true",
    ]


def _environment(site: Site, role: str, *, restarts: str) -> Iterator[str]:
    """Yield shell lines: what Ray is started in.

    Args:
        site: The cluster.
        role: "head" or "worker".
        restarts: What starts Ray again; "" for nothing.
    """
    if role == "head":
        yield "export RAY_enable_autoscaler_v2=0;"
        metrics = " ".join(f"{name}={port}" for name, port in METRIC_PORTS.items())
        yield f"export {metrics};"
    yield f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token_folder(site.name)}/token;"
    yield f"export RAY_worker_niceness=0 RAY_prestart_worker_first_driver=0 {MARKER}={site.name};"
    yield f"mkdir -p -m 700 {STORE}/{site.name};"
    if role == "head":
        yield f"export RAY_gcs_storage=rocksdb RAY_gcs_storage_path={STORE}/{site.name};"
    if restarts:
        yield f"export RAY_gcs_rpc_server_reconnect_timeout_s={GCS_AWAY_S};"
        yield f"export RAYLAUNCH_RAY_RESTARTS={restarts};"
    yield "unset ASCEND_RT_VISIBLE_DEVICES RAY_AUTH_TOKEN;"
    yield f"for file in {' '.join(TOOLKIT_ENVIRONMENT)};"
    yield "do if [ -f $file ]; then source $file; break; fi; done;"
    yield f"if [ -f {ATB_ENVIRONMENT} ]; then source {ATB_ENVIRONMENT}; fi;"


def _ray_start(loaded: LoadedRecipe, site: Site, role: str) -> Iterator[str]:
    """Yield the words of `ray start`."""
    if role == "head":
        yield f"ray start --head --node-ip-address={site.head}"
        yield "--autoscaling-config=~/ray_bootstrap_config.yaml"
        yield "--disable-usage-stats"
    else:
        yield f"ray start --address=$RAY_HEAD_IP:{FIXED_PORTS['port']}"
        yield "--include-log-monitor=false"
    npus = json.dumps({"NPU": loaded.recipe.npus_per_node})
    yield f"--resources='{npus}'"
    yield f"--object-store-memory={OBJECT_STORE_BYTES}"
    ports = dict(FIXED_PORTS)
    if role == "head":
        ports.update(HEAD_PORTS)
    else:
        # A worker connects to the head's port and has none of its own.
        del ports["port"]
    for name, port in ports.items():
        yield f"--{name}={port}"
    low, high = _worker_ports(loaded)
    yield f"--min-worker-port={low} --max-worker-port={high}"


def _loop(run: Sequence[str], site: Site) -> Iterator[str]:
    """Yield shell lines that keep Ray running, and return once it has started.

    SIGHUP is ignored: the terminal of `ray up` goes away.
    """
    file = f"{STORE}/{site.name}.log"
    yield "keep() { trap '' HUP; while true; do"
    yield from run
    yield "--block; sleep 1; done; };"
    yield f": >{file};"
    # A shell of its own: /proc shows the variables that a process was started with, and no exports.
    yield f'bash -c "$(declare -f keep); keep" </dev/null >>{file} 2>&1 &'
    yield f"for second in $(seq {START_S}); do"
    yield f"if grep -q '{STARTED}' {file}; then exit 0; fi; sleep 1; done;"
    yield f"tail -n 40 {file} >&2; false"
