"""What a probe saw on one node, as plain values: filled by `node_probe`, read by planning and checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raylaunch.plan.known_flags import KnownFlags


@dataclass(frozen=True)
class Interface:
    """One network interface of a node.

    `addresses` carry their prefix length ("192.0.2.10/24", "2001:db8::1/64").
    `kind` is one of: physical, loopback, bridge, vlan, bond, veth, tunnel, other.
    """

    name: str
    addresses: tuple[str, ...] = ()
    up: bool = True
    kind: str = "physical"
    mtu: int | None = None


@dataclass(frozen=True)
class Npu:
    """One NPU (on A3: one die) as `npu-smi info` reports it. Memory in MB (as npu-smi prints it), power in W."""

    id: int
    card: int
    chip: int
    name: str
    health: str
    bus_id: str | None
    hbm_used_mb: int
    hbm_total_mb: int
    power_w: float | None = None
    temperature_c: int | None = None
    aicore_percent: int | None = None


@dataclass(frozen=True)
class NpuProcess:
    """A row of npu-smi's process table. `pid` counts in the host's PID namespace unless `container_pid` is given."""

    npu: int
    pid: int
    name: str
    memory_mb: int
    container_pid: int | None = None


@dataclass(frozen=True)
class NpuLink:
    """State of one NPU's own network port, from `hccn_tool`. None: the tool gave no answer."""

    npu: int
    ip: str | None = None
    link: str | None = None
    net_health: str | None = None
    netdetect: str | None = None
    gateway: str | None = None
    tls: bool | None = None
    mtu: int | None = None
    lldp_port: str | None = None


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket. `pid` is None when the owner is not ours to see."""

    address: str
    port: int
    pid: int | None = None
    process: str | None = None


@dataclass(frozen=True)
class Weights:
    """What lies at the recipe's model path on one node. Sizes in bytes; `missing` names files the index promises.

    `damaged` names files that end before their own header says, and JSON files that cannot be read.
    """

    path: str
    exists: bool
    model_type: str | None = None
    files: dict[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    config: dict[str, object] = field(default_factory=dict)
    filesystem: str | None = None
    damaged: tuple[str, ...] = ()
    free_bytes: int = 0
    """What may still be written where the path lies."""
    place: str = ""
    """Equal on two nodes that see the same folder."""
    expected_bytes: int = 0
    """Bytes of the tensors that the index promises; 0 without one."""
    fingerprint: str = ""
    """A hash over samples of the weight files; "" when nobody took it."""
    read_rate: float | None = None
    """Bytes per second from a network filesystem; None: not measured, or a local disk."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files seen."""
        return sum(self.files.values())


@dataclass(frozen=True)
class MarkedProcess:
    """A process that carries raylaunch's marker variables in its environment."""

    pid: int
    deployment: str
    attempt: int
    age_s: float
    command: str
    instance: str = ""
    """Random id of the start it belongs to; "" when its marker has none."""


@dataclass(frozen=True)
class ProbeFailure:
    """A probe that gave no answer: which one, and what it said.

    `hung`: npu-smi was there and did not come back, which is what a sick NPU or driver does to it.
    """

    probe: str
    reason: str
    hung: bool = False


@dataclass(frozen=True)
class TuningStep:
    """What became of one wanted host setting.

    `outcome` is "already" (nothing to do), "unmet" (only compared), "set" (changed now, `before` is the old value) or
    "host" (this process may not, or the kernel has no such knob: `todo` is the command for an administrator).
    """

    name: str
    wanted: str
    before: str
    outcome: Literal["already", "unmet", "set", "host"]
    why: str = ""
    todo: str = ""


@dataclass(frozen=True)
class Facts:
    """Everything known about one node at planning time. Memory in bytes."""

    ip: str
    hostname: str = ""
    node_id: str = ""
    state_dir: str = ""
    """Folder on the node where raylaunch keeps logs, generated models and evidence."""
    interface: str | None = None
    """The interface the caller fixed for this node (`--host IP%NIC`); None: choose from `interfaces`."""
    devices: tuple[int, ...] | None = None
    """NPU ids granted to this server, ascending; None: not known yet (planning from given hosts)."""
    arch: str = ""
    is_root: bool = False
    niceness: int = 0
    python: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    """Distribution or component name -> version: ray, vllm, vllm-ascend, torch, torch-npu, cann, driver, firmware."""
    interfaces: tuple[Interface, ...] = ()
    listeners: tuple[Listener, ...] = ()
    npus: tuple[Npu, ...] = ()
    npu_processes: tuple[NpuProcess, ...] = ()
    npu_links: tuple[NpuLink, ...] = ()
    weights: Weights | None = None
    drafter: Weights | None = None
    """What lies at the path of a drafter with a folder of its own."""
    marked: tuple[MarkedProcess, ...] = ()
    memory_total: int = 0
    memory_available: int = 0
    shm_total: int = 0
    shm_free: int = 0
    resolves_to: tuple[str, ...] = ()
    """Addresses the node's own hostname resolves to."""
    open_files_limit: int = 0
    reserved_ports: str = ""
    clock: float = 0.0
    """The node's wall clock at the probe, seconds since the epoch."""
    proxies: tuple[str, ...] = ()
    """Names of proxy variables that are set."""
    tuning: dict[str, str] = field(default_factory=dict)
    """Host tuning as found: governor, vm.swappiness, kernel.numa_balancing, ..., jemalloc (path or empty)."""
    vllm_executable: str | None = None
    """Absolute path of the `vllm` command in the node's environment, None when there is none."""
    known_flags: KnownFlags | None = None
    """What the parser of that `vllm` knows; None: not asked yet, or no answer."""
    conflicts: tuple[str, ...] = ()
    """Installed distributions known to break vLLM here (a CUDA build of torchvision beside the CPU torch)."""
    failures: tuple[ProbeFailure, ...] = ()
