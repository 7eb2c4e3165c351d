"""The verb `import`: a recipe from launch scripts, with a report of what went where."""

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

MAX_BYTES = 4_000_000
"""A larger file is no launch script."""
FORMS = ("table", "json")

NAMES_OF_KINDS = {
    "set-by-raylaunch": "set by raylaunch itself",
    "not-placed": "no part of a recipe",
    "not-needed": "not needed",
    "assumed": "assumed",
    "conflict": "not on every node",
    "other-deployment": "of other deployments",
    "secret": "secrets, named only",
}


def add_command(app: typer.Typer) -> None:
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
            help="File for the recipe, by default stdout; or the form of the report. "
            "May be given twice.",
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
            metavar="NUMBER", help="Which deployment to import when the files describe several."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite a file that raylaunch did not import.")
    ] = False,
) -> None:
    """Make a recipe from launch scripts that you have.

    Nothing is executed. Variables, placeholders and comments are understood; what all nodes share
    is written once, addresses and interfaces are left to raylaunch, and everything that found no
    place is reported.
    """
    from raylaunch import api

    forms = [each for each in output or [] if each in FORMS]
    targets = [Path(each) for each in output or [] if each not in FORMS]
    out.json_errors = "json" in forms
    imported = api.import_scripts(
        _read(files),
        platform=platform,
        pick=pick,
        beside=_beside(files),
    )
    for target in targets:
        _write(target, imported.yaml, force=force)
    if "json" in forms:
        written = [str(target) for target in targets]
        return out.json({**asdict(imported), "yaml": imported.yaml, "written": written})
    if not targets and not forms:
        out.line(imported.yaml.rstrip("\n"))
    else:
        out.lines(_placed(imported, out.style))
    if not out.quiet:
        report = _report(imported.findings, out.error_style, everything=bool(out.verbose))
        out.to_stderr(report)
    for target in targets:
        out.note(f"written: {target}; check it with `raylaunch plan {target}`")
    return None


def _read(names: Sequence[str]) -> dict[str, str]:
    """Read the files, each under its short name; a second file of that name under its path."""
    texts: dict[str, str] = {}
    for name in names:
        if name == "-":
            texts["stdin"] = sys.stdin.buffer.read(MAX_BYTES).decode("utf-8", "replace")
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
        status = path.stat()
        if path.exists() and not path.is_file():
            raise RecipeError(f"{path} is not a file", todo="give the scripts themselves")
        if status.st_size > MAX_BYTES:
            raise RecipeError(
                f"{path} is too large to be a launch script", todo="give the scripts themselves"
            )
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise RecipeError(f"cannot read {path}", why=str(error)) from error


def _write(target: Path, text: str, *, force: bool) -> None:
    if target.suffix not in (".yaml", ".yml"):
        raise RecipeError(
            f"-o {target} is no recipe file",
            todo="-o NAME.yaml writes the recipe, -o json the report",
        )
    try:
        if not force and target.exists() and not _is_imported(target):
            raise NodeError(
                f"{target} was not imported by raylaunch", todo="choose another -o, or give --force"
            )
        target.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise NodeError(f"cannot write {target}", why=str(error)) from error


def _is_imported(target: Path) -> bool:
    from raylaunch.importer.recipe_yaml import MARK

    if not target.is_file():
        return False
    with target.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(len(MARK)) == MARK


def _placed(imported: Imported, style: Style) -> Iterator[str]:
    """Lay out which words went to which field, each once: scripts of several nodes repeat them."""
    rows = dict.fromkeys((each.target, " ".join(each.text.split())) for each in imported.placed)
    yield from table(list(rows), style, header=("RECIPE FIELD", "FROM"), kinds=("name",))


def _report(findings: Sequence[Finding], style: Style, *, everything: bool) -> Iterator[str]:
    """Lay out the findings: warnings in full, notes in one line per kind unless `everything`."""
    from raylaunch.cli.views.plan_view import count, finding_lines

    notes = [finding for finding in findings if finding.level == "info"]
    if everything or not notes:
        yield from finding_lines(findings, style)
        return
    yield from finding_lines([one for one in findings if one.level != "info"], style)
    kinds: dict[str, list[Finding]] = {}
    for note in notes:
        kinds.setdefault(note.id, []).append(note)
    info = style.paint("info:", "dim")
    for kind, same in kinds.items():
        seen = dict.fromkeys(_summary(note) for note in same)
        names = ", ".join(filter(None, seen))
        yield f"{info} {NAMES_OF_KINDS.get(kind, kind)} ({len(same)}): {names}"
    yield f"{info} -v shows the {count(len(notes), 'line')} of these in full"


def _summary(note: Finding) -> str:
    """Return what was assumed, or the first word seen: the name of a variable without its value."""
    if note.id == "assumed":
        return note.what
    return note.seen.strip().partition(" ")[0].partition("=")[0]
