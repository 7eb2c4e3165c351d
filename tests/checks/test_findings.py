"""Findings quote what others wrote, and carry none of their control characters."""

from __future__ import annotations

from dataclasses import replace

from raylaunch.checks.check_all import check_nodes
from raylaunch.checks.findings import Finding, strip_control_characters, waive
from raylaunch.plan.facts import Facts, ProbeFailure
from raylaunch.plan.planner import build_plan
from raylaunch.recipe.catalog import read

CLIPBOARD = "\x1b]52;c;cm0gLXJmIC8=\x07"


def test_control_characters_are_removed_except_tab_and_newline() -> None:
    controls = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0))))
    assert strip_control_characters(f"a{controls}b") == "a\t\nb"
    assert strip_control_characters("上海 é → ok") == "上海 é → ok"


def test_a_finding_has_no_control_characters_in_any_text() -> None:
    finding = Finding("tuning", "info", CLIPBOARD, CLIPBOARD, CLIPBOARD, CLIPBOARD)
    for text in (finding.what, finding.todo, finding.where, finding.seen):
        assert text == "]52;c;cm0gLXJmIC8="
    changed = replace(finding, what="\x9b31m")
    assert changed.what == "31m"
    (waived,) = waive([finding], {"tuning": "\x1b[2J"})
    assert "\x1b" not in waived.what


def test_the_error_of_a_tool_is_quoted_without_its_escapes() -> None:
    failure = ProbeFailure("memory", f"df: {CLIPBOARD}")
    node = Facts(
        "192.0.2.10",
        interface="eth0",
        node_id="a",
        clock=1.0,
        hostname="\x1b[2Jn",
        failures=(failure,),
    )
    loaded = read("a2-single")
    found = list(check_nodes(loaded, [node], build_plan(loaded, [node])))
    assert any("df: ]52" in one.seen for one in found)
    assert all("\x1b" not in repr(one) and "\\x1b" not in repr(one) for one in found)
