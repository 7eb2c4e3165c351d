"""Text of other programs loses what would drive a terminal, and nothing else."""

import pytest
from hypothesis import given, settings, strategies as st

from raylaunch.node.probe import tool_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text\n\twith a tab\n", "plain text\n\twith a tab\n"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b]52;c;aGVsbG8=\x07after", "after"),  # writes the clipboard
        ("\x1b]0;title\x1b\\after", "after"),
        ("\x9d0;title\x9cafter", "after"),
        ("\x1b]52;unterminated\nnext", "52;unterminated\nnext"),
        ("\x1bP+q\x1b\\after", "after"),
        ("\x1bcreset", "reset"),
        ("10 %\r20 %\r\ndone", "10 %\n20 %\ndone"),
        ("bell\x07 null\x00 del\x7f next\x85 line", "bell null del next line"),
        ("grün 好 █ 🚀\xa0", "grün 好 █ 🚀\xa0"),
    ],
)
def test_control_characters_and_escape_sequences_are_removed(text, expected):
    assert tool_text.clean(text) == expected


@settings(derandomize=True, database=None, deadline=None)
@given(st.text(alphabet=st.characters(max_codepoint=0xFF)))
def test_no_control_character_but_tab_and_newline_is_left(text):
    left = {char for char in tool_text.clean(text) if ord(char) < 32 or 127 <= ord(char) < 160}
    assert left <= {"\t", "\n"}


def test_one_line_has_neither_tabs_nor_newlines():
    assert tool_text.one_line(" a\tb\r\n\x1b[1mc\n\n") == "a b c"


def test_the_first_line_is_one_that_fits_a_message():
    assert tool_text.first_line("\n \n  hello \nworld") == "hello"
    assert tool_text.first_line(" \n") == "no output"
    assert len(tool_text.first_line("x" * 1000)) == 200
