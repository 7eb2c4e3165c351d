"""The house holds: who may import whom, what pure rooms stay away from, and what no file may
contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "raylaunch"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 400
LONGER = {
    "guard.py": 1170,  # one file by necessity: it is run by path, on a node without the package
    "interpreter.py": 430,
    "clues.py": 410,
    "agent.py": 495,  # likewise
}

# cli → api → runtime → {supervise, verify, vllm_api, node} → checks → plan → recipe; render → plan.
PURE = {
    "recipe",
    "plan",
    "checks",
    "render",
    "supervise",
    "importer",
    "bench",
    "monitoring",
    "page",
}
MAY_IMPORT = {
    "errors": set(),
    "home": set(),
    "interrupts": set(),
    "recipe": set(),
    "plan": {"recipe"},
    "checks": {"plan", "recipe"},
    "render": {"plan", "recipe"},
    "supervise": {"checks", "plan", "recipe"},
    "importer": {"checks", "plan", "recipe"},
    "bench": {"plan", "recipe"},
    "gateway": {"node", "plan", "recipe"},
    "vllm_api": {"plan", "recipe"},
    "verify": {"vllm_api", "plan", "recipe"},
    "node": {"checks", "plan", "recipe"},  # checks: the values that a check asks a probe for
    "monitoring": {"supervise", "plan", "recipe"},
    "page": {"bench", "checks", "plan", "recipe", "supervise"},
    "web": {"deployment", "page", "supervise"},
    "runtime": {
        *("gateway", "bench", "supervise", "vllm_api", "node", "checks", "plan", "recipe"),
        "monitoring",
    },
    "deployment": {
        "runtime",
        "verify",
        *PURE,
    },  # verify: a service is asked from where it is called
    "api": {
        "deployment",
        "runtime",
        "verify",
        "node",
        "web",
        *PURE,
    },  # node: a CPU recipe is planned on this machine's facts
    "cli": {"api", "deployment", "verify", *PURE},  # verify: the types that it gives back
    "__init__": {"api", "deployment", *PURE},  # the public face
    "__main__": {"cli"},
}
CLOSETS = {
    "cluster": set(),
    "ssh": set(),
    "agent": {"cluster"},
    "controller": {"agent", "cluster"},
    "bench": {"controller", "agent", "cluster"},
    "drill": {"controller", "agent", "cluster"},
    "weights": {"controller", "agent", "cluster"},
}
"""The closets of `runtime`, each with those that it may import."""
MAX_MODULES = 18
"""Modules in one folder, `__init__` not counted: as many names as a reader takes in at a glance."""
IMPURE = {
    *("ray", "vllm", "torch", "transformers", "psutil"),
    *(
        "httpx",
        "requests",
        "openai",
        "urllib.request",
        "http",
        "socket",
        "socketserver",
        "ssl",
        "asyncio",
    ),
    *("subprocess", "multiprocessing", "threading", "time"),
}
IMPURE_ATTRIBUTES = {"os.environ", "os.environb", "os.getenv", "os.getpid"}
CLOCKS = {"now", "utcnow", "today"}
HEAVY = ("ray", "vllm", "torch", "httpx", "transformers")

# Written so that this file does not contain what it forbids.
FORBIDDEN_TEXT = {
    "a path of somebody's machine": r"(?<![\w.])/wor[k]/|/tmp/[w]\b|\.\./share[d]|/opt/wheel[s]|/opt/pyp[i]",
    "the host of a package index": r"pyp[i]\.org|pythonhoste[d]|download\.pytorc[h]|/pyp[i]/simple",
}
FORBIDDEN_CODE = {
    "ends processes by name": r"\b(pkil[l]|killal[l])\b",
    "gives a string to a shell": r"shell=Tru[e]",
}


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def room_of(module: str) -> str:
    """`raylaunch.plan.launch_plan` → plan, `raylaunch.errors` → errors, `raylaunch` → __init__."""
    return [*module.split("."), "__init__"][1]


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def imports_of(file: Path) -> Iterator[Import]:
    """Every import of a file: at the top, in functions, under TYPE_CHECKING, and by
    import_module("...")."""
    for node in ast.walk(ast.parse(file.read_text())):
        for module in _imported(file, node):
            yield Import(file, node.lineno, module)


def _imported(file: Path, node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parents = module_of(file).split(".")[: -node.level] if node.level else []
        base = ".".join([*parents, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        ("import_module", "__import__")
    ):
        return [
            arg.value
            for arg in node.args[:1]
            if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
        ]
    return []


def is_of(module: str, names: set[str] | tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def test_imports_run_one_way():
    wrong = []
    for file in MODULES:
        room = room_of(module_of(file))
        for found in imports_of(file):
            target = room_of(found.module)
            own = is_of(found.module, ("raylaunch",))
            dunder = found.module.startswith("raylaunch.__")  # raylaunch.__version__
            if (
                own
                and not dunder
                and target not in {room, "errors", "home", "interrupts", *MAY_IMPORT[room]}
            ):
                wrong.append(f"{found}: {room} may use {sorted(MAY_IMPORT[room])}")
    assert not wrong, "\n".join(wrong)


def test_the_closets_of_runtime_import_one_way():
    wrong = []
    for file in (PACKAGE / "runtime").rglob("*.py"):
        own = closet_of(module_of(file))
        for found in imports_of(file):
            target = closet_of(found.module)
            if target and target not in {own, *CLOSETS.get(own, set())}:
                wrong.append(f"{found}: {own} may use {sorted(CLOSETS.get(own, set()))}")
    assert not wrong, "\n".join(wrong)


def closet_of(module: str) -> str:
    """`raylaunch.runtime.agent.gang` → agent, everything outside `runtime` → ""."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["raylaunch", "runtime"] and len(parts) > 3 else ""


