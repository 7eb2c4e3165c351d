"""Texts of others: no escape sequences, no invisible characters, no secrets."""

from __future__ import annotations

import pytest
from page_samples import SECRET

from raylaunch.page.foreign_text import MASK, clean, clean_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]52;c;aGVsbG8=\x07after", "after"),
        ("bell\x07 and\x9b32m", "bell and32m"),
        ("safe\u202egnp.exe", "safegnp.exe"),
        ("a\tb\nc", "a\tb\nc"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("Größe 漢字", "Größe 漢字"),
    ],
)
def test_a_text_is_shown_without_what_controls_a_reader(text, shown):
    assert clean_text(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        f"the key is {SECRET}!",
        "the key is correct-\x1b[1mhorse-battery",
        "token hf_abcdefghijklmnopqrstuvwx",
        "Authorization: Bearer abcdefgh12345678",
        "--api-key abcdefgh",
        "api_key='abcdefgh'",
        '{"hf_token": "abcdefgh"}',
        "DB_PASSWORD=abcdefgh",
        "http://user:abcdefgh@192.0.2.1/",
    ],
)
def test_a_secret_is_masked(text):
    shown = clean_text(text, [SECRET])
    assert MASK in shown
    assert "abcdefgh" not in shown
    assert "horse" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "eos_token_id: 200020",
        "max_num_batched_tokens=8192",
        "KeyError: 'abcdefgh'",
        "http://192.0.2.1:8000/v1/models",
        "tokenizer=/models/abcdefgh",
        "--max-num-seqs 64",
        "prompt_token: 123456",
    ],
)
def test_what_is_no_secret_stays(text):
    assert clean_text(text, [SECRET]) == text


def test_a_longer_secret_is_masked_before_the_shorter_one_in_it():
    assert clean_text("abcdef", ["abc", "abcdef"]) == MASK


def test_every_text_of_a_value_is_cleaned_and_its_shape_stays():
    value = {"a": [1, None, True, ("x\x1b[0m", {"b": SECRET})]}
    assert clean(value, [SECRET]) == {"a": [1, None, True, ["x", {"b": MASK}]]}
