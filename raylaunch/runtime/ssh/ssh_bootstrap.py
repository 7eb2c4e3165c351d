"""The head side of `--cluster`: runs one command line of raylaunch that came over SSH.

The client (ssh_client.py) sends the text of this file over SSH and then, in the same stream, its
input: a line of JSON, and raylaunch itself as a zip file. The Python that Ray uses runs it. That
Python may know no raylaunch, or another version, so this file uses only the standard library. What
arrives, secrets among it, is never on a command line, and on disk only in a folder of this user
that is removed with this process.
"""

from __future__ import annotations

import contextlib
import fcntl
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

OLDEST_PYTHON = (3, 11)
CLIENT_SILENCE_S = 60.0
"""Without a heartbeat of the client for so long, the command is interrupted."""
MAX_LINE_BYTES = 4 * 1024 * 1024
"""Variables and words: the kernel allows a third of that on a command line."""
MAX_PACKAGE_BYTES = 256 * 1024 * 1024
"""raylaunch itself has under 1 MB; the rest are recipes and files that the user names."""
REQUEST_TYPES = {"mark": str, "words": list, "env": dict, "needs": list, "file": str, "size": int}
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def main(stream: BinaryIO) -> None:
    """Run the command that `stream` describes. End of file or silence on it counts as Ctrl-C.

    The line of JSON has these keys:
        mark: A random word. Output after it, on stdout and stderr, is raylaunch's; in `words` it
            stands for the folder of the files that were sent.
        words: The command line.
        env: Variables to set.
        needs: Modules that must be importable here.
        file: The cluster's file, for messages.
        size: Bytes of the zip file.
    """
    try:
        request, package = read_request(stream)
    except ValueError as error:
        sys.exit(f"raylaunch: what came over SSH cannot be used: {error}")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.chdir("/")  # Ray's workers search the driver's working directory for modules
    with tempfile.TemporaryDirectory(prefix="raylaunch-") as folder, _kept_from_cleaners(folder):
        with package:
            package.extractall(folder)
        problem = find_problem(request)
        _announce(request["mark"], problem)
        if problem:
            sys.exit(1)
        os.environ.update({**find_auth(), **request["env"]})
        threading.Thread(target=_interrupt_at_end, args=(stream.fileno(),), daemon=True).start()
        words = [word.replace(request["mark"], folder) for word in request["words"]]
        _run(words, folder)


def read_request(stream: BinaryIO) -> tuple[dict[str, Any], zipfile.ZipFile]:
    """Read the line of JSON and the zip file.

    Raises:
        ValueError: the stream holds something else, ends too early, or is too large.
    """
    line = stream.readline(MAX_LINE_BYTES)
    try:
        request = json.loads(line)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(request, dict):
        raise ValueError("it is not a JSON object")
    for name, kind in REQUEST_TYPES.items():
        if not isinstance(request.get(name), kind):
            raise ValueError(f"{name!r} is missing, or of a wrong type")
    names = [*request["words"], *request["needs"], *request["env"], *request["env"].values()]
    if not all(isinstance(name, str) and "\0" not in name for name in names):
        raise ValueError("a word, module or variable is not text")
    size = request["size"]
    if isinstance(size, bool) or not 0 < size <= MAX_PACKAGE_BYTES:
        raise ValueError(f"the package has {size} bytes")
    data = stream.read(size)
    if len(data) < size:
        raise ValueError(f"the stream ended after {len(data)} of {size} bytes of the package")
    try:
        return request, zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"the package is no zip file: {error}") from error


def find_problem(request: dict[str, Any]) -> dict[str, str] | None:
    """Return why raylaunch cannot work here, as the parts of an error; None when it can."""
    if sys.version_info < OLDEST_PYTHON:
        version = ".".join(str(part) for part in sys.version_info[:3])
        return {
            "error": "HeadError",
            "what": f"the head's Python is {version}, and raylaunch needs 3.11 or newer",
        }
    missing = [name for name in request["needs"] if importlib.util.find_spec(name) is None]
    if missing:
        return {
            "error": "HeadError",
            "what": f"the head's Python lacks {', '.join(missing)}",
            "why": "raylaunch brings itself, and uses the other modules of the Python in which Ray "
            f"and vLLM are installed: {sys.executable}",
            "todo": "install vLLM beside Ray there, which brings all of them, or put that Python "
            "first in the login PATH",
        }
    if not current_cluster().is_file():
        return {
            "error": "ClusterError",
            "what": "Ray does not run on the head",
            "why": f"`ray start` has left no {current_cluster()} there",
            "todo": f"`ray up -y {request['file']}` starts it",
        }
    return None


def current_cluster() -> Path:
    """Return the file in which `ray start` writes down the address of this machine's cluster."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return Path(folder) / "ray" / "ray_current_cluster"


def find_auth(proc: Path = Path("/proc")) -> dict[str, str]:
    """Return the authentication of this machine's cluster, from the environment of its GCS.

    A login shell may not have it.
    """
    port = current_cluster().read_text().strip().rpartition(":")[2]
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it exited, or belongs to another user
            words = (folder / "cmdline").read_bytes().split(b"\0")
            is_gcs = words[0].endswith(b"/gcs_server")
            if is_gcs and f"--gcs_server_port={port}".encode() in words:
                return _auth_variables((folder / "environ").read_text())
    return {}


def _auth_variables(environ: str) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in environ.split("\0")]
    return {name: value for name, _, value in pairs if name in AUTH}


@contextlib.contextmanager
def _kept_from_cleaners(folder: str) -> Iterator[None]:
    """Lock the folder: systemd-tmpfiles leaves a locked one alone, however old its files are."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _announce(mark: str, problem: dict[str, str] | None) -> None:
    """Tell the client that everything before this was printed by the login shell."""
    for stream, text in ((sys.stdout, f"{mark} {json.dumps(problem)}"), (sys.stderr, mark)):
        stream.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        stream.write(f"\n{text}\n")
        stream.flush()


def _interrupt_at_end(descriptor: int) -> None:
    """Wait until the client's heartbeats stop; sshd notices a cut network after hours, or never."""
    while True:
        ready, _, _ = select.select([descriptor], [], [], CLIENT_SILENCE_S)
        if not ready or not os.read(descriptor, 1):
            break
    os.kill(os.getpid(), signal.SIGINT)


def _run(words: list[str], folder: str) -> None:
    sys.dont_write_bytecode = True
    sys.path.insert(0, folder)
    sys.argv = ["raylaunch", *words]
    try:
        runpy.run_module("raylaunch", run_name="__main__")
    except KeyboardInterrupt:  # before the command line could handle it
        sys.exit(128 + signal.SIGINT)
