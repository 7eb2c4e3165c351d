"""Finds the scripts in a document: fenced blocks of Markdown, or lines that are commands."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

SHELLS = (
    "",
    "bash",
    "sh",
    "shell",
    "zsh",
    "console",
    "shell-session",
    "shellsession",
    "bash-session",
)

_FENCE = re.compile(
    r"^([ \t]*)(`{3,}|~{3,}|:{3,})[ \t]*(?:\{(?:code-block|code)\}[ \t]*|\{?\.?)([\w+-]*)"
)
"""A fence of Markdown or MyST, with its language."""

_COMMAND = re.compile(
    r"^\s*(?:#|export\s+\w+=|unset\s|[A-Za-z_]\w*=\S*$|vllm\s+serve|docker\s+run|nohup\s|exec\s|sysctl\s|source\s|"
    r"echo\s+\w+\s*\||--?[A-Za-z][\w-]*(?:[ =]\S+)?(?:\s*\\)?$)"
)
_MORE = re.compile(r"^\s*(?:-|['\"{}\[\]<>|&]|$)|\\\s*$")


@dataclass(frozen=True)
class Block:
    """One script: its text, and the line of the file that comes before its first."""

    text: str
    offset: int = 0


def scripts_of(text: str) -> tuple[list[Block], list[tuple[int, str]]]:
    """Return the scripts in a file's text, and what of the text is none, as (line, words)."""
    lines = text.replace("\r\n", "\n").split("\n")
    if any(_FENCE.match(line) for line in lines):
        return _fenced(lines)
    if _is_prose(lines):
        return _unfenced(lines)
    return [Block(text)], []


def _fenced(lines: list[str]) -> tuple[list[Block], list[tuple[int, str]]]:
    blocks: list[Block] = []
    skipped: list[tuple[int, str]] = []
    opened: tuple[str, str, int] | None = None
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened = (fence[2], fence[3].lower(), number)
        elif opened and fence and fence[2].startswith(opened[0]) and not fence[3]:
            _close(opened, lines[opened[2] + 1 : number], blocks, skipped)
            opened = None
    if opened:
        _close(opened, lines[opened[2] + 1 :], blocks, skipped)
    return blocks, skipped


def _close(
    opened: tuple[str, str, int],
    lines: list[str],
    blocks: list[Block],
    skipped: list[tuple[int, str]],
) -> None:
    _, language, start = opened
    text = "\n".join(line for line in lines if not line.lstrip().startswith(":substitutions:"))
    if language in SHELLS:
        blocks.append(Block(textwrap.dedent(text), start + 1))
    elif re.search(r"vllm\s+serve|docker\s+run", text):
        skipped.append((start + 1, f"a block of {language}"))


def _is_prose(lines: list[str]) -> bool:
    """Return whether the text is a page rather than a script: most lines are no commands."""
    if lines[0].startswith("#!"):
        return False
    wanted = [line for line in lines if line.strip()]
    commands = [line for line in wanted if _COMMAND.match(line) or _MORE.search(line)]
    sentences = [
        line for line in wanted if re.match(r"^\s*[A-Z][\w'-]*,?(?: [\w',:;()/.-]+){3,}", line)
    ]
    return len(sentences) > 3 and len(sentences) * 4 > len(wanted) - len(commands)


def _unfenced(lines: list[str]) -> tuple[list[Block], list[tuple[int, str]]]:
    """Gather runs of command lines; a continuation belongs to the run only if it can follow."""
    blocks: list[Block] = []
    skipped: list[tuple[int, str]] = []
    run: list[str] = []
    for number, line in enumerate([*lines, "."]):
        continued = bool(run) and run[-1].rstrip().endswith("\\")
        if _MORE.search(line) if continued else _COMMAND.match(line):
            run.append(line)
        elif run and line.strip():
            _end_run(run, number - len(run), blocks, skipped)
            run = []
        elif run:
            run.append(line)
    return blocks, skipped


def _end_run(
    run: list[str], offset: int, blocks: list[Block], skipped: list[tuple[int, str]]
) -> None:
    text = "\n".join(run)
    if re.search(r"^\s*(?:export\s|vllm\s|docker\s|\w+=)", text, re.MULTILINE):
        blocks.append(Block(text, offset))
    elif re.search(r"^\s*--", text, re.MULTILINE):
        skipped.append((offset + 1, " ".join(text.replace("\\", " ").split())))
