"""Time from command to first token with weights on a disk, with and without reading ahead.

A model of 0.6 billion random parameters (1.2 GB per host, a copy for each), dp=2 over two test
hosts as in peers.py (needs root). Before each run the kernel drops both copies from its page cache.
Rounds are interleaved: with the disk as it is, and with one that is slow beside the imports, as a
file server is beside 230 GB (the kernel's blkio controller limits what both hosts together read).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import contenders
from benchmark_hosts import (
    HOME,
    PeerError,
    TwoHosts,
    one_scheduling_group,
    open_hosts,
    touch_memory,
)
from contenders import RAYLAUNCH, SCRIPTS, Peer
from peers import launch
from report import publish, spread, table

from raylaunch.node.model.tiny_model import ensure_tiny_model

FOLDER = f"{HOME}/weights"
RECIPE = f"{HOME}/large.yaml"
TEXT = f"extends: local-dual\nmodel: {{path: {FOLDER}, tiny: null}}\nnetwork: {{interface: auto}}\n"
GOAL = 1.05
MAKE = """
import sys, torch
from transformers import Qwen3Config, Qwen3ForCausalLM
config = Qwen3Config(vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
                     num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
                     max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=0)
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
Qwen3ForCausalLM(config).save_pretrained(sys.argv[1], max_shard_size="400MB")
"""
"""The shape of Qwen3-0.6B."""

DISK_MB_S = 100
"""At that rate both copies take 24 s, about what vLLM takes here until it loads them."""
CGROUPS = Path("/sys/fs/cgroup")

INTRO = (
    "Random weights in the shape of Qwen3-0.6B, 1.2 GB for each host, dropped from the page cache before each run; "
    "real vLLM on CPU, dp=2, on two test hosts that share this machine's cores and disk. The slow disk is the same "
    f"one, with the kernel's limit of {DISK_MB_S} MB/s on what both hosts read together. raylaunch reads the weights "
    "into the page cache while vLLM imports its modules. Where the cores are the bottleneck and the disk is not, that "
    f"is CPU spent for nothing. Goal: at most {GOAL} times the scripts."
)

BY_HAND, AHEAD, BEHIND = "two bash scripts", "raylaunch", "raylaunch, `model.read_ahead: false`"
Way = tuple[str, Peer]
SLOW = f"gives {DISK_MB_S} MB/s"


def make_model(folder: Path) -> None:
    """The model, and a tokenizer that fits: that of the tiny model."""
    subprocess.run([sys.executable, "-c", MAKE, str(folder)], check=True)
    tiny = ensure_tiny_model("qwen3", folder.parent / "tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny / name).read_bytes())


def forget(folder: Path) -> None:
    """Drop the files from the page cache."""
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


@contextmanager
def slow_disk(folder: Path, mb_s: int) -> Iterator[None]:
    """Limit what this process and those it starts read from the disk below `folder`.

    Raises:
        SystemExit: the kernel cannot (no io or blkio controller, or a filesystem of more than one disk).
    """
    unified = (CGROUPS / "cgroup.controllers").exists()
    root = CGROUPS if unified else CGROUPS / "blkio"
    group = root / f"raylaunch-weights-{os.getpid()}"
    with ExitStack() as undo:
        try:
            device, bytes_s = _disk(folder), mb_s * 1_000_000
            group.mkdir()
            undo.callback(group.rmdir)
            if unified:
                (root / "cgroup.subtree_control").write_text("+io")
                (group / "io.max").write_text(f"{device} rbps={bytes_s}")
            else:
                (group / "blkio.throttle.read_bps_device").write_text(f"{device} {bytes_s}")
            (group / "cgroup.procs").write_text(str(os.getpid()))
            undo.callback((root / "cgroup.procs").write_text, str(os.getpid()))
        except OSError as error:
            raise SystemExit(f"the kernel cannot limit the disk below {folder}: {error}") from error
        yield


def _disk(folder: Path) -> str:
    """`major:minor` of the whole disk: limits are not for partitions."""
    number = folder.stat().st_dev
    entry = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    return ((entry.parent if (entry / "partition").exists() else entry) / "dev").read_text().strip()


DISKS: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    "as it is": lambda _: nullcontext(),
    SLOW: partial(slow_disk, mb_s=DISK_MB_S),
}


def put_model(pair: TwoHosts, copies: list[Path]) -> None:
    """Each host gets a copy of its own, under one path, and the recipe.

    The hosts' own folders lie in memory.
    """
    for host, copy in zip(pair.hosts, copies, strict=True):
        host.path(FOLDER).symlink_to(copy)
        host.put(RECIPE, TEXT)


def ways() -> list[Way]:
    """What is compared."""
    shape = (RECIPE,)
    without = (*shape, "--set", "model.read_ahead=false")
    scripts: Callable[[TwoHosts], None] = partial(contenders.prepare_scripts, shape=shape)
    return [
        (BY_HAND, replace(SCRIPTS, prepare=scripts)),
        (AHEAD, replace(RAYLAUNCH, start=partial(contenders.start_raylaunch, shape=shape))),
        (BEHIND, replace(RAYLAUNCH, start=partial(contenders.start_raylaunch, shape=without))),
    ]


def run_one(
    peer: Peer, folder: Path, cache: Path, copies: list[Path], *, cold: bool
) -> dict[str, Any]:
    """One launch on fresh hosts; an error is the result."""
    with ExitStack() as stack:
        try:
            pair = stack.enter_context(open_hosts(folder, cache))
            put_model(pair, copies)
            peer.prepare(pair)
            for copy in copies if cold else ():
                forget(copy)
            touch_memory()
            found = launch(peer, pair, limit_s=300.0)
            if peer.name == RAYLAUNCH.name:
                found["read_ahead"] = [
                    one["text"] for one in contenders.events(pair) if one["kind"] == "read-ahead"
                ]
        except (PeerError, AssertionError, subprocess.TimeoutExpired, OSError) as error:
            return {"error": f"{type(error).__name__}: {error}"[-1500:]}
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    if os.geteuid():
        raise SystemExit("weights.py makes network namespaces: run it as root")
    runs: list[dict[str, Any]] = []
    with (
        one_scheduling_group(),
        tempfile.TemporaryDirectory(prefix="rl-weights-", dir="/var/tmp") as scratch,
    ):
        folder = Path(scratch)
        copies = [folder / "model-0", folder / "model-1"]
        make_model(copies[0])
        shutil.copytree(copies[0], copies[1])
        print(
            "warm-up",
            run_one(ways()[0][1], folder / "warm-up", folder / "cache", copies, cold=False),
            flush=True,
        )
        for number in range(given.rounds):
            for disk, (limits, limit) in enumerate(DISKS.items()):
                order = ways()
                for turn, (title, peer) in enumerate(order[number % 3 :] + order[: number % 3]):
                    place = folder / f"{number}-{disk}-{turn}"
                    with limit(folder):
                        found = run_one(peer, place, folder / "cache", copies, cold=True)
                    runs.append({"round": number, "disk": limits, "way": title, **found})
                    print(json.dumps(runs[-1]), flush=True)
    write(runs)


def write(runs: list[dict[str, Any]]) -> None:
    """The section of docs/benchmarks.md."""
    rows, missed = [], []
    for disk in DISKS:
        here = [run for run in runs if run["disk"] == disk]
        scripts = {run["round"]: run.get("first_token_s") for run in here if run["way"] == BY_HAND}
        for title, _ in ways():
            found = [run for run in here if run["way"] == title]
            good = [run for run in found if "error" not in run]
            ratios = [
                run["first_token_s"] / scripts[run["round"]]
                for run in good
                if scripts.get(run["round"])
            ]
            stage = [
                run["stages"]["vLLM: weights"]
                for run in good
                if "vLLM: weights" in run.get("stages", {})
            ]
            if not good:
                rows.append([disk, title, f"failed: {found[0]['error'][-200:]}", "-", "-"])
                continue
            rows.append([
                disk, title, spread([run["first_token_s"] for run in good]), spread(ratios, 2) if ratios else "-",
                spread(stage, 1) if stage else "-",
            ])  # fmt: skip
            if title == AHEAD and ratios and (middle := median(ratios)) > GOAL:
                missed.append(
                    f"{disk}, cold weights: {middle:.2f} of the scripts' time, goal {GOAL}"
                )
    said = sorted(
        {text for run in runs for text in run.get("read_ahead", ()) if run["disk"] == SLOW}
    )
    head = [
        "disk",
        "way",
        "command to first token, s",
        "of the scripts' time, round by round",
        "vLLM: weights, s",
    ]
    events = f"What raylaunch's events say of the slow one: {'; '.join(said[:2]) or 'nothing'}."
    text = f"{INTRO}\n\n{table(head, rows)}\n\n{events}"
    publish("weights", "Weights that lie on a disk only", text, {"runs": runs}, missed=missed)
    print(text)


if __name__ == "__main__":
    main()
