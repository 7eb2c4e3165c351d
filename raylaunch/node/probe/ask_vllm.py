"""Asks an installed vLLM which flags its `vllm serve` has. Run by path, with the Python that vLLM is installed for.

Needs nothing but the standard library and that vLLM, and runs on any Python from 3.10. Prints one line of JSON on what
was its stdout; all that vLLM and its plug-ins say goes to stderr. Ends when its stdin is closed: whoever asked is gone.

The parser is built as vLLM's command builds it (vLLM 0.23 and 0.32 entrypoints/cli/main.py), so that the platform's
plug-in (vllm-ascend: more values of --quantization) and general plug-ins have had their say.
"""

import sys

# Not this file's folder: its neighbours have names such as `process` and `logs`.
sys.path[:] = [folder for folder in sys.path if folder != __file__.rpartition("/")[0]]

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import threading  # noqa: E402
from typing import Any  # noqa: E402


def main() -> None:
    """Answer, and leave at once: what vLLM started in the background need not end in order."""
    threading.Thread(target=_end_with_the_asker, daemon=True).start()
    answer = os.dup(1)
    os.dup2(2, 1)
    parser = read_parser()
    text = json.dumps({"flags": read_flags(parser), **read_registered(), "sources": read_sources()})
    with os.fdopen(answer, "w") as out:
        out.write(text + "\n")
    os._exit(0)


def _end_with_the_asker() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def read_parser() -> argparse.ArgumentParser:
    """Build the parser of `vllm serve`."""
    from vllm.entrypoints.cli import serve

    try:
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError:  # before 0.12
        from vllm.utils import FlexibleArgumentParser
    subparsers = FlexibleArgumentParser().add_subparsers()
    parser: argparse.ArgumentParser = serve.cmd_init()[0].subparser_init(subparsers)
    return parser


def read_flags(parser: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """Read each long option, without dashes: how many values it takes, and which."""
    return {
        option[2:].replace("_", "-"): {"takes": takes(action), "choices": choices(action)}
        for action in parser._actions  # noqa: SLF001 - argparse offers no other way
        for option in action.option_strings
        if option.startswith("--")
    }


def takes(action: argparse.Action) -> str:
    """Say how many values an option takes: none, one, maybe (none or one) or many."""
    if action.nargs is None:
        return "one"
    if action.nargs == 0:
        return "none"
    return "maybe" if action.nargs == "?" else "many"


def choices(action: argparse.Action) -> list[str]:
    """Return the values that an option is limited to; nothing where they cannot be compared as text."""
    given = list(action.choices or ())
    plain = all(
        isinstance(choice, str | int | float) and not isinstance(choice, bool) for choice in given
    )
    return [str(choice) for choice in given] if plain else []


def read_registered() -> dict[str, list[str]]:
    """Read the names of the tool parsers and reasoning parsers; nothing where this vLLM keeps them elsewhere."""
    found: dict[str, list[str]] = {"tool_parsers": [], "reasoning_parsers": []}
    try:
        from vllm.tool_parsers import ToolParserManager

        found["tool_parsers"] = ToolParserManager.list_registered()
    except (ImportError, AttributeError):
        pass
    try:
        from vllm.reasoning import ReasoningParserManager

        found["reasoning_parsers"] = ReasoningParserManager.list_registered()
    except (ImportError, AttributeError):
        pass
    return found


def read_sources() -> dict[str, int]:
    """Return the files that the answer rests on, with their times of change: when one is newer, ask again."""
    from vllm.platforms import current_platform

    rests_on = {
        "vllm.engine.arg_utils",
        "vllm.tool_parsers",
        "vllm.reasoning",
        type(current_platform).__module__,
    }
    rests_on |= {
        name for name in sys.modules if name.startswith("vllm.") and name.endswith(".cli_args")
    }
    files = [getattr(sys.modules.get(name), "__file__", None) for name in sorted(rests_on)]
    return {file: os.stat(file).st_mtime_ns for file in files if file}  # noqa: PTH116 - as `recall` asks for it


if __name__ == "__main__":
    main()
