"""The recipe: what the user wants, as a frozen value read from YAML. The program never rewrites it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from raylaunch.recipe.reserved import normalise_flag, owned_arg, owned_env


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


def _env_value(value: object) -> object:
    if isinstance(value, bool | float):
        raise ValueError(
            f"environment values are text: write it in quotes ('{str(value).lower()}' or '{value}')"
        )
    return str(value) if isinstance(value, int) else value


EnvValue = Annotated[str, BeforeValidator(_env_value)]


def _env_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(
            f"{name!r} is no variable name: only letters, digits and _, and no digit first"
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
    """`model_type` that the weights' config.json must carry."""
    tiny: Literal["qwen3", "minimax_m2"] | None = None
    """Make a tiny random-weight model of this architecture on each node instead of reading `path`."""
    read_ahead: bool = True
    """Read the weights into the page cache of each host while vLLM imports its modules, if they fit into memory."""
    sources: Sources = Sources()

    @model_validator(mode="after")
    def _has_weights(self) -> Model:
        if bool(self.path) == bool(self.tiny):
            raise ValueError(
                "give either `path` (a directory of weights) or `tiny` (a generated model)"
            )
        return self


Platform = Literal["ascend-a2", "ascend-a3", "cpu"]


class Hardware(_Part):
    """What a server needs of a node."""

    platform: Platform
    npus_per_server: Annotated[int, Field(ge=1)] | None = None
    """NPUs (on A3: dies) one server takes; by default tensor x pipeline x prefill_context x data_local."""
    npus_per_node: Annotated[int, Field(ge=1)] | None = None
    """NPUs of one node; by default 8 on A2, 16 on A3."""
    spread: bool = True
    """Every server on a node of its own. False allows several on one node."""


class Parallel(_Part):
    """Parallel sizes, in vLLM's terms."""

    tensor: Annotated[int, Field(ge=1)] = 1
    data: Annotated[int, Field(ge=1)] = 1
    data_local: Annotated[int, Field(ge=1)] | None = None
    """Data-parallel ranks that one server holds; by default all of them (one server)."""
    pipeline: Annotated[int, Field(ge=1)] = 1
    prefill_context: Annotated[int, Field(ge=1)] = 1
    decode_context: Annotated[int, Field(ge=1)] = 1
    expert: bool = False
    """Expert parallelism (`--enable-expert-parallel`)."""
    api_servers: Annotated[int, Field(ge=1)] = 1
    """API server processes on the primary. vLLM itself would start one per data-parallel rank."""

    @model_validator(mode="after")
    def _divides(self) -> Parallel:
        if self.data % self.ranks_per_server:
            raise ValueError(f"data={self.data} is not a multiple of data_local={self.data_local}")
        return self

    @property
    def ranks_per_server(self) -> int:
        """Data-parallel ranks one server holds."""
        return self.data_local or self.data

    @property
    def servers(self) -> int:
        """Number of `vllm serve` processes."""
        return self.data // self.ranks_per_server

    @property
    def devices_per_rank(self) -> int:
        """NPUs one data-parallel rank takes."""
        return self.tensor * self.pipeline * self.prefill_context


class Network(_Part):
    """Addresses and ports."""

    host: str = "node"
    """Address the API listens on: `node` for the server's own address, or a literal such as 0.0.0.0."""
    http_port: Port = 8000
    """Port of the API. Never moved: a start is refused while somebody has it."""
    rpc_port: Port = 29550
    """Port of the data-parallel handshake on the primary, or the next free one; vLLM's default is 29550."""
    hccl_base_port: Annotated[int, Field(ge=1024, le=65520)] = 60000
    """First of the 16 host ports HCCL takes (HCCL_IF_BASE_PORT), or of the next 16 free; 60000 is HCCL's default."""
    interface: str = "auto"
    """Network interface per node: `auto` (the one with the node's Ray address), a name, or a CIDR that it is in."""


class Timeouts(_Part):
    """How long things may take, in seconds."""

    reserve: Seconds = 10
    """For all NPUs to be reserved together."""
    probe: Seconds = 30
    """For one node to be probed."""
    start: Seconds = 3600
    """From launch to ready. vLLM's primary itself waits for ever for a headless server."""
    stop: Seconds = 30
    """Between SIGTERM and SIGKILL of a server's process group."""


