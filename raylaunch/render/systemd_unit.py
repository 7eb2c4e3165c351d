"""The text of a systemd unit, with systemd's own rules of quoting (systemd.syntax(7))."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from raylaunch.errors import NodeError
from raylaunch.recipe.yaml_reader import describe_unprintable, shorten

_PLAIN = re.compile(r"[A-Za-z0-9_@/.,:=+-]+")

Settings = Sequence[tuple[str, str]]
"""Names and values of one section, in order; the values are escaped already."""


def render_unit(comments: Sequence[str], sections: Mapping[str, Settings]) -> str:
    """Return the text of a unit file."""
    lines = [f"# {line}" for line in comments]
    for name, settings in sections.items():
        lines += ["", f"[{name}]"]
        lines += [f"{key}={value}" for key, value in settings]
    return "\n".join(lines) + "\n"


def escape_specifiers(text: str) -> str:
    """Return `text` for a setting that is one text: a "%" there begins a specifier.

    Raises:
        NodeError: it has a character that no line of a unit can have.
    """
    _refuse_unprintable(text)
    return text.replace("%", "%%")


def quote_word(text: str) -> str:
    """Return one word of a list, such as `Environment` or `RequiresMountsFor`.

    Raises:
        NodeError: it has a character that no line of a unit can have.
    """
    escaped = escape_specifiers(text)
    if _PLAIN.fullmatch(escaped):
        return escaped
    escaped = escaped.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def command_line(words: Sequence[str]) -> str:
    """Return the value of `ExecStart`: a program, by its absolute path, and its arguments.

    A "$" in an argument begins a variable unless it is doubled. In the program it does not.

    Raises:
        NodeError: a word has a character that no line of a unit can have.
    """
    program, *arguments = words
    return " ".join(
        [quote_word(program), *(quote_word(word.replace("$", "$$")) for word in arguments)]
    )


def _refuse_unprintable(text: str) -> None:
    problem = "it has more than one line" if "\n" in text else describe_unprintable(text)
    if problem:
        raise NodeError(f"{shorten(text)!r} cannot be written into a systemd unit", why=problem)


def environment_file(variables: Mapping[str, str]) -> str:
    """Return a file for `EnvironmentFile` (systemd.exec(5)).

    Raises:
        NodeError: a value has a control character. The message does not contain the value.
    """
    lines = []
    for name, value in variables.items():
        if describe_unprintable(value) or "\n" in value:
            raise NodeError(
                f"the value of {name} cannot be written into a file for systemd",
                why="it has a line break or another control character",
            )
        escaped = re.sub(r'(["\\$`])', r"\\\1", value)
        lines.append(f'{name}="{escaped}"')
    return "".join(f"{line}\n" for line in lines)
