"""Hostile launch scripts: a recipe or a RecipeError, in bounded time and memory."""

import contextlib
from pathlib import Path

import pytest
from bounds import bounded
from hypothesis import given, settings, strategies as st

from raylaunch.errors import RaylaunchError
from raylaunch.importer.import_scripts import import_scripts

SCRIPTS = [
    file.read_text()
    for file in sorted((Path(__file__).parents[1] / "data" / "scripts").glob("*"))
    if file.is_file()
]
SERVE = "\nvllm serve /m\n"
fuzz = settings.get_profile("fuzz-costly")

words = st.sampled_from(
    ["$A", '"${B[@]}"', "${A%%:*}", "$((A+1))", "$(seq 2)", "x", "'{\"a\":1}'", "{1..3}", "$@"]
)
simple = st.one_of(
    st.builds("export A={}".format, words),
    st.builds("A+={}".format, words),
    st.builds("B=({} {})".format, words, words),
    st.builds("vllm serve {} --a {}".format, words, words),
    st.builds("docker run -e A={} x:y vllm serve {}".format, words, words),
    st.builds("ssh h <<EOF\nvllm serve {}\nEOF\n".format, words),
    st.builds("numactl -N 0 env -u A vllm serve {}".format, words),
    st.sampled_from(["f", "set -a", "shift", "break", "exit", "unset A", "source run.sh"]),
)


def compound(inner):
    return st.one_of(
        st.builds("if [ {} = {} ]; then {}; else {}; fi".format, words, words, inner, inner),
        st.builds("for A in {} {}; do {}; done".format, words, words, inner),
        st.builds("while [ {} -lt 3 ]; do {}; done".format, words, inner),
        st.builds("case {} in x) {} ;; *) {} ;; esac".format, words, inner, inner),
        st.builds("f() {{ {}; }}".format, inner),
        st.builds("({}) && {}".format, inner, inner),
        st.builds("{}\n{}".format, inner, inner),
    )


grammar = st.recursive(simple, compound, max_leaves=12)


@st.composite
def mutated(draw):
    """A recorded script with pieces cut out, doubled or replaced."""
    text = draw(st.sampled_from(SCRIPTS))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 60)))
        middle = draw(
            st.sampled_from(["", "$(", "'", '"', "`", "<<EOF\n", "}", text[start:end] * 2])
        )
        text = text[:start] + middle + text[end:]
    return text


@fuzz
@given(text=grammar)
def test_a_script_gives_a_recipe_or_an_error(text):
    with bounded(), contextlib.suppress(RaylaunchError):
        import_scripts({"run.sh": text})


@fuzz
@given(text=mutated(), name=st.sampled_from(["run.sh", "page.md", "a.service", "compose.yaml"]))
def test_a_damaged_script_gives_a_recipe_or_an_error(text, name):
    with bounded(), contextlib.suppress(RaylaunchError):
        import_scripts({name: text})


BOMBS = {
    "a variable that doubles": "export A=xxxxxxxx\n" + "export A=$A$A$A$A\n" * 20 + SERVE,
    "an appended variable": "A=xxxxxxxx\n" + "A+=$A\n" * 60 + SERVE,
    "an array that doubles": "A=(x y)\n" + 'A=("${A[@]}" "${A[@]}")\n' * 20 + SERVE,
    "a replacement that grows": "A=ab\n" + "A=${A//a/aaaaaaaaaaaaaaaa}\n" * 20 + SERVE,
    "a function that calls itself in a loop": (
        "f() { for A in $(seq 2) $(seq 2); do if [ $A = $A ]; then f; "
        "else numactl -N 0 env -u A vllm serve $A; fi; done; }\nf" + SERVE
    ),
    "a range": "for i in {1..999999999}; do vllm serve /m; done" + SERVE,
    "nested braces": "echo " + "{a,b}" * 30 + SERVE,
    "nested substitutions": "A=" + "$(" * 3000 + ")" * 3000 + SERVE,
    "nested defaults": "A=" + "${A:-" * 3000 + "}" * 3000 + SERVE,
    "nested parentheses": "A=$((" + "(" * 3000 + "1" + ")" * 3000 + "))" + SERVE,
    "nested loops": "for i in {1..1000}; do " * 6 + "x" + "; done" * 6 + SERVE,
    "an endless loop": "while [ 1 = 1 ]; do A=$A$A; done" + SERVE,
    "a function that calls itself": "f() { f; eval f; }\nf" + SERVE,
    "a script that starts itself": "source run.sh\nbash run.sh" + SERVE,
    "trimming": "A=" + "a" * 4000 + "\n" + "B=${A%%*a*b*c}\n" * 50 + SERVE,
    "a huge here-document": "cat <<EOF\n" + "x $A\n" * 100_000 + "EOF\n" + SERVE,
    "many words": "vllm serve /m " + "--a b " * 5000,
    "many headless servers": "vllm serve /m -dp 2 -dpl 1 --headless\n" * 1000,
    "arrays that never close": "a=(" * 5000 + SERVE,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_bounded_time_and_memory(name):
    with bounded(4), contextlib.suppress(RaylaunchError):
        made = import_scripts({"run.sh": BOMBS[name]})
        assert len(made.yaml) < 2_000_000


def test_a_word_longer_than_linux_accepts_is_reported():
    made = import_scripts({"run.sh": BOMBS["a variable that doubles"]})
    assert [each for each in made.findings if "131072 characters" in each.what]


@pytest.mark.parametrize("count", [500, 4000])
def test_variables_cost_the_same_each(count):
    text = "".join(f"export V{number}={number}\n" for number in range(count)) + SERVE
    with bounded(0.0015 * count + 0.5):
        made = import_scripts({"run.sh": text})
    assert len(made.values["env"]) == count
