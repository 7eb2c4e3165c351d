"""Prints the flags of an installed `vllm serve`. Run by path, with vLLM's own Python.

Needs only the standard library and that vLLM, and runs on any Python from 3.10. Prints one line of
JSON on its original stdout; what vLLM and its plug-ins print goes to stderr. Exits when its stdin
is closed: the process that asked has exited.

The parser is built as vLLM's command builds it (vLLM 0.23 and 0.32 entrypoints/cli/main.py), so
that the platform's plug-in (vllm-ascend: more values of --quantization) and general plug-ins have
changed it.
"""

import sys

# Python puts this file's folder first. Its modules have names such as `network` and `software`,
# which would hide others of the same name.
sys.path[:] = [folder for folder in sys.path if folder != __file__.rpartition("/")[0]]

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import threading  # noqa: E402


def main() -> None:
    """Print the answer and exit without cleanup: vLLM's background threads are not waited for."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    original_stdout = os.dup(1)
    os.dup2(2, 1)
    parser = read_parser()
    answer = {
        "flags": read_flags(parser),
        **read_registered(),
        "sources": read_sources(),
    }
    text = json.dumps(answer)
    with os.fdopen(original_stdout, "w") as out:
        out.write(text + "\n")
    os._exit(0)


def _exit_with_parent() -> None:
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
    command = serve.cmd_init()[0]
    parser: argparse.ArgumentParser = command.subparser_init(subparsers)
    return parser


def read_flags(parser: argparse.ArgumentParser) -> dict[str, dict[str, object]]:
    """Read each long option, without dashes: how many values it takes, and which."""
    flags: dict[str, dict[str, object]] = {}
    for action in parser._actions:  # noqa: SLF001 - argparse offers no other way
        for option in action.option_strings:
            if option.startswith("--"):
                name = option[2:].replace("_", "-")
                flags[name] = {"takes": takes(action), "choices": choices(action)}
    return flags


def takes(action: argparse.Action) -> str:
    """Return how many values an option takes: none, one, maybe (none or one) or many."""
    if action.nargs is None:
        return "one"
    if action.nargs == 0:
        return "none"
    return "maybe" if action.nargs == "?" else "many"


def choices(action: argparse.Action) -> list[str]:
    """Return the values that an option is limited to; [] where they cannot be compared as text."""
    given = list(action.choices or ())
    for choice in given:
        if isinstance(choice, bool) or not isinstance(choice, str | int | float):
            return []
    return [str(choice) for choice in given]


def read_registered() -> dict[str, list[str]]:
    """Read the names of the tool parsers and reasoning parsers.

    The lists are empty where this vLLM keeps them elsewhere.
    """
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
    """Return the files that the answer depends on, with their times of change in ns.

    When one of them has changed, the answer is outdated.
    """
    from vllm.platforms import current_platform

    modules = {
        "vllm.engine.arg_utils",
        "vllm.tool_parsers",
        "vllm.reasoning",
        type(current_platform).__module__,
    }
    for name in sys.modules:
        if name.startswith("vllm.") and name.endswith(".cli_args"):
            modules.add(name)
    sources: dict[str, int] = {}
    for name in sorted(modules):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            sources[file] = os.stat(file).st_mtime_ns  # noqa: PTH116 - as `recall` compares it
    return sources


if __name__ == "__main__":
    main()