class Health(_Part):
    """When a deployment counts as failed, and when it is started again. Times in seconds."""

    heartbeat_s: Seconds = 1
    """How often an agent reports when nothing happens."""
    agent_silent_s: Seconds = 6
    """Silence of an agent after which its node counts as unreachable."""
    http_period_s: Seconds = 2
    http_timeout_s: Seconds = 15
    """One `/health` may take this long: under load it was measured at 3 to 8 s."""
    http_fail_s: Seconds = 30
    """Unbroken row of failed `/health` after which it counts, if tokens stand still too."""
    progress_period_s: Seconds = 2
    stall_s: Seconds = 20
    """Requests on a rank while none of its counters moves, for this long, is a hang. Raise it for long prefills."""
    canary_idle_s: Seconds = 5
    """A rank that was silent for this long is asked for one token."""
    canary_timeout_s: Seconds = 15
    """Patience with that token. A rank that stands still with requests is judged by `stall_s` alone."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Restarts allowed within `restart_window_s`."""
    restart_window_s: Seconds = 3600
    backoff_first_s: Annotated[float, Field(ge=0)] = 1
    backoff_factor: Annotated[float, Field(ge=1)] = 4
    backoff_max_s: Seconds = 120
    device_pause_s: Annotated[float, Field(ge=0)] = 10
    """Least pause before NPUs are used again after an unclean end (HCCP needs about 10 s)."""


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
    """Host settings wanted. They need root on the host; what is not met is reported, never forced at start."""

    governor: str | None = None
    """CPU frequency governor."""
    sysctl: dict[str, int] = {}
    jemalloc: bool = False
    """Preload jemalloc into the servers (LD_PRELOAD) where the library exists."""


class ToolCalling(_Part):
    """Tool calls and reasoning, parsed by vLLM."""

    enabled: bool = False
    tool_parser: str = "minimax_m2"
    reasoning_parser: str | None = "minimax_m2_append_think"
    """minimax_m2_append_think keeps <think> inside `content`; minimax_m2 fills `reasoning` (for /v1/responses)."""


class Profiling(_Part):
    """vLLM's torch profiler (`--profiler-config`; POST /start_profile and /stop_profile)."""

    enabled: bool = False
    dir: str = "/tmp/vllm-profile"  # noqa: S108 - a default the user sees and may change
    """Absolute directory for the traces."""
    with_stack: bool = False


class Speculative(BaseModel):
    """Speculative decoding; every further key goes into `--speculative-config` as it is."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    enabled: bool = False
    method: str = "eagle3"
    model: str = ""
    num_speculative_tokens: Annotated[int, Field(ge=1)] = 3
    sources: Sources = Sources()
    """Where a drafter of its own (`model`) can be downloaded."""

    def config(self) -> dict[str, Any]:
        """The value of `--speculative-config`."""
        own = ("enabled", "sources")
        return {
            key: value for key, value in self.model_dump().items() if key not in own and value != ""
        }


class Features(_Part):
    """Optional features, each a switch: `--set features.profiling.enabled=true`."""

    tool_calling: ToolCalling = ToolCalling()
    reasoning_parser: str | None = None
    """Reasoning parser of a server without tool calling; with it, features.tool_calling.reasoning_parser counts."""
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
    """Variables taken from the launching environment and given to the servers; never printed or stored."""
    features: Features = Features()
    timeouts: Timeouts = Timeouts()
    health: Health = Health()
    container: Container | None = None
    tuning: Tuning = Tuning()
    bench: tuple[str, ...] = ()
    """Scenarios of `raylaunch bench` that fit, the first is its default; without any: `short`."""

    @model_validator(mode="after")
    def _leaves_owned_alone(self) -> Recipe:
        for name in self.args:
            if field := owned_arg(name):
                raise ValueError(f"args.{name} is set by raylaunch: use {field}")
        for name in self.env:
            if field := owned_env(name):
                raise ValueError(f"env.{name} is set by raylaunch: use {field}")
        names = [normalise_flag(name) for name in self.args]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"args gives --{twice} twice, in two spellings")
        return self

    @property
    def npus_per_server(self) -> int:
        """NPUs one server takes; 0 on a platform without NPUs only when the recipe says so."""
        needed = self.parallel.devices_per_rank * self.parallel.ranks_per_server
        return self.hardware.npus_per_server or needed

    @property
    def npus_per_node(self) -> int:
        """NPUs of one node."""
        return self.hardware.npus_per_node or (16 if self.hardware.platform == "ascend-a3" else 8)
