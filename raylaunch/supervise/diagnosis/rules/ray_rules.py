"""What Ray reports about resources, placement groups, versions and its head node."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.general import ray_messages
from raylaunch.supervise.diagnosis.survival import read_life

_NO_DEVICE = re.compile(
    r"Current node has no (NPU|GPU|TPU|"
    r"\w{2,8}) available\.(?: current_node_resource=\{([^}\n]{0,3000}))?"
)
_INFEASIBLE = re.compile(
    r"No available node types can fulfill resource request[^{\n]{0,60}(\{[^}\n]{0,300}\})"
    r"|(?:Cannot provide a placement group of|Waiting for creating a placement group of specs"
    r"[^\[\n]{0,80}specs=|placement_group_specs=?)[^\[\n]{0,40}(\[[^\]\n]{0,600}\])"
    r"|(?:following resource request cannot be scheduled|is infeasible|cannot be scheduled)"
    r"[^{\n]{0,120}(\{[^}\n]{0,300}\})"
    r"|number of required (?:NPU|GPU|device)s exceeds the total number of available"
)
_IN_THE_GROUP = "in the placement group"
# The only one of these that vLLM logs below WARNING.
_WAITING = re.compile(
    r"Waiting for creating a placement group of specs[^\[\n]{0,80}specs=[^\[\n]{0,40}"
    r"(\[[^\]\n]{0,600}\])"
)
WAITING_ANCHOR = "Waiting for creating a placement group of specs"
_DEMAND = re.compile(
    r"^\s*(\{[^}\n]{1,300}\} ?\* ?\d{1,4}(?: \([A-Z_]{4,14}\))?): \d{1,4}\+? pending", re.MULTILINE
)
_USAGE = re.compile(r"^\s*([\d.]{1,9})/([\d.]{1,9}) (NPU|GPU)\b", re.MULTILINE)
_VERSIONS = re.compile(r"(Ray|Python|Cloudpickle): (\d[\w.+]{1,20})")
_VERSION = re.compile(r"Version mismatch: ")
_ONE_IP = re.compile(
    r"Every node should have a unique IP address\. Got (\d{1,4}) nodes(?:[^\n]{0,600}? (\d{1,4}) "
    r"unique IP addresses (\{[^}\n]{1,400}\}))?"
)
_NO_DRIVER_DEVICE = re.compile(r"Ray does not allocate any (GPUs|NPUs) on the driver node")
_DEAD_NODE = re.compile(
    r"node with (?:node id:|client ID) (\w{1,60})(?: and address: ([\w.:<>-]{1,60}))?"
    r"[^\n]{0,80}marked dead( because the (?:detector|monitor) has missed)?"
)
_NO_RAYLET = re.compile(
    r"(?:Failed to register worker|Unable to register worker with raylet)[^\n]{0,200}"
)
_MARKED_DEAD = re.compile(r"mistakenly (?:been )?marked (?:as )?dead by the GCS")
_ACTOR_DIED = re.compile(
    r"ray\.exceptions\.\w{0,40}ActorDiedError|The actor died unexpectedly before finishing|"
    r"A worker died or was killed while executing a task|"
    r"The actor is dead because (?:its worker process|the node|all references)|"
    r"Worker exit type: SYSTEM_ERROR"
)
_WORKER_ADDRESS = re.compile(r"Worker IP address: ([\w.:]{3,45})|\bpid=\d{1,9}, ip=([\w.:]{3,45})")
_NODE_START = re.compile(
    r"current node timed out during startup|Failed to start the (dashboard|raylet|log monitor)|"
    r"[Rr]aylet (?:is terminated|exited unexpectedly|failed to start)|"
    r"Can't find a `node_ip_address\.json` file|node did not register with the GCS"
)
_NOT_RUNNING = re.compile(r"Could not find any running Ray instance")
_SESSION = re.compile(
    r"[Ss]ession name ([\w.-]{1,80}) does not match persisted value ([\w.-]{1,80})"
)
_OTHER_ADDRESS = re.compile(
    r"This node has an IP address of ([\d.]{7,15}), (?:but|while) we (?:can not|cannot) find the "
    r"matched Raylet address|expects? this (?:node|IP address)[^\n]{0,60}?([\d.]{7,15})"
)
_RUNTIME_ENV = re.compile(
    r"(?:RuntimeEnvSetupError|Failed to set(?: |-)?up runtime environment)[^\n]{0,300}"
)
_BUNDLE = re.compile(
    r"placement group bundle index (\d{1,5}) is invalid\. Valid placement group indexes: "
    r"(\d{1,5}(?:-| to )(\d{1,5}))"
)
_GCS_REQUEST = re.compile(
    r"Failed to send request to gcs|GcsRpcClient[^\n]{0,80}(?:timed? ?out|UNAVAILABLE)|"
    r"Failed to (?:get|fetch)[^\n]{0,60} from (?:the )?GCS"
)
_UNPICKLE = re.compile(r"Failed to unpickle serialized exception")
_VERSION_LINES = 12


def read_ray(log: ServerLog) -> Iterator[Reading]:
    """Yield what Ray says is missing."""
    for line, match in log.errors.find(_NO_DEVICE):
        yield ray_messages.read_device_share(line, match[1], match[2] or "")
    usage = {match[3]: match[2] for _, match in log.errors.find(_USAGE)}
    requests = dict([*log.everything.find(_WAITING), *log.warnings.find(_INFEASIBLE)])
    progressed = read_life(log).progressed if requests else -1
    named = next((one for match in requests.values() for one in match.groups() if one), "")
    for line, match in sorted(requests.items(), key=lambda found: found[0]):
        if progressed > line:
            continue  # Ray has reserved it in the end
        request = next((group for group in match.groups() if group), "") or named
        yield _infeasible(log, line, request, usage)
    for line, match in log.errors.find(_DEMAND):
        yield _infeasible(log, line, match[1], usage)
    for line, _ in log.errors.find(_VERSION):
        if reading := _versions(log, line):
            yield reading
    yield from _read_calls(log)
    yield from _read_nodes(log)


def _read_calls(log: ServerLog) -> Iterator[Reading]:
    """Yield which of vLLM's calls of Ray failed."""
    for line, match in log.errors.find(_BUNDLE):
        count = int(match[3]) + (" to " in match[2])  # "0-N": an older Ray writes the number
        yield _hint(
            line,
            "ray-bundles",
            f"vLLM asks for bundle {match[1]} of its placement group (they count from 0), and the "
            f"group has only {count} bundles (Ray writes {match[2]}): it was made for fewer "
            "devices than tensor times pipeline parallel ranks, or with other bundles than this "
            "vLLM counts.",
            "Ask for as many ranks as the group has bundles (`parallel.tensor`, "
            "`parallel.pipeline`), make the placement group for all of them, and remove "
            "`env.VLLM_RAY_BUNDLE_INDICES` if it is set.",
        )
    for line, _ in log.errors.find(_UNPICKLE):
        yield Reading(
            reason(
                "ray-unpickle",
                "A worker of Ray failed, and its exception cannot be rebuilt in this process: its "
                "class is of another release here, or cannot be unpickled at all.",
                "Read the exception itself in the worker's log (`worker-*.err` under "
                "/tmp/ray/session_latest/logs on its node); a failed compilation is avoided by "
                "`args.enforce-eager: true`; install the same torch, vLLM and Ray on all nodes.",
                "Ray exceptions.py",
                "transient",
            ),
            line,
            certain=False,
        )
    for line, _ in log.errors.find(_GCS_REQUEST):
        yield ray_messages.ray_reading(
            line,
            "ray-gcs",
            "Ray's head (GCS) does not answer this node: it is not running, was started again, or "
            "a firewall or a wrong address is between.",
            "On the head run `ray status` and `ss -ltnp | grep gcs` (its real port, 6379 by "
            "default); from this node `nc -vz HEAD 6379`; then `ray stop` and `ray start --address "
            "HEAD:6379` here.",
            kind="transient",
        )


