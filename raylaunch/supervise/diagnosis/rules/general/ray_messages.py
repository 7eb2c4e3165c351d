"""Ray's exceptions by their class, and messages of its services that stand alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.signatures import Kind
from raylaunch.supervise.diagnosis.survival import read_life

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
        r"failed to import on the worker|library dependencies are not installed in the worker",
        "module-missing",
        "A worker of Ray cannot import the code of the server: its environment is another one than "
        "that of the process that starts it",
        "Start Ray on every node from the environment (or container) in which vLLM is installed, "
        "the same releases on all (`pip list`); the lines below the message name what could not "
        "be imported, `worker-*.err` under /tmp/ray/session_latest/logs has all of it.",
        "deterministic",
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


_GROUPS = re.compile(
    r"Not enough resources to allocate (\d{1,5}) placement groups, only created (\d{1,5})"
    r"[^\n.]{0,60}(?:\. Available resources: ([^\n]{0,1000}))?"
)
_ON_MASTER = re.compile(
    r"Not enough resources to allocate (?:(\d{1,5})|%s) DP ranks on DP master node "
    r"(?:([\w.:-]{3,60})|%s), possible to fit (?:(\d{1,5})|%s) DP ranks"
    r"(?:['\"], (\d{1,5}), ['\"]([\w.:-]{3,60})['\"], (\d{1,5}))?"
)
_NODE_DEVICES = re.compile(r"'([\w.:-]{3,60})': \{[^{}\n]{0,300}?'(GPU|NPU)': (\d{1,4})")


def _too_few_for_groups(log: ServerLog) -> Iterator[Reading]:
    """Read that the cluster has not enough devices for all data-parallel ranks."""
    for line, match in log.errors.find(_ON_MASTER):
        asked, node, fit = match[1] or match[4], match[2] or match[5], match[3] or match[6]
        yield ray_reading(
            line,
            "ray-too-few-devices",
            f"`parallel.data_local` puts {asked} data-parallel ranks on the first node ({node}), "
            f"and its free devices are enough for {fit}.",
            "Lower `parallel.data_local` (the other ranks go to other nodes) or `parallel.tensor`, "
            "or free the devices of that node: `ray status` and `ray list placement-groups` show "
            "what holds them.",
        )
    for line, match in log.errors.find(_GROUPS):
        wanted, made, resources = match.groups()
        free = [f"{left} {what} on {node}" for node, what, left in _NODE_DEVICES.findall(resources)]
        left = f" Free devices: {shorten(', '.join(free), 160)}." if free else ""
        yield ray_reading(
            line,
            "ray-too-few-devices",
            f"Each data-parallel rank needs a placement group of its own, and Ray has devices for "
            f"{made} of {wanted} only.{left}",
            "Lower `parallel.data` or `parallel.tensor` so that all ranks together need no more "
            "GPUs or NPUs than are free, or add nodes to the Ray cluster; `ray status` and `ray "
            "list placement-groups` show what holds the others. By default a rank stays "
            "on one node, and each node takes `parallel.data_local` ranks: "
            "`env.VLLM_RAY_DP_PACK_STRATEGY` can be `fill` or `span`.",
        )


_GCS = re.compile(
    r"(?:(?:[Ff]ailed|[Uu]nable) to connect to (?:the )?(?:GCS|Ray cluster)|"
    r"Failed to get cluster ID from GCS|"
    r"GCS (?:server )?at)[^\n]{0,60}?(?:address:? ?|at )[`']?((?:\d{1,3}\.){3}\d{1,3}|"
    r"[\w.-]{1,80}):(\d{2,5})"
)
_JOINED = re.compile(
    r"Ray runtime started|Received notification for node|View the dashboard at|"
    r"Connected to Ray cluster"
)


def read_ray_messages(log: ServerLog) -> Iterator[Reading]:
    """Yield what Ray's own exceptions and messages mean, the first of each."""
    for line, match in log.errors.find(_TOO_FEW):
        yield _too_few(line, *match.groups())
    for line, match in log.errors.find(_ASKED):
        yield _too_few(line, match[2], match[3], match[1])
    yield from _too_few_for_groups(log)
    joined = max((line for line, _ in log.everything.find(_JOINED)), default=-1)
    for line, match in log.errors.find(_GCS):
        if line > joined:
            yield _no_head(line, match[1], match[2])
    yield from _warned_of_head(log, joined)
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


