"""The verb `import`: from launch scripts to a recipe, with a report of what went where."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raylaunch.cli.command import command
from raylaunch.cli.output import Output, Style, table
from raylaunch.errors import NodeError, RecipeError

if TYPE_CHECKING:
    from raylaunch.checks.findings import Finding
    from raylaunch.importer.import_scripts import Imported

BIGGEST = 4_000_000
"""Bytes of a file that may still be a launch script."""


def add_commands(app: typer.Typer) -> None:
    """Register the verb."""
    command(
        app,
        name="import",
        examples="""
        raylaunch import node0.sh node1.sh -o mine.yaml
        raylaunch import run-docker.sh node0.sh node1.sh --platform ascend-a3 -o mine.yaml
        raylaunch import tutorial.md --pick 2 > mine.yaml
        raylaunch import node0.sh node1.sh -o json
        """,
    )(import_)


def import_(
    out: Output,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="Launch scripts, docker run lines, Markdown; `-` is stdin."
        ),
    ],
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.yaml|table|json",
            help="File for the recipe, by default stdout; or the form of the report. May be given twice.",
        ),
    ] = None,
    platform: Annotated[
        str | None,
        typer.Option(
            metavar="ascend-a2|ascend-a3|cpu",
            help="The board; by default it follows from the scripts.",
        ),
    ] = None,
    pick: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER", help="Which deployment to take when the files describe several."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a file that raylaunch did not import.")
    ] = False,
) -> None:
    """Make a recipe from launch scripts that you have.

    Nothing is executed. Variables, placeholders and comments are understood; what all nodes share is written once,
    addresses and interfaces are left to raylaunch, and everything that found no place is reported.
    """
    from raylaunch.importer.import_scripts import import_scripts

    forms = [each for each in output or [] if each in ("table", "json")]
    targets = [Path(each) for each in output or [] if each not in ("table", "json")]
    out.json_errors = "json" in forms
    made = import_scripts(_read(files), platform=platform, pick=pick, beside=_beside(files))
    for target in targets:
        _write(target, made.yaml, force=force)
    if "json" in forms:
        return out.json(
            {**asdict(made), "yaml": made.yaml, "written": [str(target) for target in targets]}
        )
    if not targets and not forms:
        out.line(made.yaml.rstrip("\n"))
    else:
        out.lines(_placed(made, out.style))
    if not out.quiet:
        out.to_stderr(_report(made.findings, out.error_style, everything=out.verbose))
    for target in targets:
        out.note(f"written: {target}; look at it with `raylaunch plan {target}`")
    return None


def _read(names: Sequence[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name in names:
        if name == "-":
            texts["stdin"] = sys.stdin.read(BIGGEST)
            continue
        short = Path(name).name
        texts[name if short in texts else short] = _read_file(Path(name))
    return texts


def _beside(names: Sequence[str]) -> Callable[[str, str], str | None]:
    """Find what a script names (`--config FILE`, `source FILE`) in the folder of that script."""
    folders = {Path(name).name: Path(name).parent for name in names if name != "-"}

    def find(reader: str, path: str) -> str | None:
        folder = folders.get(reader)
        # Only beside the script: a path of a node means another file here.
        if folder is None or Path(path).is_absolute() or ".." in Path(path).parts:
            return None
        file = folder / path
        return _read_file(file) if file.is_file() else None

    return find


def _read_file(path: Path) -> str:
    try:
        if path.stat().st_size > BIGGEST:
            raise RecipeError(
                f"{path} is too large to be a launch script", todo="give the scripts themselves"
            )
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RecipeError(f"{path} cannot be read", why=str(error)) from error


def _write(target: Path, text: str, *, force: bool) -> None:
    from raylaunch.importer.recipe_yaml import MARK

    if target.suffix not in (".yaml", ".yml"):
        raise RecipeError(
            f"-o {target} is no recipe file",
            todo="-o NAME.yaml writes the recipe, -o json the report",
        )
    try:
        if (
            target.exists()
            and not force
            and not target.read_text(encoding="utf-8", errors="replace").startswith(MARK)
        ):
            raise NodeError(
                f"{target} was not imported by raylaunch", todo="choose another -o, or give --force"
            )
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise NodeError(f"{target} cannot be written", why=str(error)) from error


def _placed(made: Imported, style: Style) -> Iterator[str]:
    """Which words went to which field, each once: scripts of several nodes repeat them."""
    rows = dict.fromkeys((each.target, " ".join(each.text.split())) for each in made.placed)
    yield from table(list(rows), style, header=("RECIPE FIELD", "FROM"), kinds=("name",))


def _report(findings: Sequence[Finding], style: Style, *, everything: bool) -> Iterator[str]:
    """The findings: warnings in full; what is only good to know in one line per kind, in full with -v."""
    from raylaunch.cli.views.plan_view import count, finding_lines

    yield from finding_lines(
        [each for each in findings if everything or each.level != "info"], style
    )
    infos = [each for each in findings if each.level == "info"]
    if everything or not infos:
        return
    kinds: dict[str, list[Finding]] = {}
    for each in infos:
        kinds.setdefault(each.id, []).append(each)
    for kind, same in kinds.items():
        seen = dict.fromkeys(each.what if kind == "assumed" else _short(each.seen) for each in same)
        yield f"{style.paint('info:', 'dim')} {_KINDS.get(kind, kind)} ({len(same)}): {', '.join(filter(None, seen))}"
    yield f"{style.paint('info:', 'dim')} -v shows the {count(len(infos), 'line')} of these in full"


_KINDS = {
    "set-by-raylaunch": "set by raylaunch itself",
    "not-placed": "no part of a recipe",
    "not-needed": "not needed",
    "assumed": "assumed",
    "conflict": "not on every node",
    "other-deployment": "of other deployments",
    "secret": "secrets, named only",
}


def _short(seen: str) -> str:
    """The first word of what was seen; the name of a variable without its value."""
    return seen.strip().partition(" ")[0].partition("=")[0]
