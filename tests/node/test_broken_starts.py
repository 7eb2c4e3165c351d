"""Starts of real vLLM on CPU that are broken on purpose: the log alone names the cause.

Each case breaks one thing, starts `vllm serve` as raylaunch does, awaits its exit, and diagnoses
the log. All starts are forks of one process that has imported vLLM. Those that fail before an
engine starts run in `make test`; the others take a minute together.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest

from raylaunch.node.model.tiny_model import ensure_tiny_model
from raylaunch.node.probe.vllm_cpu_metadata import ensure_vllm_metadata
from raylaunch.supervise.diagnosis.root_cause import ServerEvidence, diagnose, diagnose_text
from raylaunch.supervise.state import Exit

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@dataclass
class Start:
    """One start of `vllm serve`, before a case breaks it."""

    model: Path
    scratch: Path
    port: int
    flags: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    held: list[socket.socket] = field(default_factory=list)
    mounted: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Broken:
    break_it: Callable[[Start], None]
    id: str
    """Expected id of the diagnosis."""
    words: tuple[str, ...]
    """What its cause must name."""


def bad_flag(start: Start) -> None:
    start.flags += ["--no-such-flag", "7"]


def bad_parser(start: Start) -> None:
    start.flags += ["--enable-auto-tool-choice", "--tool-call-parser", "nonsense"]


def missing_shard(start: Start) -> None:
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    (start.model / "model.safetensors").rename(start.model / names[0])
    weight_map = {"model.embed_tokens.weight": names[0], "model.norm.weight": names[1]}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (start.model / "model.safetensors.index.json").write_text(json.dumps(index))


def port_taken(start: Start) -> None:
    listener = socket.create_server(("127.0.0.1", start.port))
    start.held.append(listener)


def too_much_memory(start: Start) -> None:
    start.env["VLLM_CPU_KVCACHE_SPACE"] = "9000"


def kv_too_small(start: Start) -> None:
    start.flags += ["--kv-cache-memory-bytes", "300000"]
    start.env.pop("VLLM_CPU_KVCACHE_SPACE")


def wrong_model_type(start: Start) -> None:
    change_config(start, model_type="frobnicate")


def wrong_architecture(start: Start) -> None:
    change_config(start, architectures=["FrobnicateForCausalLM"])


def change_config(start: Start, **values: object) -> None:
    config = start.model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **values}))


def full_disk(start: Start) -> None:
    """Give vLLM's sockets a file system that has no inode left."""
    if os.geteuid():
        pytest.skip("only root may mount a small file system")
    folder = start.scratch / "full"
    folder.mkdir()
    options = ["-o", "size=64k,nr_inodes=2"]
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)], check=True)
    start.mounted.append(folder)
    (folder / "last").touch()
    start.env["VLLM_RPC_BASE_PATH"] = str(folder)


def no_permission(start: Start) -> None:
    (start.model / "config.json").chmod(0)


def no_such_name(start: Start) -> None:
    where = start.flags.index("--host") + 1
    start.flags[where] = "no-such-host.invalid"


def longer_than_the_model(start: Start) -> None:
    where = start.flags.index("--max-model-len") + 1
    start.flags[where] = "99999999"


QUICK = {
    "bad flag": Broken(bad_flag, "bad-flag", ("--no-such-flag",)),
    "wrong model type": Broken(wrong_model_type, "transformers-too-old", ("frobnicate",)),
    "port taken": Broken(port_taken, "port-in-use", ("Another process listens",)),
    "too long": Broken(longer_than_the_model, "maxlen-over", ("99999999",)),
}
LONG = {
    "bad parser": Broken(bad_parser, "bad-parser", ("nonsense",)),
    "wrong architecture": Broken(wrong_architecture, "model-arch", ("Frobnicate",)),
    "no permission": Broken(no_permission, "permission-denied", ("config.json",)),
    "name resolution": Broken(no_such_name, "name-resolution", ("no-such-host.invalid",)),
    "full disk": Broken(full_disk, "disk-full", ("/full/",)),
    "missing shard": Broken(missing_shard, "weights-missing", ("model-00002-of-00002",)),
    "memory": Broken(too_much_memory, "kv-cpu-memory", ("9000",)),
    "KV cache too small": Broken(kv_too_small, "kv-too-small", ("1024",)),
}


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    """A process that has imported vLLM and starts it once for each line on its stdin."""
    metadata = tmp_path_factory.mktemp("metadata") / "0.32.0"
    ensure_vllm_metadata(metadata)
    env = {**environment(tmp_path_factory.getbasetemp()), "PYTHONPATH": str(metadata)}
    script = Path(__file__).with_name("vllm_forks.py")
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        await_line(process, "ready")
        yield process
        process.kill()


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a start; all of them share what vLLM stores about model classes."""
    return {
        **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
        "HOME": str(home),
        "VLLM_CACHE_ROOT": str(home / "vllm-cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_WORKER_MULTIPROC_METHOD": "fork",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def await_line(process: subprocess.Popen[str], wanted: str = "") -> str:
    """Return the next line of the process that is `wanted`, or a number."""
    assert process.stdout is not None
    for line in process.stdout:
        text = line.strip()
        if text == wanted or (not wanted and text.lstrip("-").isdigit()):
            return text
    raise AssertionError(f"the process that starts vLLM exited with {process.wait(60)}")


def stdin_of(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdin is not None
    return process.stdin


@pytest.fixture
def start(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, free_port: int
) -> Iterator[Start]:
    made = Start(ensure_tiny_model("qwen3", tmp_path / "model"), tmp_path, free_port)
    made.flags = ["--host", "127.0.0.1", "--port", str(free_port), "--enforce-eager"]
    made.flags += ["--max-model-len", "1024", "--max-num-seqs", "4", "--dtype", "float32"]
    made.env = environment(tmp_path_factory.getbasetemp())
    yield made
    for listener in made.held:
        listener.close()
    for folder in made.mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("case", QUICK.values(), ids=QUICK)
def test_the_log_of_a_broken_start_names_the_cause(
    case: Broken, start: Start, vllm: subprocess.Popen[str]
) -> None:
    check(case, start, vllm)


@pytest.mark.long
@pytest.mark.parametrize("case", LONG.values(), ids=LONG)
def test_the_log_of_a_broken_engine_names_the_cause(
    case: Broken, start: Start, vllm: subprocess.Popen[str]
) -> None:
    check(case, start, vllm)


def check(case: Broken, start: Start, vllm: subprocess.Popen[str]) -> None:
    case.break_it(start)
    code, log = run(start, vllm)
    exited = Exit(code=code, at=time.time())
    offset_s = float(time.localtime().tm_gmtoff)
    evidence = ServerEvidence(0, log_lines=log.splitlines(), exit=exited, utc_offset_s=offset_s)
    for found in (diagnose([evidence]), diagnose_text(log)):
        assert found is not None, log[-3000:]
        assert found.id == case.id, (found, log[-3000:])
        assert (found.root, found.certain) == (0, True), found
        missing = [word for word in case.words if word not in f"{found.cause} {found.line}"]
        assert missing == [], found


def run(start: Start, vllm: subprocess.Popen[str]) -> tuple[int, str]:
    """Start `vllm serve` and return its exit code and its log."""
    log = start.scratch / "server.log"
    wanted = {
        "flags": [str(start.model), *start.flags],
        "env": start.env,
        "log": str(log),
    }
    print(json.dumps(wanted), file=stdin_of(vllm), flush=True)
    code = int(await_line(vllm))
    text = log.read_text(errors="replace")
    assert code != 0, text[-3000:]
    return code, text
