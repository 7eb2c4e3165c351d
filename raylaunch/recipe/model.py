"""The recipe: what the user wants, a frozen value read from YAML and never rewritten."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from raylaunch.recipe.field_types import (
    MAX_GROUP_KINDS,
    MAX_NPUS_PER_NODE,
    MAX_RANKS,
    DraftTokens,
    EnvName,
    EnvValue,
    Factor,
    GroupName,
    Npus,
    Pause,
    Port,
    Ranks,
    Restarts,
    Seconds,
    SysctlValue,
)
from raylaunch.recipe.gateway_settings import Gateway
from raylaunch.recipe.group_names import GroupRole
from raylaunch.recipe.monitoring_settings import Hooks, Metrics, Tracing
from raylaunch.recipe.reserved import normalise_flag, reserved_arg, reserved_env


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Sources(_Part):
    """Where the weights can be downloaded."""

    modelscope: str | None = None
    """Repository on ModelScope, as `owner/name`."""
    huggingface: str | None = None
    """Repository on Hugging Face, as `owner/name`."""


class Model(_Part):
    """The weights and the name they are served under."""

    path: str = ""
    """Directory of the weights on every node. May be empty only with `tiny`."""
    served_name: str
    """Name that clients put into `model`."""
    type: str | None = None
    """`model_type` that the weights' config.json must have."""
    tiny: Literal["qwen3", "minimax_m2"] | None = None
    """Generate a tiny random-weight model of this architecture instead of reading `path`."""
    read_ahead: bool = True
    """Read weights that fit into memory into the page cache while vLLM imports its modules."""
    sources: Sources = Sources()

    @model_validator(mode="after")
    def _has_weights(self) -> Model:
        has_path = bool(self.path)
        has_tiny = bool(self.tiny)
        if has_path == has_tiny:
            raise ValueError(
                "give either `path` (a directory of weights) or `tiny` (a generated model)"
            )
        return self


Platform = Literal["ascend-a2", "ascend-a3", "cpu"]


class Hardware(_Part):
    """What a server needs of a node."""

    platform: Platform
    npus_per_server: Npus | None = None
    """NPUs (A3: dies) of one server; default: tensor x pipeline x prefill_context x data_local."""
    npus_per_node: Npus | None = None
    """NPUs of one node; by default 8 on A2, 16 on A3."""
    spread: bool = True
    """Place every server on a node of its own. False allows several servers on one node."""


class Parallel(_Part):
    """Parallel sizes, in vLLM's terms."""

    tensor: Ranks = 1
    data: Ranks = 1
    data_local: Ranks | None = None
    """Data-parallel ranks of one server; by default all of them (one server)."""
    pipeline: Ranks = 1
    prefill_context: Ranks = 1
    decode_context: Ranks = 1
    expert: bool = False
    """Expert parallelism (`--enable-expert-parallel`)."""
    api_servers: Ranks = 1
    """API server processes on the primary. vLLM itself would start one per data-parallel rank."""
    replicas: Ranks = 1
    """Equal, independent groups: each has all the sizes above, and restarts on its own."""

    @model_validator(mode="after")
    def _divides(self) -> Parallel:
        if self.data % self.ranks_per_server:
            raise ValueError(f"data={self.data} is not a multiple of data_local={self.data_local}")
        return self

    @property
    def ranks_per_server(self) -> int:
        """Data-parallel ranks of one server."""
        return self.data_local or self.data

    @property
    def servers(self) -> int:
        """Number of `vllm serve` processes."""
        return self.data // self.ranks_per_server

    @property
    def devices_per_rank(self) -> int:
        """NPUs of one data-parallel rank."""
        return self.tensor * self.pipeline * self.prefill_context


class Network(_Part):
    """Addresses and ports."""

    host: str = "node"
    """Listening address of the API: `node` (the server's own), or a literal such as 0.0.0.0."""
    http_port: Port = 8000
    """Port of the API. Fixed: `start` fails if the port is in use."""
    rpc_port: Port = 29550
    """Port of the data-parallel handshake on the primary, or the next free one (vLLM: 29550)."""
    hccl_base_port: Annotated[int, Field(ge=1024, le=65520)] = 60000
    """First of HCCL's 16 host ports (HCCL_IF_BASE_PORT), or of the next 16 free (HCCL: 60000)."""
    hccl_if_ip: bool = True
    """Set HCCL_IF_IP to the node's address. Switch it off on hosts that need it unset."""
    interface: str = "auto"
    """Interface per node: `auto` (the one with the node's Ray address), a name, or a CIDR."""


