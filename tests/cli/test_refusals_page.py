"""What docs/refusals.md claims of the tests it names; that the page is current is held by tests/test_docs.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROVE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import refusals
refusals.ROOT = Path(sys.argv[2])
file = refusals.ROOT / "test_some_checks.py"
found = {"cross-node-tp": refusals.Found("cross-node-tp")}
named = refusals.read_tests(file, found)
print(json.dumps([sorted(named), sorted(refusals.prove([file], named))]))
"""

SOME = """
from raylaunch.checks.check_all import check_recipe
from raylaunch.recipe.catalog import read

def ids(*sets):
    return {finding.id for finding in check_recipe(read("a2-dual", sets), {})}

def test_it_comes():
    assert "cross-node-tp" in ids("parallel.tensor=16")

def test_it_does_not_come():
    assert "cross-node-tp" not in ids()

def test_nothing_else_comes():
    assert ids("parallel.tensor=16") <= {"cross-node-tp"}

def test_it_is_made_up():
    assert "cross-node-tp" == "cross-node-tp"
"""


def test_only_a_test_that_fails_without_the_finding_shows_it(tmp_path):
    (tmp_path / "test_some_checks.py").write_text(SOME)
    command = [sys.executable, "-c", PROVE, str(ROOT / "tools"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    named, shown = json.loads(done.stdout)
    assert len(named) == 4
    assert shown == [["cross-node-tp", "test_some_checks.py::test_it_comes"]]


def test_the_page_lists_thirty_refusals_each_with_a_test_of_a_check():
    page = (ROOT / "docs" / "refusals.md").read_text()
    refused = page.partition("## Refused\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `.*\|$", refused, flags=re.MULTILINE)
    assert len(rows) >= 30
    assert [
        row for row in rows if "tests/checks/test_" not in row.split("|")[-2] or "tests/cli" in row
    ] == []
