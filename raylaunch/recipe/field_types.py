"""Types of the recipe's fields, with their bounds."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

MAX_NPUS_PER_NODE = 64
"""Physical devices of one host in Ascend's driver (ASCEND_PDEV_MAX_NUM, ascend_dev_num.h)."""

MAX_RANKS = 8192
"""NPUs of the largest supernode announced (Atlas 950 SuperPoD); a rank takes at least one."""

MAX_SECONDS = 2_147_483
"""24.8 days: poll(2) and epoll_wait(2) take their time-out as an int of milliseconds."""

MAX_COUNT = 2**31 - 1
"""Largest C int, where the field itself has no smaller bound."""

Port = Annotated[int, Field(ge=1, le=65535)]
Npus = Annotated[int, Field(ge=1, le=MAX_NPUS_PER_NODE)]
Ranks = Annotated[int, Field(ge=1, le=MAX_RANKS)]
Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Pause = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
Factor = Annotated[float, Field(ge=1, le=100)]
Restarts = Annotated[int, Field(ge=0, le=MAX_COUNT)]
DraftTokens = Annotated[int, Field(ge=1, le=MAX_COUNT)]
SysctlValue = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
"""The kernel keeps a numeric sysctl in a long."""


def _env_value(value: object) -> object:
    """Accept text and integers; a boolean or float has several spellings as text."""
    if isinstance(value, bool | float):
        lower = str(value).lower()
        raise ValueError(
            f"environment values are text: write it in quotes ('{lower}' or '{value}')"
        )
    return str(value) if isinstance(value, int) else value


EnvValue = Annotated[str, BeforeValidator(_env_value)]


def _env_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        # `secrets: [HF_TOKEN=hf_...]` is a mistake that must not print the value.
        shown = name.partition("=")[0]
        raise ValueError(
            f"{shown!r} is not a variable name: use letters, digits and _, and no digit first"
            if shown == name
            else f"{shown!r} is followed by a value: only the name of the variable stands here"
        )
    return name


EnvName = Annotated[str, AfterValidator(_env_name)]


def _group_name(name: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9]{0,19}", name):
        raise ValueError(
            f"{name!r} is not a name for groups: "
            "use a small letter, then small letters and digits, at most 20"
        )
    return name


GroupName = Annotated[str, AfterValidator(_group_name)]
MAX_GROUP_KINDS = 64
"""Entries of `groups`. Each is validated as a whole recipe."""
