"""Write docs/refusals.md from the checks: each finding, its level, words and a test that shows it.

That a test names a finding proves nothing: it may say that the finding does not come. So each such
test is run with the finding taken away, and counts when it then fails. `--check` only compares;
both fail on a finding that no test shows.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import raylaunch.checks
from raylaunch.checks.findings import CHECK_IDS, Finding

ROOT = Path(__file__).resolve().parent.parent
CHECKS = ROOT / "raylaunch" / "checks"
TESTS = ROOT / "tests"
SHOWING = TESTS / "checks"
"""Only here do findings come from the checks; other tests, as those of the command line, make up
their own."""
TARGET = ROOT / "docs" / "refusals.md"
LEVELS = ("error", "warning", "info")
FIELDS = ("id", "level", "what")

HEAD = """# What is refused

<!-- Written by `python tools/refusals.py` from raylaunch/checks/**/*_checks.py and the tests; change those instead. -->

`raylaunch plan` checks the recipe; `raylaunch start` checks it again with the versions of the nodes, probes every node
from the agents that will run the servers, and checks what it saw. All findings come at once, before a weight is read.

- **error**: nothing is launched (exit code 4). `--skip-check ID=REASON` turns one into a warning; the reason is kept.
- **warning**, **info**: said, and the start goes on.

`{}` stands for what was seen. The last column names tests that fail when the condition is no longer noticed: each was
run without the finding, and did.
"""

# Refused before any check: not findings, so they are listed by hand; `main` makes sure that the
# tests exist.
EARLIER = (
    (
        "an unknown recipe; the nearest name is offered",
        3,
        "recipe/test_load.py",
        "test_an_unknown_recipe_names_the_nearest",
    ),
    (
        "a path without a file",
        3,
        "recipe/test_load.py",
        "test_a_path_that_leads_nowhere_is_said_to",
    ),
    (
        "broken YAML, with line and column",
        3,
        "recipe/test_load.py",
        "test_malformed_yaml_is_an_error_with_a_line",
    ),
    (
        "an unknown key, with file, line and the nearest valid one",
        3,
        "recipe/test_load.py",
        "test_an_unknown_key_names_file_line_key_and_the_nearest",
    ),
    (
        "a key given twice",
        3,
        "recipe/test_load.py",
        "test_a_key_given_twice_is_refused_with_its_line",
    ),
    (
        "a flag given in two spellings",
        3,
        "recipe/test_load.py",
        "test_a_flag_in_two_spellings_is_refused",
    ),
    (
        "a recipe that extends itself",
        3,
        "recipe/test_load.py",
        "test_a_recipe_that_extends_itself_is_refused_with_the_circle",
    ),
    (
        "a fallback that cannot take the recipe's place",
        3,
        "recipe/test_fallbacks.py",
        "test_a_fallback_that_cannot_take_the_place_is_refused",
    ),
    (
        "a flag or variable that raylaunch sets itself",
        3,
        "recipe/test_load.py",
        "test_what_the_planner_owns_is_refused_with_the_field_to_use",
    ),
    (
        "a variable name that no shell could export",
        3,
        "recipe/test_load.py",
        "test_a_variable_that_no_shell_could_export_is_refused",
    ),
    (
        "a `--set` without a value, or with one of the wrong type",
        3,
        "recipe/test_load.py",
        "test_a_bad_set_is_explained",
    ),
    (
        "fewer hosts than servers",
        12,
        "plan/test_planner.py",
        "test_too_few_hosts_are_refused_with_the_number_that_is_needed",
    ),
    (
        "an interface that a host does not have",
        12,
        "plan/test_planner.py",
        "test_an_interface_that_is_nowhere_is_refused_with_those_that_are",
    ),
    (
        "a host without an interface",
        12,
        "plan/test_planner.py",
        "test_a_host_without_an_interface_says_how_to_give_one",
    ),
    (
        "a skipped check without a reason",
        2,
        "cli/test_cli_deployments.py",
        "test_a_skipped_check_wants_a_reason",
    ),
    (
        "a skipped check that there is not; the nearest id is offered",
        2,
        "cli/test_cli_deployments.py",
        "test_a_skipped_check_must_be_one",
    ),
)


@dataclass
class Found:
    """One kind of finding, gathered from the code."""

    name: str
    levels: set[str] = field(default_factory=set)
    words: list[str] = field(default_factory=list)
    why: str = ""
    tests: set[str] = field(default_factory=set)


def main() -> int:
    found = gather()
    if gone := [test for _, _, file, test in EARLIER if not exists(file, test)]:
        print(f"no such test: {', '.join(gone)}")
        return 1
    if unlisted := found.keys() ^ CHECK_IDS:
        print(
            f"CHECK_IDS in raylaunch/checks/findings.py and the checks differ in: {', '.join(sorted(unlisted))}"
        )
        return 1
    if untested := [name for name, each in found.items() if not each.tests]:
        print(f"no test fails without: {', '.join(untested)}")
        return 1
    text = "\n".join([HEAD, *tables(found), *earlier()]).rstrip() + "\n"
    if sys.argv[1:] == ["--check"]:
        current = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
        print(
            f"{TARGET.name} is {'current' if current else 'stale: run `python tools/refusals.py`'}"
        )
        return 0 if current else 1
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET}")
    return 0


def exists(file: str, test: str) -> bool:
    return f"def {test}(" in (TESTS / file).read_text(encoding="utf-8")


def gather() -> dict[str, Found]:
    found: dict[str, Found] = {}
    for file in sorted(CHECKS.rglob("*_checks.py")):
        read_checks(ast.parse(file.read_text(encoding="utf-8")), found)
    named = {}
    files = sorted(SHOWING.glob("test_*checks.py"))
    for file in files:
        named |= read_tests(file, found)
    for name, test in prove(files, named):
        found[name].tests.add(test)
    return found


def read_checks(tree: ast.Module, found: dict[str, Found]) -> None:
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for function in functions:
        after = 0
        for call in findings_in(function):
            name, level, words = (argument(call, *each) for each in enumerate(FIELDS))
            if isinstance(name, ast.Constant):
                each = found.setdefault(str(name.value), Found(str(name.value)))
                values = returned(resolve(level, function), functions)
                each.levels |= constants(values) & set(LEVELS)
                each.words += [
                    said
                    for value in resolve(words, function, after, call.lineno)
                    if (said := text(value))
                ]
                each.why = each.why or reason(function, functions)
            after = call.lineno


def argument(call: ast.Call, position: int, name: str) -> ast.expr:
    """Return an argument of `Finding(...)`, given by position or by name."""
    if position < len(call.args):
        return call.args[position]
    return next(keyword.value for keyword in call.keywords if keyword.arg == name)


def returned(values: list[ast.expr], functions: list[ast.FunctionDef]) -> list[ast.expr]:
    """Add to calls of the module's own functions what these return."""
    names = {name for value in values if isinstance(value, ast.Call) for name in names_in(value)}
    called = [function for function in functions if function.name in names]
    statements = [each for function in called for each in ast.walk(function)]
    returns = [each.value for each in statements if isinstance(each, ast.Return) and each.value]
    return [*values, *returns]


