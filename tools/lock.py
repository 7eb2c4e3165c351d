"""Writes requirements/locked.txt: everything that `make` installs, pinned by pip's resolver.

usage: lock.py [ARGUMENTS FOR PIP...]

Run it where torch resolves to a CPU build: the resolver must read the dependencies of that build.
Names and versions only: where pip finds them is the business of the machine that installs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKED = ROOT / "requirements" / "locked.txt"
EXTRAS = "cpu,otel,test,dev"
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}


def main() -> int:
    installs = _resolve(sys.argv[1:])
    found = (
        _pin(install["metadata"]) for install in installs if not _is_left_out(install["metadata"])
    )
    pins = sorted(found, key=lambda pin: pin.partition("==")[0])
    if cuda := [pin for pin in pins if pin.startswith("nvidia-")]:
        print(
            f"torch resolved to a CUDA build ({len(cuda)} nvidia packages); name an index with a CPU build of it:\n"
        )
        print("  make lock PIP_ARGS='--extra-index-url URL_OF_THAT_INDEX'")
        return 1
    LOCKED.write_text("\n".join([*_header(), *pins]) + "\n")
    print(f"{LOCKED.relative_to(ROOT)}: {len(pins)} pins")
    return 0


def _resolve(arguments: list[str]) -> list[dict[str, Any]]:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
    ]
    done = subprocess.run(
        [*command, *arguments, f"{ROOT}[{EXTRAS}]"], stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)  # pip has said why, on stderr
    installs: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return installs


def _header() -> list[str]:
    """Return the comment at the top of the file, which is kept: how to install, what is left out."""
    lines = LOCKED.read_text().splitlines()
    return [line for line in lines if line.startswith("#")]


def _is_left_out(metadata: dict[str, Any]) -> bool:
    return _normal(metadata["name"]) in LEFT_OUT | {"raylaunch"}


def _pin(metadata: dict[str, Any]) -> str:
    """Return `name==version` without the local part: 2.13.0+cpu is the same pin for every build."""
    return f"{_normal(metadata['name'])}=={metadata['version'].partition('+')[0]}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