def _taken_by_the_actor(line: int, device: str, left: str) -> Reading:
    return ray_reading(
        line,
        "ray-devices-reserved",
        f"Only {left} {device} of this node is left to vLLM: the actor or Ray Serve replica in "
        f"which vLLM runs, or another one, has taken the rest (num_gpus, resources).",
        f"Ask for no {device} for the actor that starts vLLM (`ray_actor_options: num_gpus: 0`): "
        "vLLM makes a placement group of its own; `ray status` shows what is free.",
    )


def read_device_share(line: int, device: str, resources: str) -> Reading:
    """Return what it means that vLLM finds no device in the resources of its node."""
    names = set(re.findall(r"'([\w.:-]{1,120})':", resources))
    option = "--num-gpus=8" if device == "GPU" else f"--resources='{{\"{device}\": 8}}'"
    start = f"`ray start ... {option}` (the node's real number)"
    if any(name.startswith(f"{device}_group_") for name in names) and device not in names:
        return ray_reading(
            line,
            "ray-devices-reserved",
            f"All {device}s of this node are reserved by a placement group (only "
            f"`{device}_group_...` is left in the resources): another job, or one that has not "
            "been cleaned up, or vLLM runs outside the placement group that holds them.",
            "`ray list placement-groups` shows the owner; stop it or remove the group "
            "(`raylaunch clean`), or start vLLM inside that placement group.",
            kind="transient",
        )
    if left := re.search(rf"'{device}': (0\.\d{{1,6}})\b", resources):
        return _taken_by_the_actor(line, device, left[1])
    if "GPU" in names and device == "NPU":
        return ray_reading(
            line,
            "ray-gpu-instead-of-npu",
            "Ray registered this node with GPU resources and no NPU: it was started with "
            "--num-gpus, or this Ray did not detect the NPUs.",
            f"Stop Ray and start it on every node with NPU resources: {start}, without --num-gpus.",
        )
    seen = shorten(", ".join(sorted(names - {"memory", "object_store_memory"})), 160)
    return ray_reading(
        line,
        "ray-no-device",
        f"Ray knows no {device} on this node" + (f" (it has: {seen})" if seen else "") + ".",
        declare(device, start),
    )


def ray_reading(
    line: int, id_: str, cause: str, remedy: str, kind: Kind = "deterministic"
) -> Reading:
    """Return the reading of a message of Ray."""
    return Reading(reason(id_, cause, remedy, "Ray", kind), line)


# verl, OpenRLHF and the like check before they place their workers.
_TOO_FEW = re.compile(
    r"(?i)(?:total )?available (GPU|NPU|device)s? ?:?\(?([\d.]{1,8})\)? is less than (?:the )?"
    r"(?:total )?(?:desired|required|requested|needed) (?:GPU|NPU|device)s? ?:?\(?([\d.]{1,8})"
)


_ASKED = re.compile(
    r"\b(?:[Rr]equested|[Rr]equires?|[Nn]eeds?|[Aa]sked for) (\d{1,5}) (GPU|NPU|device)s?"
    r"\b[^\n]{0,30}? only (\d{1,5})(?: (?:GPU|NPU|device)s?)? (?:(?:are|is) )?available in "
    r"(?:the|this) (?:Ray )?cluster"
)


def _too_few(line: int, device: str, there: str, wanted: str) -> Reading:
    none = float(there) == 0
    why = (
        f"Ray knows no {device} at all: it was started without them, or the devices are NPUs, "
        "which Ray counts under another name than GPUs"
        if none
        else f"Ray's nodes have fewer {device}s than that"
    )
    first = (
        "Start Ray on every node with its devices (`ray start ... --resources='{\"NPU\": 8}'` for "
        "NPUs, and tell the framework that its device is npu), until `ray status` shows them. "
        if none
        else ""
    )
    return Reading(
        reason(
            "ray-infeasible",
            f"The job wants {wanted} {device}s and Ray has {there}. {why}.",
            f"{first}{ask_less(device)}",
            "checks of verl and others",
            "deterministic",
        ),
        line,
    )


