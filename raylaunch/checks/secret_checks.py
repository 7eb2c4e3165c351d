"""Checks of secrets: none in the recipe, and a finding where the API is open to everybody.

A value under `args` or `env` is visible in the process list, and is stored with the plan and in
support bundles; `plan` shows MASK in its place. The recipe's `secrets` lists names only: the
values are read from the environment of `raylaunch start` and are never printed, logged or stored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from raylaunch.checks.check_context import CheckContext, is_loopback
from raylaunch.checks.findings import Finding
from raylaunch.plan.deployment_plan import DeploymentPlan
from raylaunch.plan.launch_plan import Flag, LaunchPlan, Value
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.recipe_settings import given_args

API_KEY = "VLLM_API_KEY"
MASK = "(not shown: it looks like a secret)"
_VARIABLES = {"api-key": API_KEY, "hf-token": "HF_TOKEN"}
"""Flag of vLLM -> the variable that vLLM reads instead."""

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_ALWAYS_SECRET = frozenset({"secret", "password", "passwd", "passphrase", "apikey"})
_SECRET_AT_THE_END = frozenset({"token", "key", "credential", "credentials", "pwd"})
_NOT_SECRET_KEYS = frozenset({"public", "sort", "routing", "partition", "cache", "name", "allow"})
"""Words before KEY or CREDENTIALS that make it an identifier or a switch."""
_MODEL_TOKENS = frozenset(
    {
        *("pad", "bos", "eos", "unk", "sep", "cls", "mask", "stop", "start", "end", "begin"),
        *("image", "video", "audio", "think", "reasoning", "tool", "special", "placeholder"),
        *("next", "per", "each", "max", "min", "num"),
    }
)
"""Words before TOKEN that make it one of a model's vocabulary, or a count of them."""
_PLACEHOLDERS = frozenset({"", "empty", "none", "null", "true", "false"})
"""Values that hide nothing: `OPENAI_API_KEY=EMPTY` is the customary key of a server without one."""
_FILE = re.compile(
    r"(?:~|\.{1,2}|/(?:data|etc|home|mnt|opt|root|run|tmp|usr|var))/[\w./@-]+"
    r"|/[\w./@-]+\.[A-Za-z]{1,5}"
)
"""Path of a file. Not just any text that begins with a slash: a key in base64 may."""
_MAX_DEPTH = 8
_MAX_JSON_CHARS = 100_000


