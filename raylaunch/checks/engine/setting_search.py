"""Finds the setting that a message of vLLM is about: a flag, a key in a flag's JSON, a variable.

vLLM seldom names the flag. Its messages have names of fields ("max_num_seqs"), words ("tensor
parallel size (5)"), a value ("Unsupported speculative method: 'mtp'"), or only the condition in the
source that led to them. Each setting of the server gets points for what fits; the best is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from raylaunch.plan.engine_answer import Refusal
from raylaunch.plan.launch_plan import ServerPlan

NAMED = 30
"""Points from which a setting counts as named by a text."""

_CERTAIN = 200
_FULL_NAME = 50
_FIELD = 45
_SHORT_NAME = 32
_LONG_SHORT_NAME = 45
"""A shortened name that still has three words."""
_QUOTED_VALUE = 40
_CONDITION = 14
_ABBREVIATION = 30
_FILE = 8
_OWN_FILE = 15
"""The file that reads the keys of additional-config."""
_DERIVED = 48
_BARE_VALUE = 6
_OF_NAMED_FLAG = 16
"""A value is the likelier meant if its flag is mentioned as well."""
_CHANGED_BY_HAND = 20
"""What --set changes is the newest, so it is the likelier of two."""
_DEEPER = 3
_PLANNED = -25
"""What raylaunch plans itself is seldom wrong."""

_ABBREVIATIONS = {
    "--tensor-parallel-size": ("tp size", "tp_size"),
    "--pipeline-parallel-size": ("pp size", "pp > 1"),
    "--data-parallel-size": ("dp size",),
    "--decode-context-parallel-size": ("dcp size", "decode context parallel"),
    "--prefill-context-parallel-size": ("pcp size", "prefill context parallel"),
}
"""How vLLM and vllm-ascend shorten these in their messages; a missing space before is common."""

_DERIVED_FROM = {"cudagraph_capture_sizes": "--max-num-seqs"}
"""Field that vLLM derives -> the flag that it derives it from, where the field is not given."""

_PREFIXES = ("enable ", "disable ", "no ")
_SUFFIXES = (" config", " size", " path", " enable", " enabled")
_COMMON_WORDS = frozenset({"model", "method", "mode", "level", "enabled", "host", "port", "type"})
"""Names of one word that any message may contain."""


@dataclass(frozen=True)
class Setting:
    """One thing that a server is given. `path` is the key inside of a flag's JSON."""

    name: str
    """`--flag`, or the name of a variable."""
    path: tuple[str, ...]
    value: str
    origin: str

    @property
    def own_name(self) -> str:
        """The innermost name: of the key, else of the flag or variable."""
        return self.path[-1] if self.path else self.name.removeprefix("--")

    def __str__(self) -> str:
        key = ".".join(self.path)
        return f"{self.name} ({key})" if key else self.name


def settings_of(server: ServerPlan) -> list[Setting]:
    """List the flags, the keys in their JSON values, and the variables of a server."""
    found = []
    for flag in server.flags:
        if not flag.name:
            found.append(Setting("MODEL", (), flag.value or "", flag.origin))
            continue
        name = flag.name.replace("--no-", "--", 1)
        found.append(Setting(flag.name, (), flag.value or "", flag.origin))
        for path, value in _keys(_parse(flag.value)):
            found.append(Setting(name, path, value, flag.origin))
    for variable, planned in server.env.items():
        found.append(Setting(variable, (), planned.value, planned.origin))
    return found


def find_settings(refusal: Refusal, server: ServerPlan) -> list[Setting]:
    """Return the settings that a refusal is about, the likeliest first."""
    settings = settings_of(server)
    given = {setting.own_name for setting in settings}
    scored = []
    for setting in settings:
        points = (
            _parser_points(refusal, setting)
            + text_points(refusal.words, setting)
            + _value_points(refusal.words, setting)
            + _source_points(refusal, setting)
            + _derived_points(refusal, setting, given)
        )
        if points > 0:
            scored.append((points + _origin_points(setting), setting))
    scored.sort(key=lambda one: -one[0])
    return [setting for points, setting in scored if points > 0]


