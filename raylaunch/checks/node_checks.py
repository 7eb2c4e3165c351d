"""Checks of one machine at a time: its software and its limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raylaunch.checks.check_context import CheckContext, Node
from raylaunch.checks.findings import Finding
from raylaunch.plan.facts import ProbeFailure
from raylaunch.plan.wanted_weights import drafter_path, shorten

MIN_OPEN_FILES = 65536
MIN_SHM = 2**30
"""Bytes. vLLM's own broadcast buffers and torch need more than this beside Ray's objects."""
MIN_SHM_FREE = 2**28
"""Bytes. One queue of vLLM takes 160 MiB, and a process that finds no room dies of SIGBUS."""

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
    "vLLM's engine configuration": "`vllm serve` with the words of `raylaunch plan`",
}
"""Probe -> the command by hand instead. Those of the weights need the path and are not here."""


def check_probes(context: CheckContext) -> Iterator[Finding]:
    """Report probes that failed: what depends on them was not checked.

    A node that cannot list the weights cannot load them either.
    """
    paths = {"weights": context.plan.model, "drafter": drafter_path(context.recipe)}
    for node in context.nodes:
        for failure in node.facts.failures:
            if failure.hung or _is_irrelevant(context, failure):
                continue
            path = paths.get(failure.probe)
            if path:
                yield _unlistable_weights(node, failure, path)
            else:
                yield _unanswered_probe(context, node, failure)


def _is_irrelevant(context: CheckContext, failure: ProbeFailure) -> bool:
    # A machine without NPUs has no tools for them.
    is_npu_probe = failure.probe.startswith(("npu", "hccn"))
    return context.plan.platform == "cpu" and is_npu_probe


def _unlistable_weights(node: Node, failure: ProbeFailure, path: str) -> Finding:
    return Finding(
        id="probe-failed",
        level="error",
        what=(
            f"node {node.name} cannot list the {failure.probe} at {path}, "
            f"so no server could load them there"
        ),
        todo=(
            f"`ls -lL {path}` on that host: if it hangs, remount the file system; if it is "
            f"refused, give the user of Ray access to the folder; if it is only slow, raise "
            f"timeouts.probe"
        ),
        where=node.facts.ip,
        seen=failure.reason,
    )


def _unanswered_probe(context: CheckContext, node: Node, failure: ProbeFailure) -> Finding:
    by_hand = BY_HAND.get(failure.probe, f"`raylaunch check {context.loaded.name}`")
    return Finding(
        id="probe-failed",
        level="warning",
        what=(
            f"the probe of {failure.probe} failed on node {node.name}: "
            f"what depends on it was not checked"
        ),
        todo=f"check by hand on that host: {by_hand}",
        where=node.facts.ip,
        seen=failure.reason,
    )


def check_hanging_tools(context: CheckContext) -> Iterator[Finding]:
    """Report tools that hang: the same NPU would hang a server after minutes of loading."""
    if context.plan.platform == "cpu":
        return
    for node in context.nodes:
        for failure in node.facts.failures:
            if failure.hung:
                yield Finding(
                    id="npu-smi-hangs",
                    level="error",
                    what=(
                        f"{failure.probe} on node {node.name} does not return: "
                        f"an NPU or its driver hangs"
                    ),
                    todo=(
                        "`dmesg` on that host, and `npu-smi info -t health -i ID` NPU by NPU, "
                        "show which; exclude the node, or reboot it; if it is only slow, raise "
                        "timeouts.probe"
                    ),
                    where=node.facts.ip,
                    seen=failure.reason,
                )


def check_vllm(context: CheckContext) -> Iterator[Finding]:
    """Find nodes without the `vllm` command."""
    for node in context.nodes:
        if node.answered("host") and not node.facts.vllm_executable:
            yield Finding(
                id="no-vllm",
                level="error",
                what=f"node {node.name} has no `vllm` command beside Ray's Python or on its PATH",
                todo=(
                    "run Ray in the image of vllm-ascend (for CPU: install raylaunch[cpu]), "
                    "or start Ray inside the vllm-ascend container"
                ),
                where=node.facts.ip,
            )


def check_conflicts(context: CheckContext) -> Iterator[Finding]:
    """Find a CUDA torchvision beside a torch without CUDA.

    The server exits while it imports transformers (measured).
    """
    for node in context.nodes:
        if node.facts.conflicts:
            yield Finding(
                id="cuda-torchvision",
                level="error" if context.plan.platform == "cpu" else "warning",
                what=(
                    f"node {node.name} has a CUDA build beside a torch without CUDA: "
                    f"`vllm serve` exits at import with "
                    f"`operator torchvision::nms does not exist`"
                ),
                todo="pip uninstall -y torchvision torchaudio torchcodec",
                where=node.facts.ip,
                seen=", ".join(node.facts.conflicts),
            )


def check_leftovers(context: CheckContext) -> Iterator[Finding]:
    """Find orphans of an earlier run of this deployment: they hold its NPUs and ports."""
    deployment = context.plan.deployment
    for node in context.nodes:
        orphans = [one for one in node.facts.marked if one.deployment == deployment]
        if not orphans:
            continue
        first = orphans[0]
        pids = ", ".join(str(process.pid) for process in orphans)
        yield Finding(
            id="leftovers",
            level="error",
            what=f"node {node.name} still runs processes of an earlier {deployment}: pid {pids}",
            todo=(
                f"`raylaunch stop {deployment}` if it runs; if it does not, "
                f"`raylaunch clean --yes --deployment {deployment}`"
            ),
            where=node.facts.ip,
            seen=(
                f"pid {first.pid}, attempt {first.attempt}, {first.age_s:.0f} s old: "
                f"{first.command}"
            ),
        )


def check_proxies(context: CheckContext) -> Iterator[Finding]:
    """Report proxy variables that servers do not inherit: a download inside one may need them."""
    for node in context.nodes:
        removed = [name for name in node.facts.proxies if name in context.plan.primary.unset]
        if removed:
            yield Finding(
                id="proxies",
                level="info",
                what=f"node {node.name} sets proxy variables; servers do not inherit them",
                todo=(
                    f"nothing, unless a server must download something: then list {removed[0]} "
                    f"in the recipe's secrets"
                ),
                where=node.facts.ip,
                seen=", ".join(removed),
            )


def check_open_files(context: CheckContext) -> Iterator[Finding]:
    """Find a low limit of open files: each connection and each shard is one."""
    for node in context.nodes:
        limit = node.facts.open_files_limit
        if 0 < limit < MIN_OPEN_FILES:
            yield Finding(
                id="open-files",
                level="warning",
                what=f"node {node.name} allows a process {limit} open files",
                todo=f"ulimit -n {MIN_OPEN_FILES} before `ray start`",
                where=node.facts.ip,
                seen=str(limit),
            )


def check_shm(context: CheckContext) -> Iterator[Finding]:
    """Find too little shared memory: vLLM's workers communicate over it, Ray keeps objects there.

    The size of the weights does not matter. Each worker maps the weight files and copies from the
    page cache to its NPU (vLLM 0.32 opens no shared memory in model_executor/model_loader), so the
    host's memory limits them (`memory-small`). What is in /dev/shm is as large for a small model as
    for a large one: queues of a fixed size (up to 240 MiB, one per worker and one to all of them;
    pages are allocated as they are used), torch's, and Ray's objects.
    """
    for node in context.nodes:
        size = node.facts.shm_total
        free = node.facts.shm_free
        if 0 < size < MIN_SHM:
            yield Finding(
                id="shm-small",
                level="warning",
                what=(f"node {node.name} has only {size // 2**20} MiB of shared memory (/dev/shm)"),
                todo="start the container with --ipc=host, or with --shm-size=16g",
                where=node.facts.ip,
                seen=str(size),
            )
        elif size and free < MIN_SHM_FREE:
            yield Finding(
                id="shm-full",
                level="warning",
                what=(
                    f"node {node.name} has only {free // 2**20} MiB of its shared memory "
                    f"(/dev/shm) free"
                ),
                todo=(
                    "`ls -lS /dev/shm` on that node: segments of processes that no longer exist "
                    "may be removed"
                ),
                where=node.facts.ip,
                seen=f"{free} of {size}",
            )


def check_niceness(context: CheckContext) -> Iterator[Finding]:
    """Find a niceness above 0.

    Ray starts workers at niceness 15, their children inherit it, and only root may lower it again.
    """
    for node in context.nodes:
        nice = node.facts.niceness
        if nice > 0 and not node.facts.is_root:
            yield Finding(
                id="niced",
                level="warning",
                what=f"servers on node {node.name} would run at niceness {nice}",
                todo="RAY_worker_niceness=0 ray start ... on that node",
                where=node.facts.ip,
                seen=str(nice),
            )


def check_tuning(context: CheckContext) -> Iterator[Finding]:
    """Compare host settings with the recipe's; they are recommended, never enforced."""
    tuning = context.recipe.tuning
    wanted = {name: str(value) for name, value in tuning.sysctl.items()}
    if tuning.governor:
        wanted[GOVERNOR] = tuning.governor
    for node in context.nodes:
        found = node.facts.tuning
        # A setting that was not probed counts as right.
        unmet = {name: value for name, value in wanted.items() if found.get(name, value) != value}
        lacks_jemalloc = tuning.jemalloc and not found.get("jemalloc", "unknown")
        if not unmet and not lacks_jemalloc:
            continue
        names = [f"{name}={value}" for name, value in unmet.items()]
        if lacks_jemalloc:
            names.append("jemalloc")
        by_hand = _tune_by_hand(unmet, install_jemalloc=lacks_jemalloc)
        yield Finding(
            id="tuning",
            level="info",
            what=f"node {node.name} is not tuned as the recipe recommends: {', '.join(names)}",
            todo=(
                f"{by_hand} (or, where raylaunch is installed: "
                f"sudo raylaunch tune {context.loaded.name} --apply)"
            ),
            where=node.facts.ip,
            seen=", ".join(f"{name}={found[name] or 'not there'}" for name in unmet),
        )


def _tune_by_hand(unmet: dict[str, str], *, install_jemalloc: bool) -> str:
    """Return the plain commands.

    A worker has no raylaunch, and a container may not change these settings.
    """
    steps = []
    if unmet:
        commands = [tuning_command(name, value) for name, value in unmet.items()]
        steps.append(f"on that host, until its next boot: `{'; '.join(commands)}`")
    if install_jemalloc:
        steps.append(f"where Ray runs: {INSTALL_JEMALLOC}")
    return "; ".join(steps)


def tuning_command(name: str, wanted: str) -> str:
    """Return the command that changes a host's setting until its next boot."""
    if name == GOVERNOR:
        return f"echo {wanted} | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
    if name in DEBUGFS:
        return f"sudo sysctl -w {name}={wanted} || echo {wanted} | sudo tee /{DEBUGFS[name]}"
    return f"sudo sysctl -w {name}={wanted}"


NODE_CHECKS: tuple[Callable[[CheckContext], Iterator[Finding]], ...] = (
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


def shorten_node_names(nodes: list[Node]) -> str:
    """Return the names of some nodes, shortened."""
    return shorten(dict.fromkeys(node.name for node in nodes))
