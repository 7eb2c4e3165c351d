"""Ray's exceptions by their class, and messages of its services that stand alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.signatures import Kind

_LOGS = "under /tmp/ray/session_latest/logs on its node"


class _Message(NamedTuple):
    words: str
    name: str
    cause: str
    remedy: str
    kind: Kind = "transient"


# Sources: ray/exceptions.py; ray/_private/services.py; ray/dashboard/modules/job.
_MESSAGES: tuple[_Message, ...] = (
    _Message(
        r"ActorUnavailableError|The actor is temporarily unavailable",
        "ray-actor-unavailable",
        "A worker of Ray does not answer, and Ray does not know yet whether it is dead: its node "
        "is overloaded, the network between the nodes broke, or the process is exiting",
        f"Read `worker-*.err` of that worker and raylet.out {_LOGS}: its own error stands there. "
        "Check memory and load of that node (`dmesg -T`), and the network to it.",
    ),
    _Message(
        r"WorkerCrashedError|The worker died unexpectedly while executing this task",
        "ray-actor-died",
        "A worker process of Ray crashed: native code, or a kill by the kernel for lack of memory",
        f"Read `worker-*.err` and raylet.out {_LOGS}, and `dmesg -T | grep -iE 'oom|killed "
        "process|segfault'`.",
    ),
    _Message(
        r"(?:Task|Actor)PlacementGroupRemoved|placement group was removed",
        "ray-group-removed",
        "The placement group of the server was removed while it ran: its creator exited, or "
        "another start cleaned it up",
        "Start only one deployment of a name, and let its driver run on (a detached group, or "
        "raylaunch's controller); `ray list placement-groups` shows the owner.",
    ),
    _Message(
        r"RayChannelTimeoutError|Timed out waiting for object available to read",
        "ray-channel-timeout",
        "A worker did not give its result over Ray's compiled graph in time: it hangs or compiles",
        "Find the worker (`py-spy dump --pid WORKER`); raise `env.RAY_CGRAPH_get_timeout` if a "
        "step may take that long, or set `env.VLLM_USE_RAY_COMPILED_DAG: 0`.",
    ),
    _Message(
        r"RayChannelError\b",
        "ray-channel-closed",
        "A channel of Ray's compiled graph was closed: another worker of the group failed first",
        "Look for the first exception of the other workers: this line follows from it.",
    ),
    _Message(
        r"OutOfDiskError|Local disk is full",
        "disk-full",
        "The disk of Ray's temporary folder is full, and Ray cannot spill objects",
        "Free space there (`df -h /tmp`), or start Ray with `--temp-dir` on a larger disk.",
    ),
    _Message(
        r"no raylets have registered|No node is alive|Could not find any running raylet",
        "ray-no-raylet",
        "Ray's head (GCS) runs, and no node has joined it: the raylet of the head itself did not "
        "start, or exited",
        "Read raylet.out and raylet.err under /tmp/ray/session_latest/logs on the head; `ray stop` "
        "and `ray start --head` there again (its memory, /dev/shm and ports must be free).",
    ),
    _Message(
        r"No available agent to submit job|[Dd]ashboard agent [^\n]{0,40}not (?:available|running)",
        "ray-agent-failed",
        "No agent of Ray (dashboard agent) runs on a node that could take the job",
        "Install `ray[default]` in Ray's environment on every node, read dashboard_agent.log "
        "under /tmp/ray/session_latest/logs, and look whether its port is taken (`ray start "
        "--dashboard-agent-listen-port`); then start Ray again.",
    ),
    _Message(
        r"RaySystemError: (?!System error: No module)[^\n]{0,300}",
        "ray-system-error",
        "Ray itself failed",
        "Read raylet.out and gcs_server.out under /tmp/ray/session_latest/logs; install the same "
        "Ray and Python on all nodes.",
    ),
)


def read_ray_messages(log: ServerLog) -> Iterator[Reading]:
    """Yield what Ray's own exceptions and messages mean, the first of each."""
    for message in _MESSAGES:
        found = next(iter(log.errors.find(re.compile(message.words))), None)
        if found is None:
            continue
        line, _ = found
        yield Reading(
            reason(
                message.name,
                f"{message.cause}: {shorten(log.cleaned[line].strip(), 200)}",
                message.remedy,
                "Ray exceptions.py",
                message.kind,
            ),
            line,
            rank=Rank.HINT,
            certain=False,
        )
