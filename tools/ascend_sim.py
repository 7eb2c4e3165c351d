"""Build the environment of `make test-ascend`: the real vLLM and vllm-ascend, on simulated NPUs.

usage: ascend_sim.py FOLDER OTHER [ARGUMENTS FOR PIP...]

OTHER is an environment, such as .venv: what has the same version there is not downloaded again.

vllm-ascend 0.23.0.post1 is released as source only, and its build wants a compiler for NPUs. Its
Python files run as they are: they are laid over those of the wheel of 0.23.0, which differ in four.
"""

from __future__ import annotations

import csv
import os
import re
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
    if len(sys.argv) < 3:
        print(__doc__)
        return 2
    folder, other, pip_arguments = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    begin = time.monotonic()
    if folder.exists():
        shutil.rmtree(folder)
    venv.create(folder, with_pip=True)
    pins = [line for line in PINS.read_text().splitlines() if not line.startswith("#")]
    missing = [pin for pin in pins if not _link_package(pin, other, folder)]
    print(f"{folder}: {len(pins) - len(missing)} packages from {other}, {len(missing)} by pip")
    # To compile all of them takes a minute; `_check` compiles what a server imports.
    _pip(folder, "install", "--no-deps", "--no-compile", *pip_arguments, *missing)
    _pip(folder, "install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    _overlay(folder, pip_arguments)
    # Python adds this line's folder to sys.path at its start.
    (_site(folder) / "simulated_npu.pth").write_text(f"{SIMULATED}\n")
    _check(folder)
    print(f"built in {time.monotonic() - begin:.0f} s")
    return 0


def _link_package(pin: str, other: Path, folder: Path) -> bool:
    """Link the files of a package from another environment; False where it has not this version."""
    name, _, version = pin.partition("==")
    source, target = _site(other), _site(folder)
    wheel_name = re.sub(r"[-_.]+", "_", name)
    infos = [
        path
        for path in source.glob(f"*-{version}.dist-info")
        if re.sub(r"[-_.]+", "_", path.name.removesuffix(f"-{version}.dist-info")).lower()
        == wheel_name.lower()
    ]
    if len(infos) != 1 or (infos[0] / "direct_url.json").exists():
        return False
    with (infos[0] / "RECORD").open(newline="") as record:
        files = {Path(row[0]) for row in csv.reader(record)}
    for file in files:
        _link_file(source / file, target / file, other, folder)
    return True


def _link_file(source: Path, target: Path, other: Path, folder: Path) -> None:
    # Bytecode may have been removed since; a namespace's __init__.py belongs to several packages.
    if not source.exists() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.parent.name == "bin" and source.read_bytes()[:2] == b"#!":
        # A script names the Python of its environment.
        text = source.read_text().replace(str(other.absolute()), str(folder.absolute()))
        target.write_text(text)
        target.chmod(source.stat().st_mode)
        return
    try:
        target.hardlink_to(source)
    except OSError:  # another file system
        shutil.copy2(source, target)


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
    """Refuse an environment in which vLLM does not find its platform.

    Imports what a server and its workers import, so that its bytecode is there: a test run may
    forbid to write it.
    """
    question = (
        "import vllm.entrypoints.openai.api_server, vllm.v1.engine.core, vllm_ascend.worker.worker; "
        "from importlib.metadata import version; from vllm.platforms import current_platform; "
        "print(version('vllm'), version('vllm-ascend'), type(current_platform).__name__)"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    answer = subprocess.run(
        [str(folder / "bin" / "python"), "-c", question],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        check=True,
    ).stdout.split()[-3:]
    if answer != [WHEEL, SOURCE, "NPUPlatform"]:
        sys.exit(f"ascend_sim.py: the environment answers {answer}")


if __name__ == "__main__":
    sys.exit(main())
