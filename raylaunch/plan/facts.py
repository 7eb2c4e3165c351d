"""What a probe saw on one node, as plain values: input of planning and of checks."""

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
    """One NPU (on A3: one die) as `npu-smi info` reports it.

    Memory in MB (as npu-smi prints it), power in W, temperature in degrees Celsius.
    """

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
    """A row of npu-smi's process table. Memory in MB.

    `pid` belongs to the host's PID namespace unless `container_pid` is given.
    """

    npu: int
    pid: int
    name: str
    memory_mb: int
    container_pid: int | None = None


@dataclass(frozen=True)
class NpuLink:
    """State of one NPU's own network port, from `hccn_tool`. None: the tool did not report it."""

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
    """A listening TCP socket. `pid` is None when this user may not see the owner."""

    address: str
    port: int
    pid: int | None = None
    process: str | None = None


@dataclass(frozen=True)
class Weights:
    """The weights at the recipe's model path on one node. Sizes in bytes.

    `missing` names files that the index lists and the folder lacks. `damaged` names files that are
    shorter than their own header says, and JSON files that cannot be read.
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
    """Free space of the filesystem that holds the path."""
    place: str = ""
    """Identity of the folder: equal on two nodes that mount the same one."""
    expected_bytes: int = 0
    """Bytes of the tensors that the index lists; 0 without an index."""
    fingerprint: str = ""
    """A hash over samples of the weight files; "" when it was not computed."""
    read_rate: float | None = None
    """Bytes per second from a network filesystem; None: not measured, or a local disk."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files found."""
        return sum(self.files.values())


@dataclass(frozen=True)
class MarkedProcess:
    """A process with raylaunch's marker variables in its environment. Age in seconds."""

    pid: int
    deployment: str
    attempt: int
    age_s: float
    command: str
    instance: str = ""
    """Random id of the start it belongs to; "" when its marker has none."""
    group: str = ""
    """Its group of the deployment; "" when its marker has none."""
    cluster: str = ""
    """Marker of the embedded Ray cluster from which it was started; "" when from none."""
    owner_wait_s: float | None = None
    """How long its guard still waits for an agent before it stops it; None: it has an agent."""

    @property
    def owner(self) -> str:
        """Its deployment, for messages; of an orphan also when it will be gone."""
        if self.owner_wait_s is None:
            return self.deployment
        return f"{self.deployment}, an orphan that its guard stops in {self.owner_wait_s:.0f} s"


@dataclass(frozen=True)
class ProbeFailure:
    """A probe without a result: which one, and its error.

    `hung`: npu-smi exists and did not return, which is the effect of a faulty NPU or driver.
    """

    probe: str
    reason: str
    hung: bool = False


CertificateProblem = Literal["missing", "unreadable", "key-mismatch", "expired", "not-yet-valid"]


@dataclass(frozen=True)
class CertificateFacts:
    """What is wrong with a certificate and its key; `expires` in seconds since the epoch."""

    problem: CertificateProblem | None = None
    detail: str = ""
    expires: float | None = None


@dataclass(frozen=True)
class GatewayFacts:
    """What a node has for a gateway."""

    ip: str
    haproxy: bool
    """Whether the executable of the gateway's listener was found."""
    listeners: tuple[Listener, ...] = ()
    certificate: CertificateFacts | None = None
    """None without `gateway.tls`."""


@dataclass(frozen=True)
class TuningStep:
    """The result for one wanted host setting.

    `outcome` is "already" (nothing to do), "unmet" (only compared), "set" (changed now, `before` is
    the old value) or "host" (this process may not set it, or the kernel has no such setting: `todo`
    is the command for an administrator).
    """

    name: str
    wanted: str
    before: str
    outcome: Literal["already", "unmet", "set", "host"]
    why: str = ""
    todo: str = ""


@dataclass(frozen=True)
class Facts:
    """Everything known about one node when it is planned. Memory in bytes."""

    ip: str
    hostname: str = ""
    node_id: str = ""
    state_dir: str = ""
    """Folder on the node for logs, generated models and evidence."""
    interface: str | None = None
    """The interface fixed by the caller (`--host IP%NIC`); None: choose from `interfaces`."""
    devices: tuple[int, ...] | None = None
    """NPU ids granted to this server, ascending; None: not known (planning from given hosts)."""
    arch: str = ""
    is_root: bool = False
    niceness: int = 0
    python: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    """Distribution or component -> version.

    Names: ray, vllm, vllm-ascend, torch, torch-npu, cann, driver, firmware.
    """
    interfaces: tuple[Interface, ...] = ()
    listeners: tuple[Listener, ...] = ()
    npus: tuple[Npu, ...] = ()
    npu_processes: tuple[NpuProcess, ...] = ()
    npu_links: tuple[NpuLink, ...] = ()
    weights: Weights | None = None
    drafter: Weights | None = None
    """The weights of a drafter with a folder of its own."""
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
    """Host settings as found: governor, vm.swappiness, ..., jemalloc (path or empty)."""
    vllm_executable: str | None = None
    """Absolute path of the `vllm` command in the node's environment; None without one."""
    known_flags: KnownFlags | None = None
    """The flags of that `vllm`'s parser; None: not probed yet, or the probe failed."""
    conflicts: tuple[str, ...] = ()
    """Installed distributions known to break vLLM (torchvision for CUDA beside the CPU torch)."""
    failures: tuple[ProbeFailure, ...] = ()
