"""Watch an endpoint during a fault: its health, requests finished per rank, and its own requests.

watch.py HOST PORT HEALTH_PATH; prints a JSON object per observation, until its stdin is closed.
Standard library alone.
"""

import http.client
import json
import re
import sys
import threading
import time

HEALTH_S, METRICS_S, REQUEST_S, PAUSE_S = 0.25, 1.0, 5.0, 0.1
BODY = json.dumps({"model": "tiny", "prompt": "hi", "max_tokens": 4, "temperature": 0})
DONE = re.compile(r'^vllm:request_success_total\{.*?engine="(\d+)".*?\} ([\d.e+]+)$', re.MULTILINE)


def ask(method: str, path: str, body: str | None = None) -> tuple[int, str]:
    """Status and text; status 0 without an answer in time."""
    connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=REQUEST_S)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def tell(**seen: object) -> None:
    print(json.dumps({"at": time.time(), **seen}), flush=True)


def watch_health(path: str) -> None:
    while True:
        tell(health=ask("GET", path)[0])
        time.sleep(HEALTH_S)


def watch_ranks() -> None:
    while True:
        status, text = ask("GET", "/metrics")
        done: dict[str, float] = {}
        for engine, count in DONE.findall(text):
            done[engine] = done.get(engine, 0.0) + float(count)
        tell(done=done if status == 200 else None)
        time.sleep(METRICS_S)


def request() -> None:
    while True:
        tell(ok=ask("POST", "/v1/completions", BODY)[0] == 200)
        time.sleep(PAUSE_S)


for work in (watch_ranks, request, request, request):
    threading.Thread(target=work, daemon=True).start()
threading.Thread(target=watch_health, args=sys.argv[3:], daemon=True).start()
sys.stdin.read()
