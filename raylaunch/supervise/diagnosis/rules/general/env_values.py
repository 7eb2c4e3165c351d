"""Environment variables whose value is not a number, where their reader expects one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason

_NOT_A_NUMBER = re.compile(
    r"(?:invalid literal for int\(\) with base \d{1,2}|could not convert string to float): "
    r"'([^'\n]{0,120})'"
)
_VARIABLE = re.compile(
    r"\b((?:VLLM|HCCL|ASCEND|RAY|OMP|MASTER|NCCL|GLOO|HF|TORCH)_[A-Z][A-Z0-9_]{2,60})\b"
)
_LOOK_BACK = 5


def read_env_values(log: ServerLog) -> Iterator[Reading]:
    """Yield the variables that a statement just above the failed conversion reads."""
    for line, match in log.errors.find(_NOT_A_NUMBER):
        above = " ".join(log.cleaned[max(0, line - _LOOK_BACK) : line])
        names = _VARIABLE.findall(above)
        if not names:
            continue
        name, value = names[-1], match[1]
        of_a_service = (
            " Kubernetes sets such a value for a service of that name (`vllm`)."
            if "://" in value
            else ""
        )
        links = (
            " Give the Kubernetes service another name, or set `enableServiceLinks: false`."
            if of_a_service
            else ""
        )
        yield Reading(
            reason(
                "env-value",
                f"The environment variable {name} has the value `{value}`, which is not a whole "
                f"number where vLLM expects one.{of_a_service}",
                f"Correct or remove `env.{name}` (and the same variable in the container or in the "
                f"shell that starts Ray).{links}",
                "vllm/envs.py",
                "deterministic",
            ),
            line,
        )
