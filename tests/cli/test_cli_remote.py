"""--cluster: what is sent to the head of a cluster, and what stays here."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylaunch.errors import HeadError, RecipeError


@pytest.fixture
def sent(api, monkeypatch):
    """What the head was asked; each answer is exit code 9."""
    asked = []

    def run_on_head(file, words, given, env):
        asked.append((file, words, given, env))
        return 9

    monkeypatch.setattr(api, "run_on_head", run_on_head, raising=False)
    return asked


@pytest.mark.parametrize(
    ("given", "there"),
    [
        ("status", "status --address auto"),
        ("status prod -o json", "status --output json --address auto -- prod"),
        ("-q status prod", "status -q --address auto -- prod"),
        ("stop prod -v", "stop -v --address auto -- prod"),
        (
            "logs prod -n 5 -f --server 1",
            "logs --server 1 --follow --lines 5 --address auto -- prod",
        ),
        ("list --running", "list --running --address auto"),
        ("start a2-dual --no-wait", "start --no-wait --address auto -- a2-dual"),
        (
            "start a2-dual --name p --timeout 3 --set args.x=1 --set args.y=2 --skip-check a=b",
            "start --name p --timeout 3.0 --set args.x=1 --set args.y=2 --skip-check a=b --address auto -- a2-dual",
        ),
        (
            "check a2-dual --set network.http_port=9",
            "check --set network.http_port=9 --address auto -- a2-dual",
        ),
        ("diagnose prod", "diagnose --address auto -- prod"),
        ("clean --yes", "clean --yes --address auto"),
    ],
)
def test_the_same_command_line_runs_there(cli, sent, given, there):
    result = cli(*given.split(), "--cluster", "c.yaml")
    assert result.exit_code == 9, result.output
    ((file, words, files, env),) = sent
    assert (file, sorted(words), files) == (Path("c.yaml"), sorted(there.split()), {})
    assert words[words.index("auto") :] == there.split()[there.split().index("auto") :]
    assert env["RAYLAUNCH_ASKED_WITH"] == "c.yaml"


def test_a_recipe_of_this_machine_goes_along_with_what_it_extends(cli, sent, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "value")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.yaml").write_text(
        "extends: ../base.yaml\nsecrets: [MY_KEY, NOT_SET]\n"
    )
    (tmp_path / "base.yaml").write_text("extends: local-dual\n")
    cli("start", str(tmp_path / "site" / "mine.yaml"), "--cluster", "c.yaml")
    ((_, words, files, env),) = sent
    assert words[-1] == "{given}/site/mine.yaml"
    assert files == {
        "site/mine.yaml": tmp_path / "site" / "mine.yaml",
        "base.yaml": tmp_path / "base.yaml",
    }
    assert env["MY_KEY"] == "value"
    assert "NOT_SET" not in env, "whether it is needed is said there"


def test_only_named_variables_go_along(cli, sent, monkeypatch):
    monkeypatch.setenv("SOMETHING", "else")
    monkeypatch.setenv("NO_COLOR", "1")
    cli("status", "--cluster", "c.yaml")
    assert sent[0][3] == {"NO_COLOR": "1", "RAYLAUNCH_ASKED_WITH": "c.yaml"}


def test_a_wrong_recipe_is_refused_here(cli, sent):
    assert cli("start", "no-such-recipe", "--cluster", "c.yaml").exit_code == RecipeError.exit_code
    assert sent == []


@pytest.mark.parametrize(
    "words",
    [("status", "--address", "h:1"), ("diagnose", "-"), ("bench", "p", "--picture", "p.png")],
)
def test_what_cannot_go_there_is_refused(cli, sent, words):
    assert cli(*words, "--cluster", "c.yaml").exit_code == 2
    assert sent == []


def test_an_unreachable_head_has_its_own_exit_code(cli, api, sent, monkeypatch):
    def refuse(*_):
        raise HeadError("no way")

    monkeypatch.setattr(api, "run_on_head", refuse)
    result = cli("status", "--cluster", "c.yaml", "-o", "json")
    assert (result.exit_code, result.stdout) == (14, "")
    assert '"exit_code": 14' in result.stderr


def test_the_next_command_line_is_told_as_it_is_asked_for(monkeypatch):
    from raylaunch.cli.views.status_view import again

    monkeypatch.setenv("RAYLAUNCH_ASKED_WITH", "my c.yaml")
    assert again("stop", "prod", "auto") == "raylaunch stop prod --cluster 'my c.yaml'"


def test_verbs_without_a_cluster_have_no_such_option(cli):
    assert cli("plan", "a2-dual", "--cluster", "c.yaml").exit_code == 2
