# ruff: noqa: PTH100, PTH116, PTH118, PTH120, PTH123
# (pathlib would double the start-up time)
"""What vLLM's own parser would answer to raylaunch/node/probe/ask_vllm.py, from flags.json and
values.json.

Both files were read from vLLM 0.32.

STANDIN_WITHOUT        flags and parsers that this vLLM does not have, as an older one:
"data-parallel-start-rank,..." STANDIN_ASK            hang: never answer; crash: die as at a failed
import; babble: answer with nonsense STANDIN_ASKED          file that gets a line for each question
"""

import json
import os
import signal
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PARSERS = ("tool_parsers", "reasoning_parsers")
TAKES = {"bare": "none", "list": "many", "maybe": "maybe"}


def main():
    if os.environ.get("STANDIN_ASKED"):
        with open(os.environ["STANDIN_ASKED"], "a") as file:
            file.write(f"{os.getpid()}\n")
    fault = os.environ.get("STANDIN_ASK")
    if fault == "hang":
        signal.pause()
    elif fault == "crash":
        sys.exit("ImportError: libascend_hal.so: cannot open shared object file")
    print(
        "{"
        if fault == "babble"
        else json.dumps(answer(os.environ.get("STANDIN_WITHOUT", "").split(",")))
    )


def answer(without):
    known, values = load("flags.json"), load("values.json")
    flags = {
        name[2:]: {
            "takes": TAKES.get(entry["kind"], "one"),
            "choices": values["choices"].get(main[2:], []),
        }
        for main, entry in known.items()
        for name in (main, *entry["also"])
        if name.startswith("--") and name[2:] not in without
    }
    parsers = {kind: [name for name in values[kind] if name not in without] for kind in PARSERS}
    table = os.path.join(HERE, "flags.json")
    return {"flags": flags, **parsers, "sources": {table: os.stat(table).st_mtime_ns}}


def load(name):
    with open(os.path.join(HERE, name)) as file:
        return json.load(file)


main()
