"""What raylaunch sends to nodes takes its own code along, so that they need not have it, nor the same version.

Ray's own means for that, `runtime_env.py_modules`, starts each worker through a second Python that imports Ray once
more: 0.25 s and 0.34 s of CPU for every actor, and 0.3 s for the first upload (measured with Ray 2.60).
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import inspect
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PACKED = ".raylaunch-carried.tar.gz"
"""Lies beside an installed copy: what travels on from there must be the same bytes."""


def carried(thing: Any) -> Any:  # noqa: ANN401
    """A stand-in for a class or function of raylaunch, for `ray.remote`: pickled by value, with the code of raylaunch.

    Ray unpickles it before any argument, so that the arguments may be of raylaunch's types.
    """
    code = _Code(_installer(), *_pack(_root()))
    if inspect.isclass(thing):
        return _carried_class(thing, code)
    return _carried_function(thing, code)


class _Code:
    """Where this is unpickled, raylaunch can be imported."""

    def __init__(self, install: Callable[[str, bytes], None], digest: str, packed: bytes) -> None:
        self._how = install, (digest, packed)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._how


def _carried_class(kind: type, code: _Code) -> type:
    module, name = kind.__module__, kind.__qualname__

    def create(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        import importlib

        self.real = getattr(importlib.import_module(module), name)(*args, **kwargs)

    methods = {
        method: _forward(method, inspect.iscoroutinefunction(function))
        for method, function in inspect.getmembers(kind, inspect.isfunction)
        if not method.startswith("_")
    }
    return type(name, (), {"code": code, "__init__": create, **methods})


def _forward(method: str, is_async: bool) -> Callable[..., Any]:
    """Pickled by value, as everything that is defined in a function."""

    async def later(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return await getattr(self.real, method)(*args, **kwargs)

    def now(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        return getattr(self.real, method)(*args, **kwargs)

    return later if is_async else now


def _carried_function(function: Callable[..., Any], code: _Code) -> Callable[..., Any]:
    module, name = function.__module__, function.__qualname__

    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        import importlib

        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    call.__dict__["code"] = code
    return call


def _installer() -> Callable[[str, bytes], None]:
    def install(digest: str, packed: bytes) -> None:
        """Unpack into the folder of Ray's session, once per node, and put it first on the path.

        Not in a process that has raylaunch already: a driver that looks an actor up unpickles its class too.
        """
        import io
        import os
        import shutil
        import sys
        import tarfile
        import tempfile
        from pathlib import Path

        import ray

        if "raylaunch" in sys.modules:
            return
        session = Path(ray._private.worker._global_node.get_session_dir_path())  # noqa: SLF001
        folder = session / "raylaunch" / digest
        if not folder.exists():
            folder.parent.mkdir(
                mode=0o700, exist_ok=True
            )  # Ray's own folder is open to every user of the host
            draft = Path(tempfile.mkdtemp(dir=folder.parent))
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                archive.extractall(draft, filter="data")
            (draft / ".raylaunch-carried.tar.gz").write_bytes(packed)
            try:
                draft.rename(folder)
            except OSError:  # another worker was first
                shutil.rmtree(draft)
        if folder.parent.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder.parent} belongs to another user: its code is not run")
        sys.path.insert(0, str(folder))

    return install


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


@functools.cache
def _pack(root: Path) -> tuple[str, bytes]:
    """Digest and archive of the package.

    The compiled modules go along; they hold for the same times of the sources. The digest is of names and bytes of the
    sources alone: unpacked anew they have other times, and are the same code.
    """
    files = sorted(path for path in root.rglob("*") if path.is_file())
    sources = [path for path in files if "__pycache__" not in path.parts]
    digest = hashlib.sha256()
    for path in sources:
        digest.update(
            f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode() + path.read_bytes()
        )
    carried_on = root.parent / _PACKED
    packed = carried_on.read_bytes() if carried_on.is_file() else _archive(root, sources, files)
    return digest.hexdigest()[:16], packed


def _archive(root: Path, sources: list[Path], files: list[Path]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for path in (
            *sources,
            *(path for path in files if path.suffix == ".pyc"),
        ):  # no half-written one
            archive.add(path, Path("raylaunch") / path.relative_to(root), filter=_without_owner)
    return gzip.compress(sink.getvalue(), compresslevel=1, mtime=0)


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
