"""The code that travels: read in a Python that cannot import raylaunch by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raylaunch.runtime.cluster import packaging

ROOT = Path(__file__).resolve().parents[2]

NODE = """
import importlib.util, json, pickle, sys
from pathlib import Path
from types import SimpleNamespace

sys.path[:] = [folder for folder in sys.path if not (Path(folder) / "raylaunch").exists()]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
assert importlib.util.find_spec("raylaunch") is None
import ray
ray._private.worker._global_node = SimpleNamespace(get_session_dir_path=lambda: sys.argv[1])
"""
OF_CLASS = """
import asyncio
scout = thing("test", 3)
recalled = asyncio.run(scout.ping_npus((), 0.0))
import raylaunch
print(json.dumps([raylaunch.__file__, type(scout.real).__qualname__, thing.__name__, recalled]))
"""
OF_FUNCTION = """
said = thing("OSError: [Errno 98] Address already in use", "a.log")
import raylaunch, raylaunch.supervise.diagnosis.root_cause as there
print(json.dumps([raylaunch.__file__, said.__class__.__name__, thing.__name__, there.__cached__]))
"""


def _on_node(folder: Path, thing: object, program: str, installed: str = "") -> list:
    import ray.cloudpickle

    data = folder / "pickled"
    data.write_bytes(ray.cloudpickle.dumps(packaging.carried(thing)))
    (folder / "session").mkdir(exist_ok=True)
    node = NODE + installed + "thing = pickle.loads(Path(sys.argv[2]).read_bytes())\n"
    command = [sys.executable, "-B", "-P", "-c", node + program, str(folder / "session"), str(data)]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_class_takes_its_code_along(tmp_path):
    from raylaunch.runtime.agent.probe_actor import ProbeActor

    file, kind, name, opened = _on_node(tmp_path, ProbeActor, OF_CLASS)
    assert Path(file).is_relative_to(tmp_path / "session")
    assert (kind, name, opened) == ("ProbeActor", "ProbeActor", [])


def test_a_function_takes_its_code_along_and_a_second_one_finds_it(tmp_path):
    from raylaunch.supervise.diagnosis.root_cause import diagnose_text

    first = _on_node(tmp_path, diagnose_text, OF_FUNCTION)
    assert first[1:3] == ["Diagnosis", "diagnose_text"]
    installed = Path(first[0]).stat().st_ino
    again = _on_node(tmp_path, diagnose_text, OF_FUNCTION)
    assert Path(again[0]).stat().st_ino == installed
    copies = [one.name for one in (tmp_path / "session" / "raylaunch").iterdir()]
    assert len(copies) == 1, copies


def test_an_older_raylaunch_on_the_node_is_passed_over(tmp_path):
    from raylaunch.supervise.diagnosis.root_cause import diagnose_text

    old = tmp_path / "site" / "raylaunch"
    old.mkdir(parents=True)
    (old / "__init__.py").write_text("raise ImportError('the old one')\n")
    file, *_ = _on_node(
        tmp_path, diagnose_text, OF_FUNCTION, f"sys.path.append({str(old.parent)!r})\n"
    )
    assert Path(file).is_relative_to(tmp_path / "session")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_code_in_a_folder_of_another_user_is_not_run(tmp_path):
    from raylaunch.supervise.diagnosis.root_cause import diagnose_text

    _on_node(tmp_path, diagnose_text, OF_FUNCTION)
    os.chown(tmp_path / "session" / "raylaunch", 12345, 12345)
    with pytest.raises(AssertionError, match="belongs to another user"):
        _on_node(tmp_path, diagnose_text, OF_FUNCTION)


def test_it_names_every_public_method_and_keeps_which_are_async():
    from raylaunch.runtime.controller.controller import Controller
    from raylaunch.runtime.weights.weights_actor import Depot

    for kind in (Controller, Depot):
        stand_in = packaging.carried(kind)
        for name in dir(kind):
            method = getattr(kind, name)
            if name.startswith("_") or not callable(method):
                continue
            flags = [
                one.__code__.co_flags & 0x80 for one in (method, getattr(stand_in, name))
            ]  # CO_COROUTINE
            assert flags[0] == flags[1], name


def test_the_same_code_is_the_same_archive(tmp_path):
    package = tmp_path / "raylaunch"
    package.mkdir()
    (package / "a.py").write_text("A = 1\n")
    digest, packed = packaging._pack.__wrapped__(package)
    assert packaging._pack.__wrapped__(package) == (digest, packed)
    os.utime(package / "a.py", (1, 1))
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"compiled")
    assert packaging._pack.__wrapped__(package)[0] == digest, "unpacked anew it is the same code"
    (package / "a.py").write_text("A = 2\n")
    assert packaging._pack.__wrapped__(package)[0] != digest


def test_what_was_carried_is_carried_on_as_it_came(tmp_path):
    package = tmp_path / "raylaunch"
    package.mkdir()
    (tmp_path / ".raylaunch-carried.tar.gz").write_bytes(b"as it came")
    assert packaging._pack.__wrapped__(package)[1] == b"as it came"


def test_a_process_that_has_raylaunch_unpacks_nothing(tmp_path, monkeypatch):
    worker = pytest.importorskip("ray")._private.worker
    monkeypatch.setattr(worker, "_global_node", None)  # whoever asked it for a folder would fail
    packaging._installer()("digest", b"no archive")
