"""The far side of `--cluster`: one command line of raylaunch, run on a cluster's head for somebody elsewhere.

The near side (ssh_client.py) sends this file as text over SSH and then, in the same stream, what it needs: a line of
JSON, and raylaunch itself as a zip file. It is run by the Python that Ray runs in there, which may know no raylaunch
or another version, so this file uses nothing but the standard library. What arrives, secrets among it, is never on a
command line, and on the disk only as a folder of this user's that goes with this process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import runpy
import select
import signal
import sys
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

OLDEST_PYTHON = (3, 11)
PATIENCE_S = 60.0
"""Without a sign of life from the near side for so long, nobody waits for the answer any more."""
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def main(stream: BinaryIO) -> None:
    """Do the errand that `stream` describes. Its end or silence, when the near side went away, counts as Ctrl-C.

    The line of JSON: `mark`, a word that nobody else writes: after it, on stdout and stderr, raylaunch speaks; in
    `words` it stands for the folder of what arrived. `words`: the command line. `env`: variables to set. `needs`:
    modules that must be there. `file`: the cluster's file, for messages. `size`: bytes of the zip file.
    """
    order = json.loads(stream.readline())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.chdir("/")  # Ray has its workers look for modules where the driver is
    with tempfile.TemporaryDirectory(prefix="raylaunch-") as folder:
        with zipfile.ZipFile(io.BytesIO(stream.read(order["size"]))) as package:
            package.extractall(folder)
        problem = find_problem(order)
        _begin(order["mark"], problem)
        if problem:
            sys.exit(1)
        os.environ.update({**find_auth(), **order["env"]})
        threading.Thread(target=_interrupt_at_end, args=(stream.fileno(),), daemon=True).start()
        _run([word.replace(order["mark"], folder) for word in order["words"]], folder)


def find_problem(order: dict[str, Any]) -> dict[str, str] | None:
    """Why raylaunch cannot work here, as the parts of an error; None when it can."""
    if sys.version_info < OLDEST_PYTHON:
        version = ".".join(str(part) for part in sys.version_info[:3])
        return {
            "error": "HeadError",
            "what": f"the head's Python is {version}, and raylaunch needs 3.11 or newer",
        }
    if missing := [name for name in order["needs"] if importlib.util.find_spec(name) is None]:
        return {
            "error": "HeadError",
            "what": f"the head's Python lacks {', '.join(missing)}",
            "why": f"raylaunch brings itself, and takes the rest from where Ray and vLLM are: {sys.executable}",
            "todo": "install vLLM beside Ray there, which brings all of it, or put that Python first in the login PATH",
        }
    if not current_cluster().is_file():
        return {
            "error": "ClusterError",
            "what": "Ray does not run on the head",
            "why": f"`ray start` has left no {current_cluster()} there",
            "todo": f"`ray up -y {order['file']}` starts it",
        }
    return None


def current_cluster() -> Path:
    """The file in which `ray start` writes down the address of this machine's cluster."""
    return (
        Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    )


def find_auth(proc: Path = Path("/proc")) -> dict[str, str]:
    """The authentication that this machine's cluster was started with, from its GCS: a login shell may not have it."""
    port = current_cluster().read_text().strip().rpartition(":")[2]
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"/gcs_server") and f"--gcs_server_port={port}".encode() in words:
                pairs = [
                    pair.partition("=") for pair in (folder / "environ").read_text().split("\0")
                ]
                return {name: value for name, _, value in pairs if name in AUTH}
    return {}


def _begin(mark: str, problem: dict[str, str] | None) -> None:
    """Tell the near side that everything before this was the login shell's talk."""
    for stream, text in ((sys.stdout, f"{mark} {json.dumps(problem)}"), (sys.stderr, mark)):
        stream.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        stream.write(f"\n{text}\n")
        stream.flush()


def _interrupt_at_end(descriptor: int) -> None:
    """Wait for the end of the near side's signs of life. sshd alone notices a cut network after hours, or never."""
    while select.select([descriptor], [], [], PATIENCE_S)[0] and os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def _run(words: list[str], folder: str) -> None:
    sys.dont_write_bytecode = True
    sys.path.insert(0, folder)
    sys.argv = ["raylaunch", *words]
    try:
        runpy.run_module("raylaunch", run_name="__main__")
    except KeyboardInterrupt:  # before the command line was in charge
        sys.exit(128 + signal.SIGINT)
