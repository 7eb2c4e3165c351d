# ruff: noqa: PTH100, PTH116, PTH118, PTH120, PTH123
# (pathlib would double the start-up time)
"""What vLLM would answer to raylaunch/node/probe/ask_vllm.py, from flags.json and values.json.

Both files were read from vLLM 0.32.

STANDIN_WITHOUT        flags and parsers that this vLLM does not have, as an older one:
"data-parallel-start-rank,..." STANDIN_ASK            hang: never answer; crash: die as at a failed
import; babble: answer with nonsense; die: answer about names, then die STANDIN_ASKED          file
that gets a line for each question STANDIN_REFUSE         words with which every command line is
refused STANDIN_BECAME         JSON, put into the configuration of a command line
"""

import json
import os
import signal
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
PARSERS = ("tool_parsers", "reasoning_parsers")
TAKES = {"bare": "none", "list": "many", "maybe": "maybe"}


def main():
    question = json.loads(sys.stdin.readline())
    if os.environ.get("STANDIN_ASKED"):
        with open(os.environ["STANDIN_ASKED"], "a") as file:
            file.write(f"{os.getpid()}\n")
    fault = os.environ.get("STANDIN_ASK")
    if fault == "hang":
        signal.pause()
    elif fault == "crash":
        sys.exit("ImportError: libascend_hal.so: cannot open shared object file")
    elif fault == "babble":
        print("{")
        return
    if question["names"]:
        print(json.dumps({"names": names(os.environ.get("STANDIN_WITHOUT", "").split(","))}))
    sys.stdout.flush()
    if fault == "die":
        sys.exit("Segmentation fault")
    for server, argv in question["argvs"].items():
        print(json.dumps({"server": server, "engine": engine(argv)}))


def names(without):
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
    return {
        "flags": flags,
        **parsers,
        "variables": [],
        "config_keys": [],
        "config_keys_below": {},
        "vllm_versions": [],
        "sources": {table: os.stat(table).st_mtime_ns},
    }


def engine(argv):
    """Accept what the stand-in's server accepts, with the values as given."""
    words = os.environ.get("STANDIN_REFUSE")
    if words:
        refusal = {"stage": "config", "kind": "ValueError", "words": words}
        empty = {"fields": [], "conditions": [], "files": [], "choices": {}}
        return {"refusal": {**refusal, **empty}, "messages": []}
    became = {"executor": "MultiprocExecutor", "max_model_len": value(argv, "--max-model-len")}
    became.update(json.loads(os.environ.get("STANDIN_BECAME", "{}")))
    return {"became": became, "messages": []}


def value(argv, flag):
    return argv[argv.index(flag) + 1] if flag in argv else "4096"


def load(name):
    with open(os.path.join(HERE, name)) as file:
        return json.load(file)


main()
