"""Shell text as words: quotes, variables, continuations, and what a launch script never needs."""

import pytest

from raylaunch.importer.shell.expansion import expand
from raylaunch.importer.shell.placeholders import unknowns
from raylaunch.importer.shell.shell_blocks import Block, nest
from raylaunch.importer.shell.shell_parser import parse


def words(text, variables=None):
    used = set()
    return [
        [each for word in statement.words for each in expand(word, variables or {}, used)]
        for statement in parse(text).statements
        if not statement.control
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b  c\td", [["a", "b", "c", "d"]]),
        ("a 'b c' \"d e\" f\\ g", [["a", "b c", "d e", "f g"]]),
        ("a ''", [["a", ""]]),
        ('a ""', [["a", ""]]),
        ("a 'x'\"y\"z", [["a", "xyz"]]),
        ('a "q\\"q" "\\x"', [["a", 'q"q', "\\x"]]),
        ("a \\\n  b", [["a", "b"]]),
        ("a \\  \n  b", [["a", "b"]]),
        ("a b \\", [["a", "b"]]),
        ("a # b\nc#d", [["a"], ["c#d"]]),
        ("a; b && c || d | e & f", [["a"], ["b"], ["c"], ["d"], ["e"], ["f"]]),
        ("a > out 2>&1 < in", [["a"]]),
        ("a <node0_ip> {NIC}", [["a", "<node0_ip>", "{NIC}"]]),
        ("a x:|version|", [["a", "x:|version|"]]),
        ("a x:{{ version }}-a3", [["a", "x:{{ version }}-a3"]]),
        ('a \'{"k": "v",\n "n": 1}\'', [["a", '{"k": "v",\n "n": 1}']]),
        ("a\r\nb\r\n", [["a"], ["b"]]),
        ("cat <<EOF\nvllm serve x\nEOF\nb", [["cat"], ["b"]]),
        ("if [ -f x ]; then a; fi", [["[", "-f", "x", "]"], ["a"]]),
        ("for i in 1 2; do a $i; done; b", [["a", "$i"], ["b"]]),
        ("it's broken", [["it's", "broken"]]),
        ("\ufeffa", [["a"]]),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$A", ["1"]),
        ("${A}x", ["1x"]),
        ('"$A $B"', ["1 two words"]),
        ("'$A'", ["$A"]),
        ("\\$A", ["$A"]),
        ("$B", ["two", "words"]),
        ("${C:-3}", ["3"]),
        ("${A:-3}", ["1"]),
        ("$C", ["$C"]),
        ("$(id)", ["$(id)"]),
        ('"$(id)"', ["$(id)"]),
        ("`id`", ["`id`"]),
    ],
)
def test_variables_are_followed_and_nothing_is_run(text, expected):
    assert words(f"a {text}", {"A": "1", "B": "two words"}) == [["a", *expected]]


def test_an_array_is_one_statement():
    (statement,) = parse("ARGS=( --a 'b c'  # why\n  -d\n)").statements
    assert (statement.array, [word.text for word in statement.words]) == (
        "ARGS=",
        ["--a", "b c", "-d"],
    )
    assert words('a "${ARGS[@]}" ${NONE[*]}', {"ARGS[@]": "x\x1fy z"}) == [
        ["a", "x", "y z", "${NONE[*]}"]
    ]


@pytest.mark.parametrize(
    "text",
    ["a=(" * 3000, "$(" * 3000, "'\"" * 3001, "if " * 3000, "{" * 3000, "<<A\n" * 500, "((" * 3000],
)
def test_text_that_opens_and_never_closes_is_read_to_its_end(text):
    assert parse(text + "\nb").statements or parse(text).oddities


def test_lines_and_blocks_are_known():
    parsed = parse("a\n\nb \\\n  c\nwhile true; do\n  d\ndone\ne")
    assert [(each.line, each.control) for each in parsed.statements] == [
        (1, ""),
        (3, ""),
        (5, "while"),
        (5, ""),
        (5, "do"),
        (6, ""),
        (7, "done"),
        (8, ""),
    ]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("for i in 1; do a; done", ["for"]),
        ("if a; then b; else c; fi", ["if"]),
        ("f() {\n a\n}", ["function"]),
        ("function f {\n a\n}", ["function"]),
        ("(a)", ["subshell"]),
        ("{ a; }; (b)", ["group", "subshell"]),
        ("case $1 in a|b) c ;; *) d;; esac", ["case"]),
        ("until a; do b; done", ["until"]),
        ("fi; done; }; a", []),
        ("if a; then b", ["if"]),
    ],
)
def test_compound_commands_are_nested(text, kinds):
    nodes = nest(parse(text).statements)
    assert [node.kind for node in nodes if isinstance(node, Block)] == kinds


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a \\ \nb", "blanks behind a backslash"),
        ("a 'b", "a quote that never closes"),
        ("cat <<EOF\nx", "a here-document that never ends"),
    ],
)
def test_text_that_a_shell_reads_otherwise_is_reported(text, what):
    assert [oddity for oddity in parse(text).oddities if what in oddity.what]


@pytest.mark.parametrize(
    "text",
    [
        "xxxx",
        "xxx",
        "{NIC}",
        "<node0_ip>",
        "$HOME/x",
        "${A}",
        "141.xx.xx.1",
        "your_model_path",
        "/path/to/weights",
        "|version|",
        "$(id)",
    ],
)
def test_placeholders_are_seen(text):
    assert unknowns(text)


@pytest.mark.parametrize(
    "text",
    ["eth0", "0.0.0.0", "/data/fp8", '{"a": {"b": 1}}', "expandable_segments:True", "x", "a|b"],
)
def test_values_are_no_placeholders(text):
    assert not unknowns(text)
