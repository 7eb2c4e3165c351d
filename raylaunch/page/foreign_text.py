"""Texts of others made harmless: no escape sequences, no control characters, no secrets.

The page writes texts as text nodes only, so markup in a log is shown and never parsed. What is
removed here would still disturb a reader, or must not leave the machine.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from raylaunch.checks.findings import strip_control_characters
from raylaunch.checks.secret_checks import is_secret_name

MASK = "***"
MIN_VALUE_CHARS = 4
"""Shorter values of settings are not masked: "token: 12" is a count."""

_ESCAPE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movement, erasing
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"  # OSC, DCS and the like
)
# They reorder or hide text, so that a line reads differently from what it is.
_INVISIBLE = re.compile("[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")

# Forms of keys that their issuers document, and credentials in a header or a URL.
_KEY = re.compile(r"\b(?:sk-|hf_|ghp_|glpat-|xox[abp]-)[\w-]{16,}")
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_URL = re.compile(r"(\w://)[^\s/:@]{1,200}:[^\s/@]{1,200}@")
_SETTING = re.compile(
    r"(?P<name>\b[A-Za-z][\w-]{2,60})(?P<between>[\"']?\s{0,3}[=:]\s{0,3}[\[{\"']{0,3})"
    r"(?P<value>[^\s\"',;&})\]]+)"
)
_OPTION = re.compile(r"(?P<name>--[A-Za-z][\w-]{2,60})(?P<between>\s{1,3})(?P<value>[^\s-]\S*)")


def clean(value: object, secrets: Collection[str] = ()) -> object:
    """Return a JSON value with every text in it cleaned by `clean_text`."""
    if isinstance(value, str):
        return clean_text(value, secrets)
    if isinstance(value, Mapping):
        return {clean_text(str(key)): clean(inner, secrets) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [clean(inner, secrets) for inner in value]
    return value


def clean_text(text: str, secrets: Collection[str] = ()) -> str:
    """Return a text without escape sequences, control characters and secrets.

    Args:
        text: Of a log, an event, a plan.
        secrets: Values that must not be in it. What looks like a key is masked in any case.
    """
    # Escape sequences first: one in the middle of a secret would hide it from the search.
    text = _INVISIBLE.sub("", strip_control_characters(_ESCAPE.sub("", text)))
    # The longest first: one value may be part of another.
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, MASK)
    text = _KEY.sub(MASK, text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    text = _URL.sub(rf"\1{MASK}@", text)
    return _OPTION.sub(_mask_setting, _SETTING.sub(_mask_setting, text))


def _mask_setting(found: re.Match[str]) -> str:
    value = found["value"]
    is_short = len(value) < MIN_VALUE_CHARS
    if is_short or value.isdecimal() or not is_secret_name(found["name"].lstrip("-")):
        return found[0]
    return f"{found['name']}{found['between']}{MASK}"