def test_no_modules_import_each_other_in_a_circle():
    modules = {module_of(file).removesuffix(".__init__") for file in MODULES}
    graph = {module: set[str]() for module in modules}
    for file in MODULES:
        own = module_of(file).removesuffix(".__init__")
        for found in top_level_imports(file):
            target = found if found in modules else found.rpartition(".")[0]
            if target in modules and target != own:
                graph[own].add(target)
    assert not (circle := find_circle(graph)), " → ".join(circle)


def top_level_imports(file: Path) -> Iterator[str]:
    """The imports that run when the module is imported; those inside functions break no circle."""
    for node in ast.parse(file.read_text()).body:
        yield from _imported(file, node)


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, the first one again at the end; empty when there is
    none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph[module]):
            if circle := visit(target, [*path, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(graph) if (circle := visit(module, []))), [])


def test_a_folder_holds_no_more_modules_than_a_reader_takes_in():
    modules = [file for file in MODULES if file.stem != "__init__"]
    counted = Counter(str(file.parent.relative_to(ROOT)) for file in modules)
    assert not {folder: count for folder, count in counted.items() if count > MAX_MODULES}


def test_the_name_of_a_module_finds_one_file():
    names = Counter(file.stem for file in MODULES if not file.stem.startswith("__"))
    assert not sorted(name for name, count in names.items() if count > 1)


def test_every_room_is_known():
    rooms = {room_of(module_of(file)) for file in MODULES}
    assert rooms <= MAY_IMPORT.keys(), "a new room: say in MAY_IMPORT what it may use"


