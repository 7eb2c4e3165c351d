"""raylaunch's list of the flags of `vllm serve` 0.23.0 is what that version's own parser has."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1200)

LIST = Path(__file__).parents[2] / "tools" / "vllm_flags_0.23.0.txt"


def test_the_list_is_what_the_parser_has():
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    options = (option for action in parser._actions for option in action.option_strings)
    flags = {option[2:].replace("_", "-") for option in options if option.startswith("--")}
    listed = {line for line in LIST.read_text().splitlines() if line and not line.startswith("#")}
    assert listed == flags
