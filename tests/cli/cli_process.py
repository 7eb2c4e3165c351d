"""The program as a process of its own, with a fake in place of the api."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent

RUN = """
import sys
sys.path.insert(0, sys.argv.pop(1))
prepare = sys.argv.pop(1)
import raylaunch
class Late:
    def __getattr__(self, name):
        import fake_api
        exec(prepare, vars(fake_api))
        return getattr(fake_api, name)
raylaunch.api = Late()
from raylaunch.cli.app import main
try:
    main()
finally:
    import os
    if os.environ.get("MODULES_TO"):
        open(os.environ["MODULES_TO"], "w").write("\\n".join(sys.modules))
"""
"""Runs the program with the fake in place of the api. The fake itself is imported only when a verb asks for it."""


def command_line(*words: str, prepare: str = "") -> list[str]:
    return [sys.executable, "-c", RUN, str(HERE), prepare, *words]


def environment(**more: str) -> dict[str, str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")
    }
    return {**clean, "TERM": "xterm-256color", **more}
