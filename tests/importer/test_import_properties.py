"""For any text: no crash, nothing run, and no word of a server or an export without a place or a report."""

import contextlib
import json
import shlex

import yaml
from hypothesis import given, settings, strategies as st

from raylaunch.errors import RecipeError
from raylaunch.importer.import_scripts import import_scripts
from raylaunch.recipe.load import recipe_from_mapping

SHELLISH = st.lists(
    st.sampled_from(
        [
            *(
                "vllm serve ",
                "export A=",
                "docker run ",
                "/m ",
                "--port ",
                "--seed=",
                "-tp ",
                "8 ",
                "x",
                "\n",
                "\\\n",
                "\\",
                "'",
            ),
            *(
                '"',
                "$A",
                "${B:-1}",
                "$(touch owned)",
                "`touch owned`",
                "<<EOF\n",
                "EOF\n",
                "# ",
                ";",
                "&",
                "|",
                ">",
                "<",
                "<ip>",
            ),
            *(
                "{N}",
                '{"a": 1}',
                "```",
                "```bash\n",
                "for i in ",
                "do ",
                "done",
                "{",
                "}",
                "(",
                ")",
                "--headless ",
                "-dp 2 ",
            ),
            *(
                "--speculative-config ",
                "--limit.a 1 ",
                "--no-enable-prefix-caching ",
                "\x00",
                "é",
                "\r\n",
                " ",
                "unset A\n",
            ),
        ]
    ),
    max_size=60,
).map("".join)

# A recipe refuses control characters other than tab and newline, and Unicode's non-characters.
WORD = st.text(
    st.characters(
        codec="utf-8",
        exclude_categories=["Cc"],
        exclude_characters="\ufffe\uffff",
        include_characters="\t\n",
    ),
    min_size=1,
    max_size=12,
).filter(lambda word: not word.startswith("-"))
SHOWN = st.text(
    st.characters(codec="utf-8", categories=["L", "N", "P", "S", "M"], include_characters=" \n"),
    min_size=1,
    max_size=12,
).filter(lambda word: not word.startswith("-"))
"""Words that a report shows letter by letter: findings and recipes hold no control characters."""

NAME = st.from_regex(r"--[a-z][a-z-]{1,14}[a-z]", fullmatch=True)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=200), SHELLISH))
def test_any_text_gives_a_recipe_or_a_recipe_error(text):
    with contextlib.suppress(RecipeError):
        made = import_scripts({"any.sh": text, "again.md": text})
        recipe_from_mapping(made.values, made.name)
        json.dumps([each.what for each in made.findings])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(NAME, st.none() | SHOWN), max_size=8),
    st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{2,10}", fullmatch=True), SHOWN, max_size=5),
    st.lists(SHOWN, max_size=2),
)
def test_no_word_is_dropped_silently(flags, env, extra):
    words = [
        "/m",
        *extra,
        *(word for name, value in flags for word in ((name,) if value is None else (name, value))),
    ]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    made = import_scripts({"run.sh": "\n".join([*exports, f"vllm serve {shlex.join(words)}"])})
    told = "\n".join([*(each.text for each in made.placed), *(each.seen for each in made.findings)])
    for word in words:
        assert word in told or word == "--api-key" or "--api-key" in words
    for name in env:
        assert f"{name}=" in told


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAME, WORD, max_size=6), st.dictionaries(st.just("A") | st.just("B"), WORD))
def test_the_file_reads_back(flags, env):
    exports = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    words = [word for pair in flags.items() for word in pair]
    with contextlib.suppress(RecipeError):
        made = import_scripts(
            {"run.sh": "\n".join([*exports, f"vllm serve /m {shlex.join(words)}"])}
        )
        assert yaml.safe_load(made.yaml) == json.loads(json.dumps(made.values))
