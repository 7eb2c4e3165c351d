"""Starts stand-in servers for tests, talks to them, and ends them with all their processes."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from stopping import stop

STANDIN = Path(__file__).parent / "standin" / "bin" / "vllm"
PATIENCE_S = 60


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_until(condition, what):
    """Poll until `condition()` is true; the deadline is generous because the machine is shared."""
    deadline = time.monotonic() + PATIENCE_S
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.01)
    return result


def state(pid):
    """A process' state letter; "" when it is gone. A zombie that nobody reaps counts as gone."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if letter == "Z" else letter


class Server:
    """A started stand-in: its process, its log, its HTTP."""

    def __init__(self, words, env, log):
        self.log_path = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [STANDIN, *words],
                env=env,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self.url = ""

    @property
    def log(self):
        return self.log_path.read_text()

    def says(self, text):
        def look():
            ended = self.process.poll() is not None
            match = re.search(text, self.log)
            assert match or not ended, f"the server ended without {text!r} in its log:\n{self.log}"
            return match

        return wait_until(look, f"{text!r} in {self.log_path}")

    def pid_of(self, name):
        """The pid of a process of this server's group by its title ("VLLM::EngineCore_DP1")."""
        return wait_until(lambda: self.tree().get(name), f"a process {name}: {self.tree()}")

    def tree(self):
        """Title -> pid of the living processes in this server's process group, without the main
        process."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            pid = int(folder.name)
            try:
                if os.getpgid(pid) == self.pid and pid != self.pid and state(pid):
                    found[(folder / "cmdline").read_bytes().rstrip(b"\0").decode()] = pid
            except (ProcessLookupError, FileNotFoundError):
                continue
        return found

    def exit_code(self):
        return self.process.wait(PATIENCE_S)

    def kill(self, sig):
        os.killpg(self.pid, sig)

    def stop(self):
        """Stop the whole group, and return when it has stopped: SIGCONT to it goes on."""
        stop(self.pid, *self.tree().values())

    def get(self, path, **more):
        return httpx.get(self.url + path, timeout=PATIENCE_S, trust_env=False, **more)

    def post(self, path, body, timeout=PATIENCE_S, **more):
        return httpx.post(self.url + path, json=body, timeout=timeout, trust_env=False, **more)

    def ask(self, tokens=2, timeout=PATIENCE_S):
        return self.post("/v1/completions", {"prompt": "hi", "max_tokens": tokens}, timeout)

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            self.kill(signal.SIGKILL)  # also its orphans and stopped ones: they stay in the group
        self.process.wait(PATIENCE_S)


class StandinServers:
    """Where servers are started. Settings are STANDIN_ variables without the prefix."""

    def __init__(self, folder):
        self.folder = folder
        self.model = folder / "model"
        self.model.mkdir()
        self.servers = []

    def start(self, *words, environ=None, **settings):
        env = {
            "PATH": os.environ["PATH"],
            "STANDIN_PYTHON": sys.executable,
            "STANDIN_START_S": "0.1",
        }
        env.update(
            {f"STANDIN_{name}": str(value) for name, value in settings.items()}, **(environ or {})
        )
        server = Server(words, env, self.folder / f"server-{len(self.servers)}.log")
        self.servers.append(server)
        return server

    def serve(self, *flags, **settings):
        """One server on its own, dp=1; returns it once its API is up."""
        port = free_port()
        server = self.start(
            "serve", str(self.model), "--host", "127.0.0.1", "--port", str(port), *flags, **settings
        )
        server.url = f"http://127.0.0.1:{port}"
        server.says("Application startup complete")
        return server

    def pair(self, *flags, **settings):
        """A primary and a headless server, dp=2, ready."""
        primary = self.primary(*flags, **settings)
        headless = self.headless(primary, *flags, **settings)
        primary.says("Application startup complete")
        return primary, headless

    def primary(self, *flags, **settings):
        port, rpc = free_port(), free_port()
        server = self.start(*self._words(port, rpc), *flags, **settings)
        server.url, server.rpc = f"http://127.0.0.1:{port}", rpc
        return server

    def headless(self, primary, *flags, **settings):
        rank = ("--headless", "--data-parallel-start-rank", "1")
        return self.start(*self._words(free_port(), primary.rpc), *rank, *flags, **settings)

    def _words(self, port, rpc):
        return (
            *(
                "serve",
                str(self.model),
                "--served-model-name",
                "tiny",
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
            ),
            *("--data-parallel-size", "2", "--data-parallel-size-local", "1"),
            *("--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", str(rpc)),
        )

    def end(self):
        for server in self.servers:
            server.end()
