"""The docs hold: links lead somewhere, shown commands parse, generated pages are current, the site
builds offline."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.main import get_command

import raylaunch
from raylaunch.cli.app import app
from raylaunch.errors import RecipeError
from raylaunch.recipe.catalog import read, recipe_names
from raylaunch.supervise.drills import FAULTS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TOOLS = ["cli_reference", "recipe_reference", "refusals", "diagnosis_reference", "architecture"]
TOOLS += ["dashboards", "page_pictures", "benchmark_pictures"]
PROGRAM = get_command(app)
UsageError: type[Exception] = typer.BadParameter.__base__  # typer does not export it
TAKES_RECIPE = {"show", "plan", "render", "start", "cluster"}

# Stand-ins for files of the reader's own, which need not exist here.
PLACEHOLDERS = {"NAME", "FILE", "DIR"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_of(page: Path) -> Iterator[str]:
    """The lines of the page's code blocks, fenced or indented, continuation lines joined."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


def commands_of(page: Path) -> Iterator[list[str]]:
    """Every `raylaunch ...` that the page shows: in code blocks, after a prompt, inside a pipe, or
    inline."""
    inline = re.findall(
        r"`(raylaunch [^`]+)`", re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
    )
    for line in [*code_of(page), *(" ".join(each.split()) for each in inline)]:
        if "raylaunch" in line:
            yield from commands_in(line)


def commands_in(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=";|&<>")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return  # output, with an apostrophe in it
    starts = [
        0,
        *(
            i + 1
            for i, word in enumerate(words)
            if set(word) <= set(";|&") or word in ("do", "until")
        ),
    ]
    for start in starts:
        if words[start : start + 1] == ["raylaunch"]:
            ends = [i for i, word in enumerate(words) if i > start and set(word) <= set(";|&<>")]
            yield words[start : min(ends, default=len(words))]


ALL = [(name_of(page), command) for page in PAGES for command in commands_of(page)]


def test_there_is_something_to_check():
    pages = {page for page, _ in ALL}
    assert {"README.md", "docs/quickstart.md", "docs/a2-walkthrough.md", "docs/cli.md"} <= pages
    assert ("README.md", ["raylaunch", "start", "a2-dual"]) in ALL


@pytest.mark.parametrize(
    ("page", "command"), ALL, ids=[f"{page}: {' '.join(words)}" for page, words in ALL]
)
def test_a_shown_command_is_understood(page, command):
    words = skip_global_options(command[1:])
    if not words:
        return
    verb = PROGRAM.commands.get(words[0])
    assert verb is not None, f"{page}: there is no `raylaunch {words[0]}`"
    if len(words) == 1 and "`" + " ".join(command) + "`" in (ROOT / page).read_text():
        return  # a verb that is only mentioned
    context = verb.make_context(words[0], [*words[1:]])
    recipe = context.params.get("name") if words[0] in TAKES_RECIPE else None
    if recipe is not None and recipe not in PLACEHOLDERS and not recipe.endswith(".yaml"):
        assert recipe in recipe_names()
        read(recipe, context.params.get("sets") or [])


def skip_global_options(words: list[str]) -> list[str]:
    known = {option for param in PROGRAM.params for option in param.opts} | {"--help", "-h"}
    while words and words[0].startswith("-"):
        assert words[0] in known, f"raylaunch has no option {words[0]}"
        words = words[1:]
    return words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), f"{name_of(page)} links to {target}"
        assert not anchor or anchor in anchors_of(file), (
            f"{name_of(page)} links to {target}: no such heading"
        )


def anchors_of(page: Path) -> set[str]:
    """The ids of its headings, as Python-Markdown makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_files_of_the_project_are_there(page):
    prefixes = "raylaunch|configs|cluster|docs|tools|tests|requirements"
    for path in re.findall(rf"`((?:{prefixes})/[\w./-]+\.\w+)`", page.read_text()):
        assert (ROOT / path).is_file(), f"{name_of(page)} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_make_targets_are_there(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"^(?: {4}|`)make ([a-z-]+)", page.read_text(), flags=re.MULTILINE)
    assert set(named) <= targets


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "python.md"], ids=name_of)
def test_python_examples_use_what_there_is(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert blocks
    names = {f"deployment.{name}" for name in dir(raylaunch.Deployment)} | {
        f"raylaunch.{n}" for n in raylaunch.__all__
    }
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                dotted = ast.unparse(node)
                assert node.value.id not in ("raylaunch", "deployment") or dotted in names, dotted


def test_every_fault_of_the_drill_is_explained():
    page = (ROOT / "docs" / "diagnosis.md").read_text()
    assert [fault.name for fault in FAULTS if f"| `{fault.name}` |" not in page] == []


def test_every_test_that_holds_a_promise_exists():
    page = (ROOT / "docs" / "operations.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 20
    missing = [
        f"{file}::{test}" for file, test in named if f"def {test}" not in (ROOT / file).read_text()
    ]
    assert missing == []


@pytest.mark.parametrize("tool", TOOLS)
def test_generated_pages_are_current(tool):
    command = [sys.executable, ROOT / "tools" / f"{tool}.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_site_builds_without_warnings_and_fetches_nothing(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--strict",
        "--site-dir",
        tmp_path / "site",
    ]
    env = {"PATH": "/usr/bin:/bin", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(list((ROOT / "docs").glob("*.md")))
    for page in pages:
        loaded = re.findall(
            r"<(?:script|img|iframe)[^>]+src=\"?(https?:[^\s\">]+)", page.read_text()
        )
        loaded += re.findall(
            r"<link[^>]+rel=\"?(?:stylesheet|preconnect|icon)\"?[^>]+href=\"?(https?:[^\s\">]+)",
            page.read_text(),
        )
        assert not loaded, f"{page.name} loads {loaded}"


@pytest.mark.parametrize(
    "wrong",
    [
        "raylaunch begin a2-dual",
        "raylaunch start a2-dul",
        "raylaunch stop a2-dual --force",
        "raylaunch plan a2-dual --set a=1",
    ],
)
def test_a_wrong_command_would_be_noticed(wrong):
    (command,) = commands_in(f"cd x && {wrong} > out")
    with pytest.raises((AssertionError, RecipeError, UsageError)):
        test_a_shown_command_is_understood("README.md", command)