def _read_nodes(log: ServerLog) -> Iterator[Reading]:
    """Yield what Ray says about its nodes and workers."""
    for line, match in log.errors.find(_ONE_IP):
        if match[2] and int(match[2]) > int(match[1]):
            yield ray_messages.ray_reading(
                line,
                "ray-other-address",
                f"vLLM finds {match[2]} addresses on Ray's {match[1]} nodes ({match[3]}): on a "
                "node with several networks, the driver and the workers took different ones "
                "(vLLM asks for the default route, Ray for its --node-ip-address).",
                "On each node set VLLM_HOST_IP to the address that `ray list nodes` shows for it, "
                "in the shell of `ray start --node-ip-address ADDRESS` (the workers have it from "
                "there) and where vLLM is started; or set `network.interface`.",
            )
            continue
        yield ray_messages.ray_reading(
            line,
            "ray-same-address",
            f"Ray's {match[1]} nodes report fewer different addresses: VLLM_HOST_IP is set to one "
            "address on all nodes, or their containers share an address.",
            "Set VLLM_HOST_IP on each node to that node's own address before `ray start`.",
        )
    for line, match in log.errors.find(_NO_DRIVER_DEVICE):
        yield ray_messages.ray_reading(
            line,
            "ray-driver-without-device",
            f"The node on which vLLM was started gives no {match[1]} to the placement group: it "
            "has none free, or it announces another address than vLLM uses.",
            "Start on a node that has the devices, free them (`ray status`), and set VLLM_HOST_IP "
            "to the address that `ray list nodes` shows for it. An actor of a program that makes "
            "the engine must itself be placed in the group, on the node of its first bundle "
            "(`PlacementGroupSchedulingStrategy(..., placement_group_bundle_index=0)`).",
        )
    yield from _read_lost_nodes(log)
    yield from _read_node_start(log)
    address = next((match[1] for _, match in log.errors.find(_WORKER_ADDRESS)), "")
    where = f" on {address}" if address else ""
    for line, _ in log.errors.find(_ACTOR_DIED):
        yield Reading(
            reason(
                "ray-actor-died",
                f"A worker process of Ray{where} died, and no known cause stands beside it: killed "
                "by the kernel for lack of memory, stopped by `ray stop`, or crashed in native "
                "code.",
                "Read `worker-*.err` and raylet.out of that node under "
                "/tmp/ray/session_latest/logs, and `dmesg -T | grep -iE 'oom|killed process'`.",
                "Ray exceptions.py",
                "transient",
            ),
            line,
            rank=Rank.WRAPPER,
            certain=False,
        )


