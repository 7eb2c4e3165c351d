"""Small process trees under a real guard, and waiting for what they do."""

import os
import queue
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

from raylaunch.node.process.process_markers import find_marked
from raylaunch.node.process.server_env import child_env
from raylaunch.node.process.server_process import ServerProcess, ServerSpec

PATIENCE_S = 60.0

PRELUDE = """
import os, signal, sys, time

def say(*words):
    os.write(1, (" ".join(str(word) for word in words) + "\\n").encode())

def sleep():
    while True:
        signal.pause()

def fork(then):
    if os.fork() == 0:
        then()
        os._exit(0)

def ignore_term():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

def stubborn():
    os.setsid()
    ignore_term()
    say("stubborn", os.getpid())
    sleep()
"""


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", PRELUDE + script)


class Watched:
    """A ServerProcess whose events can be awaited."""

    def __init__(
        self,
        deployment: str,
        log: Path,
        script: str | tuple[str, ...],
        *,
        instance: str = "i",
        **spec: object,
    ) -> None:
        self.log = log
        self.seen: list[dict] = []
        self._events: queue.Queue[dict] = queue.Queue()
        env = child_env(
            {"PATH": os.environ["PATH"]},
            {},
            deployment=deployment,
            instance=instance,
            attempt=1,
            server=0,
        )
        argv = python(script) if isinstance(script, str) else script
        settings = {
            "argv": argv,
            "env": env,
            "log": str(log),
            "term_timeout_s": 20.0,
            "orphan_grace_s": 0.2,
            "niceness": None,
        }
        self.process = ServerProcess(ServerSpec(**{**settings, **spec}), self._events.put)
        self.process.start()

    @classmethod
    def adopt(cls, socket: Path, log: Path) -> "Watched":
        """A guard that lost its owner, with this process as the next one."""
        adopted = cls.__new__(cls)
        adopted.log = log
        adopted.seen = []
        adopted._events = queue.Queue()
        adopted.process, adopted.report = ServerProcess.adopt(socket, adopted._events.put)
        adopted.process.follow_adopted()
        return adopted

    def event(self, name: str) -> dict:
        """The next event of this name; fails when the last event comes first."""
        while True:
            event = self._events.get(timeout=PATIENCE_S)
            self.seen.append(event)
            if event["event"] == name:
                return event
            assert event["event"] != "clean", f"{name} never came: {self.seen}"

    def line(self, start: str) -> str:
        """The first log line that starts with these words, once it is complete.

        A server may write before the event of its spawning was read here; that event comes first.
        """
        if "spawned" not in self.names():
            self.event("spawned")
        while True:
            text = self.log.read_text() if self.log.exists() else ""
            for line in text.splitlines(keepends=True):
                if line.startswith(start) and line.endswith("\n"):
                    return line.strip()
            self.event("log")

    def number(self, word: str) -> int:
        return int(self.line(word).split()[1])

    def end(self) -> dict:
        """The clean event, after which guard and keeper are gone."""
        clean = self.event("clean")
        assert self.process.wait(PATIENCE_S)
        return clean

    def names(self) -> list[str]:
        return [event["event"] for event in self.seen if event["event"] != "log"]


def await_gone(deployment: str) -> None:
    """Wait until no process carries the marker."""
    deadline = time.monotonic() + PATIENCE_S
    while marked := find_marked(deployment):
        assert time.monotonic() < deadline, f"still there: {marked}"
        await_exit(marked[0].pid)


def await_true(condition: Callable[[], object], what: str) -> None:
    """Poll for something that nothing announces."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.02)


def await_exit(pid: int) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        assert poller.poll(PATIENCE_S * 1000), f"{pid} did not end"
    finally:
        os.close(handle)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
