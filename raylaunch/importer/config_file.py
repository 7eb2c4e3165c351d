"""Turns the YAML file of `vllm serve --config` into the flags that vLLM makes of it."""

from __future__ import annotations

import json

import yaml

from raylaunch.importer.serve_flags import Given, long_name

_MAX_LENGTH = 200_000


def config_flags(text: str) -> list[Given] | None:
    """Return the flags of a config file, None if it is no mapping.

    As vLLM's FlexibleArgumentParser does: true is a bare flag, false and null give none, a mapping
    is JSON, a list gives several values.
    """
    if len(text) > _MAX_LENGTH or "&" in text:
        # An anchor may repeat itself exponentially; no configuration of vLLM needs one.
        return None
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    flags: list[Given] = []
    for key, value in values.items():
        if value is not None and value is not False:
            flags.append(_flag(str(key), value))
    return flags


def _flag(key: str, value: object) -> Given:
    word = f"--{key}"
    name = long_name(word)
    if value is True:
        return Given(name, None, (word,))
    if isinstance(value, dict):
        text = json.dumps(value, default=str)
        return Given(name, text, (word, text))
    if isinstance(value, list):
        texts = tuple(map(str, value))
        return Given(name, texts[0] if texts else None, (word, *texts), texts[1:])
    return Given(name, str(value), (word, str(value)))
