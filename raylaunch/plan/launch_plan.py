"""The plan of a group: what runs where, fully resolved; one value for `plan`, `render`, `start`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raylaunch.recipe.group_names import FIRST_GROUP, GroupRole

SCHEMA = 1

Role = Literal["primary", "headless"]


@dataclass(frozen=True)
class Value:
    """An environment value and its origin.

    Origins are "recipe a2-dual.yaml:31", "node: address", "--set" or "raylaunch: reason".
    """

    value: str
    origin: str


@dataclass(frozen=True)
class Flag:
    """One argument of `vllm serve`.

    `value` None is a bare flag; `name` "" is the positional model path.
    """

    name: str
    value: str | None
    origin: str

    def words(self) -> tuple[str, ...]:
        """Return the argv words of this flag."""
        if not self.name:
            return (self.value or "",)
        if self.value is None:
            return (self.name,)
        return (self.name, self.value)


@dataclass(frozen=True)
class Place:
    """Where a server runs. `node_id` is Ray's; it is empty in a plan from given hosts."""

    ip: str
    interface: str
    node_id: str = ""


@dataclass(frozen=True)
class Ports:
    """TCP ports of a server. `hccl_base` is the first of HCCL's 16; None without HCCL."""

    http: int
    rpc: int
    hccl_base: int | None = None


@dataclass(frozen=True)
class ServerPlan:
    """One `vllm serve` process: its place, ranks, devices, environment and flags."""

    index: int
    ranks: tuple[int, ...]
    role: Role
    node: Place
    devices: tuple[int, ...]
    env: dict[str, Value]
    flags: tuple[Flag, ...]
    ports: Ports
    log: str
    """Log path below the node's log root; `{attempt}` is filled in at launch."""
    unset: dict[str, Value] = field(default_factory=dict)
    """Variables that must not reach the server; `value` is empty, `origin` is the reason."""

    @property
    def argv(self) -> tuple[str, ...]:
        """The command line, word by word."""
        words = ["vllm", "serve"]
        for flag in self.flags:
            words += flag.words()
        return tuple(words)

    @property
    def environ(self) -> dict[str, str]:
        """The planned variables without their origins."""
        return {name: value.value for name, value in self.env.items()}

    def flag(self, name: str) -> str | None:
        """Return the value of the flag `name` ("--port"); "" for a bare flag, None when absent."""
        for flag in self.flags:
            if flag.name == name:
                return flag.value or ""
        return None


@dataclass(frozen=True)
class LaunchPlan:
    """One group of a deployment, ready to be launched, rendered or printed."""

    deployment: str
    recipe: str
    platform: str
    served_name: str
    model: str
    endpoint: str
    servers: tuple[ServerPlan, ...]
    secrets: tuple[str, ...] = ()
    """Names of variables from the launching environment; their values are never in a plan."""
    schema: int = SCHEMA
    group: str = FIRST_GROUP
    role: GroupRole = "serve"

    @property
    def primary(self) -> ServerPlan:
        """The server with the API."""
        return self.servers[0]

    @property
    def is_alone(self) -> bool:
        """Whether it is the deployment's only group: others have a folder of logs per group."""
        return not self.primary.log.startswith(f"{self.deployment}/{self.group}/")

    def name_of(self, server: int) -> str:
        """Return the name that people know a server by: "0", or "serve-1/0" in one of groups."""
        return str(server) if self.is_alone else f"{self.group}/{server}"

    @property
    def ranks(self) -> int:
        """Number of data-parallel ranks over all servers."""
        return sum(len(server.ranks) for server in self.servers)
