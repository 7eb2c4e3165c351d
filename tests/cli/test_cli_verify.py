"""The verb verify: what it asks, what it prints, how it ends."""

from __future__ import annotations

import json

import pytest

from raylaunch.verify.verification import Proof, Verification

CURL = "curl -sS --max-time 60 http://192.0.2.10:20004/v1/models"
GOOD = Proof("models", "passed", "minimax25 is listed", 0.031, CURL)
SKIPPED = Proof("tool call", "skipped", "the recipe has no tool calling", None, "curl ... -d '{}'")
UNCLEAR = Proof("reasoning", "unclear", "no reasoning in this answer", 1.0, "curl 3")
BAD = Proof(
    "rank 1", "failed", "no answer within 60 s (server 1 on 192.0.2.11)", 60.0, "curl 4", rank=1
)


@pytest.fixture
def verified(api, monkeypatch):
    """The checks of the next run, and what it was asked with."""
    proofs = []

    def verify(name, **given):
        api.asked.append(("verify", {"name": name, **given}))
        for proof in proofs:
            given["on_proof"](proof)
        return Verification(name, "http://192.0.2.10:20004/v1", "minimax25", tuple(proofs))

    monkeypatch.setattr(api, "verify", verify, raising=False)
    return proofs


def test_the_table_and_the_curl_lines(cli, api, verified):
    verified += [GOOD, SKIPPED, UNCLEAR]
    result = cli("verify", "a2-dual", "--timeout", "30")
    assert result.exit_code == 0, "unclear is no failure"
    header, models, tools = (line.split() for line in result.stdout.splitlines()[:3])
    assert header == ["CHECK", "RESULT", "SECONDS", "SEEN"]
    assert models[:3] == ["models", "passed", "0.03"]
    assert tools[2:4] == ["skipped", "-"]
    assert all(proof.curl in result.stdout.splitlines() for proof in verified)
    assert "models: passed" in result.stderr
    assert api.asked[-1][1]["timeout"] == 30


def test_quiet_leaves_the_curl_lines_out(cli, verified):
    verified.append(GOOD)
    result = cli("-q", "verify", "a2-dual")
    assert "curl" not in result.stdout
    assert result.stderr == ""


def test_a_failed_check_is_named_in_the_error(cli, verified):
    verified += [GOOD, BAD]
    result = cli("verify", "a2-dual")
    assert result.exit_code == 15
    assert "1 of 2 checks failed" in result.stderr
    assert "rank 1: no answer within 60 s (server 1 on 192.0.2.11)" in result.stderr


def test_json(cli, verified):
    verified += [UNCLEAR, BAD]
    result = cli("verify", "a2-dual", "-o", "json")
    found = json.loads(result.stdout)
    assert (found["deployment"], found["model"], found["result"]) == (
        "a2-dual",
        "minimax25",
        "failed",
    )
    assert [(check["check"], check["rank"]) for check in found["checks"]] == [
        ("reasoning", None),
        ("rank 1", 1),
    ]
    assert found["checks"][1]["curl"] == "curl 4"
    assert json.loads(result.stderr.splitlines()[-1])["exit_code"] == 15


@pytest.mark.parametrize(
    ("proofs", "worst"),
    [([GOOD, SKIPPED], "passed"), ([GOOD, UNCLEAR], "unclear"), ([UNCLEAR, BAD], "failed")],
)
def test_the_worst_result_counts(proofs, worst):
    assert Verification("d", "e", "m", tuple(proofs)).result == worst
