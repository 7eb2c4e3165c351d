"""Say whether the environment can run vLLM on CPU; run by `make` right after the installation.

Reads metadata and version files only: importing a CUDA build of torch on a machine without CUDA
fails in ways that do not name the cause.
"""

from __future__ import annotations

import sys
from importlib import metadata

from raylaunch.node.probe.software import find_conflicts

TORCH = "2.13.0"


def main() -> int:
    problems = [*_cuda_torch(), *_conflicts()]
    for problem in problems:
        print(f"make: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _cuda_torch() -> list[str]:
    text = metadata.distribution("torch").read_text("METADATA") or ""
    required = [line for line in text.splitlines() if line.startswith("Requires-Dist: nvidia-")]
    version = metadata.version("torch")
    if not required and "+cu" not in version:
        return []
    return [
        f"torch {version} is a CUDA build: vLLM on CPU cannot use it, and its CUDA libraries are not installed.",
        f"Point pip at an index with the CPU build of torch {TORCH}, then start afresh:",
        "  make clean && make install PIP_ARGS='--extra-index-url URL_OF_THAT_INDEX'",
    ]


def _conflicts() -> list[str]:
    found = find_conflicts()
    if not found:
        return []
    names = " ".join(sorted(name.split()[0] for name in found))
    return [
        f"{', '.join(found)}: CUDA builds beside the CPU build of torch; vLLM dies when it imports them.",
        f"  {sys.executable} -m pip uninstall {names}",
    ]


if __name__ == "__main__":
    sys.exit(main())
