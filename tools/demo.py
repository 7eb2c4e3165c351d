"""One chat with a running deployment: the second half of `make demo`.

usage: demo.py DEPLOYMENT
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx

QUESTION = "Say hello."


def main() -> int:
    name = sys.argv[1]
    status = _read_status(name)
    endpoint, model = status["endpoint"], status["served_name"]
    try:
        answer = _ask(endpoint, model)
    except httpx.HTTPError as error:
        print(f"{endpoint} did not answer: {error}\nlook: raylaunch logs {name}", file=sys.stderr)
        return 1
    print(f"\nquestion  {QUESTION}")
    print(f"answer    {answer!r}")
    print("          (random weights: the words mean nothing, the way they took does)")
    print(f"endpoint  {endpoint}  model {model}")
    print("stop      make demo-stop")
    return 0


def _read_status(name: str) -> dict[str, str]:
    raylaunch = Path(sys.executable).with_name("raylaunch")
    done = subprocess.run(
        [raylaunch, "status", name, "-o", "json"], stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)  # raylaunch has said why, on stderr
    status: dict[str, str] = json.loads(done.stdout)
    return status


def _ask(endpoint: str, model: str) -> str:
    request = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 16,
        "temperature": 0,
    }
    with httpx.Client(
        trust_env=False, timeout=120
    ) as client:  # the server is on this machine: no proxy in between
        reply = client.post(f"{endpoint}/chat/completions", json=request).raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"])


if __name__ == "__main__":
    sys.exit(main())
