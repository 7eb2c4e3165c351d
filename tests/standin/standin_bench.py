"""`vllm bench serve` in small: real requests against a server, the result file with vLLM's keys,
made-up latencies."""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def bench(words):
    """Send --num-prompts requests one after the other; print a summary, and save it with --save-
    result."""
    flags = _parse(words)
    begun = time.monotonic()
    count = int(flags.get("num-prompts", 4))
    output_len = int(
        flags.get("prefix-repetition-output-len") or flags.get("random-output-len") or 16
    )
    sys.stdout.write(f"Namespace(num_prompts={count})\nStarting main benchmark run...\n")
    sys.stdout.flush()
    completed = 0
    for number in range(count):
        completed += _send(flags, number, output_len)
        _draw_bar(number + 1, count)
    sys.stderr.write("\n")
    result = _result(flags, count, completed, completed * output_len, time.monotonic() - begun)
    sys.stdout.write("============ Serving Benchmark Result ============\n")
    sys.stdout.writelines(f"{key:<40} {value}\n" for key, value in result.items())
    if "save-result" in flags:
        path = Path(
            flags.get("result-dir") or ".", flags.get("result-filename") or "standin-bench.json"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
    sys.exit(0)


def _draw_bar(done, count):
    """As tqdm draws it on a pipe."""
    sys.stderr.write(
        f"\r{100 * done // count:3d}%|{'#' * (10 * done // count):<10}| {done}/{count} [00:00<00:00, 9.9it/s]"
    )
    sys.stderr.flush()


def _parse(words):
    flags, name = {}, None
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            flags[name] = value
        elif name:
            flags[name] = word
    return flags


def _send(flags, number, output_len):
    root = (
        flags.get("base-url")
        or f"http://{flags.get('host', '127.0.0.1')}:{flags.get('port', 8000)}"
    )
    body = {
        "model": flags.get("model"),
        "prompt": f"prompt {number}",
        "max_tokens": output_len,
        "stream": True,
    }
    headers = (
        {"Authorization": f"Bearer {key}"} if (key := os.environ.get("OPENAI_API_KEY")) else {}
    )
    request = urllib.request.Request(root + "/v1/completions", json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.read().endswith(b"data: [DONE]\n\n")
    except OSError:
        return False


def _result(flags, count, completed, tokens, duration):
    latencies = {
        f"{kind}_{name}_ms": value
        for name, value in (("ttft", 12.5), ("tpot", 1.5), ("itl", 1.5))
        for kind in ("mean", "median", "p99")
    }
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "backend": flags.get("backend", "openai"),
        "model_id": flags.get("model"),
        "tokenizer_id": flags.get("tokenizer") or flags.get("model"),
        "num_prompts": count,
        "request_rate": flags.get("request-rate", "inf"),
        "max_concurrency": int(flags["max-concurrency"]) if "max-concurrency" in flags else None,
        "duration": duration,
        "completed": completed,
        "failed": count - completed,
        "total_input_tokens": 2 * count,
        "total_output_tokens": tokens,
        "request_throughput": completed / duration,
        "output_throughput": tokens / duration,
        "total_token_throughput": (tokens + 2 * count) / duration,
        **latencies,
    }
