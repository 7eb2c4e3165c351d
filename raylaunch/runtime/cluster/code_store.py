"""Unpacks raylaunch's code on a node, in a folder that only its user can write to, and verifies it.

The text of this file travels inside the pickled actor class (packaging.py) and is executed by a
Python that cannot import raylaunch yet, so it uses nothing but the standard library.

The code is stored in `$RAYLAUNCH_HOME/code/DIGEST` (by default below `~/.raylaunch`), not in Ray's
session folder: Ray makes every folder of a session 0777, so that any local user could exchange a
module, and temporary-file cleaners delete files below /tmp that are older than 10 days.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ARCHIVE = ".raylaunch-code.tar.gz"
"""Name of the archive beside the code unpacked from it: an actor passes on the same bytes."""
DIGEST_CHARS = 32
KEPT = 3
"""Versions of the code that stay on a node although no process uses them."""

DRAFT_S = 3600.0
"""A draft older than this was left by a worker that was killed while it unpacked."""

_held: list[int] = []
"""Descriptors of the locks on the code that this process uses. The kernel releases them at exit."""


class UnsafeFolderError(PermissionError):
    """Another user could change what raylaunch stores in a folder, so raylaunch does not use it."""


class Member(NamedTuple):
    """One file of the archive. `mtime` (seconds) is part of it: compiled modules depend on it."""

    mode: int
    mtime: int
    data: bytes


def install(digest: str, packed: bytes) -> None:
    """Make `packed` importable here. It is unpacked once per node and verified each time.

    Does nothing in a process that has imported raylaunch: a driver that looks an actor up unpickles
    the actor's class too.

    Raises:
        ImportError: the archive does not match its digest.
        UnsafeFolderError: the folder for the code belongs to another user or is a symbolic link.
        OSError: the code is not there yet and cannot be written.
    """
    if "raylaunch" in sys.modules:
        return
    if digest_of(packed) != digest:
        raise ImportError(f"the code of raylaunch {digest} arrived damaged")
    store = private_folder(home_folder(), "code")
    folder = store / digest
    members = read_archive(packed)
    is_new = False
    while not _hold(folder):
        is_new = True
        _unpack_new(store, folder, members)
    repair(folder, members)
    sys.path.insert(0, str(folder))
    if is_new:
        prune(store, folder.name)


def digest_of(packed: bytes) -> str:
    """Return the digest that names an archive and the folder of its code."""
    return hashlib.sha256(packed).hexdigest()[:DIGEST_CHARS]


def home_folder() -> Path:
    """Return this user's folder: $RAYLAUNCH_HOME, or ~/.raylaunch."""
    given = os.environ.get("RAYLAUNCH_HOME")
    return Path(given) if given else Path.home() / ".raylaunch"


def private_folder(home: Path, *names: str) -> Path:
    """Return the folder `home/names...`, created or tightened: only this user can write to it.

    Every folder from `home` downwards must be a real folder of this user. `home` loses the write
    permission of group and others; the folders below it become 0700.

    Raises:
        UnsafeFolderError: one of them belongs to another user or is a symbolic link.
        OSError: one of them cannot be created.
    """
    folder = Path(os.path.abspath(home))  # noqa: PTH100 - resolve() would follow a symbolic link
    folder.parent.mkdir(parents=True, exist_ok=True)
    _make_private(folder, allowed=0o755)
    for name in names:
        folder = folder / name
        _make_private(folder, allowed=0o700)
    return folder


def _make_private(folder: Path, *, allowed: int) -> None:
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    try:
        # Not by path: between a check and a change the path could be made to lead elsewhere.
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if stat.S_ISDIR(os.lstat(folder).st_mode):
            raise
        raise _unsafe(folder, "it is a symbolic link or a file, not a folder") from error
    try:
        found = os.fstat(handle)
        if found.st_uid != os.geteuid():
            raise _unsafe(folder, f"it belongs to another user (uid {found.st_uid})")
        mode = stat.S_IMODE(found.st_mode)
        if mode & ~allowed & 0o777:
            os.fchmod(handle, mode & allowed)
    finally:
        os.close(handle)


def _unsafe(folder: Path, why: str) -> UnsafeFolderError:
    return UnsafeFolderError(
        f"{folder} is not used: {why}; set RAYLAUNCH_HOME to a folder of the user that runs Ray"
    )


def read_archive(packed: bytes) -> dict[str, Member]:
    """Read the archive's files by name, the archive itself among them.

    Raises:
        ImportError: a name leads out of the folder.
    """
    members = {ARCHIVE: Member(0o600, 0, packed)}
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for entry in archive:
            if entry.name.startswith("/") or ".." in entry.name.split("/"):
                raise ImportError(f"the code of raylaunch has a file named {entry.name}")
            stream = archive.extractfile(entry)
            if stream is not None:
                mode = 0o600 | entry.mode & 0o100
                members[entry.name] = Member(mode, int(entry.mtime), stream.read())
    return members


