"""Grading of answers, without any server."""

import shlex

import pytest

from raylaunch.verify import cases
from raylaunch.verify.cases import TOOL, curl
from raylaunch.verify.grading import (
    ChatReply,
    StreamReply,
    find_garbage,
    judge_call,
    judge_chat,
    judge_chinese,
    judge_models,
    judge_named_call,
    judge_ranks,
    judge_reasoning,
    judge_stream,
    shorten,
)

GOOD = " 9, 10, 11, 12, 13, 14, 15, 16,"


def calling(arguments, name="get_current_weather"):
    return ChatReply(calls=((name, arguments),), finish="tool_calls")


def ranks(*texts, again=(), **more):
    verdicts = judge_ranks(dict(enumerate(texts)), dict(enumerate(again)), **more)
    return [verdicts[rank].result for rank in sorted(verdicts)]


def test_the_served_name_must_be_listed():
    assert judge_models(("a", "b"), "b").result == "passed"
    assert "not listed, only nothing" in judge_models((), "b").detail


@pytest.mark.parametrize(
    "text",
    [
        "!" * 24,
        "我我我我我我我我我我我我我我我我我我",
        "the answer is is is is is is is is is is is is is is is is is is",
        "ok \ufffd\ufffd then \ufffd",
        "a\x03b\x00c\x1b",
    ],
)
def test_garbled_text_fails_unless_the_weights_are_random(text):
    assert find_garbage(text)
    assert judge_chat(ChatReply(text, tokens=9)).result == "failed"
    assert judge_chat(ChatReply(text, tokens=9), random_weights=True).result == "passed"


@pytest.mark.parametrize(
    "text",
    [
        "Hello! I am MiniMax-M2, a model made to help.\n\n- one\n- two",
        "| a | b |\n|---------------------|------------------------|\n",
        "==============================\n                                    indented",
        "你好。我是一个人工智能助手、可以回答问题。\ufffd",
        GOOD,
        "",
    ],
)
def test_healthy_text_is_not_garbled(text):
    assert find_garbage(text) == ""


def test_an_empty_answer_fails_whatever_the_weights():
    assert judge_chat(ChatReply(" \n", finish="length", tokens=7)).result == "failed"
    assert (
        "7 tokens (finish_reason length)"
        in judge_chat(ChatReply("", finish="length", tokens=7), random_weights=True).detail
    )
    assert judge_chat(ChatReply("", "I think", tokens=7)).result == "passed"


def test_a_chinese_answer_contains_chinese():
    assert judge_chinese(ChatReply("你好,我是助手")).result == "passed"
    assert judge_chinese(ChatReply("Hello")).result == "unclear"
    assert judge_chinese(ChatReply("fox jumps"), random_weights=True).result == "passed"
    assert judge_chinese(ChatReply("")).result == "failed"


def test_a_stream_has_pieces_and_usage():
    assert judge_stream(StreamReply(((0.1, "a"), (0.2, "b")), 2)).result == "passed"
    assert "no usage" in judge_stream(StreamReply(((0.1, "a"), (0.2, "b")))).detail
    assert judge_stream(StreamReply(((0.1, "all"),), 2)).result == "failed"
    assert judge_stream(StreamReply((), 2)).result == "failed"


def test_a_call_of_the_models_own_choice():
    assert judge_call(calling('{"city": "上海"}'), TOOL).result == "passed"
    assert "not valid JSON" in judge_call(calling('{"city": "上'), TOOL).detail
    assert "lack city" in judge_call(calling('{"town": "上海"}'), TOOL).detail
    assert "lack city" in judge_call(calling("true"), TOOL).detail
    assert "not offered" in judge_call(calling("{}", "rm"), TOOL).detail
    assert judge_call(ChatReply("It rains."), TOOL) is None


@pytest.mark.parametrize(
    "left",
    ['<minimax:tool_call>\n<invoke name="x">', "<tool_call>{", "<|tool_calls_section_begin|>"],
)
def test_a_call_that_the_parser_left_in_the_content(left):
    assert judge_call(ChatReply(f"Sure. {left}"), TOOL).result == "failed"
    assert judge_call(ChatReply(f"Sure. {left}", finish="length"), TOOL).result == "unclear"


