"""A `docker run` line as the container of a recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_BARE = (
    "-d",
    "--detach",
    "-i",
    "--interactive",
    "-t",
    "--tty",
    "--rm",
    "--privileged",
    "--init",
    "--read-only",
)
_LONG = {
    "-e": "--env",
    "-v": "--volume",
    "-u": "--user",
    "-w": "--workdir",
    "-p": "--publish",
    "-h": "--hostname",
    "-m": "--memory",
    "-l": "--label",
    "-c": "--cpu-shares",
    "--network": "--net",
}


@dataclass(frozen=True)
class ContainerRun:
    """A `docker run`: its options in long form, with the words they stand in, the image, and the command inside."""

    where: str
    image: str
    tag: str
    options: tuple[tuple[str, str, tuple[str, ...]], ...]
    """(option, value or "", words)."""
    command: tuple[str, ...] = ()
    digest: str = field(default="")

    def values(self, option: str) -> list[str]:
        """All values of an option."""
        return [value for name, value, _ in self.options if name == option]


def read_docker(words: Sequence[str], where: str) -> ContainerRun | None:
    """Read the words behind `docker run`; None when no image is among them."""
    rest = list(words)
    options: list[tuple[str, str, tuple[str, ...]]] = []
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in _BARE or (equals and name in _BARE) or re.fullmatch(r"-[dit]{2,3}", word):
            options += (
                [(f"-{letter}", "", (word,)) for letter in word[1:]]
                if word[1] != "-"
                else [(name, value, (word,))]
            )
        elif equals and word.startswith("--"):
            options.append((_LONG.get(name, name), value, (word,)))
        elif not word.startswith("--") and len(word) > 2:
            options.append((_LONG.get(word[:2], word[:2]), word[2:].removeprefix("="), (word,)))
        elif rest:
            value = rest.pop(0)
            options.append((_LONG.get(word, word), value, (word, value)))
    if not rest:
        return None
    image, tag, digest = _split_image(rest[0])
    return ContainerRun(where, image, tag, tuple(options), tuple(rest[1:]), digest)


def command_inside(run: ContainerRun) -> str | tuple[str, ...]:
    """What runs in the container: a script (`bash -c '...'`), or words."""
    words = run.command
    if words[:1] and words[0].rpartition("/")[2] in ("bash", "sh"):
        flags = [
            number for number, word in enumerate(words[:-1]) if re.fullmatch(r"-[a-z]*c", word)
        ]
        return words[flags[0] + 1] if flags else words
    return words


def _split_image(text: str) -> tuple[str, str, str]:
    """Split image, tag and digest: the colon of a registry's port is none."""
    rest, _, digest = text.partition("@")
    found = re.fullmatch(r"(.*[^/:]):([^/]+)", rest)
    return (found[1], found[2], digest) if found else (rest, "", digest)
