"""The server that raylaunch plans for one host serves, on the real vLLM and vllm-ascend.

Real: the command line and environment of the plan, vLLM, vllm-ascend with its models, data and
expert parallelism. Simulated: the NPUs (simulated_npu/), with gloo in HCCL's place. Each recipe is
scaled down: sizes, float32, eager, no quantisation, no drafter, random weights. Engine cores and
workers are forked, so that vLLM is imported once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from model_folders import DEEPSEEK_V3, write_folder

from raylaunch.node.model.tiny_model import ensure_tiny_model
from raylaunch.plan.facts import Facts
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(3600)]

READY_S = 1800.0
STOP_S = 120.0
SCALED = (
    "parallel.data=2",
    "network.host=127.0.0.1",
    "tuning.jemalloc=false",
    "features.speculative.enabled=false",
    "args.quantization=null",
    "args.dtype=float32",
    "args.enforce-eager=true",
    "args.max-model-len=256",
    "args.max-num-seqs=4",
    "args.max-num-batched-tokens=256",
    "args.num-gpu-blocks-override=64",
    "env.VLLM_WORKER_MULTIPROC_METHOD=fork",
)
MLA = DEEPSEEK_V3 | {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 16,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 4,
    "kv_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
}
"""A DeepSeek shape: latent attention, and experts in groups beside a shared one."""


@contextmanager
def serving(recipe: str, sets: list[str], folder: Path):
    """Run the planned server until the test ends; yields its process once it is healthy."""
    loaded = read(recipe, [*SCALED, *sets])
    (server,) = build_plan(loaded, [Facts("127.0.0.1", interface="lo")]).servers
    kept = {name: value for name, value in os.environ.items() if name not in server.unset}
    env = {**kept, **server.environ, "HOME": str(folder)}
    command = [str(Path(sys.prefix, "bin", "vllm")), *server.argv[1:]]
    log = folder / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        await_healthy(process, f"http://127.0.0.1:{server.ports.http}", log)
        yield process, f"http://127.0.0.1:{server.ports.http}/v1"
    finally:
        stop(process)


def await_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        assert process.poll() is None, log.read_text()[-6000:]
        assert time.monotonic() < deadline, log.read_text()[-6000:]
        try:
            if httpx.get(f"{url}/health", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)  # nothing reports that a server of another process listens


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server as raylaunch does, by a signal; what is left of its session is killed."""
    if process.poll() is None:
        members = [psutil.Process(process.pid), *psutil.Process(process.pid).children(True)]
        process.terminate()
        _, left = psutil.wait_procs(members, timeout=STOP_S)
        for one in left:
            one.send_signal(signal.SIGKILL)
        process.wait()


def answers(url: str, model: str, rank: int) -> list[tuple[str, list[float]]]:
    """Ask one rank four seeded requests: texts, and log-probabilities of the tokens."""
    found = []
    for seed in range(4):
        body = {"model": model, "prompt": f"{seed}: the quick brown", "max_tokens": 12}
        sampling = {"temperature": 1.0, "seed": seed, "logprobs": 1}
        headers = {"X-data-parallel-rank": str(rank)}
        reply = httpx.post(
            f"{url}/completions",
            json=body | sampling,
            headers=headers,
            timeout=600,
            trust_env=False,
        )
        assert reply.status_code == 200, reply.text
        (choice,) = reply.json()["choices"]
        logprobs = [round(value, 3) for value in choice["logprobs"]["token_logprobs"]]
        found.append((choice["text"], logprobs))
    return found


def test_the_shape_of_deepseek_answers_on_both_ranks(tmp_path, free_port):
    """Latent attention and grouped experts over two ranks of one NPU each."""
    write_folder(MLA, tmp_path / "model")
    sets = [f"model.path={tmp_path}/model", "parallel.tensor=1", "parallel.data_local=2"]
    sets += [f"network.http_port={free_port}", "parallel.api_servers=1", "args.load-format=dummy"]
    with serving("deepseek-v3.1-a2-dual", sets, tmp_path) as (_, url):
        first = answers(url, "deepseek_v3", rank=0)
        assert answers(url, "deepseek_v3", rank=1) == first, "equal weights, equal seeds"


def test_the_shape_of_a3_single_gives_the_same_answers_when_it_runs_again(tmp_path, free_port):
    """tp=2 dp=2 in place of tp=4 dp=4: expert parallelism over four NPUs, FLASHCOMM1."""
    ensure_tiny_model("minimax_m2", tmp_path / "model")
    sets = [f"model.path={tmp_path}/model", "parallel.tensor=2", "parallel.api_servers=1"]
    sets.append(f"network.http_port={free_port}")
    runs = []
    for number in range(2):
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        with serving("a3-single", sets, folder) as (_, url):
            runs.append([answers(url, "MiniMax-M2.5", rank) for rank in range(2)])
    assert runs[0] == runs[1], "equal weights, equal seeds"
    assert runs[0][0] == runs[0][1], "whatever the other rank does meanwhile"
