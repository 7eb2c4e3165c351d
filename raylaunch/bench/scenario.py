"""Scenarios: the loads for `vllm bench serve`, which fit a deployment, and the command line that each becomes."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from raylaunch.errors import RecipeError
from raylaunch.plan.launch_plan import LaunchPlan
from raylaunch.recipe.reserved import normalise_flag

DEFAULT = "short"
"""For a recipe that names none."""
OWNED = frozenset(
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
    }
    | {"result-dir", "result-filename", "disable-tqdm"}
)
"""Flags that raylaunch sets itself, or that could carry an API key into files (--header)."""
CARRIED = ("--trust-remote-code", "--tokenizer-mode")
"""Flags of the server without which the client could not load the same tokenizer."""
_CONCURRENCY, _PROMPTS, _SEED = "max-concurrency", "num-prompts", "seed"


@dataclass(frozen=True)
class Scenario:
    """A load. `args` are flags of `vllm bench serve` without dashes; `reference` holds `source` and metrics."""

    name: str
    description: str
    args: Mapping[str, Any]
    reference: Mapping[str, Any] = field(default_factory=dict)

    @property
    def concurrency(self) -> int | None:
        """Requests in flight at once; None: as many as there are."""
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
        """The same load at another concurrency, with at least as many prompts; the reference does not hold there."""
        if concurrency == self.concurrency:
            return self
        args = {**self.args, _CONCURRENCY: concurrency, _PROMPTS: max(self.prompts, concurrency)}
        return replace(self, args=args, reference={})

    def changed(self, changes: Mapping[str, Any]) -> Scenario:
        """The same load with other flags; None takes one out. The reference holds only for the load as it was.

        Raises:
            RecipeError: raylaunch sets one of the flags itself.
        """
        own = {normalise_flag(name): value for name, value in changes.items()}
        _refuse_owned(own)
        args = {name: value for name, value in {**self.args, **own}.items() if value is not None}
        return self if args == self.args else replace(self, args=args, reference={})


@cache
def shipped() -> Mapping[str, Scenario]:
    """The scenarios that come with raylaunch, by name."""
    import yaml

    text = files(__package__).joinpath("scenarios.yaml").read_text(encoding="utf-8")
    return {name: Scenario(name, **values) for name, values in yaml.safe_load(text).items()}


def choose(wanted: str | None, fitting: Sequence[str]) -> Scenario:
    """The scenario named `wanted`, or the first that fits the recipe.

    A reference counts only where the recipe itself names the scenario: the figures are of that recipe's model.

    Raises:
        RecipeError: there is none of that name.
    """
    name = wanted or next(iter(fitting), DEFAULT)
    known = shipped()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise RecipeError(f"there is no scenario {name!r}", why=f"{hint}known: {', '.join(known)}")
    return known[name] if name in fitting else replace(known[name], reference={})


def read_changes(sets: Sequence[str]) -> dict[str, Any]:
    """Read `FLAG=VALUE` texts; the value is YAML, `null` takes a flag out.

    Raises:
        RecipeError: one is not of that form.
    """
    import yaml

    changes = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise RecipeError(
                f"--set {text!r} has no value", todo="write --set FLAG=VALUE, e.g. num-prompts=64"
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
    """The command line on the primary's node, without seed and result file.

    The tokenizer is the model's folder: the served name is nothing that could be found.
    """
    primary = plan.primary
    address = urlsplit(plan.endpoint)
    args = {name: value for name, value in scenario.args.items() if name != _SEED}
    packaged = {name: primary.flag(name) for name in CARRIED}
    return (
        *("vllm", "bench", "serve"),
        *(word for name, value in args.items() for word in _words(f"--{name}", value)),
        *("--model", plan.served_name, "--tokenizer", primary.flags[0].value or plan.model),
        *(
            word
            for name, value in packaged.items()
            if value is not None
            for word in (name, *([value] if value else []))
        ),
        *(
            "--host",
            address.hostname or primary.node.ip,
            "--port",
            str(address.port or primary.ports.http),
        ),
    )


def refuse_too_long(plan: LaunchPlan, scenario: Scenario) -> None:
    """Refuse a load whose requests the server would not take.

    Raises:
        RecipeError: a request is longer than --max-model-len.
    """
    limit, needed = plan.primary.flag("--max-model-len"), tokens_needed(scenario.args)
    if limit is None or not limit.isdecimal() or needed is None or needed <= int(limit):
        return
    raise RecipeError(
        f"scenario {scenario.name} sends requests of {needed} tokens, and {plan.deployment} takes {limit}",
        why="--max-model-len of the running servers",
        todo=f"start it with --set args.max-model-len={needed} or more, or choose another --scenario",
    )


def tokens_needed(args: Mapping[str, Any]) -> int | None:
    """Prompt and answer of the longest request; None where the data set decides. Defaults are vLLM's (0.32)."""

    def number(name: str, default: int) -> int:
        return int(args.get(name, default))

    match args.get("dataset-name", "random"):
        case "prefix_repetition":
            output = number("output-len", number("prefix-repetition-output-len", 128))
            return (
                number("prefix-repetition-prefix-len", 256)
                + number("prefix-repetition-suffix-len", 256)
                + output
            )
        case "random":
            both = number("input-len", number("random-input-len", 1024)) + number(
                "output-len", number("random-output-len", 128)
            )
            return number("random-prefix-len", 0) + int(
                both * (1 + float(args.get("random-range-ratio", 0)))
            )
    return None


def _words(flag: str, value: object) -> tuple[str, ...]:
    if isinstance(value, bool):
        return (flag,) if value else ()
    if isinstance(value, list | dict):
        import json

        return (flag, json.dumps(value))
    return (flag, str(value))


def _refuse_owned(changes: Mapping[str, Any]) -> None:
    if found := sorted(OWNED & changes.keys()):
        raise RecipeError(
            f"--{found[0]} is set by raylaunch", todo="it follows from the deployment: leave it out"
        )
