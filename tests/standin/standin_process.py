# ruff: noqa: PTH100, PTH118, PTH120, PTH123
# (pathlib and contextlib would double the start-up time)
"""What every process of the stand-in shares: its settings, its title, its log lines, and the faults
it plays."""

import json
import os
import signal
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))


class Settings:
    """The STANDIN_* variables; standin_vllm.py describes them."""

    def __init__(self, env):
        def number(name, default):
            return float(env.get("STANDIN_" + name) or default)

        self.start_s = number("START_S", 0.3)
        self.workers = int(number("WORKERS", 1))
        self.handshake_s = number("HANDSHAKE_S", 300)
        self.notice_s = number("NOTICE_S", 0.3)
        self.token_s = number("TOKEN_S", 0.001)
        self.term_s = number("TERM_S", 0)
        self.lifetime_s = number("LIFETIME_S", 1800)
        self.fail_after_s = number("FAIL_AFTER_S", 0.5)
        self.shards = int(number("SHARDS", 4))
        self.ignore_term = env.get("STANDIN_IGNORE_TERM") == "1"
        self.follow_main = env.get("STANDIN_FOLLOW_MAIN") == "1"
        self.least_loaded = env.get("STANDIN_ROUTE") == "least"
        self.record = env.get("STANDIN_RECORD")
        self.fault = _choose_fault(env)

    def plays(self, where, at, then):
        """Whether this server's fault is one that shows in every answer."""
        fault = self.fault or {}
        return (fault.get("where"), fault.get("at"), fault.get("then")) == (where, at, then)


def _choose_fault(env):
    """The fault that this server plays in this attempt, or None."""
    name = env.get("STANDIN_FAIL")
    if not name or not _listed(env, "RAYLAUNCH_SERVER", "STANDIN_FAIL_SERVERS"):
        return None
    if not _listed(env, "RAYLAUNCH_GROUP", "STANDIN_FAIL_GROUPS"):
        return None
    if not _listed(env, "RAYLAUNCH_ATTEMPT", "STANDIN_FAIL_ATTEMPTS"):
        return None
    with open(os.path.join(HERE, "faults.json")) as file:
        faults = json.load(file)
    if name not in faults:
        sys.exit(
            f"stand-in: STANDIN_FAIL={name}: no such fault; there are {', '.join(sorted(faults))}"
        )
    return faults[name]


def _listed(env, name, filter_name):
    allowed = env.get(filter_name)
    return not allowed or env.get(name) in allowed.split(",")


def set_title(title):
    """Show `title` in ps, as vLLM does with setproctitle: the kernel's short name and the argv
    memory."""
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(title[:15])
        with open("/proc/self/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        begin, end = (
            int(fields[45]),
            int(fields[46]),
        )  # arg_start, arg_end: fields 48 and 49 of proc(5)
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(begin)
            memory.write(title.encode()[: end - begin - 1].ljust(end - begin, b"\0"))
    except OSError:
        pass  # a kernel that forbids it: the titles stay those of the main process


class Log:
    """Log lines as vLLM writes them: `(EngineCore_DP0 pid=12) INFO 11-23 20:26:51 [core.py:133]
    ...`."""

    def __init__(self, process):
        self.process = process

    def __call__(self, where, message, level="INFO"):
        self.raw(
            f"({self.process} pid={os.getpid()}) {level} {time.strftime('%m-%d %H:%M:%S')} [{where}] {message}"
        )

    def lines(self, where, text, level="ERROR"):
        for line in text.split("\n"):
            self(where, line, level)

    def traceback(self, text):
        """An exception that ends this process, on stderr."""
        head = f"({self.process} pid={os.getpid()}) "
        trace = 'Traceback (most recent call last):\n  File "/venv/bin/vllm", line 8, in <module>\n    sys.exit(main())\n'
        self.raw("\n".join(head + line for line in (trace + text).split("\n")), fd=2)

    @staticmethod
    def raw(text, fd=1):
        data = (text + "\n").encode()
        try:
            while data:
                data = data[os.write(fd, data) :]
        except OSError:
            pass  # whoever read the log is gone


def play(fault, where, at, log, hook=None):
    """Play `fault` if this is the process and the moment for it.

    `hook` runs before the process ends.
    """
    if not fault or (fault["where"], fault["at"]) != (where, at):
        return
    kind, _, number = fault["then"].partition(" ")
    _say(fault["text"], kind, where, at, log)
    if kind == "hang":
        while True:
            time.sleep(1)
            if fault["text"]:
                log("shm_broadcast.py:548", fault["text"], "INFO")
    if kind == "signal":
        os.kill(os.getpid(), int(number))
        time.sleep(60)
    if kind == "exit":
        if hook:
            hook()
        os._exit(int(number))


def _say(text, kind, where, at, log):
    if not text:
        return
    if kind in ("go", "hang"):
        log("envs.py:2088", text, "WARNING" if kind == "go" else "INFO")
    elif where == "main":
        log.raw(text, fd=2) if text.startswith("vllm: error") else log.traceback(text)
    else:
        wrapper = (
            "EngineCore encountered a fatal error." if at == "up" else "EngineCore failed to start."
        )
        log.lines("core.py:1434", f"{wrapper}\nTraceback (most recent call last):\n{text}")


def set_up_signals(settings, on_term):
    """SIGTERM and SIGINT end the process by `on_term`.

    An alarm ends what a failed test has left behind.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN if settings.ignore_term else on_term)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if settings.ignore_term else on_term)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(settings.lifetime_s))
