"""Scenarios: named loads for `vllm bench serve`, and the command line of each."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from raylaunch.errors import RecipeError
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.recipe.reserved import normalise_flag

DEFAULT_SCENARIO = "short"
"""For a recipe that names none."""
OWNED_FLAGS = frozenset(
    {
        "model",
        "served-model-name",
        "tokenizer",
        "host",
        "port",
        "base-url",
        "header",
        "save-result",
        "append-result",
        "result-dir",
        "result-filename",
        "disable-tqdm",
    }
)
"""Flags that raylaunch sets itself, or that could write an API key into files (--header)."""
TOKENIZER_FLAGS = ("--trust-remote-code", "--tokenizer-mode")
"""Flags of the server without which the client could not load the same tokenizer."""
_CONCURRENCY = "max-concurrency"
_PROMPTS = "num-prompts"
_SEED = "seed"


@dataclass(frozen=True)
class Scenario:
    """A load.

    `args` are flags of `vllm bench serve` without dashes. `reference` holds `source` and metrics.
    """

    name: str
    description: str
    args: Mapping[str, Any]
    reference: Mapping[str, Any] = field(default_factory=dict)

    @property
    def concurrency(self) -> int | None:
        """Maximum number of requests in flight; None: all of them."""
        value = self.args.get(_CONCURRENCY)
        return None if value is None else int(value)

    @property
    def prompts(self) -> int:
        """Number of requests; vLLM's default is 1000."""
        return int(self.args.get(_PROMPTS, 1000))

    @property
    def seed(self) -> int:
        """Seed of the prompts; vLLM's default is 0."""
        return int(self.args.get(_SEED, 0))

    def at(self, concurrency: int) -> Scenario:
        """Return the same load at another concurrency, with at least as many prompts.

        The reference is dropped: it was measured at the scenario's own concurrency.
        """
        if concurrency == self.concurrency:
            return self
        args = dict(self.args)
        args[_CONCURRENCY] = concurrency
        # With fewer prompts the concurrency would never be reached.
        args[_PROMPTS] = max(self.prompts, concurrency)
        return replace(self, args=args, reference={})

    def changed(self, changes: Mapping[str, Any]) -> Scenario:
        """Return the load with other flags; a value of None removes the flag.

        The reference is dropped if anything changes: it was measured with the original flags.

        Raises:
            RecipeError: raylaunch sets one of the flags itself.
        """
        normalised = {normalise_flag(name): value for name, value in changes.items()}
        _refuse_owned(normalised)
        merged = {**self.args, **normalised}
        args = {name: value for name, value in merged.items() if value is not None}
        if args == self.args:
            return self
        return replace(self, args=args, reference={})


@cache
def shipped() -> Mapping[str, Scenario]:
    """Return the scenarios that come with raylaunch, by name."""
    import yaml

    text = files(__package__).joinpath("scenarios.yaml").read_text(encoding="utf-8")
    entries = yaml.safe_load(text)
    return {name: Scenario(name, **values) for name, values in entries.items()}


def choose(wanted: str | None, fitting: Sequence[str]) -> Scenario:
    """Return the scenario named `wanted`, or by default the first one that the recipe names.

    Args:
        wanted: Name given by the user; None for the default.
        fitting: Scenarios that the recipe names, best first.

    Raises:
        RecipeError: there is no scenario of that name.
    """
    name = wanted or next(iter(fitting), DEFAULT_SCENARIO)
    known = shipped()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        names = ", ".join(known)
        raise RecipeError(f"there is no scenario {name!r}", why=f"{hint}known: {names}")
    scenario = known[name]
    if name in fitting:
        return scenario
    # The reference was measured with the model of the recipes that name the scenario.
    return replace(scenario, reference={})


def read_changes(sets: Sequence[str]) -> dict[str, Any]:
    """Parse `FLAG=VALUE` assignments. The value is YAML; `null` removes the flag.

    Raises:
        RecipeError: an assignment has no flag, no `=` or no valid YAML.
    """
    import yaml

    changes = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise RecipeError(
                f"--set {text!r} has no value",
                todo="write --set FLAG=VALUE, e.g. num-prompts=64",
            )
        try:
            changes[name] = yaml.safe_load(value)
        # ValueError and the like: a tag whose constructor refuses the value (`!!int x`).
        except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise RecipeError(
                f"--set {name}: the value is not valid YAML", evidence=value
            ) from error
    return changes


def build_argv(plan: LaunchPlan, scenario: Scenario) -> tuple[str, ...]:
    """Build the command line for the primary's node, without the seed and the result file.

    The bench actor adds those two for each run.
    """
    primary = plan.primary
    address = urlsplit(plan.endpoint)
    words = ["vllm", "bench", "serve"]
    for name, value in scenario.args.items():
        if name != _SEED:
            words += _flag_words(f"--{name}", value)
    words += ["--model", plan.served_name]
    # The tokenizer is loaded from the model's folder: the served name exists on no model hub.
    model_path = primary.flags[0].value or plan.model
    words += ["--tokenizer", model_path]
    for name in TOKENIZER_FLAGS:
        server_value = primary.flag(name)
        if server_value is not None:
            words.append(name)
        if server_value:
            words.append(server_value)
    words += ["--host", address.hostname or primary.node.ip]
    words += ["--port", str(address.port or primary.ports.http)]
    return tuple(words)


def refuse_too_long(plan: LaunchPlan, scenario: Scenario) -> None:
    """Refuse a load with requests that the servers would reject.

    Raises:
        RecipeError: a request is longer than --max-model-len.
    """
    limit = plan.primary.flag("--max-model-len")
    needed = tokens_needed(scenario.args)
    # vLLM also accepts lengths such as "128k" or "auto": those are left to the server.
    if limit is None or not limit.isdecimal() or needed is None:
        return
    if needed <= int(limit):
        return
    raise RecipeError(
        f"scenario {scenario.name} sends requests of {needed} tokens, "
        f"but {plan.deployment} accepts at most {limit}",
        why="--max-model-len of the running servers",
        todo=(
            f"start it with --set args.max-model-len={needed} or more, or choose another --scenario"
        ),
    )


def tokens_needed(args: Mapping[str, Any]) -> int | None:
    """Return the tokens of the longest request, prompt and output.

    None if the data set decides. Defaults are vLLM's (0.32).
    """

    def number(name: str, default: int) -> int:
        return int(args.get(name, default))

    match args.get("dataset-name", "random"):
        case "prefix_repetition":
            prefix = number("prefix-repetition-prefix-len", 256)
            suffix = number("prefix-repetition-suffix-len", 256)
            output = number("output-len", number("prefix-repetition-output-len", 128))
            return prefix + suffix + output
        case "random":
            prefix = number("random-prefix-len", 0)
            prompt = number("input-len", number("random-input-len", 1024))
            output = number("output-len", number("random-output-len", 128))
            # Lengths vary by this fraction in both directions; the prefix does not vary.
            spread = float(args.get("random-range-ratio", 0))
            return prefix + int((prompt + output) * (1 + spread))
    return None


def _flag_words(flag: str, value: object) -> tuple[str, ...]:
    if isinstance(value, bool):
        return (flag,) if value else ()
    if isinstance(value, list | dict):
        return (flag, json.dumps(value))
    return (flag, str(value))


def _refuse_owned(changes: Mapping[str, Any]) -> None:
    owned = sorted(OWNED_FLAGS & changes.keys())
    if owned:
        raise RecipeError(
            f"--{owned[0]} is set by raylaunch",
            todo="leave it out: raylaunch derives it from the deployment",
        )
