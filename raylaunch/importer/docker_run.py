"""A `docker run` line as the container of a recipe."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

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
    "--no-healthcheck",
    "--sig-proxy",
    "--oom-kill-disable",
    "-P",
    "--publish-all",
    "-q",
    "--quiet",
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
    """A `docker run`: options in long form with their words, the image, the command inside."""

    where: str
    image: str
    tag: str
    options: tuple[tuple[str, str, tuple[str, ...]], ...]
    """(option, value or "", words)."""
    command: tuple[str, ...] = ()
    digest: str = ""
    serves: bool = False
    """Whether its command is a server: then its variables are those of the server."""

    def values(self, option: str) -> list[str]:
        """All values of an option."""
        return [value for name, value, _ in self.options if name == option]


def read_docker(words: Sequence[str], where: str) -> ContainerRun | None:
    """Read the words behind `docker run`; None when no image is among them."""
    rest = deque(words)
    options: list[tuple[str, str, tuple[str, ...]]] = []
    while rest and rest[0].startswith("-"):
        word = rest.popleft()
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
            value = rest.popleft()
            options.append((_LONG.get(word, word), value, (word, value)))
    if not rest:
        return None
    image, tag, digest = _split_image(rest.popleft())
    command = tuple(rest)
    entrypoint = [value for name, value, _ in options if name == "--entrypoint" and value]
    if entrypoint:
        command = (entrypoint[-1], *command)
    return ContainerRun(where, image, tag, tuple(options), command, digest)


def read_exec(
    words: Sequence[str],
) -> tuple[str, list[str], list[str], str | tuple[str, ...]] | None:
    """Read the words behind `docker exec`.

    Returns:
        The container, its `-e` and `--env-file` values, and what runs in it as a script or words;
        None when no container is named.
    """
    # The container stands where `docker run` has the image.
    run = read_docker(words, "")
    if run is None:
        return None
    container = next(word for word in words[len(words) - len(run.command) - 1 :])
    return container, run.values("--env"), run.values("--env-file"), command_inside(run)


def command_inside(run: ContainerRun) -> str | tuple[str, ...]:
    """What runs in the container: a script (`bash -c '...'`), or words."""
    words = run.command
    if words[:1] and words[0].rpartition("/")[2] in ("bash", "sh"):
        for number, word in enumerate(words[:-1]):
            if re.fullmatch(r"-[a-z]*c", word):
                return words[number + 1]
    return words


def _split_image(text: str) -> tuple[str, str, str]:
    """Split image, tag and digest: the colon of a registry's port is none."""
    rest, _, digest = text.partition("@")
    found = re.fullmatch(r"(.*[^/:]):([^/]+)", rest)
    return (found[1], found[2], digest) if found else (rest, "", digest)
