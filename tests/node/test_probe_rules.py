"""What holds for every module below raylaunch/node: clocks, and names in shared folders."""

import ast
from pathlib import Path

import pytest

import raylaunch.node

ROOT = Path(raylaunch.node.__file__).parent
MODULES = sorted([*ROOT.glob("probe/*.py"), *ROOT.glob("model/*.py")])
WALL_CLOCK = {"node_probe.py": 1}
"""The clocks of the nodes are compared, so the probe reads the wall clock once."""


def calls(module: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_ages_and_deadlines_use_the_monotonic_clock(module):
    wall = ("time.time", "datetime.now", "datetime.datetime.now")
    used = [call for call in calls(module) if ast.unparse(call.func) in wall]
    assert len(used) == WALL_CLOCK.get(module.name, 0)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_no_name_in_tmp_can_be_predicted(module):
    """Another user may put a link there first. Scratch files get random names beside their target."""
    text = module.read_text()
    for shared in ('"/tmp', '"/var/tmp', '"/dev/shm', "gettempdir", "mktemp"):
        assert shared not in text
    for call in calls(module):
        function = ast.unparse(call.func)
        # A temporary directory is new, private and has a random name wherever it is.
        if function.startswith("tempfile.") and function != "tempfile.TemporaryDirectory":
            assert "dir" in {keyword.arg for keyword in call.keywords}