def _read_lost_nodes(log: ServerLog) -> Iterator[Reading]:
    """Yield the nodes that Ray lost, and the worker that its raylet did not take."""
    for line, match in log.errors.find(_DEAD_NODE):
        missed = (
            " Its raylet missed the health checks (heartbeats) of the head: the head cannot reach "
            "the raylet's ports on that node, or the node is overloaded."
            if match[3]
            else ""
        )
        yield ray_messages.ray_reading(
            line,
            "node-lost",
            f"Ray lost the node {match[2] or match[1]} (marked dead): it was switched off, its "
            f"raylet died, or its network was cut.{missed}",
            "Check that node, its load and memory, and `ray status`; open the ports between head "
            "and nodes in both directions (firewall; `--node-manager-port`, "
            "`--object-manager-port`); join it again with `ray start --address`.",
            kind="transient",
        )
    for line, _ in log.errors.find(_MARKED_DEAD):
        yield ray_messages.ray_reading(
            line,
            "node-lost",
            "Ray's head (GCS) has marked this node as dead although its raylet runs: the health "
            "checks of the head did not reach it, or the node is overloaded.",
            "Open the raylet's ports to the head (firewall; `--node-manager-port`), check the load "
            "and memory of this node, and run `ray start --address` here again.",
            kind="transient",
        )
    for line, match in log.errors.find(_NO_RAYLET):
        why = match[0].rpartition("]")[2].partition("worker_id=")[0].strip(" .:")
        yield Reading(
            reason(
                "ray-raylet",
                f"The server cannot register with the raylet of this node ({shorten(why, 120)}): "
                "the raylet has died or still starts, belongs to another Ray version, or runs in "
                "another container than the server.",
                "Read raylet.out under /tmp/ray/session_latest/logs on this node; start the server "
                "where `ray start` ran (same container and same Ray version, same /tmp), or `ray "
                "stop` and `ray start` there again.",
                "Ray core_worker.cc",
                "transient",
            ),
            line,
            certain=False,
        )


