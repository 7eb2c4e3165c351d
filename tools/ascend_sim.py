"""Build the environment of `make test-ascend`: the real vLLM and vllm-ascend, on simulated NPUs.

usage: ascend_sim.py FOLDER [ARGUMENTS FOR PIP...]

vllm-ascend 0.23.0.post1 is released as source only, and its build wants a compiler for NPUs. Its
Python files run as they are: they are laid over those of the wheel of 0.23.0, which differ in four.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "requirements" / "ascend-sim.txt"
SIMULATED = ROOT / "tests" / "ascend_sim" / "simulated_npu"
WHEEL, SOURCE = "0.23.0", "0.23.0.post1"
NO_NPU = {"SOC_VERSION": "ascend910b1", "COMPILE_CUSTOM_KERNELS": "0"}
"""What setup.py of vllm-ascend would otherwise ask npu-smi and a compiler for."""


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    folder, pip_arguments = Path(sys.argv[1]), sys.argv[2:]
    begin = time.monotonic()
    if folder.exists():
        shutil.rmtree(folder)
    venv.create(folder, with_pip=True)
    print(f"installing into {folder}, pinned by {PINS.relative_to(ROOT)} (about 1 GB of downloads)")
    _pip(folder, "install", "--no-deps", *pip_arguments, "-r", str(PINS))
    _pip(folder, "install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    _overlay(folder, pip_arguments)
    site = _site(folder)
    # A test run may forbid to write bytecode, and every worker process imports all of it.
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "compileall", "-q", str(site / "vllm_ascend")], check=True)
    # Python adds this line's folder to sys.path at its start.
    (site / "simulated_npu.pth").write_text(f"{SIMULATED}\n")
    _check(folder)
    print(f"built in {time.monotonic() - begin:.0f} s")
    return 0


def _pip(folder: Path, *arguments: str) -> None:
    command = [str(folder / "bin" / "python"), "-m", "pip", *arguments]
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *quiet], env={**os.environ, **NO_NPU}, check=True)


def _overlay(folder: Path, pip_arguments: list[str]) -> None:
    """Lay the Python files of the source release over the wheel's, and give it its version."""
    site = _site(folder)
    with tempfile.TemporaryDirectory() as scratch:
        wanted = ["--no-deps", "--no-build-isolation", "--no-binary", "vllm-ascend"]
        _pip(folder, "download", *wanted, *pip_arguments, "-d", scratch, f"vllm-ascend=={SOURCE}")
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
        (unpacked,) = (path for path in Path(scratch).iterdir() if path.is_dir())
        package = unpacked / "vllm_ascend"
        for path in package.rglob("*.py"):
            target = site / "vllm_ascend" / path.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    info = site / f"vllm_ascend-{WHEEL}.dist-info"
    metadata = (info / "METADATA").read_text()
    (info / "METADATA").write_text(
        metadata.replace(f"\nVersion: {WHEEL}\n", f"\nVersion: {SOURCE}\n", 1)
    )
    info.rename(site / f"vllm_ascend-{SOURCE}.dist-info")


def _site(folder: Path) -> Path:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    return folder / "lib" / version / "site-packages"


def _check(folder: Path) -> None:
    """Refuse an environment in which vLLM does not find its platform."""
    question = (
        "from importlib.metadata import version; from vllm.platforms import current_platform; "
        "print(version('vllm'), version('vllm-ascend'), type(current_platform).__name__)"
    )
    answer = subprocess.run(
        [str(folder / "bin" / "python"), "-c", question],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()[-3:]
    if answer != [WHEEL, SOURCE, "NPUPlatform"]:
        sys.exit(f"ascend_sim.py: the environment answers {answer}")


if __name__ == "__main__":
    sys.exit(main())