def check_secrets(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find secrets in the recipe: a value there is stored, and seen by other users."""
    for name, value in loaded.recipe.args.items():
        for path in _secret_paths(name, value):
            variable = _variable_of(path)
            yield _in_recipe(loaded, f"args.{name}", f"args.{path}", variable)
    container = loaded.recipe.container
    variables = {"env": loaded.recipe.env, "container.env": container.env if container else {}}
    for section, values in variables.items():
        for name, text in values.items():
            for path in _secret_paths(name, text):
                # A secret within a variable that holds JSON has no variable of its own.
                variable = name if path == name else ""
                yield _in_recipe(loaded, f"{section}.{name}", f"{section}.{path}", variable)


def mask_secrets(plan: DeploymentPlan) -> DeploymentPlan:
    """Return the plan with MASK in place of each value that `check_secrets` finds."""
    return replace(plan, groups=tuple(mask_group_secrets(group) for group in plan.groups))


def mask_group_secrets(plan: LaunchPlan) -> LaunchPlan:
    """Return the plan of one group, masked as by `mask_secrets`."""
    servers = (
        replace(server, env=_mask_variables(server.env), flags=_mask_flags(server.flags))
        for server in plan.servers
    )
    return replace(plan, servers=tuple(servers))


def mask_recipe(values: Mapping[str, object]) -> dict[str, object]:
    """Return the values of a recipe (`model_dump`), masked as by `mask_secrets`."""
    masked = dict(values)
    for section in ("args", "env"):
        settings = masked.get(section)
        if isinstance(settings, Mapping):
            masked[section] = {
                name: MASK if any(_secret_paths(name, value)) else value
                for name, value in settings.items()
            }
    groups = masked.get("groups")
    if isinstance(groups, list | tuple):
        masked["groups"] = [mask_recipe(group) for group in groups]
    fallbacks = masked.get("fallback")
    if isinstance(fallbacks, list | tuple):
        masked["fallback"] = [_mask_fallback(entry) for entry in fallbacks]
    container = masked.get("container")
    if isinstance(container, Mapping):
        masked["container"] = mask_recipe(container)
    return masked


def _mask_fallback(entry: object) -> object:
    changes = entry.get("set") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(changes, Mapping):
        return entry
    masked = {
        path: MASK if any(_secret_paths(path.rpartition(".")[2], value)) else value
        for path, value in changes.items()
    }
    return {**entry, "set": masked}


def _mask_variables(env: Mapping[str, Value]) -> dict[str, Value]:
    return {
        name: replace(value, value=MASK) if _has_secret(name, value.value) else value
        for name, value in env.items()
    }


def _mask_flags(flags: Sequence[Flag]) -> tuple[Flag, ...]:
    return tuple(
        replace(flag, value=MASK) if _has_secret(flag.name.removeprefix("--"), flag.value) else flag
        for flag in flags
    )


def _has_secret(name: str, value: str | None) -> bool:
    return any(_secret_paths(name, value))


def check_open_api(context: CheckContext) -> Iterator[Finding]:
    """Report an API that other machines can reach and that asks for no key."""
    recipe = context.recipe
    primary = context.plan.primary
    # Unprobed facts hold an address that was typed, not one that a machine has.
    if not any(node.probed for node in context.nodes):
        return
    if API_KEY in recipe.secrets or "api-key" in given_args(recipe) or API_KEY in recipe.env:
        return
    host = primary.flag("--host") or primary.node.ip
    if is_loopback(host) or host == "localhost":
        return
    yield Finding(
        id="open-api",
        level="info",
        what=(
            f"everybody who reaches {host} port {primary.ports.http} may use the API: it has no key"
        ),
        todo=(
            f"nothing in a private network; else list {API_KEY} under `secrets` and set it in the "
            f"environment of `raylaunch start`"
        ),
        where=context.loaded.origin("network.host"),
        seen=host,
    )


def _in_recipe(loaded: LoadedRecipe, field: str, shown: str, variable: str) -> Finding:
    if variable:
        todo = (
            f"remove it, list {variable} under `secrets`, and set {variable} in the environment "
            f"of `raylaunch start`"
        )
    else:
        todo = (
            "remove it; if the program can read it from a variable or a file, use that, and list "
            "the variable under `secrets`"
        )
    return Finding(
        id="secret-in-recipe",
        level="error",
        what=(
            f"{shown} looks like a secret: a value in the recipe is stored with the plan and "
            f"visible in the process list"
        ),
        todo=todo,
        where=loaded.origin(field),
        seen=shown,  # the name: the value must not be printed here either
    )


def _variable_of(path: str) -> str:
    flag = path.lower().replace("_", "-")
    return _VARIABLES.get(flag, "")


def _secret_paths(name: str, value: object, depth: int = 0) -> Iterator[str]:
    """Yield the dotted names of the secrets in one setting; values of flags may be JSON."""
    if isinstance(value, str):
        value = _parse_json(value)
    if isinstance(value, Mapping):
        if depth < _MAX_DEPTH:
            for key, inner in value.items():
                for path in _secret_paths(str(key), inner, depth + 1):
                    yield f"{name}.{path}"
    elif isinstance(value, list | tuple):
        if depth < _MAX_DEPTH:
            for inner in value:
                yield from _secret_paths(name, inner, depth + 1)
    elif is_secret_name(name.rpartition(".")[2]) and _hides_something(value):
        yield name


def _parse_json(text: str) -> object:
    if not text.lstrip().startswith(("{", "[")) or len(text) > _MAX_JSON_CHARS:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def is_secret_name(name: str) -> bool:
    """Return whether the value of a setting called `name` is a secret, judged by its words.

    "HF_TOKEN", "api-key" and "awsSecretAccessKey" are; "tokenizer", "max-num-batched-tokens",
    "eos_token" and "ssl-keyfile" are not.
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    if not words:
        return False
    if _ALWAYS_SECRET.intersection(words):
        # HF_TOKEN_PATH and DB_PASSWORD_FILE name a file.
        return words[-1] not in ("file", "path", "dir", "name")
    last = words[-1]
    before = set(words[:-1])
    if last not in _SECRET_AT_THE_END:
        return False
    if last == "token":
        return not before & _MODEL_TOKENS
    return not before & _NOT_SECRET_KEYS


def _hides_something(value: object) -> bool:
    if not isinstance(value, str):
        return False  # numbers and switches: token ids, limits
    text = value.strip()
    if text.lower() in _PLACEHOLDERS or (text.isdecimal() and len(text) < 8):
        return False
    # The path of a file that holds the secret is none.
    return _FILE.fullmatch(text) is None
