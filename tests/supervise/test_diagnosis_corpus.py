"""The corpus of public failure reports: most named rightly, none wrongly with certainty.

One file a case, `tests/data/diagnose/NAME.yaml`:

    class    kind of failure; the score is counted per class
    source   the report it is an excerpt of
    cause    words that the cause must contain; `a|b` is either of two
    remedy   words that the remedy must contain
    not      words that neither may contain (the wrong component, the wrong tuning variable)
    kind     class of the diagnosis: deterministic, transient or device; where the report tells it
    resolution  how the report ended, where it says so; for the reader only
    log      program output; addresses and names are replaced

A case with `class: healthy` has only `source` and `log`, and must yield no failure.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from raylaunch.supervise.diagnosis.root_cause import Diagnosis, diagnose_text

FOLDER = Path(__file__).parent.parent / "data" / "diagnose"
RIGHT_FLOOR = 0.998
UNDECIDED = ("unknown", "no-evidence", "unexplained-errors")


class Case(NamedTuple):
    name: str
    kind: str
    cause: tuple[str, ...]
    remedy: tuple[str, ...]
    wrong: tuple[str, ...]
    fails: str
    log: str


def load_case(path: Path) -> Case:
    entry = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert entry["source"], path
    return Case(
        name=path.stem,
        kind=entry["class"],
        cause=tuple(entry.get("cause", ())),
        remedy=tuple(entry.get("remedy", ())),
        wrong=tuple(entry.get("not", ())),
        fails=entry.get("kind", ""),
        log=entry["log"],
    )


CASES = [load_case(path) for path in sorted(FOLDER.glob("*.yaml"))]
HEALTHY = [case for case in CASES if case.kind == "healthy"]
FAILED = [case for case in CASES if case.kind != "healthy"]


def contains(text: str, words: tuple[str, ...]) -> bool:
    lower = text.lower()
    return all(any(either in lower for either in word.lower().split("|")) for word in words)


def grade(case: Case, found: Diagnosis | None) -> str:
    """Return right, partly, nothing, wrong, or wrong-and-certain."""
    if found is None:
        return "nothing"
    said = f"{found.cause} {found.detail}"
    forbidden = any(word.lower() in f"{said} {found.remedy}".lower() for word in case.wrong)
    hits = [contains(said, case.cause), contains(found.remedy, case.remedy)]
    if all(hits) and not forbidden:
        return "right"
    if hits[0] and not forbidden:
        return "partly"
    if found.id in UNDECIDED:
        return "nothing"
    return "wrong-and-certain" if found.certain else "wrong"


GRADES = {case.name: grade(case, diagnose_text(case.log)) for case in FAILED}


def test_most_causes_are_named_rightly(capsys: pytest.CaptureFixture[str]) -> None:
    per_class: dict[str, Counter[str]] = defaultdict(Counter)
    for case in FAILED:
        per_class[case.kind][GRADES[case.name]] += 1
    with capsys.disabled():
        for kind, counts in sorted(per_class.items()):
            print(f"\n  {kind:24}", *(f"{name} {n}" for name, n in sorted(counts.items())), end="")
    right = sum(1 for each in GRADES.values() if each == "right")
    missed = {name: each for name, each in GRADES.items() if each != "right"}
    assert right >= RIGHT_FLOOR * len(FAILED), missed


def test_nothing_wrong_is_said_with_certainty() -> None:
    assert [name for name, each in GRADES.items() if each == "wrong-and-certain"] == []


WITH_CLASS = [case for case in FAILED if case.fails]


@pytest.mark.parametrize("case", WITH_CLASS, ids=lambda case: case.name)
def test_the_class_of_a_failure_says_whether_it_comes_again(case: Case) -> None:
    found = diagnose_text(case.log)
    assert found is not None
    assert found.kind == case.fails, (found.id, found.cause)


@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_a_healthy_or_survived_log_is_no_failure(case: Case) -> None:
    found = diagnose_text(case.log)
    assert found is None or found.kind == "harmless", (found.id, found.cause)


@pytest.mark.parametrize("case", FAILED, ids=lambda case: case.name)
def test_a_failed_log_is_never_an_all_clear(case: Case) -> None:
    found = diagnose_text(case.log)
    assert found is not None
    assert found.kind != "harmless"
    assert "{" not in found.cause.replace("{'", "").replace('{"', "") or "{" in case.log
    assert "not stated" not in found.cause


_BROKEN_OFF = re.compile(
    r"\b(?:about|of|the|an?|(?<!built )with|(?<!belongs )to|from|at|than|and|or)[.:;](?=\s|$)|"
    r"  |\s\.(?=\s|$)|:\."
)
"""Where a sentence ends although a value should follow, and what a value left behind."""


@pytest.mark.parametrize("case", FAILED, ids=lambda case: case.name)
def test_no_sentence_of_an_answer_lacks_its_value(case: Case) -> None:
    found = diagnose_text(case.log)
    assert found is not None
    log = " ".join(case.log.split())
    for text in (found.cause, found.remedy):
        for match in _BROKEN_OFF.finditer(text):
            # What is quoted from the log may break off there.
            around = text[max(0, match.start() - 12) : match.end()].removesuffix(".")
            assert around in log, text


def test_cases_hold_no_real_addresses_of_the_reports() -> None:
    """Addresses are of documentation or private ranges."""
    import ipaddress

    for case in CASES:
        for text in re.findall(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])", case.log):
            if any(int(part) > 255 for part in text.split(".")):
                continue
            address = ipaddress.ip_address(text)
            assert not address.is_global, (case.name, text)
