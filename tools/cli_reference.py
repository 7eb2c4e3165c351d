"""Write docs/cli.md from the program itself: verbs, options, examples, exit codes.

`--check` only compares.
"""

# ruff: noqa: ANN401 - typer has no public types for its parsed commands

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from raylaunch import errors
from raylaunch.cli.app import app

TARGET = Path(__file__).resolve().parent.parent / "docs" / "cli.md"

HEAD = """# Command line

<!-- Written by `python tools/cli_reference.py`; change the help texts in raylaunch/cli instead. -->

Results go to stdout; notes, findings and errors to stderr, so a result can be piped. With `-o json` an error is one
JSON object on stderr (`error`, `what`, `why`, `todo`, `evidence`, `exit_code`). Nothing is cut to the width of a
terminal, and in a pipe nothing is wrapped or coloured. `NO_COLOR` turns colours off everywhere, `FORCE_COLOR` turns
them on in a pipe.

Shell completion, also of recipe names: `raylaunch --install-completion`.
"""

OTHER_CODES = {
    0: ("", "Success; for `status` and `start --wait`: ready."),
    2: ("", "The command line is wrong."),
    130: ("", "Ctrl-C. A deployment that was starting goes on."),
}


def main() -> int:
    text = "\n".join(reference()).rstrip() + "\n"
    if "--check" not in sys.argv:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    print(f"{TARGET} is not current: run `python tools/cli_reference.py`")
    return 1


def reference() -> Iterator[str]:
    program: Any = get_command(app)
    yield HEAD
    yield "| Verb | What it does |"
    yield "| --- | --- |"
    for name, verb in program.commands.items():
        yield f"| [`{name}`](#raylaunch-{name}) | {(verb.help or '').splitlines()[0]} |"
    yield ""
    yield "## Options before the verb"
    yield ""
    yield from options(program)
    for name, verb in program.commands.items():
        yield from section(name, verb)
    yield from exit_codes()


def section(name: str, verb: Any) -> Iterator[str]:
    yield f"## raylaunch {name}"
    yield ""
    yield inspect.cleandoc(verb.help or "")
    yield ""
    yield "```sh"
    lines = (verb.epilog or "").splitlines()
    yield from (line.strip() for line in lines if line.strip() not in ("\b", "Examples:"))
    yield "```"
    yield ""
    yield from options(verb)


def options(verb: Any) -> Iterator[str]:
    yield "| Argument or option | Meaning |"
    yield "| --- | --- |"
    for param in verb.params:
        yield f"| {spelling(param)} | {cell(param.help or '')}{default(param)} |"
    yield "| `-h, --help` | Show the help and exit. |"
    yield ""


def spelling(param: Any) -> str:
    if param.param_type_name == "argument":
        shown = param.metavar or param.name.upper()
        return cell(f"`{shown}`")
    names = ", ".join(sorted(param.opts, key=len)) + "".join(
        f" / {name}" for name in param.secondary_opts
    )
    return cell(f"`{names}{value_of(param)}`")


def value_of(param: Any) -> str:
    if param.is_flag or param.name in ("install_completion", "show_completion"):
        return ""
    if param.metavar:
        return f" {param.metavar}"
    # An enum without a metavar has a default that knows its values.
    members = getattr(type(param.default), "__members__", {})
    return f" {'|'.join(member.value for member in members.values())}" if members else ""


def default(param: Any) -> str:
    value = getattr(param.default, "value", param.default)
    shown = isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))
    return f" Default: `{value}`." if shown else ""


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def exit_codes() -> Iterator[str]:
    yield "## Exit codes"
    yield ""
    yield "| Code | Error | Meaning |"
    yield "| --- | --- | --- |"
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.RaylaunchError)
    ]
    rows = {kind.exit_code: (kind.__name__, first_line(kind)) for kind in kinds} | OTHER_CODES
    rows[1] = ("RaylaunchError", "Any other error; with a traceback, a bug in raylaunch.")
    for code, (name, meaning) in sorted(rows.items()):
        yield f"| {code} | {name} | {meaning} |"


def first_line(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").splitlines()[0]


if __name__ == "__main__":
    raise SystemExit(main())
