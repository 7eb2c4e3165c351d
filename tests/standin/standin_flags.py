# ruff: noqa: PTH100, PTH118, PTH120, PTH123
# (pathlib and contextlib would double the start-up time)
"""The command line of `vllm serve`, judged by the flags of vLLM 0.32 (flags.json: read from its own
parser)."""

import hashlib
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
USAGE = """usage: vllm [-h] [-v]
            {chat,complete,serve,launch,bench,collect-env,download-kernels,preload,run-batch,snapshot}
            ...
"""
HASHED = (  # what vLLM compares between ranks: ParallelConfig without the parts that differ by rank
    "--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size", "--enable-expert-parallel",
    "--enable-eplb", "--prefill-context-parallel-size", "--decode-context-parallel-size", "--all2all-backend",
    "--enable-dbo", "--expert-placement-strategy",
)  # fmt: skip


class Command:
    """A parsed `vllm serve` command line."""

    def __init__(self, words):
        known = _load_known()
        self.model = None
        self.rpc_port = None  # the port that was bound, when it was left to the kernel
        self.flags = {}
        self.unknown = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if not _is_flag(word):
                self._take_positional(word)
                continue
            name, equals, value = word.partition("=")
            self._take_flag(known, word, _spell(name), value if equals else None, rest)
        if self.unknown:
            leave(2, USAGE + "vllm: error: unrecognized arguments: " + " ".join(self.unknown))

    def _take_positional(self, word):
        if self.model is None:
            self.model = word
        else:
            self.unknown.append(word)

    def _take_flag(self, known, word, name, value, rest):
        if name not in known and word[:2] in known and word[1] != "-":
            name, value = word[:2], word[2:]  # -O3
        main, kind, spelling = known.get(name.split(".")[0], (None, None, None))
        if main is None:
            self.unknown.append(word)
            while rest and not _is_flag(rest[0]):
                self.unknown.append(rest.pop(0))
        elif kind == "bare":
            self.flags[main] = not name.startswith("--no-")
        elif kind == "list":
            values = [value] if value is not None else []
            while value is None and rest and not _is_flag(rest[0]):
                values.append(rest.pop(0))
            self.flags[main] = values
        else:
            if value is None and (not rest or _is_flag(rest[0])):
                if kind != "maybe":
                    _refuse(f"argument {spelling}: expected one argument")
                value = ""
            elif value is None:
                value = rest.pop(0)
            self.flags[main if "." not in name else name] = _typed(kind, value, spelling)

    def number(self, name, default):
        """A flag as an int."""
        return int(self.flags.get(name, default))

    @property
    def headless(self):
        return bool(self.flags.get("--headless"))

    @property
    def moe(self):
        """Expert parallel: every step needs every rank."""
        return bool(self.flags.get("--enable-expert-parallel")) and self.size > 1

    @property
    def size(self):
        return self.number("--data-parallel-size", 1)

    @property
    def local(self):
        return self.number("--data-parallel-size-local", self.size)

    @property
    def start(self):
        return self.number("--data-parallel-start-rank", 0)

    @property
    def ranks(self):
        return list(range(self.start, self.start + self.local))

    @property
    def rpc(self):
        """(address, port) of the handshake; a group within one server picks a free port."""
        address = self.flags.get("--data-parallel-address", "127.0.0.1")
        planned = self.number("--data-parallel-rpc-port", 29550) if self.local < self.size else 0
        return address, self.rpc_port or planned

    @property
    def names(self):
        return self.flags.get("--served-model-name") or [self.model]

    @property
    def config_hash(self):
        factors = json.dumps([[name, str(self.flags.get(name))] for name in HASHED])
        return hashlib.sha256(factors.encode()).hexdigest()


def leave(code, text):
    """Print to stderr and exit."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
    os._exit(code)


def _load_known():
    with open(os.path.join(HERE, "flags.json")) as file:
        table = json.load(file)
    return {
        name: (main, entry["kind"], "/".join([main, *entry["also"]]))
        for main, entry in table.items()
        for name in (main, *entry["also"])
    }


def _is_flag(word):
    return len(word) > 1 and word[0] == "-" and not word[1].isdigit()


def _spell(name):
    """`--mm_processor_cache_type` is `--mm-processor-cache-type`; what follows a dot keeps its
    underscores."""
    head, dot, tail = name.partition(".")
    return (head.replace("_", "-") if head.startswith("--") else head) + dot + tail


def _typed(kind, value, spelling):
    if kind not in ("int", "float"):
        return value
    try:
        return int(value) if kind == "int" else float(value)
    except ValueError:
        return _refuse(f"argument {spelling}: invalid {kind} value: {value!r}")


def _refuse(text):
    leave(2, f"usage: vllm serve [model_tag] [options]\nvllm serve: error: {text}")