def test_only_runtime_imports_ray():
    files = [file for file in MODULES if room_of(module_of(file)) != "runtime"]
    wrong = [
        str(found) for file in files for found in imports_of(file) if is_of(found.module, ("ray",))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_guard_needs_only_the_standard_library():
    """It is run by path with `python -I -S`, where neither raylaunch nor site-packages can be
    found."""
    found = {
        found.module.partition(".")[0]
        for found in imports_of(PACKAGE / "node" / "process" / "guard.py")
    }
    assert found <= sys.stdlib_module_names


def pure_modules() -> list[Path]:
    return [file for file in MODULES if room_of(module_of(file)) in PURE]


def test_pure_rooms_import_nothing_that_acts():
    wrong = [
        str(found)
        for file in pure_modules()
        for found in imports_of(file)
        if is_of(found.module, IMPURE)
    ]
    assert not wrong, "\n".join(wrong)


def test_pure_rooms_read_neither_environment_nor_clock():
    wrong = [
        f"{file.relative_to(ROOT)}:{line} {what}"
        for file in pure_modules()
        for line, what in impurities(file)
    ]
    assert not wrong, "\n".join(wrong)


def impurities(file: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            clock = node.attr in CLOCKS and re.search(r"\b(date|datetime)\.\w+$", dotted)
            if clock or dotted in IMPURE_ATTRIBUTES:
                yield node.lineno, f"uses {dotted}"
        for module in _imported(file, node):
            if module in IMPURE_ATTRIBUTES:
                yield node.lineno, f"imports {module}"


@pytest.mark.parametrize(
    "module",
    ["raylaunch", "raylaunch.plan.planner", "raylaunch.checks.check_all", "raylaunch.cli.app"],
)
def test_planning_and_help_load_nothing_heavy(module):
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}} & {set(HEAVY)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout.split(), done.returncode) == ([], 0), done.stdout + done.stderr


def test_an_agent_loads_nothing_that_its_server_waits_for():
    modules = "raylaunch.runtime.agent.agent, raylaunch.node.probe.node_probe"
    code = f"import sys, {modules}; print({{'pydantic', 'httpx'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout.strip(), done.returncode) == ("set()", 0), done.stdout + done.stderr


def test_every_module_says_what_it_owns():
    without = [
        str(file.relative_to(ROOT))
        for file in MODULES
        if not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert not without, without


def test_no_module_is_too_long_to_read():
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in MODULES}
    assert not {
        name: count
        for name, count in lines.items()
        if count > LONGER.get(Path(name).name, MAX_LINES)
    }


def project_files() -> list[Path]:
    """What git tracks or would take; without git (an unpacked sdist) what lies in the project's
    folders."""
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    if (ROOT / ".git").exists():
        listed = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        return sorted(
            file for name in listed.split("\0") if name and (file := ROOT / name).is_file()
        )
    folders = (
        "raylaunch",
        "tests",
        "configs",
        "cluster",
        "tools",
        "benchmarks",
        "docs",
        "requirements",
    )
    return [
        *ROOT.glob("*.*"),
        *(file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file()),
    ]


def occurrences(files: list[Path], patterns: dict[str, str]) -> Iterator[str]:
    for file in files:
        for number, line in enumerate(file.read_bytes().decode(errors="replace").splitlines(), 1):
            for what, pattern in patterns.items():
                if re.search(pattern, line):
                    yield f"{file.relative_to(ROOT)}:{number} {what}: {line.strip()[:120]}"


def test_no_file_names_a_machine_or_a_package_index():
    files = project_files()
    assert ROOT / "pyproject.toml" in files
    assert not (found := list(occurrences(files, FORBIDDEN_TEXT))), "\n".join(found)


def test_no_code_ends_processes_by_name_or_runs_shell_strings():
    code = [file for file in project_files() if file.suffix in {".py", ".sh", ".yaml", ".yml", ""}]
    assert not (found := list(occurrences(code, FORBIDDEN_CODE))), "\n".join(found)


def test_the_rules_can_be_broken(tmp_path):
    """The detectors see what they must: each line below breaks a rule."""
    file = tmp_path / "sample.py"
    file.write_text(
        "import os, datetime\n"
        "def late():\n"
        "    from ray import util\n"
        "    import importlib; importlib.import_module('subprocess')\n"
        "    return os.environ, datetime.datetime.now(), os.getenv('A')\n"
        "from os import environ\n"
    )
    tree = ast.walk(ast.parse(file.read_text()))
    modules = [module for node in tree for module in _imported(file, node)]
    assert {module for module in modules if is_of(module, IMPURE)} == {"ray.util", "subprocess"}
    assert {what for _, what in impurities(file)} == {
        "uses os.environ",
        "uses datetime.datetime.now",
        "uses os.getenv",
        "imports os.environ",
    }