def scarce_resource(text: str) -> str:
    """Return the resource that a request is about: a device, else the first one it names."""
    named = re.findall(r"'([A-Za-z][\w:.-]{1,60})':", text)
    named = [name for name in named if not name.startswith(("node:", "memory", "object_store"))]
    devices = [name for name in ("NPU", "GPU", "TPU", "HPU") if name in text]
    return next(iter([*devices, *named]), "GPU")


def declare(device: str, start: str) -> str:
    """Return how a node gets the devices that Ray does not know there."""
    if device != "GPU":
        return f"Start Ray on every node with {start}; `ray status` must show them."
    return (
        "The server starts on the node where `vllm serve` runs: run it on a node that has GPUs, "
        "not on a head without. If this node has them, Ray did not see them: `nvidia-smi` in the "
        "same container, CUDA_VISIBLE_DEVICES not empty, then `ray start ... --num-gpus=N`; `ray "
        "status` must show them."
    )


def ask_less(device: str) -> str:
    """Return what to do about a request that no node can meet."""
    if device == "CPU":
        return (
            "Ask for no more CPUs in one bundle than the largest node has, start Ray with the "
            "node's real number (`ray start --num-cpus=N`), or add larger nodes; `ray status` "
            "lists who has joined and what is in use."
        )
    return (
        f"Ask for no more {device}s than the nodes have (`parallel.tensor`, `parallel.pipeline`), "
        "add nodes (`ray status` lists who has joined and what is in use), or declare the devices "
        f"at `ray start` (`--resources='{{\"{device}\": N}}'`)."
    )


def _warned_of_head(log: ServerLog, joined: int) -> Iterator[Reading]:
    """Read Ray's warning that it cannot reach the head, in a log that ends with it."""
    found = [line for line, _ in log.warnings.find(_GCS)]
    if not found or found[-1] < joined or read_life(log).progressed > found[-1]:
        return
    for line, match in log.warnings.find(_GCS):
        if line == found[-1]:
            yield replace(_no_head(line, match[1], match[2]), rank=Rank.HINT, certain=False)


# Ports of other services, which do not speak the GCS's protocol (gRPC).
_OTHER_PORTS = {
    "80": "that of HTTP (an ingress or a proxy)",
    "443": "that of HTTPS (an ingress or a proxy)",
    "8265": "that of Ray's dashboard",
    "10001": "that of Ray Client (ray://)",
    "8000": "that of Ray Serve or vLLM",
}


def _no_head(line: int, host: str, port: str) -> Reading:
    if other := _OTHER_PORTS.get(port):
        return Reading(
            reason(
                "ray-gcs",
                f"Ray's head (GCS) does not answer at {host}:{port}: port {port} is usually "
                f"{other}, and the GCS has a port of its own (6379 by default), over plain TCP.",
                f"Give the head's own address and the port of its GCS (`ray start --address "
                f"{host}:6379`; `ss -ltnp | grep gcs` on the head shows it). In Kubernetes use "
                "the Service of the head (TCP 6379), not an ingress, which passes HTTP only.",
                "Ray",
                "deterministic",
            ),
            line,
            certain=False,
        )
    return Reading(
        reason(
            "ray-gcs",
            f"Ray's head (GCS) does not answer at {host}:{port}: it is not running there, listens "
            "on another port, or a firewall blocks it.",
            "On the head run `ray status` and `ss -ltnp | grep gcs` (its real port); from this "
            f"node `nc -vz {host} {port}`; start both with the same port, and open it. If no Ray "
            "is meant to be there, an earlier one has left its address: `ray stop`, unset "
            "`env.RAY_ADDRESS`.",
            "Ray",
            "transient",
        ),
        line,
    )
