"""Checks on one machine at a time: its software and its limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import starmap

from raylaunch.checks.check_context import Node, View
from raylaunch.checks.findings import Finding, Level
from raylaunch.plan.wanted_weights import drafter_path, shorten

MIN_OPEN_FILES = 65536
MIN_SHM = (
    2**30
)  # bytes; vLLM's own broadcast buffers and torch take more than this beside Ray's objects
MIN_SHM_FREE = (
    2**28
)  # bytes; a queue of vLLM's is 160 MiB, and one that finds no room dies of SIGBUS

GOVERNOR = "governor"
DEBUGFS = {"kernel.sched_migration_cost_ns": "sys/kernel/debug/sched/migration_cost_ns"}
"""Sysctls that moved there with Linux 5.13; paths below the root."""
INSTALL_JEMALLOC = (
    "apt-get install libjemalloc2 (Debian, Ubuntu) or dnf install jemalloc (openEuler)"
)

BY_HAND = {
    "host": "`command -v vllm`, `ulimit -n`, `sysctl net.ipv4.ip_local_reserved_ports`",
    "hostname": "`getent ahosts $(hostname)`",
    "interfaces": "`ip addr`",
    "listeners": "`ss -ltnp`",
    "memory": "`free -m`, `df -h /dev/shm`",
    "versions": "`pip list` of the Python that Ray runs in",
    "conflicts": "`pip list` of the Python that Ray runs in",
    "tuning": "`sysctl -a`, `ls /sys/devices/system/cpu`",
    "marked": "`raylaunch clean`, which only lists",
    "npu": "`npu-smi info`",
    "npu-smi": "`npu-smi info` (in a container, mount it and the driver)",
    "npu-smi info -m": "`npu-smi info -m`",
    "npu-smi info -t board": "`npu-smi info -t board -i 0`",
    "hccn_tool": "`/usr/local/Ascend/driver/tools/hccn_tool -i 0 -link -g` as root",
    "vLLM's flags": "`vllm serve --help`",
}
"""Probe -> what a person runs on that host instead. Those of the weights are not here: they need the path."""


def check_probes(view: View) -> Iterator[Finding]:
    """A question without an answer is no clean bill of health; what cannot list the weights cannot load them either."""
    paths = {"weights": view.plan.model, "drafter": drafter_path(view.recipe)}
    for node in view.nodes:
        for failure in node.facts.failures:
            if failure.hung or (
                view.plan.platform == "cpu" and failure.probe.startswith(("npu", "hccn"))
            ):
                continue
            level: Level = "warning"
            what = f"node {node.name} could not be asked about {failure.probe}: what depends on it was not checked"
            todo = f"look by hand on that host: {BY_HAND.get(failure.probe, f'`raylaunch check {view.loaded.name}`')}"
            if path := paths.get(failure.probe):
                level = "error"
                what = f"node {node.name} cannot list the {failure.probe} at {path}, so no server could load them there"
                todo = (
                    f"`ls -lL {path}` on that host: if it hangs, mount the file system anew; if it is refused, open "
                    "the folder to the user of Ray; if it is only slow, raise timeouts.probe"
                )
            yield Finding("probe-failed", level, what, todo, node.facts.ip, failure.reason)


def check_hanging_tools(view: View) -> Iterator[Finding]:
    """What hangs npu-smi hangs a server too, after minutes of loading."""
    for node in view.nodes:
        for failure in node.facts.failures:
            if failure.hung and view.plan.platform != "cpu":
                yield Finding(
                    "npu-smi-hangs",
                    "error",
                    f"{failure.probe} on node {node.name} does not come back: an NPU or its driver is stuck",
                    "`dmesg` on that host, and `npu-smi info -t health -i ID` NPU by NPU, show which; take the node "
                    "out, or reboot it; if it is only slow, raise timeouts.probe",
                    node.facts.ip,
                    failure.reason,
                )


def check_vllm(view: View) -> Iterator[Finding]:
    """Without the command there is nothing to start."""
    for node in view.nodes:
        if node.answered("host") and not node.facts.vllm_executable:
            yield Finding(
                "no-vllm",
                "error",
                f"node {node.name} has no `vllm` command beside Ray's Python or on its PATH",
                "install raylaunch[ascend] (or [cpu]) into the environment that Ray runs in, or start Ray inside the "
                "vllm-ascend container",
                node.facts.ip,
            )


def check_conflicts(view: View) -> Iterator[Finding]:
    """A CUDA torchvision beside a torch without CUDA ends the server while it imports transformers (measured)."""
    for node in view.nodes:
        if node.facts.conflicts:
            yield Finding(
                "cuda-torchvision",
                "error" if view.plan.platform == "cpu" else "warning",
                f"node {node.name} has a CUDA build beside a torch without CUDA: `vllm serve` dies at import with "
                f"`operator torchvision::nms does not exist`",
                "pip uninstall -y torchvision torchaudio torchcodec",
                node.facts.ip,
                ", ".join(node.facts.conflicts),
            )


def check_leftovers(view: View) -> Iterator[Finding]:
    """Processes of an earlier run of this deployment hold its NPUs and ports."""
    for node in view.nodes:
        own = [
            process for process in node.facts.marked if process.deployment == view.plan.deployment
        ]
        if own:
            pids = ", ".join(str(process.pid) for process in own)
            yield Finding(
                "leftovers",
                "error",
                f"node {node.name} still runs processes of an earlier {view.plan.deployment}: pid {pids}",
                f"`raylaunch stop {view.plan.deployment}` if it runs; if it does not, "
                f"`raylaunch clean --yes --deployment {view.plan.deployment}`",
                node.facts.ip,
                f"pid {own[0].pid}, attempt {own[0].attempt}, {own[0].age_s:.0f} s old: {own[0].command}",
            )


def check_proxies(view: View) -> Iterator[Finding]:
    """Worth knowing when a download inside a server fails."""
    for node in view.nodes:
        taken = [name for name in node.facts.proxies if name in view.plan.primary.unset]
        if taken:
            what = f"node {node.name} sets proxy variables; they are taken from the servers"
            todo = f"nothing, unless a server must download something: then name {taken[0]} in the recipe's secrets"
            yield Finding("proxies", "info", what, todo, node.facts.ip, ", ".join(taken))


def check_open_files(view: View) -> Iterator[Finding]:
    """Each connection and each shard is an open file."""
    for node in view.nodes:
        limit = node.facts.open_files_limit
        if 0 < limit < MIN_OPEN_FILES:
            what = f"node {node.name} allows a process {limit} open files"
            todo = f"ulimit -n {MIN_OPEN_FILES} before `ray start`"
            yield Finding("open-files", "warning", what, todo, node.facts.ip, str(limit))


def check_shm(view: View) -> Iterator[Finding]:
    """The workers of vLLM talk through /dev/shm, and Ray keeps its objects there. The weights' size plays no part.

    Each worker maps the weight files and copies from the page cache to its NPU (vLLM 0.32 opens no shared memory in
    model_executor/model_loader), so they are held against the host's memory (`memory-small`). What is in /dev/shm is as
    large for a small model as for a large one: queues of a fixed size (up to 240 MiB, one per worker and one to all
    of them; pages are taken as they are used), torch's, and Ray's objects.
    """
    for node in view.nodes:
        size, free = node.facts.shm_total, node.facts.shm_free
        if 0 < size < MIN_SHM:
            what = f"node {node.name} has only {size // 2**20} MiB of shared memory (/dev/shm)"
            todo = "start the container with --ipc=host, or with --shm-size=16g"
            yield Finding("shm-small", "warning", what, todo, node.facts.ip, str(size))
        elif size and free < MIN_SHM_FREE:
            what = f"node {node.name} has only {free // 2**20} MiB of its shared memory (/dev/shm) free"
            todo = (
                "`ls -lS /dev/shm` on that node: segments of processes that are gone may be removed"
            )
            yield Finding("shm-full", "warning", what, todo, node.facts.ip, f"{free} of {size}")


def check_niceness(view: View) -> Iterator[Finding]:
    """Ray starts workers at niceness 15, their children inherit it, and only root may lower it again."""
    for node in view.nodes:
        nice = node.facts.niceness
        if nice > 0 and not node.facts.is_root:
            yield Finding(
                "niced",
                "warning",
                f"servers on node {node.name} would run at niceness {nice}",
                "RAY_worker_niceness=0 ray start ... on that node",
                node.facts.ip,
                str(nice),
            )


def check_tuning(view: View) -> Iterator[Finding]:
    """Host settings are wished for, never forced."""
    wanted = {name: str(value) for name, value in view.recipe.tuning.sysctl.items()}
    if view.recipe.tuning.governor:
        wanted["governor"] = view.recipe.tuning.governor
    for node in view.nodes:
        unmet = {
            name: value
            for name, value in wanted.items()
            if node.facts.tuning.get(name, value) != value
        }
        without = view.recipe.tuning.jemalloc and not node.facts.tuning.get("jemalloc", "unknown")
        if unmet or without:
            names = [
                *(f"{name}={value}" for name, value in unmet.items()),
                *(["jemalloc"] if without else []),
            ]
            seen = [f"{name}={node.facts.tuning[name] or 'not there'}" for name in unmet]
            what = f"node {node.name} is not tuned as the recipe wishes: {', '.join(names)}"
            by_hand = _tune_by_hand(unmet, without_jemalloc=without)
            todo = f"{by_hand} (or, where raylaunch is installed: sudo raylaunch tune {view.loaded.name} --apply)"
            yield Finding("tuning", "info", what, todo, node.facts.ip, ", ".join(seen))


def _tune_by_hand(unmet: dict[str, str], *, without_jemalloc: bool) -> str:
    """The plain commands, as `tune` tells them: a worker has no raylaunch, and a container may not set these."""
    steps = (
        [f"on that host, until it boots: `{'; '.join(starmap(tuning_command, unmet.items()))}`"]
        if unmet
        else []
    )
    if without_jemalloc:
        steps.append(f"where Ray runs: {INSTALL_JEMALLOC}")
    return "; ".join(steps)


def tuning_command(name: str, wanted: str) -> str:
    """What a person types to make a host's setting so, until it boots."""
    if name == GOVERNOR:
        return f"echo {wanted} | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
    if name in DEBUGFS:
        return f"sudo sysctl -w {name}={wanted} || echo {wanted} | sudo tee /{DEBUGFS[name]}"
    return f"sudo sysctl -w {name}={wanted}"


NODE_CHECKS: tuple[Callable[[View], Iterator[Finding]], ...] = (
    check_probes,
    check_hanging_tools,
    check_vllm,
    check_conflicts,
    check_leftovers,
    check_proxies,
    check_open_files,
    check_shm,
    check_niceness,
    check_tuning,
)


def node_names(nodes: list[Node]) -> str:
    """The names of some nodes, shortened."""
    return shorten(dict.fromkeys(node.name for node in nodes))