class Timeouts(_Part):
    """Time-outs, in seconds."""

    reserve: Seconds = 10
    """For the reservation of all NPUs together."""
    probe: Seconds = 30
    """For the probe of one node."""
    start: Seconds = 3600
    """From launch to ready. vLLM's primary has no time-out of its own for a headless server."""
    stop: Seconds = 30
    """Between SIGTERM and SIGKILL of a server's process group."""


class Health(_Part):
    """Liveness, failure detection and restart back-off. Times in seconds."""

    heartbeat_s: Seconds = 1
    """Period of an agent's reports while nothing changes."""
    agent_silent_s: Seconds = 6
    """Silence of an agent after which its node counts as unreachable."""
    http_period_s: Seconds = 2
    http_timeout_s: Seconds = 15
    """Time-out of one `/health` request: under load it took 3 to 8 s (measured)."""
    http_fail_s: Seconds = 30
    """`/health` failing for this long counts as a failure, if no rank makes tokens either."""
    progress_period_s: Seconds = 2
    stall_s: Seconds = 20
    """A rank with requests whose counters stand still this long hangs. Raise for long prefills."""
    canary_idle_s: Seconds = 5
    """A rank that was idle for this long gets a canary: a request for one token."""
    canary_timeout_s: Seconds = 15
    """Time-out of the canary. A rank that has requests is judged by `stall_s` alone."""
    max_restarts: Restarts = 3
    """Restarts allowed within `restart_window_s`."""
    restart_window_s: Seconds = 3600
    backoff_first_s: Pause = 1
    backoff_factor: Factor = 4
    backoff_max_s: Seconds = 120
    device_pause_s: Pause = 10
    """Minimum pause before NPUs are used again after an unclean exit (HCCP needs about 10 s)."""
    orphan_grace_s: Pause = 600
    """How long a server runs on without its agent, for another to adopt it. 0: not at all."""


class Container(_Part):
    """The container that holds vLLM, as `docker run` takes it."""

    image: str
    """Repository of the image, without tag."""
    tag: str
    """Tag for A2; on A3 the suffix `-a3` is added."""
    name: str
    detach: bool = False
    """Start in the background (`-itd`) instead of `--rm -it`."""
    user: str | None = None
    ipc: str | None = None
    privileged: bool = False
    shm_size: str | None = None
    env: dict[EnvName, EnvValue] = {}
    devices: tuple[str, ...] = ()
    """Device files; `/dev/davinci*` stands for one per NPU of the node."""
    mounts: tuple[str, ...] = ()
    """Bind mounts, `host:container`."""


class Tuning(_Part):
    """Wanted host settings. They need root; `start` reports unmet ones and never sets them."""

    governor: str | None = None
    """CPU frequency governor."""
    sysctl: dict[str, SysctlValue] = {}
    jemalloc: bool = False
    """Preload jemalloc into the servers (LD_PRELOAD) where the library exists."""


class ToolCalling(_Part):
    """Tool calls and reasoning, parsed by vLLM."""

    enabled: bool = False
    tool_parser: str = "minimax_m2"
    reasoning_parser: str | None = "minimax_m2_append_think"
    """minimax_m2_append_think keeps <think> in `content`; minimax_m2 fills `reasoning`."""


class Profiling(_Part):
    """vLLM's torch profiler (`--profiler-config`; POST /start_profile and /stop_profile)."""

    enabled: bool = False
    dir: str = "/tmp/vllm-profile"  # noqa: S108 - a default the user sees and may change
    """Absolute directory for the traces."""
    with_stack: bool = False


