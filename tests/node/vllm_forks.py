"""Run `vllm serve` many times for the price of one import: each start is a fork of this process.

One JSON object a line on stdin: `flags`, `env`, `log`. One line with the exit
code, or minus the signal, on stdout for each. What vLLM reads while it is imported must be in the
environment of this process.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

CAPABILITY_VERSION = 0x20080522
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1 << 1, 1 << 2  # capabilities(7)
PR_SET_PDEATHSIG = 1  # prctl(2): a server does not outlive the process that started it


def main() -> None:
    preload()
    print("ready", flush=True)
    for line in sys.stdin:
        print(start(json.loads(line)), flush=True)


def preload() -> None:
    import vllm.entrypoints.cli.main
    import vllm.entrypoints.cli.serve
    import vllm.entrypoints.openai.api_server
    import vllm.v1.engine.core
    import vllm.v1.worker.cpu_worker  # noqa: F401


def start(wanted: dict) -> int:
    child = os.fork()
    if child == 0:
        serve(wanted)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def serve(wanted: dict) -> None:
    """Become the server; never return."""
    code = 1
    try:
        become(wanted)
        from vllm.entrypoints.cli.main import main as vllm_main

        vllm_main()
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(bool(stopped.code))
    finally:
        failed = sys.exc_info()
        if failed[0] is not None:
            sys.excepthook(*failed)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def become(wanted: dict) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir("/")
    os.environ.clear()
    os.environ.update(wanted["env"])
    drop_access_to_everything()
    sys.argv = ["vllm", "serve", *wanted["flags"]]


def drop_access_to_everything() -> None:
    """Let root, too, meet the permissions of files: give up the capabilities that ignore them."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for index in range(3):  # effective, permitted, inheritable
        sets[index] &= ~(CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


if __name__ == "__main__":
    main()
