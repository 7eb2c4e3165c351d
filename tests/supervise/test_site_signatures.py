"""Signatures that a site adds are held to the rules of raylaunch's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from raylaunch.supervise.diagnosis.inputs.cann_table import parse_table
from raylaunch.supervise.diagnosis.inputs.pattern_cost import find_costly
from raylaunch.supervise.diagnosis.inputs.pattern_words import needed_words
from raylaunch.supervise.diagnosis.inputs.site_signatures import (
    check_file,
    read_site,
    sample_problems,
)
from raylaunch.supervise.diagnosis.log_lines import read_log
from raylaunch.supervise.diagnosis.root_cause import ServerEvidence, diagnose
from raylaunch.supervise.diagnosis.signatures import Site, load_signatures

GOOD = {
    "id": "site-licence",
    "pattern": r"licence server (\S{1,80}) does not answer",
    "level": "fatal",
    "class": "transient",
    "cause": "The licence server {0} does not answer.",
    "remedy": "Ask the platform team.",
    "sample": "RuntimeError: licence server lic1 does not answer",
}


def write(folder: Path, content: object, name: str = "site.yaml") -> Path:
    path = folder / "signatures.d" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"id": "Not An Id"}, "id"),
        ({"id": "port-in-use"}, "another signature has this id"),
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": "(lic(ence)?)+ server"}, "slow on a long line"),
        ({"pattern": ".*licence.*"}, "slow on a long line"),
        ({"pattern": "x{0,3}"}, "matches an empty line"),
        ({"pattern": "something else"}, "does not match its sample"),
        ({"level": "deadly"}, "level"),
        ({"level": "warning"}, "class `harmless`"),
        ({"class": "harmless"}, "class `harmless`"),
        ({"cause": "The server {1} is gone."}, "the group {1}"),
        ({"remedy": ""}, "remedy"),
        ({"wrapper": True, "symptom": True}, "either a wrapper or a symptom"),
        ({"anchor": "licence"}, "a fatal signature has none"),
        ({"colour": "red"}, "colour"),
        ({"sample": "INFO: licence server lic1 does not answer"}, "logged below ERROR"),
    ],
)
def test_an_unsound_signature_is_named_with_its_problem(tmp_path, change, problem) -> None:
    write(tmp_path, {"signatures": [{**GOOD, **change}]})
    checked = read_site(tmp_path)
    assert checked.site == Site()
    assert checked.files == ()
    assert any(problem in one for one in checked.problems), checked.problems
    assert all(one.startswith("site.yaml: ") for one in checked.problems)


@pytest.mark.parametrize(
    "text", ["signatures: [", "5", "[]", "signatures: 5", "a: &a [*a, *a]", "noise: [{pattern: x}]"]
)
def test_what_is_no_such_file_is_named(tmp_path, text: str) -> None:
    path = write(tmp_path, text)
    assert check_file(path).problems
    assert check_file(tmp_path).problems == (f"{tmp_path.name}: it is not a file",)


def test_a_sound_file_counts_beside_a_broken_one(tmp_path) -> None:
    write(tmp_path, {"signatures": [GOOD]}, "a.yaml")
    write(tmp_path, {"signatures": [{**GOOD, "id": "Wrong"}]}, "b.yaml")
    write(tmp_path, "", "c.yaml")
    checked = read_site(tmp_path)
    assert [signature.id for signature in checked.site.signatures] == ["site-licence"]
    assert checked.files == ("a.yaml", "c.yaml")
    assert len(checked.problems) == 1


def test_a_signature_of_the_site_wins_over_ours_on_its_line(tmp_path) -> None:
    line = "OSError: [Errno 98] Address already in use by the mesh"
    entry = {**GOOD, "pattern": "in use by the mesh", "cause": "The mesh.", "sample": line}
    write(tmp_path, {"signatures": [entry]})
    checked = read_site(tmp_path)
    assert not checked.problems
    found = diagnose([ServerEvidence(0, log_lines=[line])], site=checked.site)
    assert (found.id, found.certain) == ("site-licence", True)


def test_noise_is_no_error_but_is_still_in_the_log(tmp_path) -> None:
    write(tmp_path, {"noise": [{"pattern": "exporter: retry", "sample": "ERROR exporter: retry"}]})
    noise = read_site(tmp_path).site.noise
    log = read_log(["ERROR exporter: retry", "ERROR else"], noise=noise)
    assert log.errors.text == "ERROR else"
    assert "exporter" in log.everything.text


@pytest.mark.parametrize("signature", load_signatures(), ids=lambda signature: signature.id)
def test_our_own_signatures_pass_the_same_check(signature) -> None:
    assert find_costly(signature.pattern.pattern) == ""
    assert list(sample_problems(signature)) == []


def test_a_bracket_of_a_comment_hides_no_costly_part_behind_it() -> None:
    assert find_costly(r"(?#[)(a+)+") != ""
    assert find_costly(r"(?#\[)(a+)+") == "a group is repeated without an end (`)+`)"


def test_words_of_a_pattern_are_in_all_that_it_matches_and_windows_find_the_same() -> None:
    filler = "".join(f"line {n} of something without a level\n" for n in range(1500))
    samples = [signature.sample for signature in load_signatures()]
    text = "".join(f"{filler}{sample}\n" for sample in samples[::12]) + filler
    log = read_log(text.split("\n"))
    assert len(log.errors.text) > 300_000
    for signature in load_signatures():
        pattern = signature.pattern
        words, is_lower = needed_words(pattern)
        for match in pattern.finditer(signature.sample):
            said = match[0].lower() if is_lower else match[0]
            assert not words or any(word in said for word in words), signature.id
        found = [(match.start(), match[0]) for _, match in log.errors.find(pattern)]
        whole = [(match.start(), match[0]) for match in pattern.finditer(log.errors.text)]
        assert found == whole, signature.id


def test_a_pattern_that_takes_both_cases_is_found_by_its_words_in_lower_case() -> None:
    filler = [f"line {n} of something without a level" for n in range(9000)]
    pattern = re.compile(r"(?i:Disk) FULL|no (?i:SPACE)")
    assert needed_words(pattern) == (frozenset({" full", "space"}), True)
    lines = [*filler, "ERROR DISK FULL", *filler, "ERROR no space"]
    assert [match[0] for _, match in read_log(lines).errors.find(pattern)] == [
        "DISK FULL",
        "no space",
    ]
    # In lower case this letter is two characters: then the whole text is searched.
    longer = read_log([*lines, "ERROR \u0130"])
    assert len(list(longer.errors.find(pattern))) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"error_info_list": 5}', "[" * 100_000])
def test_what_is_no_table_of_cann_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_table(text)
