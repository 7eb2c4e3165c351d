# ruff: noqa: PTH105, PTH109, PTH110, PTH118, PTH123, SIM105
# (pathlib and contextlib would double the start-up time)
"""A stand-in for `vllm` 0.32 in tests: the same command line, processes, ports, log lines and
failures, no model.

It behaves as real vLLM was measured to (dp=2, one rank per server): one process tree per server in
one process group; the primary waits without a deadline or a word for its headless servers; requests
go round robin to the ranks over TCP from process to process, so that a killed, stopped or orphaned
process has the effect it has in reality.

Settings, all from the environment:

STANDIN_START_S        seconds from the handshake to ready (0.3), spread over the stages
STANDIN_SHARDS         weight shards shown (4) STANDIN_WORKERS        worker processes per engine
(1) STANDIN_TOKEN_S        seconds per token (0.001) STANDIN_HANDSHAKE_S    how long a headless
engine looks for its primary (300) STANDIN_NOTICE_S       how long a main process takes to notice a
dead engine (0.3; real: 1 to 16 s) STANDIN_TERM_S         how long SIGTERM takes (0);
STANDIN_IGNORE_TERM=1: SIGTERM and SIGINT do nothing STANDIN_ROUTE=least    send to the rank with
the fewest open requests instead of in turn STANDIN_FOLLOW_MAIN=1  an engine stops answering while
its main process is stopped (real engines do not care) STANDIN_RECORD         folder for
server-<rank>-<pid>.json: argv, env, cwd, niceness, pgid, sid, ppid, children STANDIN_FAIL
a fault of faults.json, played by the servers STANDIN_FAIL_SERVERS="0,1" (by RAYLAUNCH_SERVER)
                       of the groups STANDIN_FAIL_GROUPS="serve-0" (by RAYLAUNCH_GROUP)
                       in the attempts STANDIN_FAIL_ATTEMPTS="1,2" (by RAYLAUNCH_ATTEMPT); unset: all
STANDIN_FAIL_AFTER_S   faults of a running server: seconds after ready (0.5) STANDIN_LIFETIME_S
every process ends itself after this (1800): what a broken test leaves behind goes away
STANDIN_PYTHON         the interpreter (see bin/vllm)
"""

import json
import os
import queue
import signal
import sys
import threading
import time

from standin_flags import Command, leave
from standin_process import Log, Settings, play, set_up_signals

VERSION = "0.32.0"


def main():
    words = sys.argv[1:]
    if words[:1] == ["serve"]:
        Server(Command(words[1:]), Settings(os.environ)).run()
    if words[:2] == ["bench", "serve"]:
        from standin_bench import bench

        bench(words[2:])
    elif words[:1] in (["--version"], ["-v"]):
        sys.stdout.write(VERSION + "\n")
    else:
        leave(2, f"vllm: error: argument subparser: invalid choice: {' '.join(words[:1])!r}")


