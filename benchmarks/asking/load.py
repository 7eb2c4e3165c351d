"""Run `vllm bench serve` at several concurrencies in one process: importing vLLM takes seconds.

load.py URL MODEL SECONDS_OF_REQUESTS CONCURRENCY... prints one JSON object per concurrency.
"""

import contextlib
import json
import sys

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

KEPT = (
    *("completed", "failed", "duration", "request_throughput", "output_throughput"),
    *("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms"),
)
INPUT_TOKENS, OUTPUT_TOKENS = 32, 16


def measure(url: str, model: str, prompts: int, concurrency: int) -> dict[str, float]:
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    words = [
        "--backend",
        "openai",
        "--base-url",
        url,
        "--endpoint",
        "/v1/completions",
        "--disable-tqdm",
    ]
    words += [
        "--model",
        "tiny",
        "--served-model-name",
        "tiny",
        "--tokenizer",
        model,
        "--dataset-name",
        "random",
    ]
    words += [
        "--random-input-len",
        str(INPUT_TOKENS),
        "--random-output-len",
        str(OUTPUT_TOKENS),
        "--ignore-eos",
    ]
    words += ["--num-prompts", str(prompts), "--max-concurrency", str(concurrency)]
    with contextlib.redirect_stdout(sys.stderr):
        result = main(parser.parse_args(words))
    return {"concurrency": concurrency, **{name: result[name] for name in KEPT if name in result}}


if __name__ == "__main__":
    url, model, prompts, *levels = sys.argv[1:]
    measure(url, model, 8, 4)  # not counted: the first requests of a server are slow
    for level in map(int, levels):
        print(json.dumps(measure(url, model, max(8, int(prompts) * level), level)), flush=True)
