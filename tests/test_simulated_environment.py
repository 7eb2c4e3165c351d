"""The environment of the simulated NPUs links what another environment has in the same version."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "ascend_sim.py"
SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("ascend_sim_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def other(tmp_path):
    """An environment with one package, My-Package 1.5, that has a command."""
    files = {
        f"{SITE}/my_package/__init__.py": "number = 1\n",
        f"{SITE}/my_package-1.5.dist-info/RECORD": (
            "my_package/__init__.py,,\n"
            "my_package/__init__.py,,\n"
            "my_package/gone.pyc,,\n"
            "my_package-1.5.dist-info/RECORD,,\n"
            "../../../bin/mine,,\n"
        ),
        "bin/mine": f"#!{tmp_path}/other/bin/python3\n",
    }
    for name, text in files.items():
        path = tmp_path / "other" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "other"


def test_a_package_of_the_same_version_is_linked_and_its_command_runs_the_new_python(
    tool, other, tmp_path
):
    folder = tmp_path / "new"
    assert tool._link_package("my-package==1.5", other, folder)
    assert (folder / SITE / "my_package/__init__.py").samefile(
        other / SITE / "my_package/__init__.py"
    )
    assert (folder / "bin/mine").read_text() == f"#!{folder}/bin/python3\n"
    assert (other / "bin/mine").read_text() == f"#!{other}/bin/python3\n"


@pytest.mark.parametrize("pin", ["my-package==1.50", "my-package==1", "package==1.5"])
def test_another_version_or_package_is_left_to_pip(tool, other, tmp_path, pin):
    assert not tool._link_package(pin, other, tmp_path / "new")


def test_an_editable_package_is_left_to_pip(tool, other, tmp_path):
    (other / SITE / "my_package-1.5.dist-info/direct_url.json").write_text("{}")
    assert not tool._link_package("my-package==1.5", other, tmp_path / "new")


def test_without_another_environment_everything_is_left_to_pip(tool, tmp_path):
    assert not tool._link_package("my-package==1.5", tmp_path / "absent", tmp_path / "new")
