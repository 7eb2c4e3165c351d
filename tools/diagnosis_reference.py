"""Write docs/recognised.md: what `raylaunch diagnose` recognises, from its data and its corpus.

Signatures and codes are data of the package; the classes of messages are shown by the cases of
tests/data/diagnose, each with what is said about it. `--check` only compares.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import yaml

from raylaunch.supervise.diagnosis.root_cause import Diagnosis, diagnose_text
from raylaunch.supervise.diagnosis.rules.error_codes import load_codes
from raylaunch.supervise.diagnosis.signatures import load_signatures

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "data" / "diagnose"
TARGET = ROOT / "docs" / "recognised.md"

HEAD = """# What is recognised

<!-- Written by `python tools/diagnosis_reference.py` from raylaunch/supervise/diagnosis and tests/data/diagnose. -->

`raylaunch diagnose` names the first cause of a failure in a deployment's evidence, in a bundle, in a log file or on
stdin (`-`). It reads a log in layers, and the first that knows a line answers:

1. **Signatures**: one message each, with its cause, remedy and source (the last table but one).
2. **CANN error blocks**: code, text, reason and solution are read from the block and quoted; what is known about the
   code is in the last table.
3. **Exceptions by type and place**, libraries that do not fit, flags: they fail again the same way.
4. **Memory with its numbers**, **Ray**, **network**, **KV transfer**, **hangs**.
5. Nothing of these, but error lines are there: the first and last of them, how many, and from which process. That is
   never an all-clear.

What a serving log survived (a refused request, a retry that connected, one notice during graph capture, a peer that
closes after SIGTERM) is no failure. *Certain* means that the cause follows from the line alone; two causes at once are
both named, and neither is certain. `deterministic` failures come again at each start and are not retried.
"""


def main() -> int:
    parts = [HEAD, *classes(), *signatures(), *codes()]
    text = "\n".join(parts).rstrip() + "\n"
    if sys.argv[1:] == ["--check"]:
        current = TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text
        state = "current" if current else "stale: run `python tools/diagnosis_reference.py`"
        print(f"{TARGET.name} is {state}")
        return 0 if current else 1
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET}")
    return 0


def classes() -> list[str]:
    """Show a sample, the answer and the source of each case, by class."""
    by_class: dict[str, list[str]] = defaultdict(list)
    for path in sorted(CORPUS.glob("*.yaml")):
        entry = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = diagnose_text(entry["log"], path.stem)
        if entry["class"] != "healthy" and found is not None:
            by_class[entry["class"]].append(row(found, entry["source"]))
    lines = ["## By class", "", "The line that was decisive, and what is said about it.", ""]
    for name, rows in sorted(by_class.items()):
        lines += [f"### {name}", "", "| line | id, class | cause | remedy | source |"]
        lines += ["| --- | --- | --- | --- | --- |", *rows, ""]
    return lines


def row(found: Diagnosis, source: str) -> str:
    kind = found.kind if found.certain else f"{found.kind}, not certain"
    line = f"`{shown(found.line, 140).replace('`', chr(39))}`"
    return cells(line, f"{found.id}, {kind}", text(found.cause), text(found.remedy), text(source))


def signatures() -> list[str]:
    lines = ["## Signatures", "", "| id | class | cause | remedy | source |"]
    lines.append("| --- | --- | --- | --- | --- |")
    rows = [
        cells(each.id, each.kind, text(each.cause), text(each.remedy), text(each.source))
        for each in load_signatures()
    ]
    return [*lines, *rows, ""]


def codes() -> list[str]:
    lines = ["## Codes of CANN and its runtime", "", "| code | class | cause | remedy | source |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for each in load_codes().values():
        cause = each.cause or "inner error; the block's own text is quoted"
        lines.append(cells(each.code, each.kind, text(cause), text(each.remedy), text(each.source)))
    return lines


def shown(line: str, length: int) -> str:
    """Return a log line without its prefix of blanks, cut."""
    flat = " ".join(line.split())
    return flat if len(flat) <= length else flat[: length - 4] + " ..."


def text(words: str) -> str:
    """Return words that stay words in a Markdown table."""
    flat = " ".join(words.split())
    for sign in ("\\", "|", "<", ">", "[", "]", "*", "_"):
        outside = flat.split("`")
        # Odd pieces are code, where nothing but the bar of the table has a meaning.
        flat = "`".join(
            piece if index % 2 and sign != "|" else piece.replace(sign, f"\\{sign}")
            for index, piece in enumerate(outside)
        )
    return flat


def cells(*values: str) -> str:
    first, *others = values
    return "| " + " | ".join([first.replace("|", "\\|"), *others]) + " |"


if __name__ == "__main__":
    sys.exit(main())