def text_points(text: str, setting: Setting) -> int:
    """Return how surely a text names a setting, by its name; NAMED and more is a mention."""
    plain = _plain(text)
    name = _plain(setting.own_name).strip()
    points, mention = _mention(plain, name)
    if not points and any(
        short in plain or short in text for short in _ABBREVIATIONS.get(setting.name, ())
    ):
        points = _ABBREVIATION
    if points:
        # Between two that are mentioned the first one counts.
        points += max(0, 8 - plain.find(mention) // 10) if mention else 0
        points += _DEEPER * len(setting.path)
    return points


def _value_points(text: str, setting: Setting) -> int:
    """Return points for the value of a setting in a text.

    In another case it counts only if the flag is mentioned: "Ascend" is a word of many messages,
    and a quantisation.
    """
    value = setting.value
    if len(value) < 2 or value.startswith(("{", "[")) or value.lower() in ("true", "false"):
        return 0
    if value.isdigit():
        return _BARE_VALUE if re.search(rf"(?<![\d.]){value}(?![\d.])", text) else 0
    alone = rf"(?<![\w-]){re.escape(value)}(?![\w-])"
    named = bool(setting.path) and _mention(_plain(text), _plain(setting.name).strip())[0] > 0
    if len(value) < 3 or not re.search(alone, text, re.IGNORECASE if named else 0):
        return 0
    return _QUOTED_VALUE + (_OF_NAMED_FLAG if named else 0)


def _mention(plain: str, name: str) -> tuple[int, str]:
    """Return the points for a name in a text, and the form in which it is there."""
    if _contains(plain, name):
        return (10 if name in _COMMON_WORDS else _FULL_NAME), name
    shorts = [short for short in _short_names(name) if _contains(plain, short)]
    if not shorts:
        return 0, ""
    longest = max(shorts, key=len)
    return (_LONG_SHORT_NAME if len(longest.split()) > 2 else _SHORT_NAME), longest


def _parser_points(refusal: Refusal, setting: Setting) -> int:
    """Return points for a flag that argparse names, in the forms of Python 3.10 to 3.13."""
    if refusal.stage != "parse":
        return 0
    named = re.match(r"argument (-[-\w, /]+)[:]", refusal.words)
    words = named[1] if named else ""
    unknown = re.match(
        r"(?:unrecognized arguments|ambiguous option): (.*)", refusal.words, re.DOTALL
    )
    words += f" {unknown[1]}" if unknown else ""
    if not re.search(rf"(?<![\w-]){re.escape(setting.name)}(?![\w-])", words):
        return 0
    if setting.path:
        # A key of the flag is meant only if the message has more of it.
        rest = refusal.words.removeprefix(named[0] if named else "")
        points = text_points(rest, setting) + _value_points(rest, setting)
        return _CERTAIN if points >= NAMED else 0
    return _CERTAIN


def _source_points(refusal: Refusal, setting: Setting) -> int:
    points = 0
    name = _identifier(setting.own_name)
    if name in map(_identifier, refusal.fields):
        points += _FIELD + _DEEPER * len(setting.path)
    if name in refusal.conditions and name not in _COMMON_WORDS:
        points += _CONDITION + _DEEPER * len(setting.path)
    elif f"{name}_config" in refusal.conditions or _identifier(setting.name) in refusal.conditions:
        points += _CONDITION // 2
    stem = _identifier(setting.name).removesuffix("_config")
    parts = {part for file in refusal.files[-3:] for part in file.split("/")}
    if parts & {stem, f"{stem}.py"}:
        points += _FILE
    if points + text_points(refusal.words, setting) and setting.name == "--additional-config":
        points += _OWN_FILE if "ascend_config.py" in parts else 0
    return points


def _derived_points(refusal: Refusal, setting: Setting, given: set[str]) -> int:
    for field, flag in _DERIVED_FROM.items():
        if setting.name == flag and field in refusal.words and field not in given:
            return _DERIVED
    return 0


def missing_flag(words: str, flags: Iterable[str]) -> str:
    """Return the flag that a message names and that was not given; "" for none.

    Only the names of several words: `quantization` alone may mean anything.
    """
    named = [flag for flag in flags if "-" in flag and _identifier(flag) in words]
    return f"--{max(named, key=len)}" if named else ""


def _origin_points(setting: Setting) -> int:
    if "--set" in setting.origin:
        return _CHANGED_BY_HAND
    return _PLANNED if setting.origin.startswith(("raylaunch", "node", "Ray")) else 0


def _short_names(name: str) -> Iterator[str]:
    """Yield a name without `enable`, and without `size`, `config` and the like."""
    without = name
    for prefix in _PREFIXES:
        without = without.removeprefix(prefix)
    for suffix in ("", *_SUFFIXES):
        shorter = without.removesuffix(suffix)
        # One short word fits too much.
        if shorter != name and (" " in shorter or len(shorter) >= 6):
            yield shorter


def _contains(plain: str, name: str) -> bool:
    return bool(name) and f" {name} " in plain


def _plain(text: str) -> str:
    """Return a text as lower-case words, with a space at both ends."""
    return f" {re.sub(r'[^a-z0-9]+', ' ', text.lower()).strip()} "


def _identifier(name: str) -> str:
    return name.removeprefix("--").replace("-", "_").lower()


def _parse(value: str | None) -> object:
    if not value or value[0] not in "{[":
        return None
    try:
        parsed: object = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return parsed


def _keys(value: object, path: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], str]]:
    """Yield the path and the value of each key, outer keys first."""
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        below = (*path, str(key))
        text = inner if isinstance(inner, str) else json.dumps(inner)
        yield below, text
        yield from _keys(inner, below)


def first_of_each(settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings without the second and later ones of a flag or variable."""
    firsts: dict[str, Setting] = {}
    for setting in settings:
        firsts.setdefault(setting.name, setting)
    return list(firsts.values())
