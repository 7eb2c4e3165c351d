"""The worst of a private dialect stays out of code, messages and documentation.

A word list is no substitute for reading: it only keeps out what once made the texts hard to search.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SEARCHED = ("raylaunch", "docs", "tools", "benchmarks", "README.md", "CONTRIBUTING.md")
SUFFIXES = {".py", ".md", ".yaml"}

# The word -> what to say instead.
WORDS = {
    r"somebody|nobody|whoever": "name the user, process or component",
    r"mend(s|ed|ing)?": "fix, correct, repair",
    r"knock(s|ed|ing)?": "connect, probe",
    r"deaf|dumb": "does not answer",
    r"anew": "again",
    r"an ending": "an exit status",
    r"errands?": "remote command",
    r"speaks? for": "owns",
    r"on wish": "optionally",
}
ALLOWED = re.compile(r"TERM\W+(!=|=|==)?\W*dumb|dumb-init|Recommend|recommend|amend", re.IGNORECASE)
"""`dumb` is a terminal type, `dumb-init` a program."""


def texts() -> list[Path]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--", *SEARCHED]
    if (ROOT / ".git").exists():
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        names = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        names = [file for name in SEARCHED for file in sorted((ROOT / name).rglob("*"))]
    return [file for file in names if file.suffix in SUFFIXES and file.is_file()]


def occurrences(pattern: str) -> Iterator[str]:
    word = re.compile(rf"\b({pattern})\b", re.IGNORECASE)
    for file in texts():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if word.search(line) and not ALLOWED.search(line):
                yield f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}"


@pytest.mark.parametrize("pattern", WORDS, ids=lambda pattern: pattern.partition("|")[0])
def test_a_word_of_the_old_dialect_is_not_used(pattern):
    found = list(occurrences(pattern))
    assert not found, f"say instead: {WORDS[pattern]}\n" + "\n".join(found)


def test_the_files_are_found():
    assert len(texts()) > 200
