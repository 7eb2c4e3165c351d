"""Runs the test suite in two parts: first what needs no cluster, on all cores; then the rest alone.

Tests that start Ray, vLLM or hosts share names, ports and the machine's cores, so they run one
after the other. Of the others, those of one file run on one core. Arguments are pytest's; `--all`
includes the long tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

NEEDS_MACHINE = "(ray or vllm or hosts)"
BY_FILE = ("--dist", "loadfile")
"""The tests of one file may share a deployment's name, and so the processes they look for."""
NO_TESTS = 5
"""pytest's exit status when nothing was selected."""
_VERDICT = re.compile(r"^(FAILED|ERROR) |^=+ .*\d+ (passed|failed|error|deselected|skipped).* =+$")


def main(words: list[str]) -> int:
    """Run both parts and return the worse exit status; pytest's own verdicts are printed last."""
    given = [word for word in words if word != "--all"]
    kind = "" if "--all" in words else " and not long"
    parts = [
        [f"not {NEEDS_MACHINE}{kind}", *given, "-n", str(os.cpu_count() or 1), *BY_FILE],
        [f"{NEEDS_MACHINE}{kind}", "--durations=40", *given],
    ]
    verdicts: list[str] = []
    statuses = []
    for part in parts:
        statuses.append(_run(part, verdicts))
        if "-x" in given and statuses[-1] not in (0, NO_TESTS):
            break
    print("\n".join(["", "both parts:", *verdicts]), flush=True)
    found = [status for status in statuses if status != NO_TESTS]
    return max(found, default=NO_TESTS)


def _run(part: list[str], verdicts: list[str]) -> int:
    """Run pytest on one part, show its output, and keep the lines that say how it went."""
    command = [sys.executable, "-m", "pytest", "-m", *part]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as pytest:
        assert pytest.stdout is not None
        for line in pytest.stdout:
            print(line, end="", flush=True)
            if _VERDICT.match(line):
                verdicts.append(line.rstrip())
    return pytest.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