def findings_in(function: ast.FunctionDef) -> list[ast.Call]:
    """Its calls of `Finding(...)`, in the order of the file."""
    calls = [each for each in ast.walk(function) if isinstance(each, ast.Call)]
    named = [
        each for each in calls if isinstance(each.func, ast.Name) and each.func.id == "Finding"
    ]
    return sorted(named, key=lambda call: call.lineno)


def resolve(
    node: ast.expr, function: ast.FunctionDef, after: int = 0, until: int = sys.maxsize
) -> list[ast.expr]:
    """Return the values of an argument: itself, or what the function assigns to that name."""
    if not isinstance(node, ast.Name):
        return [node]
    given = [
        each
        for each in ast.walk(function)
        if isinstance(each, ast.Assign | ast.AnnAssign) and after < each.lineno <= until
    ]
    targets = {
        each: each.targets if isinstance(each, ast.Assign) else [each.target] for each in given
    }
    named = [
        each
        for each in given
        if any(isinstance(to, ast.Name) and to.id == node.id for to in targets[each])
    ]
    return [each.value for each in named if each.value is not None]


def constants(values: list[ast.expr]) -> set[str]:
    return {
        str(part.value)
        for value in values
        for part in ast.walk(value)
        if isinstance(part, ast.Constant)
    }


def text(value: ast.expr) -> str:
    """A literal text, its placeholders as {}; "" for anything else."""
    if isinstance(value, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{}" for part in value.values
        )
    return str(value.value) if isinstance(value, ast.Constant) else ""


def reason(function: ast.FunctionDef, functions: list[ast.FunctionDef]) -> str:
    """The docstring of the check; of a helper without one, that of the check which calls it."""
    said = ast.get_docstring(function) or ""
    callers = [
        each for each in functions if each is not function and function.name in names_in(each)
    ]
    if not function.name.startswith("check") and callers and not said:
        said = ast.get_docstring(callers[0]) or ""
    return " ".join(said.split("\n\n")[0].split())


