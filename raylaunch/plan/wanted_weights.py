"""The weights a recipe needs: folders, their completeness per node, and the download commands."""

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
"""In order of preference: the guide's hub first."""
PROGRAMS: Mapping[Hub, str] = {"modelscope": "modelscope", "huggingface": "hf"}
INSTALL: Mapping[Hub, str] = {
    "modelscope": "pip install modelscope",
    "huggingface": "pip install -U huggingface_hub",
}
"""The command that installs the program; `hf` is in huggingface_hub since 0.34."""

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")

_NETWORK = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "ceph", "gpfs", "beegfs", "glusterfs"),
        *("afs", "pvfs2", "orangefs", "9p", "virtiofs", "fuse", "fuseblk"),
    )
)
_LOCAL_FUSE = ("overlayfs", "fuse-overlayfs", "lxcfs", "mergerfs", "ntfs", "squashfuse")


@dataclass(frozen=True)
class Wanted:
    """A folder of weights that each server reads. `tiny` is generated, not downloaded."""

    role: Role
    path: str
    sources: Sources | None = None
    tiny: Literal["qwen3", "minimax_m2"] | None = None


@dataclass(frozen=True)
class Stock:
    """What one node has of one wanted folder. Sizes in bytes.

    `programs` are the node's download programs, by hub, as absolute paths; `python` is the
    environment into which `pip install` puts a missing one. `problem` is why the probe failed.
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
        if self.hostname:
            return f"{self.host} ({self.hostname})"
        return self.host

    @property
    def state(self) -> Literal["complete", "incomplete", "missing", "unknown"]:
        """Whether a server could load the folder."""
        if self.weights is None:
            return "unknown"
        if not self.weights.exists or not self.weights.files:
            return "missing"
        return "incomplete" if gaps_of(self.weights) else "complete"


@dataclass(frozen=True)
class DownloadProgress:
    """A download at one moment.

    `have_bytes` counts everything its program has written, also into the program's own folders.
    `total_bytes` is 0 until the model's index has arrived. `line` is the program's last output.
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
        """Whether the program exited with an error."""
        return not self.running and self.exit_code != 0


@dataclass(frozen=True)
class WeightsReport:
    """The weights of a recipe on every node that could run it."""

    recipe: str
    wanted: tuple[Wanted, ...]
    stocks: tuple[Stock, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every node has all weights. A tiny model may be absent: `start` generates it."""
        return all(stock.state == "complete" or stock.wanted.tiny for stock in self.stocks)


def wanted_weights(recipe: Recipe) -> tuple[Wanted, ...]:
    """Return the folders that a server of this recipe reads.

    A drafter without a path is part of the model (MTP).
    """
    model = recipe.model
    wanted = [Wanted("model", model.path, model.sources, model.tiny)]
    path = drafter_path(recipe)
    if path:
        wanted.append(Wanted("drafter", path, recipe.features.speculative.sources))
    return tuple(wanted)


def drafter_path(recipe: Recipe) -> str | None:
    """Return the folder of a separate drafter; None without one.

    vLLM also accepts a hub's name or a method's name as its model.
    """
    drafter = recipe.features.speculative
    if drafter.enabled and drafter.model.startswith("/"):
        return drafter.model
    return None


def gaps_of(weights: Weights) -> str:
    """Describe what is missing or damaged in weights that exist; "" when they are complete."""
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
    """List the first few names, and the number of the others."""
    every = list(names)
    more = f" and {len(every) - shown} more" if len(every) > shown else ""
    return ", ".join(every[:shown]) + more


def download_argv(hub: Hub, wanted: Wanted, program: str = "") -> tuple[str, ...] | None:
    """Return the command that downloads `wanted`, or resumes an interrupted download.

    None when that hub does not have it. Both programs compare the hash of an existing file and
    download it again when it differs.
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
    """Return the hubs that have it, the preferred one first."""
    return tuple(hub for hub in HUBS if download_argv(hub, wanted))


def is_network(filesystem: str | None) -> bool:
    """Return whether a filesystem type (as in mountinfo) is served by another machine.

    Other nodes may then mount the same folder.
    """
    kind = filesystem or ""
    if kind.startswith("fuse.") and not kind.removeprefix("fuse.").startswith(_LOCAL_FUSE):
        return True
    return kind in _NETWORK


def lanes(stocks: Iterable[Stock]) -> list[list[list[Stock]]]:
    """Order the downloads: lanes run in parallel, the groups of a lane one after the other.

    A group is the nodes that mount the same folder: one of them downloads for all. Local folders of
    a node share a lane, and so do all network filesystems: one file server may have two names, and
    the second probe then finds the folder complete.
    """
    groups: dict[tuple[str, str], list[Stock]] = {}
    for stock in stocks:
        place = stock.weights.place if stock.weights else ""
        key = (stock.wanted.role, place or stock.node_id)
        groups.setdefault(key, []).append(stock)
    by_lane: dict[str, list[list[Stock]]] = {}
    for group in groups.values():
        if not any(_needs_download(stock) for stock in group):
            continue
        lane = f"node {group[0].node_id}"
        if any(_is_remote(stock) for stock in group):
            lane = "network"
        by_lane.setdefault(lane, []).append(group)
    return list(by_lane.values())


def downloader(group: Iterable[Stock]) -> Stock:
    """Choose the node that downloads for a group.

    The first incomplete one with a program for it, else the first incomplete one.
    """
    incomplete = [stock for stock in group if _needs_download(stock)]
    for stock in incomplete:
        hubs = hubs_of(stock.wanted)
        if set(stock.programs).intersection(hubs):
            return stock
    return incomplete[0]


def _needs_download(stock: Stock) -> bool:
    if stock.weights is None or stock.wanted.tiny is not None:
        return False
    return stock.state != "complete"


def _is_remote(stock: Stock) -> bool:
    return stock.weights is not None and is_network(stock.weights.filesystem)
