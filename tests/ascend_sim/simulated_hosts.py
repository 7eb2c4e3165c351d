"""Test hosts with recorded NPUs and this environment's vLLM; what a2-dual is scaled down to."""

from __future__ import annotations

import json
from collections import Counter

from a2_hosts import A2Host
from hosts import Host
from ray_hosts import RayCluster

RUN_S = 3000.0
"""Deadline of one command, in seconds. Each server imports vLLM once, and forks."""

TINY = ("model.path=", "model.tiny=minimax_m2")
"""Random weights, which every host generates for itself; `verify` does not grade their text."""

SIZES = (
    "parallel.tensor=2",
    "args.max-model-len=2048",
    "args.max-num-seqs=8",
    "args.max-num-batched-tokens=512",
    "args.num-gpu-blocks-override=64",
)
PATIENT = (
    "env.VLLM_ENGINE_READY_TIMEOUT_S=3000",
    "health.stall_s=600",
    "health.agent_silent_s=60",
)
"""Both hosts share two cores: an agent's process may wait for seconds."""

LEAN = ("parallel.api_servers=1", "env.VLLM_WORKER_MULTIPROC_METHOD=fork")
"""Fewer processes, which share what one of them has imported: both hosts have two cores."""

SIMPLER = ("args.dtype=float32", "args.enforce-eager=true")
"""No graphs and no bfloat16: the simulated NPUs have neither."""

ASK = """
import httpx, json, sys
url, model, ranks, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
answers = []
for number in range(count):
    rank = number % ranks
    body = {"model": model, "prompt": f"{number}: the quick brown", "max_tokens": 16,
            "temperature": 1.0, "seed": number, "logprobs": 1}
    headers = {"X-data-parallel-rank": str(rank)}
    answer = httpx.post(url + "/completions", json=body, headers=headers, timeout=300, trust_env=False)
    answer.raise_for_status()
    choice = answer.json()["choices"][0]
    logprobs = [round(value, 3) for value in choice["logprobs"]["token_logprobs"]]
    answers.append([rank, choice["text"], logprobs])
print(json.dumps(answers))
"""


def install(host: Host, number: int) -> None:
    """Give a host recorded tools; its vLLM is that of the running environment."""
    A2Host(host, number).install({"OMP_NUM_THREADS": "1"})


def settings(*more: str) -> list[str]:
    """Return `--set` words: a tiny model, small sizes, eager float32."""
    words: list[str] = []
    for setting in (*TINY, *SIZES, *SIMPLER, *PATIENT, *LEAN, *more):
        words += ["--set", setting]
    return words


def ask_each_rank(cluster: RayCluster, endpoint: str, model: str, *, ranks: int) -> list[list]:
    """Send eight seeded requests, each to a rank by its number; return (rank, text, logprobs)."""
    command = ["python", "-c", ASK, endpoint, model, str(ranks), "8"]
    return json.loads(cluster.run(command, timeout=RUN_S).stdout)


def served_by(cluster: RayCluster, endpoint: str) -> Counter[str]:
    """Return how many requests each engine has served, by its number (the API's metrics)."""
    script = "import httpx, sys; print(httpx.get(sys.argv[1], timeout=60, trust_env=False).text)"
    url = f"{endpoint.removesuffix('/v1')}/metrics"
    served: Counter[str] = Counter()
    for line in cluster.run(["python", "-c", script, url], timeout=RUN_S).stdout.splitlines():
        if line.startswith("vllm:request_success_total"):
            served[line.split('engine="')[1].partition('"')[0]] += int(float(line.split()[-1]))
    return served