def names_in(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def read_tests(file: Path, found: dict[str, Found]) -> dict[str, set[str]]:
    """Findings by the test that names them: in a table it is parametrized over, or in its own body."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tables = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    named: dict[str, set[str]] = {}
    for test in tree.body:
        if not isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef) or not test.name.startswith(
            "test_"
        ):
            continue
        words = constants([each for each in ast.walk(test) if isinstance(each, ast.expr)])
        rows = [
            row
            for name in sorted(names_in_decorators(test) & tables.keys())
            for row in entries(tables[name])
        ]
        named[label(file, test.name)] = (words & found.keys()) | {
            name for row in rows for name in take_row(row, found)
        }
    return {test: names for test, names in named.items() if names}


def label(file: Path, test: str) -> str:
    return f"{file.relative_to(ROOT)}::{test}"


def names_in_decorators(test: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    return {name for decorator in test.decorator_list for name in names_in(decorator)}


def entries(value: ast.expr) -> list[ast.expr]:
    return value.elts if isinstance(value, ast.List | ast.Tuple) else []


def take_row(row: ast.expr, found: dict[str, Found]) -> Iterator[str]:
    """A row `("port-busy", "error", ...)` names a finding and one of its levels."""
    words = [cell.value for cell in entries(row)[:2] if isinstance(cell, ast.Constant)]
    if words and words[0] in found:
        found[words[0]].levels |= set(words[1:]) & set(LEVELS)
        yield words[0]


def prove(files: list[Path], named: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    """The pairs of finding and test where the test fails without the finding."""
    prover = Prover(named)
    prover.hold_back()
    os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    alone = [
        "-c",
        os.devnull,
        f"--rootdir={ROOT}",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "--assert=plain",
    ]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main([*alone, *map(str, files)], plugins=[prover])
    if code != pytest.ExitCode.OK:
        raise SystemExit(f"the tests do not pass, so they show nothing:\n{said.getvalue()}")
    return prover.shown


class Prover:
    """A pytest plug-in that runs each test as it is, and again without each finding it names."""

    def __init__(self, named: Mapping[str, set[str]]) -> None:
        self.named = named
        self.shown: set[tuple[str, str]] = set()
        self.held_back = ""

    def hold_back(self) -> None:
        """Wrap the checks; to be done before tests import them."""
        for module in pkgutil.walk_packages(raylaunch.checks.__path__, "raylaunch.checks."):
            if module.name.endswith(("checks", "check_all")):
                room = vars(importlib.import_module(module.name))
                own = {name: check for name, check in room.items() if name.startswith("check_")}
                room.update({name: self._without(check) for name, check in own.items()})

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out the tests that name no finding."""
        items[:] = [item for item in items if label_of(item) in self.named]

    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> None:
        """Before pytest runs the test itself, which must pass."""
        test = label_of(pyfuncitem)
        row = {
            value for value in pyfuncitem.funcargs.values() if isinstance(value, str)
        } & self.named[test]
        for name in row or self.named[test]:
            if (name, test) not in self.shown and self._fails_without(name, pyfuncitem):
                self.shown.add((name, test))

    def _without(self, check: Callable[..., Iterator[Finding]]) -> Callable[..., Iterator[Finding]]:
        @functools.wraps(check)
        def run(*given: object, **more: object) -> Iterator[Finding]:
            return (finding for finding in check(*given, **more) if finding.id != self.held_back)

        return run

    def _fails_without(self, name: str, test: pytest.Function) -> bool:
        self.held_back = name
        try:
            test.obj(
                **{each: test.funcargs[each] for each in test.fixturenames if each in test.funcargs}
            )
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - whatever it raises, it fails
            return True
        finally:
            self.held_back = ""
        return False


def label_of(item: pytest.Item) -> str:
    return label(item.path, getattr(item, "originalname", item.name))


def tables(found: dict[str, Found]) -> Iterator[str]:
    worst = {
        name: min(LEVELS.index(level) for level in each.levels) for name, each in found.items()
    }
    for number, title in enumerate(("Refused", "Warned of", "Mentioned")):
        rows = [each for name, each in sorted(found.items()) if worst[name] == number]
        yield f"## {title}"
        yield ""
        yield f"{len(rows)} findings."
        yield ""
        yield "| Id | Level | What it says | Why | Shown by |"
        yield "| --- | --- | --- | --- | --- |"
        for each in rows:
            levels = ", ".join(level for level in LEVELS if level in each.levels)
            tests = "<br>".join(f"`{test}`" for test in sorted(each.tests))
            yield f"| `{each.name}` | {levels} | {'<br>'.join(map(cell, each.words))} | {cell(each.why)} | {tests} |"
        yield ""


def earlier() -> Iterator[str]:
    yield "## Refused before the checks"
    yield ""
    yield "| Condition | Exit code | Shown by |"
    yield "| --- | --- | --- |"
    for condition, code, file, test in EARLIER:
        yield f"| {cell(condition)} | {code} | `tests/{file}::{test}` |"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    raise SystemExit(main())
