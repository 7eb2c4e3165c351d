"""Hostile tool outputs: every parser of what a node's tools print answers, and answers quickly.

Derandomized and short, so that a run in the suite is the same everywhere.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bounds import bounded
from hypothesis import example, given, settings, strategies as st

from raylaunch.errors import NodeError
from raylaunch.node.model import storage
from raylaunch.node.probe import (
    engine_dry_run,
    hccn_parsers,
    network,
    npu_parsers,
    npu_tools,
    software,
    tool_text,
    vllm_flags,
    vllm_question,
)

DATA = Path(__file__).parents[1] / "data"
LIMIT_S = 2.0
"""For one text. The slowest one takes some milliseconds when no pattern backtracks."""
LINE_CHARS = 64 * 1024

fuzz = settings.get_profile("fuzz")

RECORDED = [
    file.read_text()
    for folder in ("npu-smi", "hccn")
    for file in sorted((DATA / folder).glob("*.txt"))
]

TOTAL_PARSERS: dict[str, Callable[[str], object]] = {
    "health": npu_parsers.parse_health,
    "board": npu_parsers.parse_board,
    "ip": hccn_parsers.parse_hccn_ip,
    "link": hccn_parsers.parse_hccn_link,
    "net_health": hccn_parsers.parse_hccn_net_health,
    "netdetect": hccn_parsers.parse_hccn_netdetect,
    "gateway": hccn_parsers.parse_hccn_gateway,
    "tls": hccn_parsers.parse_hccn_tls,
    "mtu": hccn_parsers.parse_hccn_mtu,
    "lldp": hccn_parsers.parse_hccn_lldp,
    "ping": hccn_parsers.parse_hccn_ping,
    "first_line": tool_text.first_line,
    "clean": tool_text.clean,
    "one_line": tool_text.one_line,
    "version of a version.py": software.parse_version,
    "build of a version.py": software.names_cuda_build,
    "device type of vllm-ascend": software.parse_device_type,
    "value of an info file": lambda text: software.find_value("version", text),
    "devtype of a uevent": network.parse_devtype,
    "address": lambda text: network.with_prefix(text, text),
    "address without netmask": lambda text: network.with_prefix(text, None),
    "mount table": lambda text: storage.mount_of("/", text),
    "place in a mount table": lambda text: storage.place_of("/", text),
}
"""These have an answer for every text."""

TABLE_PARSERS: dict[str, Callable[[str], object]] = {
    "table": npu_parsers.parse_npu_smi_info,
    "mapping": npu_parsers.parse_mapping,
}
"""These refuse a text without their table, with an error that the probe turns into a failure."""


def parse_all(text: str) -> None:
    for name, parse in {**TOTAL_PARSERS, **TABLE_PARSERS}.items():
        began = time.perf_counter()
        try:
            parse(text)
        except npu_parsers.UnreadableOutputError:
            assert name in TABLE_PARSERS, f"{name} has an answer for every text"
        took_s = time.perf_counter() - began
        assert took_s < LIMIT_S, f"{name} took {took_s:.1f} s"


MARKS = [
    "0.0.0% packet loss",
    "00.00 % packet loss",
    "..% packet loss",
    "mtu:" + "9" * 5000,
    "| 0 910B1 | OK | 97.4 50 0 / 0 |",
    "| 0 | 0000:81:00.0 | 0 0 / 0 3145 / " + "6" * 5000 + " |",
    "| " + "1" * 5000 + " 0 | 77 | python | 100 |",
    "ipaddr:::::",
    "ipaddr:2001:db8::1",
    "gateway:1.2.3.4.5.6",
    "\x1b]52;c;aGk=\x07",
    "\u0663\u0664% packet loss",
    "\r",
    "\x85",
]


@st.composite
def mutated_outputs(draw: st.DrawFn) -> str:
    """A recorded output with pieces cut, repeated, replaced and inserted."""
    text = draw(st.sampled_from(RECORDED))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        end = start + draw(st.integers(0, 40))
        piece = draw(st.sampled_from(MARKS) | st.text(max_size=20) | st.just(text[start:end] * 3))
        text = text[:start] + piece + text[end:]
    return text


@fuzz
@given(st.text())
@example("0.0.0% packet loss")
@example("3 packets transmitted, 3 received, ..% packet loss")
@example("mtu:" + "9" * 5000)
def test_every_parser_answers_any_text(text):
    parse_all(text)


@fuzz
@given(mutated_outputs())
def test_every_parser_answers_a_damaged_recording(text):
    parse_all(text)


@pytest.mark.parametrize(
    "unit",
    [
        "1",
        "1.",
        "a ",
        ":",
        "\t",
        " ",
        "| ",
        "| 0 ",
        "0 / 0 ",
        "f:",
        "ipaddr:",
        "net health status: a ",
        "loss ",
        "% loss",
        "cuda:\n",
        "__version__:\n",
        "cuda: ",
        "\x1b[",
        "\x1b]52;",
        "\x9b0;",
        "- - ",
        "\\040",
    ],
)
@pytest.mark.parametrize("prefix", ["", "| 0 910B1 | OK | 97.4 50 0 / 0 |\n| 0 | ", "cuda", "mtu:"])
def test_no_parser_is_slow_on_a_line_of_64_kilobytes(prefix, unit):
    parse_all(prefix + unit * (LINE_CHARS // len(unit)))


@fuzz
@given(st.text() | mutated_outputs())
def test_a_probe_of_npus_turns_any_output_into_facts_and_failures(text):
    def run_tool(argv, **_):
        return text

    with bounded(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(npu_tools, "run_tool", run_tool)
        patch.setattr(npu_tools, "find_npu_smi", lambda env: "npu-smi")
        patch.setattr(npu_tools, "find_hccn_tool", lambda env, default: "hccn_tool")
        answer = npu_tools.read_npus({}, 60)
    assert answer.npus or answer.failures or "NPU" in text


@fuzz
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(b"#!/bin/python 'unbalanced\n")
@example(b"#!/bin/sh\n'''exec' \"un'balanced\" \n")
@example(b"#!\n")
@example(b"#!/bin/py\x00thon\n")
def test_a_vllm_command_has_an_interpreter_or_is_refused(content):
    with bounded(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            vllm_question, "_read_head", lambda executable: content.decode(errors="replace")
        )
        with contextlib.suppress(NodeError):
            assert vllm_question.interpreter("/nonexistent/vllm")


@fuzz
@given(st.text() | st.just('{"flags": {"a": 1}}') | st.just("[" * 100_000))
def test_an_answer_of_a_vllm_is_read_or_refused(text):
    with bounded():
        answers = vllm_question._parse(text, "")
    assert answers.failure or not text.strip()
    with pytest.raises(vllm_question.UNREADABLE):
        vllm_flags._known_flags({"flags": text})
    with pytest.raises(vllm_question.UNREADABLE):
        engine_dry_run._engine_answer({"messages": [], "became": text})
