"""Every benchmark, one after the other; `--short` leaves the rounds at one."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    rounds = "1" if parser.parse_args().short else "3"
    programs = [["launch.py", "--rounds", rounds], ["recovery.py"], ["recovery.py", "--standin", "--servers", "64"]]
    codes = [subprocess.run([sys.executable, HERE / name, *words], check=False).returncode for name, *words in programs]
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
