"""The code that travels: read in a Python that cannot import raylaunch by itself."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from raylaunch.runtime.agent.probe_actor import ProbeActor
from raylaunch.runtime.cluster import code_store, packaging

ROOT = Path(__file__).resolve().parents[2]
NODE = """
import importlib.util, json, os, pickle, sys
from pathlib import Path

sys.path[:] = [folder for folder in sys.path if not (Path(folder) / "raylaunch").exists()]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
assert importlib.util.find_spec("raylaunch") is None
os.environ["RAYLAUNCH_HOME"] = sys.argv[1]
"""
OF_CLASS = """
import asyncio
scout = thing("test", 3, "a1b2c3d4e5f60718")
recalled = asyncio.run(scout.ping_npus((), 0.0))
import raylaunch
print(json.dumps([raylaunch.__file__, type(scout.real).__qualname__, thing.__name__, recalled]))
"""
OF_FUNCTION = """
found = thing("OSError: [Errno 98] Address already in use", "a.log")
import raylaunch, raylaunch.supervise.diagnosis.root_cause as there
print(json.dumps([raylaunch.__file__, found.__class__.__name__, thing.__name__, there.__cached__]))
"""
WITHOUT_CODE = """
import shutil
from raylaunch.runtime.agent.probe_actor import ProbeActor
from raylaunch.runtime.cluster.preload import preload
probe = thing("test", 3, "a1b2c3d4e5f60718")
failed = preload()
shutil.rmtree(os.path.dirname(sys.path[0]))
from raylaunch.supervise.diagnosis.root_cause import diagnose_text
from raylaunch.runtime.controller.group.bundle_writer import write_bundle
from raylaunch.node.probe.npu_tools import find_npu_smi
from raylaunch.vllm_api.vllm_metrics import read_ranks
import yaml, httpx, prometheus_client.parser
found = diagnose_text("OSError: [Errno 98] Address already in use", "a.log")
print(json.dumps([failed, type(found).__name__]))
"""


def _on_node(folder: Path, thing: object, program: str, installed: str = "") -> list:
    import ray.cloudpickle

    data = folder / "pickled"
    data.write_bytes(ray.cloudpickle.dumps(packaging.packaged(thing)))
    node = NODE + installed + "thing = pickle.loads(Path(sys.argv[2]).read_bytes())\n"
    command = [sys.executable, "-B", "-P", "-c", node + program, str(folder / "home"), str(data)]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _code(folder: Path) -> Path:
    """The one version of the code in the home of a node."""
    (found,) = (folder / "home" / "code").iterdir()
    return found


def test_a_class_takes_its_code_along(tmp_path):

    file, kind, name, opened = _on_node(tmp_path, ProbeActor, OF_CLASS)
    assert Path(file).is_relative_to(tmp_path / "home" / "code")
    assert (kind, name, opened) == ("ProbeActor", "ProbeActor", [])


def test_a_function_takes_its_code_along_and_a_second_one_finds_it(tmp_path):
    from raylaunch.supervise.diagnosis.root_cause import diagnose_text

    first = _on_node(tmp_path, diagnose_text, OF_FUNCTION)
    assert first[1:3] == ["Diagnosis", "diagnose_text"]
    installed = Path(first[0]).stat().st_ino
    again = _on_node(tmp_path, diagnose_text, OF_FUNCTION)
    assert Path(again[0]).stat().st_ino == installed
    copies = [one.name for one in (tmp_path / "home" / "code").iterdir()]
    assert len(copies) == 1, copies


def test_an_older_raylaunch_on_the_node_is_passed_over(tmp_path):
    from raylaunch.supervise.diagnosis.root_cause import diagnose_text

    old = tmp_path / "site" / "raylaunch"
    old.mkdir(parents=True)
    (old / "__init__.py").write_text("raise ImportError('the old one')\n")
    file, *_ = _on_node(
        tmp_path, diagnose_text, OF_FUNCTION, f"sys.path.append({str(old.parent)!r})\n"
    )
    assert Path(file).is_relative_to(tmp_path / "home" / "code")


def test_the_code_is_in_a_folder_that_only_its_user_can_enter(tmp_path):
    from raylaunch.supervise.diagnosis.root_cause import diagnose_text

    (tmp_path / "home" / "code").mkdir(parents=True)
    (tmp_path / "home").chmod(0o777)
    (tmp_path / "home" / "code").chmod(0o777)
    _on_node(tmp_path, diagnose_text, OF_FUNCTION)
    modes = [
        stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "home", tmp_path / "home" / "code", _code(tmp_path))
    ]
    assert modes == [0o755, 0o700, 0o700]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize("name", ["", "code"])
def test_code_below_a_folder_of_another_user_is_not_run(tmp_path, name):
    from raylaunch.supervise.diagnosis.root_cause import diagnose_text

    _on_node(tmp_path, diagnose_text, OF_FUNCTION)
    os.chown(tmp_path / "home" / name, 12345, 12345)
    with pytest.raises(AssertionError, match="belongs to another user"):
        _on_node(tmp_path, diagnose_text, OF_FUNCTION)


@pytest.mark.parametrize("name", ["home", "home/code"])
def test_code_behind_a_symbolic_link_is_not_run(tmp_path, name):
    from raylaunch.supervise.diagnosis.root_cause import diagnose_text

    _on_node(tmp_path, diagnose_text, OF_FUNCTION)
    folder = tmp_path / name
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AssertionError, match="it is a symbolic link"):
        _on_node(tmp_path, diagnose_text, OF_FUNCTION)


ATTACK = "raise SystemExit('attacked')\n"


def _change(code: Path) -> None:
    (code / "raylaunch" / "__init__.py").write_text(ATTACK)


def _change_keeping_time_and_size(code: Path) -> None:
    file = code / "raylaunch" / "errors.py"
    before = file.stat()
    file.write_bytes(b"#" * before.st_size)
    os.utime(file, (before.st_atime, before.st_mtime))


def _remove(code: Path) -> None:
    (code / "raylaunch" / "errors.py").unlink()


def _remove_everything(code: Path) -> None:
    shutil.rmtree(code)
    code.mkdir()


def _hide_behind_a_package(code: Path) -> None:
    (code / "raylaunch" / "errors").mkdir()
    (code / "raylaunch" / "errors" / "__init__.py").write_text(ATTACK)


def _exchange_for_a_link(code: Path) -> None:
    elsewhere = code.parent.parent / "elsewhere.py"
    elsewhere.write_text(ATTACK)
    (code / "raylaunch" / "errors.py").unlink()
    (code / "raylaunch" / "errors.py").symlink_to(elsewhere)


def _exchange_a_folder_for_a_link(code: Path) -> None:
    elsewhere = code.parent.parent / "elsewhere"
    (code / "raylaunch" / "supervise").rename(elsewhere)
    (elsewhere / "__init__.py").write_text(ATTACK)
    (code / "raylaunch" / "supervise").symlink_to(elsewhere)


def _change_the_archive(code: Path) -> None:
    (code / code_store.ARCHIVE).write_bytes(b"of another user")


@pytest.mark.parametrize(
    "spoil",
    [
        _change,
        _change_keeping_time_and_size,
        _remove,
        _remove_everything,
        _hide_behind_a_package,
        _exchange_for_a_link,
        _exchange_a_folder_for_a_link,
        _change_the_archive,
    ],
)
def test_changed_or_missing_code_is_repaired(tmp_path, spoil):
    packed = packaging._pack(ROOT / "raylaunch")[1]
    members = code_store.read_archive(packed)
    code = code_store.private_folder(tmp_path, "code") / "digest"
    code_store._unpack_new(code.parent, code, members)
    assert code_store.repair(code, members) == []
    spoil(code)
    assert code_store.repair(code, members)
    assert code_store.repair(code, members) == []
    for name, member in members.items():
        assert (code / name).read_bytes() == member.data


def test_code_that_was_changed_is_not_run(tmp_path):
    from raylaunch.supervise.diagnosis.root_cause import diagnose_text

    _on_node(tmp_path, diagnose_text, OF_FUNCTION)
    _change_keeping_time_and_size(_code(tmp_path))
    assert _on_node(tmp_path, diagnose_text, OF_FUNCTION)[1] == "Diagnosis"


def test_an_archive_that_arrived_damaged_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "raylaunch")
    with pytest.raises(ImportError, match="arrived damaged"):
        code_store.install("0" * 32, b"something")
    assert list(tmp_path.iterdir()) == []


def test_old_code_is_removed_unless_a_process_uses_it(tmp_path):
    store = code_store.private_folder(tmp_path, "code")
    for age, name in enumerate(("current", "b", "c", "d", "used")):
        (store / name).mkdir()
        os.utime(store / name, (1000 - age, 1000 - age))
    (store / ".draft-x").mkdir()
    os.utime(store / ".draft-x", (1000, 1000))
    holder = "import sys; from raylaunch.runtime.cluster import code_store as c; "
    holder += "from pathlib import Path; print(c._hold(Path(sys.argv[1])), flush=True); input()"
    command = [sys.executable, "-c", holder, str(store / "used")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"True\n"
        os.utime(store / "used", (1, 1))
        assert code_store.prune(store, "current") == ["d"]
        assert {path.name for path in store.iterdir()} == {"current", "b", "c", "used"}
        process.stdin.close()
    assert code_store.prune(store, "current") == ["used"], "the kernel has released the lock"


def test_an_actor_needs_no_file_of_its_code_once_it_has_started(tmp_path):
    from raylaunch.runtime.agent.probe_actor import ProbeActor

    assert _on_node(tmp_path, ProbeActor, WITHOUT_CODE) == [[], "Diagnosis"]


def test_it_names_every_public_method_and_keeps_which_are_async():
    from raylaunch.runtime.controller.controller import Controller
    from raylaunch.runtime.weights.weights_actor import WeightsActor

    for kind in (Controller, WeightsActor):
        stand_in = packaging.packaged(kind)
        for name in dir(kind):
            method = getattr(kind, name)
            if name.startswith("_") or not callable(method):
                continue
            flags = [
                one.__code__.co_flags & 0x80 for one in (method, getattr(stand_in, name))
            ]  # CO_COROUTINE
            assert flags[0] == flags[1], name


def test_the_same_files_are_the_same_archive(tmp_path):
    package = tmp_path / "raylaunch"
    package.mkdir()
    (package / "a.py").write_text("A = 1\n")
    digest, packed = packaging._pack.__wrapped__(package)
    assert packaging._pack.__wrapped__(package) == (digest, packed)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"compiled")
    compiled = packaging._pack.__wrapped__(package)[0]
    assert compiled != digest, "the digest covers what Python runs"
    (package / "a.py").write_text("A = 2\n")
    assert packaging._pack.__wrapped__(package)[0] not in (digest, compiled)


def test_code_that_was_received_is_passed_on_as_it_came(tmp_path):
    package = tmp_path / "raylaunch"
    package.mkdir()
    (tmp_path / code_store.ARCHIVE).write_bytes(b"as it came")
    assert packaging._pack.__wrapped__(package)[1] == b"as it came"


def test_a_process_that_has_raylaunch_unpacks_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLAUNCH_HOME", str(tmp_path))
    packaging._installer()("raise AssertionError", "digest", b"no archive")
    assert list(tmp_path.iterdir()) == []
