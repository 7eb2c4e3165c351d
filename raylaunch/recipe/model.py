"""The recipe: what the user wants, as a frozen value read from YAML. The program never rewrites it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from raylaunch.recipe.reserved import normalise_flag, reserved_arg, reserved_env


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


MAX_NPUS_PER_NODE = 64
"""Physical devices that Ascend's driver numbers on one host (ASCEND_PDEV_MAX_NUM in its ascend_dev_num.h)."""

MAX_RANKS = 8192
"""NPUs of the largest supernode announced (Atlas 950 SuperPoD); each data-parallel rank takes one at least."""

MAX_SECONDS = 2_147_483
"""24.8 days: poll(2) and epoll_wait(2) take their time-out as an int of milliseconds."""

MAX_COUNT = 2**31 - 1
"""Largest C int, where the field itself has no smaller bound."""

Port = Annotated[int, Field(ge=1, le=65535)]
Npus = Annotated[int, Field(ge=1, le=MAX_NPUS_PER_NODE)]
Ranks = Annotated[int, Field(ge=1, le=MAX_RANKS)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Pause = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
Factor = Annotated[float, Field(ge=1, le=100)]
Restarts = Annotated[int, Field(ge=0, le=MAX_COUNT)]
DraftTokens = Annotated[int, Field(ge=1, le=MAX_COUNT)]
SysctlValue = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
"""The kernel keeps a numeric sysctl in a long."""


def _env_value(value: object) -> object:
    """Accept text and integers; a boolean or float has several spellings, and the reader knows only one."""
    if isinstance(value, bool | float):
        lower = str(value).lower()
        raise ValueError(
            f"environment values are text: write it in quotes ('{lower}' or '{value}')"
        )
    return str(value) if isinstance(value, int) else value


EnvValue = Annotated[str, BeforeValidator(_env_value)]


def _env_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(
            f"{name!r} is not a variable name: use letters, digits and _, and no digit first"
        )
    return name


EnvName = Annotated[str, AfterValidator(_env_name)]


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
    """Generate a tiny model with random weights of this architecture on each node instead of reading `path`."""
    read_ahead: bool = True
    """Read the weights into each host's page cache while vLLM imports its modules, if they fit into memory."""
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
    """NPUs (on A3: dies) of one server; by default tensor x pipeline x prefill_context x data_local."""
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
    """Address the API listens on: `node` for the server's own address, or a literal such as 0.0.0.0."""
    http_port: Port = 8000
    """Port of the API. Fixed: `start` fails if the port is in use."""
    rpc_port: Port = 29550
    """Port of the data-parallel handshake on the primary, or the next free one; vLLM's default is 29550."""
    hccl_base_port: Annotated[int, Field(ge=1024, le=65520)] = 60000
    """First of the 16 host ports of HCCL (HCCL_IF_BASE_PORT), or of the next 16 free; HCCL's default is 60000."""
    interface: str = "auto"
    """Network interface per node: `auto` (the one with the node's Ray address), a name, or a CIDR of its address."""


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
    """Consecutive time of failed `/health` probes that counts as a failure, if no rank makes tokens either."""
    progress_period_s: Seconds = 2
    stall_s: Seconds = 20
    """A rank with requests whose counters all stand still for this long hangs. Raise it for long prefills."""
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
    """Wanted host settings. They need root on the host; `start` reports unmet ones and never sets them."""

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
    """minimax_m2_append_think keeps <think> in `content`; minimax_m2 fills `reasoning` (for /v1/responses)."""


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
    """Reasoning parser without tool calling; with tool calling, features.tool_calling.reasoning_parser counts."""
    profiling: Profiling = Profiling()
    speculative: Speculative = Speculative()


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
    network: Network = Network()
    args: dict[str, Any] = {}
    """Any flag of `vllm serve`, without dashes: true is a bare flag, a mapping or list becomes JSON."""
    env: dict[EnvName, EnvValue] = {}
    """Environment of every server."""
    secrets: tuple[EnvName, ...] = ()
    """Variables passed from the launching environment to the servers; never printed or stored."""
    features: Features = Features()
    timeouts: Timeouts = Timeouts()
    health: Health = Health()
    container: Container | None = None
    tuning: Tuning = Tuning()
    bench: tuple[str, ...] = ()
    """Scenarios of `raylaunch bench` that fit; the first is its default, without any it is `short`."""

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
                f"a server needs {self.npus_per_server} NPUs (tensor x pipeline x prefill_context x "
                f"data_local), and no node has more than {MAX_NPUS_PER_NODE}: lower parallel.data_local"
            )
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
