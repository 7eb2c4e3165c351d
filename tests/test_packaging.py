"""The built package is whole: recipes and types travel, the pins fit the requirements."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel, built from the sdist as an index would get it, unpacked into a folder of its own."""
    built, site = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("site")
    run("-m", "build", "--no-isolation", "--outdir", str(built), str(ROOT))
    (wheel,) = built.glob("*.whl")
    run(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    )
    return site


def run(*arguments: str, **more) -> str:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_recipes_are_found_in_the_installed_package(installed, tmp_path):
    code = (
        "import raylaunch; from raylaunch.recipe import catalog\n"
        "print(raylaunch.__file__, catalog.configs_dir(), sep='\\n')\n"
        "print(*[name for name in catalog.recipe_names() if catalog.read(name)], sep='\\n')"
    )
    env = {**os.environ, "PYTHONPATH": str(installed)}
    package, configs, *names = run("-c", code, cwd=tmp_path, env=env).split()
    assert Path(package).is_relative_to(installed)
    assert Path(configs) == installed / "raylaunch" / "configs"
    assert names == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def test_the_wheel_carries_types_and_every_data_file(installed):
    assert (installed / "raylaunch" / "py.typed").is_file()
    for folder, target in {"raylaunch": "", "configs": "configs", "cluster": "cluster"}.items():
        files = {
            path.relative_to(ROOT / folder)
            for path in (ROOT / folder).rglob("*")
            if is_shipped(path)
        }
        missing = [
            path for path in files if not (installed / "raylaunch" / target / path).is_file()
        ]
        assert not missing, f"not in the wheel: {folder}: {missing}"


def is_shipped(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")


def test_the_wheel_carries_nothing_else(installed):
    top = {path.name for path in installed.iterdir()}
    assert {
        name for name in top if not re.fullmatch(r"raylaunch(-[\d.]+\.dist-info)?|bin", name)
    } == set()


def test_pins_fit_the_requirements():
    pins = dict(line.split("==") for line in locked())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = map(
        Requirement,
        [
            *project["dependencies"],
            *extras["cpu"],
            *extras["test"],
            *extras["otel"],
            *extras["pictures"],
            *extras["dev"],
        ],
    )
    wrong = [
        str(one)
        for one in wanted
        if not one.specifier.contains(pins.get(canonicalize_name(one.name), "0"))
    ]
    assert not wrong, f"run `make lock`: {wrong}"


def test_the_lock_names_no_index_and_none_of_the_packages_that_break_vllm():
    pins = locked()
    assert not [pin for pin in pins if not re.fullmatch(r"[a-z0-9-]+==[\w.!]+", pin)]
    assert not LEFT_OUT & {pin.partition("==")[0] for pin in pins}


def locked() -> list[str]:
    lines = (ROOT / "requirements" / "locked.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_raylaunch_can_be_installed_beside_vllm_ascend_without_changing_a_package():
    """The pins are what vLLM 0.23.0 and vllm-ascend ask for; raylaunch must be content with them."""
    lines = (ROOT / "requirements" / "ascend-sim.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wrong = [
        f"{one}, and the pin is {pins.get(canonicalize_name(one.name))}"
        for one in map(Requirement, project["dependencies"])
        if not one.specifier.contains(pins.get(canonicalize_name(one.name), "0"))
    ]
    assert not wrong
    assert not LEFT_OUT & set(pins)


def test_the_direct_dependencies_are_bounded_on_both_sides():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(line) for lines in lists for line in lines):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators in ({"=="}, {">=", "<"}), requirement