class Speculative(BaseModel):
    """Speculative decoding; every further key goes into `--speculative-config` unchanged."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    enabled: bool = False
    method: str = "eagle3"
    model: str = ""
    num_speculative_tokens: DraftTokens = 3
    sources: Sources = Sources()
    """Where a separate drafter (`model`) can be downloaded."""

    def config(self) -> dict[str, Any]:
        """Return the value of `--speculative-config`."""
        config = self.model_dump(exclude={"enabled", "sources"})
        return {key: value for key, value in config.items() if value != ""}


class Features(_Part):
    """Optional features, each a switch: `--set features.profiling.enabled=true`."""

    tool_calling: ToolCalling = ToolCalling()
    reasoning_parser: str | None = None
    """Reasoning parser without tool calling; with it, tool_calling.reasoning_parser counts."""
    profiling: Profiling = Profiling()
    speculative: Speculative = Speculative()


Changes = dict[str, object] | None
"""What a group changes in a section of the recipe. The merged section is validated, not this."""


class Group(_Part):
    """Groups that differ from the top level. What is not given here is as there."""

    name: GroupName
    """Its groups are called NAME-0, NAME-1, and so on."""
    role: GroupRole = "serve"
    """What its servers do. It is shown with the plan; nothing else depends on it so far."""
    replicas: Ranks = 1
    """Equal, independent groups of this kind."""
    parallel: Changes = {}
    """Changes to `parallel`."""
    args: Changes = {}
    """Changes to `args`: mappings merge, null removes."""
    env: Changes = {}
    """Changes to `env`."""
    hardware: Changes = {}
    """Changes to `hardware`."""
    network: Changes = {}
    """Changes to `network`."""

    @model_validator(mode="after")
    def _replicas_are_given_once(self) -> Group:
        if "replicas" in (self.parallel or {}):
            raise ValueError("give `replicas` of the group, not `parallel.replicas`")
        return self


class Recipe(_Part):
    """What the user wants: a model on some hardware, with these sizes, flags and variables."""

    description: str = ""
    """One line for `raylaunch list`."""
    good_for: str = ""
    """What the configuration is good for."""
    source: str = ""
    """Where the values come from, with the date they were read."""
    model: Model
    hardware: Hardware
    parallel: Parallel = Parallel()
    groups: Annotated[tuple[Group, ...], Field(max_length=MAX_GROUP_KINDS)] = ()
    """Groups that differ from each other; without any, the recipe is `parallel.replicas` equal
    ones."""
    network: Network = Network()
    args: dict[str, Any] = {}
    """Flags of `vllm serve`, without dashes: true is a bare flag, a mapping or list is JSON."""
    env: dict[EnvName, EnvValue] = {}
    """Environment of every server."""
    secrets: tuple[EnvName, ...] = ()
    """Variables passed from the launching environment to the servers; never printed or stored."""
    gateway: Gateway = Gateway()
    """The one address in front of all groups."""
    metrics: Metrics = Metrics()
    """The Prometheus endpoint of the deployment."""
    notify: Hooks = ()
    """Webhooks and commands that are called when a group's phase changes."""
    tracing: Tracing = Tracing()
    """Each attempt as a trace for OpenTelemetry."""
    features: Features = Features()
    timeouts: Timeouts = Timeouts()
    health: Health = Health()
    container: Container | None = None
    tuning: Tuning = Tuning()
    bench: tuple[str, ...] = ()
    """Fitting scenarios of `raylaunch bench`, the default first; without any: `short`."""

    @model_validator(mode="after")
    def _leaves_reserved_alone(self) -> Recipe:
        for name in self.args:
            if field := reserved_arg(name):
                raise ValueError(f"args.{name} is set by raylaunch: use {field}")
        for name in self.env:
            if field := reserved_env(name):
                raise ValueError(f"env.{name} is set by raylaunch: use {field}")
        return self

    @model_validator(mode="after")
    def _lists_the_tokens_as_secrets(self) -> Recipe:
        tokens = [self.metrics.token, *(hook.token for hook in self.notify)]
        tokens += self.tracing.headers.values()
        for name in filter(None, tokens):
            if name not in self.secrets:
                raise ValueError(f"the token {name} is not in `secrets`: list it there")
        return self

    @model_validator(mode="after")
    def _gives_each_flag_once(self) -> Recipe:
        seen: set[str] = set()
        for name in self.args:
            flag = normalise_flag(name)
            if flag in seen:
                raise ValueError(f"args gives --{flag} twice, in two spellings")
            seen.add(flag)
        return self

    @model_validator(mode="after")
    def _fits_one_node(self) -> Recipe:
        if self.npus_per_server > MAX_NPUS_PER_NODE:
            raise ValueError(
                f"a server needs {self.npus_per_server} NPUs "
                "(tensor x pipeline x prefill_context x data_local), "
                f"and no node has more than {MAX_NPUS_PER_NODE}: lower parallel.data_local"
            )
        return self

    @model_validator(mode="after")
    def _counts_its_groups(self) -> Recipe:
        if self.groups and self.parallel.replicas > 1:
            raise ValueError(
                "parallel.replicas stands beside groups: give `replicas` of each group"
            )
        names: set[str] = set()
        for index, group in enumerate(self.groups):
            if group.name in names:
                raise ValueError(f"groups[{index}].name is {group.name!r}, as that of another one")
            names.add(group.name)
        total = sum(group.replicas for group in self.groups)
        if total > MAX_RANKS:
            raise ValueError(f"groups: {total} groups, and at most {MAX_RANKS} are possible")
        return self

    @property
    def npus_per_server(self) -> int:
        """NPUs of one server: as written, or as its ranks need."""
        needed = self.parallel.devices_per_rank * self.parallel.ranks_per_server
        return self.hardware.npus_per_server or needed

    @property
    def npus_per_node(self) -> int:
        """NPUs of one node."""
        if self.hardware.npus_per_node:
            return self.hardware.npus_per_node
        return 16 if self.hardware.platform == "ascend-a3" else 8
