"""How a process of Ray exited: its raylet, the raylet's agent, the owner of an actor."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason, shorten
from raylaunch.supervise.diagnosis.survival import read_life

_RAYLET = re.compile(
    r"Raylet is terminated(?:: ip=([\w.:-]{3,60}),)?|LocalRayletDiedError|"
    r"Failed to get the system config from raylet because it is dead|"
    r"Some Ray subprocesses exited unexpectedly:\n\s{1,6}(\w{1,30} \[exit code=[^\]\n]{1,12}\])"
)
_AGENT = re.compile(r"raylet exited immediately because (?:the|one) Ray agent failed[^\n]{0,80}")
_AGENT_LATE = re.compile(
    r"agent_manager\.cc:\d{1,4}: Agent process (?:expected id \d{1,12}|with name \S{1,60}) "
    r"timed out before registering"
)
_OWNER = re.compile(
    r"(?:Worker exit detail: )?"
    r"(Owner's (?:node|worker process|process) has (?:crashed|died|exited))"
)
_DETAIL = re.compile(
    r"Worker exit detail: (?![^\n]{0,60}(?:End of file|connection error|unexpectedly exits))"
    r"([^\n]{8,300})"
)
_LOGS = "under /tmp/ray/session_latest/logs on that node"


def read_ray_exits(log: ServerLog) -> Iterator[Reading]:
    """Yield the processes of Ray that exited, with what Ray says of it."""
    stopped = read_life(log).stopped
    for line, match in log.warnings.find(_RAYLET):
        if stopped is not None and line > stopped:
            continue
        where = f" of node {match[1]}" if match[1] else ""
        which = f" ({match[2]})" if match[2] else ""
        yield _read(
            line,
            "ray-raylet-died",
            f"A process of Ray{where} exited, and no stop was ordered: the raylet{which}. It "
            "was killed (memory of the node), crashed, or lost the head (GCS), and all servers on "
            "that node went with it.",
            f"Read raylet.out, raylet.err and dashboard_agent.log {_LOGS}; `dmesg -T | grep -iE "
            "'oom|killed process'` shows a kill; then `ray start` there again.",
        )
    for line, _ in log.errors.find(_AGENT):
        yield _read(
            line,
            "ray-agent-failed",
            "The raylet of this node exited because its agent (dashboard or runtime-env agent) "
            "failed: a grpcio that this Ray does not work with, a port that is in use, or it was "
            "killed for lack of memory.",
            f"Read dashboard_agent.log and runtime_env_agent.log {_LOGS}; `pip install "
            "'ray[default]'` in Ray's environment and compare `pip freeze | grep grpcio` with a "
            "node that works; give free ports (`ray start --dashboard-agent-listen-port "
            "--metrics-export-port`).",
        )
    for line, _ in log.warnings.find(_AGENT_LATE):
        yield _read(
            line,
            "ray-agent-failed",
            "The raylet's agent (dashboard agent) did not register with it in time, and the raylet "
            "ends with it: the node is overloaded (slow disk, few CPUs), its grpcio does not work "
            "with this Ray, or a proxy catches local connections.",
            f"Read dashboard_agent.log {_LOGS}; compare `pip freeze | grep grpcio` with a node "
            "that works; set `env.no_proxy` to the node's address; on a slow node raise "
            "RAY_agent_register_timeout_ms before `ray start`.",
        )
    yield from _read_details(log)


def _read_details(log: ServerLog) -> Iterator[Reading]:
    """Read why an actor's process exited, where Ray says more than that its connection closed."""
    for line, match in log.errors.find(_OWNER):
        yield _read(
            line,
            "ray-owner-lost",
            f"An actor of Ray was stopped because its owner is gone ({match[1]}): the process that "
            "created it, or that process's node, died first.",
            "Look for the first failure on the owner's node (the driver or head): `ray list "
            f"nodes`, raylet.out and gcs_server.out {_LOGS}, `dmesg -T` for a kill by the "
            "kernel; join a lost node again with `ray start --address`.",
        )
    for line, match in log.errors.find(_DETAIL):
        if _OWNER.search(match[0]):
            continue
        yield _read(
            line,
            "ray-actor-exit",
            f"A worker process of Ray exited: {shorten(match[1], 200)}",
            f"Read the `worker-*.err` of that process and raylet.out {_LOGS}: the error stands "
            "before the exit. A SIGTERM or a request came from outside (`ray stop`, a job that was "
            "cancelled, the kernel's OOM killer).",
        )


def _read(line: int, id_: str, cause: str, remedy: str) -> Reading:
    return Reading(reason(id_, cause, remedy, "Ray", "transient"), line, certain=False)
