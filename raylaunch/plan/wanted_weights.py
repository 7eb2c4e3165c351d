"""The weights a recipe needs: which folders, whether what lies there is whole, and the commands that download them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from raylaunch.plan.facts import Weights

if TYPE_CHECKING:
    from raylaunch.recipe.model import Recipe, Sources

Role = Literal["model", "drafter"]
Hub = Literal["modelscope", "huggingface"]
HUBS: tuple[Hub, ...] = ("modelscope", "huggingface")
"""In the order of preference: the guide's hub first."""
PROGRAMS: Mapping[Hub, str] = {"modelscope": "modelscope", "huggingface": "hf"}
INSTALL: Mapping[Hub, str] = {
    "modelscope": "pip install modelscope",
    "huggingface": "pip install -U huggingface_hub",
}
"""What brings the program; `hf` is in huggingface_hub since 0.34."""

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")

_NETWORK = frozenset(
    "nfs nfs4 cifs smb3 smbfs lustre ceph gpfs beegfs glusterfs afs pvfs2 orangefs 9p virtiofs fuse fuseblk".split()  # noqa: SIM905 - shorter to read
)
_LOCAL_FUSE = ("overlayfs", "fuse-overlayfs", "lxcfs", "mergerfs", "ntfs", "squashfuse")


@dataclass(frozen=True)
class Wanted:
    """A folder of weights that each server reads. `tiny` is made by raylaunch, not downloaded."""

    role: Role
    path: str
    sources: Sources | None = None
    tiny: Literal["qwen3", "minimax_m2"] | None = None


@dataclass(frozen=True)
class Stock:
    """What one node has of one wanted folder. Sizes in bytes.

    `programs` are the download programs of the node, by hub, as absolute paths; `python` is where `pip install` would
    have to put a missing one. `problem` is why the node gave no answer.
    """

    host: str
    hostname: str
    node_id: str
    wanted: Wanted
    weights: Weights | None = None
    programs: Mapping[Hub, str] = field(default_factory=dict)
    python: str = ""
    problem: str = ""

    @property
    def name(self) -> str:
        """Address and hostname."""
        return f"{self.host} ({self.hostname})" if self.hostname else self.host

    @property
    def state(self) -> Literal["complete", "incomplete", "missing", "unknown"]:
        """Whether a server could load it."""
        if self.weights is None:
            return "unknown"
        if not self.weights.exists or not self.weights.files:
            return "missing"
        return "incomplete" if gaps_of(self.weights) else "complete"


@dataclass(frozen=True)
class DownloadProgress:
    """A download at one moment. `have_bytes` counts what its program has written so far, in its own folders too.

    `total_bytes` is 0 until the model's index has arrived. `line` is the last that the program said.
    """

    have_bytes: int = 0
    total_bytes: int = 0
    line: str = ""
    running: bool = True
    exit_code: int | None = None
    exit_signal: int | None = None
    error: str = ""
    log: str = ""
    tail: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """It ended, and not well."""
        return not self.running and self.exit_code != 0


@dataclass(frozen=True)
class WeightsReport:
    """The weights of a recipe on every node that could run it."""

    recipe: str
    wanted: tuple[Wanted, ...]
    stocks: tuple[Stock, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every node has all of it. A tiny model is made by the first start, so it may be absent."""
        return all(stock.state == "complete" or stock.wanted.tiny for stock in self.stocks)


def wanted_weights(recipe: Recipe) -> tuple[Wanted, ...]:
    """The folders that a server of this recipe reads. A drafter without a path lies within the model (MTP)."""
    model = recipe.model
    wanted = [Wanted("model", model.path, model.sources, model.tiny)]
    if path := drafter_path(recipe):
        wanted.append(Wanted("drafter", path, recipe.features.speculative.sources))
    return tuple(wanted)


def drafter_path(recipe: Recipe) -> str | None:
    """The folder of a drafter; anything else that vLLM takes for its model is a hub's name or a method's."""
    drafter = recipe.features.speculative
    return drafter.model if drafter.enabled and drafter.model.startswith("/") else None


def gaps_of(weights: Weights) -> str:
    """What is wrong with weights that exist; "" when nothing is."""
    gaps = []
    if weights.missing:
        gaps.append(f"missing {shorten(weights.missing)}")
    if weights.damaged:
        gaps.append(f"cut off or unreadable {shorten(weights.damaged)}")
    if "config.json" not in weights.files:
        gaps.append("no config.json")
    if not any(name.endswith(WEIGHT_SUFFIXES) for name in weights.files):
        gaps.append("no weight files")
    return "; ".join(gaps)


def shorten(names: Iterable[str], shown: int = 5) -> str:
    """The first few names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more


def download_argv(hub: Hub, wanted: Wanted, program: str = "") -> tuple[str, ...] | None:
    """The command that brings `wanted`, or goes on where an interrupted one stopped; None: not on that hub.

    Both programs compare the hash of a file that is there and fetch it again when it differs.
    """
    name = getattr(wanted.sources, hub, None)
    if not name:
        return None
    folder = wanted.path.rstrip("/") or "/"
    tool = program or PROGRAMS[hub]
    if hub == "modelscope":
        return (tool, "download", "--model", name, "--local_dir", folder)
    return (tool, "download", name, "--local-dir", folder)


def hubs_of(wanted: Wanted) -> tuple[Hub, ...]:
    """The hubs that have it, the preferred one first."""
    return tuple(hub for hub in HUBS if download_argv(hub, wanted))


def is_network(filesystem: str | None) -> bool:
    """Whether a filesystem type (as in mountinfo) is served by another machine, so that other nodes may see it too."""
    kind = filesystem or ""
    if kind.startswith("fuse.") and not kind.removeprefix("fuse.").startswith(_LOCAL_FUSE):
        return True
    return kind in _NETWORK


def lanes(stocks: Iterable[Stock]) -> list[list[list[Stock]]]:
    """Order what has to be downloaded: lanes go side by side, the groups of a lane one after the other.

    A group are nodes that see the same folder: one of them downloads for all. Local folders of a node share a lane, and
    so do all network filesystems: one server may go by two names, and the second look then finds the folder filled.
    """
    groups: dict[tuple[str, str], list[Stock]] = {}
    for stock in stocks:
        place = stock.weights.place if stock.weights else ""
        groups.setdefault((stock.wanted.role, place or stock.node_id), []).append(stock)
    open_groups = [group for group in groups.values() if any(_is_wanting(stock) for stock in group)]
    found: dict[str, list[list[Stock]]] = {}
    for group in open_groups:
        lane = (
            "network" if any(_is_remote(stock) for stock in group) else f"node {group[0].node_id}"
        )
        found.setdefault(lane, []).append(group)
    return list(found.values())


def downloader(group: Iterable[Stock]) -> Stock:
    """Who downloads for a group: the first with a program for it, else the first that lacks something."""
    wanting = [stock for stock in group if _is_wanting(stock)]
    able = [stock for stock in wanting if set(stock.programs).intersection(hubs_of(stock.wanted))]
    return [*able, *wanting][0]


def _is_wanting(stock: Stock) -> bool:
    return stock.weights is not None and stock.state != "complete" and stock.wanted.tiny is None


def _is_remote(stock: Stock) -> bool:
    return stock.weights is not None and is_network(stock.weights.filesystem)