def test_arguments_that_were_cut_off_prove_nothing():
    reasoning = calling('<think> first {"city": "上').calls
    cut_off = ChatReply("", calls=reasoning, finish="length", tokens=512)
    assert judge_call(cut_off, TOOL).result == "unclear"
    assert "cut off after 512 tokens" in judge_named_call(cut_off, TOOL).detail


def test_a_call_by_name_never_passes():
    assert judge_named_call(calling('{"city": "上海"}'), TOOL).result == "unclear"
    assert "guided decoding" in judge_named_call(calling('{"city": "上海"}'), TOOL).detail
    assert judge_named_call(calling("{"), TOOL).result == "failed"
    assert (
        judge_named_call(ChatReply("fox " * 9, finish="length", tokens=512), TOOL).result
        == "unclear"
    )
    assert judge_named_call(ChatReply("I will not.", finish="stop"), TOOL).result == "failed"


@pytest.mark.parametrize(
    ("parser", "reply", "result"),
    [
        ("minimax_m2_append_think", ChatReply("<think>hm</think>9.9"), "passed"),
        ("minimax_m2_append_think", ChatReply("9.9"), "failed"),
        ("minimax_m2_append_think", ChatReply("<think>9.9", "hm"), "failed"),
        ("minimax_m2", ChatReply("9.9", "hm"), "passed"),
        ("minimax_m2", ChatReply("<think>hm</think>9.9"), "failed"),
        ("deepseek_r1", ChatReply("hm</think>9.9", "h"), "failed"),
        ("qwen3", ChatReply("9.9"), "unclear"),
    ],
)
def test_reasoning_is_where_its_parser_puts_it(parser, reply, result):
    assert judge_reasoning(reply, parser).result == result


def test_ranks_that_agree_pass_unless_garbled_or_empty():
    assert ranks(GOOD, GOOD) == ["passed", "passed"]
    assert ranks("!" * 24, "!" * 24) == ["failed", "failed"]
    assert ranks("!" * 24, "!" * 24, random_weights=True) == ["passed", "passed"]
    assert ranks("", "") == ["failed", "failed"]


def test_a_rank_that_differs_from_the_majority_fails():
    assert ranks(GOOD, "fox", GOOD, GOOD, again=(GOOD, "fox", GOOD, GOOD)) == [
        "passed",
        "failed",
        "passed",
        "passed",
    ]
    assert ranks(GOOD, "!" * 24, again=(GOOD, "!" * 24)) == ["passed", "failed"], (
        "of two ranks the garbled one fails"
    )
    assert ranks(GOOD, "fox", again=(GOOD, "fox")) == ["failed", "failed"], (
        "of two sound ones neither is preferred"
    )
    assert ranks(GOOD, "") == ["passed", "failed"]


def test_ranks_that_agree_one_by_one_pass():
    assert ranks(GOOD, "fox", again=(GOOD, GOOD)) == ["passed", "passed"]


def test_a_rank_that_changes_its_answer_is_unclear():
    assert ranks(GOOD, "fox", GOOD, again=(GOOD, "dog", GOOD)) == ["passed", "unclear", "passed"]


def test_without_answers_there_are_no_verdicts():
    assert judge_ranks({}, {}) == {}


def test_long_answers_are_cut_and_stay_on_one_line():
    assert shorten("a\n" * 99).endswith('..."')
    assert "\n" not in shorten("a\nb")


def test_a_curl_line_survives_the_shell():
    question = cases.reasoning("it's $HOME")
    words = shlex.split(curl("http://h:1/v1/", question, "KEY"))
    assert words[:5] == ["curl", "-sS", "--max-time", "60", "http://h:1/v1/chat/completions"]
    assert "Authorization: Bearer $KEY" in words
    assert '"model": "it\'s $HOME"' in words[-1]
    assert "-N" in shlex.split(curl("http://h:1/v1", cases.stream("m")))