def repair(folder: Path, members: Mapping[str, Member]) -> list[str]:
    """Make the files below `folder` those of the archive; returns the names that were not."""
    changed = _remove_unexpected(folder, members)
    missing = [name for name, member in members.items() if not _is_intact(folder / name, member)]
    if missing:
        _replace(folder, {name: members[name] for name in missing})
    return [*changed, *missing]


def prune(store: Path, current: str) -> list[str]:
    """Remove old versions that no process uses, except the newest; returns their names."""
    ages: dict[Path, float] = {}
    for path in store.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another worker prunes too
            ages[path] = time.time() - path.lstat().st_mtime
    drafts = [path for path in ages if path.name.startswith(".")]
    for path in drafts:
        if ages[path] > DRAFT_S:
            shutil.rmtree(path, ignore_errors=True)
    versions = [path for path in ages if path not in drafts and path.name != current]
    versions.sort(key=ages.__getitem__)
    return [path.name for path in versions[KEPT - 1 :] if _remove_unused(path)]


def _unpack_new(store: Path, folder: Path, members: Mapping[str, Member]) -> None:
    """Unpack beside `folder` and rename, so that no other process sees half of it."""
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=store))
    try:
        _write(draft, members)
        draft.rename(folder)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        # Another worker of this node may have been first.
        if not folder.is_dir():
            raise


def _write(folder: Path, members: Mapping[str, Member]) -> None:
    for parent in sorted({str(Path(name).parent) for name in members}):
        (folder / parent).mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    for name, member in members.items():
        handle = os.open(folder / name, flags, member.mode)
        with os.fdopen(handle, "wb") as file:
            file.write(member.data)
        os.utime(folder / name, (member.mtime, member.mtime))


def _replace(folder: Path, members: Mapping[str, Member]) -> None:
    """Write each file elsewhere and rename: a process that imports meanwhile sees a whole file."""
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=folder.parent) as draft:
        _write(Path(draft), members)
        for name in members:
            target = folder / name
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            (Path(draft) / name).replace(target)


def _is_intact(path: Path, member: Member) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return False
        if found.st_size != len(member.data) or int(found.st_mtime) != member.mtime:
            return False
        return file.read() == member.data


def _remove_unexpected(folder: Path, members: Mapping[str, Member]) -> list[str]:
    """Remove what is not in the archive: a folder `x/` would be imported in the place of `x.py`."""
    folders = {str(parent) for name in members for parent in Path(name).parents}
    removed = []
    pending = ["."]
    while pending:
        below = pending.pop()
        with os.scandir(folder / below) as entries:
            found = list(entries)
        for entry in found:
            name = entry.name if below == "." else f"{below}/{entry.name}"
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder and name in folders:
                pending.append(name)
            elif is_folder:
                shutil.rmtree(entry.path, ignore_errors=True)
                removed.append(name)
            elif name in folders or not (name in members or _is_bytecode(name, entry, members)):
                Path(entry.path).unlink(missing_ok=True)
                removed.append(name)
    return removed


def _is_bytecode(name: str, entry: os.DirEntry[str], members: Mapping[str, Member]) -> bool:
    """Return whether Python itself compiled this from a module that came without its bytecode."""
    path = Path(name)
    source = path.parent.parent / f"{path.name.split('.')[0]}.py"
    is_compiled = path.suffix == ".pyc" and path.parent.name == "__pycache__"
    if not is_compiled or str(source) not in members:
        return False
    found = entry.stat(follow_symlinks=False)
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def _hold(folder: Path) -> bool:
    """Mark the code as in use while this process lives, and as used now; False: it is not there.

    A lock rather than a list of pids: the kernel releases it however the process ends.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    with contextlib.suppress(OSError):  # a file system without locks: nothing is pruned there
        fcntl.flock(handle, fcntl.LOCK_SH)
    found = os.fstat(handle)
    if found.st_nlink == 0 or not _is_same(folder, found):
        os.close(handle)  # removed as unused while this process waited for the lock
        return False
    if found.st_uid != os.geteuid():
        os.close(handle)
        raise _unsafe(folder, f"it belongs to another user (uid {found.st_uid})")
    _held.append(handle)
    with contextlib.suppress(OSError):  # a read-only home that holds the code already
        os.utime(folder)
    return True


def _is_same(folder: Path, found: os.stat_result) -> bool:
    try:
        return folder.lstat().st_ino == found.st_ino
    except FileNotFoundError:
        return False


def _remove_unused(folder: Path) -> bool:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Out of the way first: a worker that begins now finds nothing, and unpacks its own.
        aside = folder.with_name(f".removed-{folder.name}-{os.getpid()}")
        folder.rename(aside)
    except OSError:  # in use, or already removed by another worker
        return False
    finally:
        os.close(handle)
    shutil.rmtree(aside, ignore_errors=True)
    return True