class Server:
    """The main process of one `vllm serve`."""

    def __init__(self, command, settings):
        self.command = command
        self.settings = settings
        self.log = Log("MainProcess" if command.headless else "APIServer")
        self.children = {}  # process name -> pid
        self.exits = queue.SimpleQueue()  # (process name, exit code) or (reason, None)
        self.router = None
        self.api = None

    def run(self):
        set_up_signals(self.settings, self.terminate)
        self._record()
        self._check()
        if self.command.headless:
            self._run_headless()
        else:
            self._run_primary()

    def _check(self):
        command, log = self.command, self.log
        if not command.headless:
            log("api_utils.py:347", f"       version {VERSION}   model   {command.model}")
            log("api_utils.py:286", f"non-default args: {command.flags!r}")
        play(self.settings.fault, "main", "start", log)
        if command.headless and "--api-server-count" in command.flags:
            self._crash("ValueError: api_server_count can't be set in headless mode")
        if command.flags.get("--enable-auto-tool-choice") and not command.flags.get(
            "--tool-call-parser"
        ):
            self._crash("TypeError: Error: --enable-auto-tool-choice requires --tool-call-parser")
        if not command.model or not os.path.exists(command.model):
            self._crash(_no_model(command.model))
        log("model.py:2152", "Using max model len 1024")

    def _run_headless(self):
        address, port = self.command.rpc
        count = len(self.command.ranks)
        uri = f"tcp://{address}:{port}"
        self.log(
            "serve.py:239",
            f"Launching {count} data parallel engine(s) in headless mode, with head node address {uri}.",
        )
        self._fork_engines([])
        self.exits.get()  # any engine's end, with whatever code
        time.sleep(self.settings.notice_s)
        self._end_children()
        self.log("serve.py:266", "Shutting down.")
        os._exit(0)

    def _run_primary(self):
        from standin_api import Api
        from standin_router import Router, StartError

        flags = self.command.flags
        http = self._bind(
            (flags.get("--host") or "0.0.0.0", self.command.number("--port", 8000)), "http"
        )
        play(self.settings.fault, "main", "bind", self.log)
        listener = self._bind(self.command.rpc, "rpc")
        self.command.rpc_port = listener.getsockname()[1]
        self._fork_coordinator([http, listener])
        self._fork_engines([http, listener])
        self.router = Router(
            self.command, self.settings, lambda reason: self.exits.put((reason, None))
        )
        self.api = Api(self.command, self.router, os.environ)
        play(self.settings.fault, "main", "connect", self.log, self._end_children)
        try:
            self.router.form(listener, self._local_failure)
        except StartError as error:
            self._crash(str(error))
        self._open_http(http)
        self._watch()

    def _bind(self, address, what):
        from standin_link import listen

        try:
            return listen(address, backlog=0 if what == "http" else 64)
        except OSError as error:
            uri = f"tcp://{address[0]}:{address[1]}"
            text = f"OSError: [Errno {error.errno}] {error.strerror}"
            return self._crash(
                text if what == "http" else f"zmq.error.ZMQError: {error.strerror} (addr='{uri}')"
            )

    def _open_http(self, http):
        from standin_http import serve

        host, port = http.getsockname()[:2]
        if self.command.size > 1:
            Log("VLLM_DP_Coordinator")(
                "coordinator.py:258", "All engine subscriptions received by DP coordinator"
            )
        self.log("entry.py:140", f"Starting vLLM server on http://{host}:{port}")
        self.log("launcher.py:195", "Route: /health, Methods: GET")
        try:
            http.listen(2048)
        except OSError as error:
            self._crash(f"OSError: [Errno {error.errno}] {error.strerror}")
        threading.Thread(target=serve, args=(http, self.api, self.log), daemon=True).start()
        if self.command.flags.get("--uvicorn-log-level") in ("warning", "error", "critical"):
            return
        for line in (f"Started server process [{os.getpid()}]", "Waiting for application startup."):
            self.log.raw(f"INFO:     {line}")
        self.log.raw("INFO:     Application startup complete.")

    def _watch(self):
        """Run until a local process dies or the router gives up. vLLM then exits with 0."""
        fault = self.settings.fault
        if fault and (fault["where"], fault["at"]) == ("main", "up"):
            time.sleep(self.settings.fail_after_s)
            play(fault, "main", "up", self.log, self._end_children)
        name, code = self.exits.get()
        if code is not None:
            self.log(
                "core_client.py:713",
                f"Engine core proc {name} died unexpectedly, shutting down client.",
                "ERROR",
            )
            self.router.end_soon()
            while self.exits.get()[1] is not None:
                pass
        text = "EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause."
        self.log("async_llm.py:906", f"vllm.v1.engine.exceptions.{text}", "ERROR")
        self._leave_group()
        os._exit(0)

    def _local_failure(self):
        """The text with which a start ends when a process of this server has died; "" while all
        live."""
        if self.exits.empty():
            return ""
        name, code = self.exits.get()
        failed = {name: code} if code is not None else {}
        return f"RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {failed}"

    def _fork_coordinator(self, closing):
        from standin_engine import fork, run_coordinator

        if self.command.size > 1:
            pid = fork(run_coordinator, self.settings, closing)
            self.children["DPCoordinator"] = pid
            self.log("utils.py:1245", f"Started DP Coordinator process (PID: {pid})")

    def _fork_engines(self, closing):
        from standin_engine import fork, run_engine

        for rank in self.command.ranks:
            name = f"EngineCore_DP{rank}" if self.command.size > 1 else "EngineCore"
            self.children[name] = fork(run_engine, self.command, self.settings, rank, closing)
        self._record()
        for name, pid in self.children.items():  # threads only once everything is forked
            threading.Thread(target=self._wait_for, args=(name, pid), daemon=True).start()

    def _wait_for(self, name, pid):
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.exits.put((name, code))

    def terminate(self, *_):
        """SIGTERM: drain for --shutdown-timeout seconds (0: not at all), end the children, exit 0."""
        time.sleep(self.settings.term_s)
        drain_s = self.command.number("--shutdown-timeout", 0)
        if self.command.headless:
            self.log("serve.py:264", f"Waiting up to {drain_s} seconds for processes to exit")
        else:
            self.log("launcher.py:254", "[shutdown] API server: shutdown triggered")
        deadline = time.monotonic() + drain_s
        if self.api:
            self.api.draining = True
            while self.router.in_flight and time.monotonic() < deadline:
                time.sleep(0.02)
        self._leave_group()
        if self.command.headless:
            self.log("serve.py:266", "Shutting down.")
        os._exit(0)

    def _leave_group(self):
        for rank in self.router.ranks if self.router else []:
            if rank.link:
                rank.link.send({"bye": True})
        self._end_children()

    def _end_children(self):
        for sig in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.children.values():
                try:
                    os.kill(pid, sig)
                except ProcessLookupError:
                    pass
            time.sleep(0.02)

    def _crash(self, text):
        self.log.traceback(text)
        self._end_children()
        os._exit(1)

    def _record(self):
        """What reached this process, and, once there are any, its children."""
        if not self.settings.record:
            return
        seen = {
            "argv": ["vllm", *sys.argv[1:]], "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid(),
            "niceness": os.nice(0), "pgid": os.getpgid(0), "sid": os.getsid(0), "ppid": os.getppid(),
            "rank": self.command.start, "children": self.children,
        }  # fmt: skip
        path = os.path.join(self.settings.record, f"server-{self.command.start}-{os.getpid()}.json")
        with open(path + ".new", "w") as file:
            json.dump(seen, file, indent=1)
        os.replace(path + ".new", path)


def _no_model(model):
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return (
            "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or "
            f"'namespace/repo_name': '{model}'. Use `repo_type` argument if needed."
        )
    return (
        f"ValueError: Invalid repository ID or local directory specified: '{model}'.\n"
        "Please verify the following requirements:\n1. Provide a valid Hugging Face repository ID.\n"
        "2. Specify a local directory that contains a recognized configuration file."
    )


if __name__ == "__main__":
    main()