def _read_node_start(log: ServerLog) -> Iterator[Reading]:
    """Yield why Ray's processes of a node did not come up."""
    for line, match in log.errors.find(_NODE_START):
        part = "raylet" if match[1] in (None, "raylet") else f"{match[1]} or its raylet"
        yield Reading(
            reason(
                "ray-node-start",
                f"Ray's {part} on this node did not start: an orphan of an earlier Ray, a used "
                "port, a full /tmp or too little memory, or a slow start of an overloaded node.",
                "Read raylet.out, gcs_server.out and dashboard.log under "
                "/tmp/ray/session_latest/logs on that node; run `ray stop` there, check `df -h "
                "/tmp` and `free -g`, and `ray start` again.",
                "Ray _private/node.py, services.py",
                "transient",
            ),
            line,
            certain=False,
        )
    for line, _ in log.errors.find(_NOT_RUNNING):
        yield ray_messages.ray_reading(
            line,
            "ray-not-running",
            "No Ray is running on this machine, or it belongs to another user, and no address was "
            "given.",
            "Run `ray start --head` here (other nodes: `ray start --address HEAD:6379`), or give "
            "the cluster's address (`--address`, RAY_ADDRESS).",
        )
    for line, match in log.errors.find(_SESSION):
        yield ray_messages.ray_reading(
            line,
            "ray-session",
            f"Ray's head was started again (session {match[2]}) while this node still belongs to "
            f"session {match[1]}.",
            "Run `ray stop` on this node and `ray start --address` again.",
        )
    for line, match in log.errors.find(_OTHER_ADDRESS):
        yield ray_messages.ray_reading(
            line,
            "ray-other-address",
            f"Ray knows this node under another address than {match[1] or match[2]}: it was "
            "started with another --node-ip-address, or the node has several networks.",
            "Start Ray on this node with `--node-ip-address` of the network between the nodes "
            "(`network.interface`), and set VLLM_HOST_IP to the same address.",
        )
    for line, match in log.errors.find(_RUNTIME_ENV):
        after = "\n".join(log.cleaned[line : line + 16])
        slow = (
            " It took longer than setup_timeout_seconds (600 by default)."
            if re.search(r"TimeoutError|timed out", after)
            else ""
        )
        yield ray_messages.ray_reading(
            line,
            "ray-runtime-env",
            f"Ray could not set up the environment of a worker: {shorten(match[0], 240)}.{slow}",
            "Install the packages in the image instead of naming them in runtime_env (or raise "
            "`setup_timeout_seconds` in its config). Read runtime_env_agent.log and "
            "runtime_env_setup-*.log under /tmp/ray/session_latest/logs on that node; check its "
            "disk (`df -h /tmp`).",
            kind="transient",
        )


def _hint(line: int, id_: str, cause: str, remedy: str) -> Reading:
    return Reading(reason(id_, cause, remedy, "Ray", "deterministic"), line, certain=False)


def _infeasible(log: ServerLog, line: int, request: str, usage: dict[str, str]) -> Reading:
    text = f"{request} {log.cleaned[line]}"
    device = ray_messages.scarce_resource(text)
    has = f"; `ray status` in the log shows {usage[device]} {device}" if device in usage else ""
    asked = f" ({shorten(request, 200)})" if request else ""
    nodes = re.findall(r"node:(?!__)([\w.-]{2,80})", request)
    pinned = ""
    if nodes:
        pinned = (
            f" The request is pinned to node {nodes[0]}: if Ray knows that node under another "
            "address, it can never be met (VLLM_HOST_IP)."
        )
    strict = (
        " All of it must be on one node (STRICT_PACK)." if "STRICT_PACK" in log.errors.text else ""
    )
    if _IN_THE_GROUP in log.cleaned[line]:
        return ray_messages.ray_reading(
            line,
            "ray-infeasible",
            f"The placement group that vLLM runs in has fewer {device}s than the server asks for "
            "(tensor x pipeline parallelism): vLLM takes the group of the actor or job that starts "
            "it, whatever else the cluster has.",
            f"Make that group larger (one bundle with a {device} for each rank), or lower "
            "`parallel.tensor` or `parallel.pipeline`. A server that is not started from a group "
            f"of another program has too few {device}s in the cluster: `ray status`.",
        )
    return ray_messages.ray_reading(
        line,
        "ray-infeasible",
        f"Ray cannot reserve what the server asks for{asked}: the cluster has fewer {device}s "
        f"free than that, or none on one node{has}.{strict}{pinned}",
        f"{_set_address(nodes)}{ray_messages.ask_less(device)}",
    )


def _set_address(nodes: list[str]) -> str:
    if not nodes:
        return ""
    return (
        "Set VLLM_HOST_IP on each node, before `ray start`, to the address that `ray list nodes` "
        "shows for it. If it is set so, too few are free. "
    )


def _versions(log: ServerLog, line: int) -> Reading | None:
    near = "\n".join(log.cleaned[line : line + _VERSION_LINES])
    found = _VERSIONS.findall(near)
    by_name = {
        name: [version for other, version in found if other == name]
        for name in ("Ray", "Python", "Cloudpickle")
    }
    differ = [
        f"{name} {versions[0]} in the cluster, {versions[1]} here"
        for name, versions in by_name.items()
        if len(versions) > 1 and versions[0] != versions[1]
    ]
    if not differ:
        return None
    return ray_messages.ray_reading(
        line,
        "ray-version",
        f"This node and the Ray cluster run different versions: {'; '.join(differ)}.",
        "Install the same ray and the same Python minor version on all nodes (and the same of each "
        "other package that is named), then `ray start` again.",
    )
