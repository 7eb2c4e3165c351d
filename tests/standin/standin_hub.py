"""Stands in for `modelscope` and `hf`: their words, a small model instead of the network, resumable
as they are.

$STANDIN_HUB is a folder. `hold` in it: stop in the middle of the second shard and wait for ever,
with a child of its own; `held` appears then. `fail`: exit 1 after the first shard. `calls` gets a
line of JSON per start and shard.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SHARDS = 3
SHARD_BYTES = 1 << 20
PIECE_BYTES = 1 << 17
PIECE_S = 0.01
WORDS = {
    "modelscope": ("--model", "--local_dir", "._____temp"),
    "hf": ("", "--local-dir", ".cache/huggingface/download"),
}


def main(tool: str, words: list[str]) -> int:
    name_flag, folder_flag, unfinished = WORDS[tool]
    known = ["download", *([name_flag] if name_flag else []), "NAME", folder_flag, "FOLDER"]
    if len(words) != len(known) or any(
        a != b for a, b in zip(words, known, strict=True) if b.islower() or "-" in b
    ):
        print(f"usage: {tool} {' '.join(known)}", file=sys.stderr)
        return 2
    name, folder = words[-3], Path(words[-1])
    record = Path(os.environ["STANDIN_HUB"])
    note(record, start=words, tool=tool, pid=os.getpid())
    download(name, folder, folder / unfinished, record)
    return 0


def download(name: str, folder: Path, partial: Path, record: Path) -> None:
    partial.mkdir(parents=True, exist_ok=True)
    shards = [f"model-{n:05}-of-{SHARDS:05}.safetensors" for n in range(1, SHARDS + 1)]
    index = {
        "metadata": {"total_size": SHARDS * SHARD_BYTES},
        "weight_map": {shard: shard for shard in shards},
    }
    config = {"model_type": "minimax_m2", "num_attention_heads": 48, "num_key_value_heads": 8}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for number, shard in enumerate(shards):
        if (folder / shard).exists():
            continue
        fetch(name, partial / shard, record, hold=number == 1)
        (partial / shard).replace(folder / shard)
        if (record / "fail").exists():
            sys.exit("ERROR: connection reset by the hub")


def fetch(name: str, file: Path, record: Path, *, hold: bool) -> None:
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [SHARD_BYTES], "data_offsets": [0, SHARD_BYTES]}}
    ).encode()
    content = (
        len(header).to_bytes(8, "little") + header + (name.encode() * SHARD_BYTES)[:SHARD_BYTES]
    )
    have = file.stat().st_size if file.exists() else 0
    note(record, shard=file.name, begins_at=have)
    with file.open("ab") as out:
        for at in range(have, len(content), PIECE_BYTES):
            out.write(content[at : at + PIECE_BYTES])
            out.flush()
            print(
                f"\rDownloading [{file.name}]: {out.tell()}/{len(content)}",
                end="",
                file=sys.stderr,
                flush=True,
            )
            if hold and at >= len(content) // 2 and (record / "hold").exists():
                wait_for_ever(record)
            time.sleep(PIECE_S)
    print(file=sys.stderr)


def wait_for_ever(record: Path) -> None:
    """With a child in a session of its own, which an end of the process group does not reach."""
    words = [sys.executable, "-S", "-c", "import signal; signal.pause()"]
    child = subprocess.Popen(words, start_new_session=True)
    (record / "held.new").write_text(json.dumps([os.getpid(), child.pid]))
    (record / "held.new").rename(record / "held")
    while True:
        signal.pause()


def note(record: Path, **facts: object) -> None:
    with (record / "calls").open("a") as file:
        file.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
