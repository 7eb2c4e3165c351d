"""Checks of the recipe's environment variables: values that HCCL, torch_npu or vLLM refuse.

Also those that they change or ignore.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from raylaunch.checks.findings import Finding
from raylaunch.checks.recipe_checks import FLASHCOMM1, LAST_WITH_FLASHCOMM1
from raylaunch.plan.known_flags import KnownFlags
from raylaunch.plan.known_variables import LIST, probably_meant, read_variables
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.recipe_settings import Versions, is_on, on_ascend, read_config, version_number

AIV_EXEC_TIMEOUT = 1091
"""Upper bound of HCCL_EXEC_TIMEOUT in AIV mode, in seconds (CANN documentation)."""

DEAD_ENV = {
    "VLLM_RPC_TIMEOUT": "vLLM no longer reads it: remove it",
    "VLLM_USE_V1": "vLLM has only its V1 engine now: remove it",
    "VLLM_ATTENTION_BACKEND": "vLLM no longer reads it: use args.attention-backend",
}
"""Variables that vLLM 0.32 no longer knows."""

_HCCL_RANGES = {
    "HCCL_CONNECT_TIMEOUT": (120, 7200, "seconds"),
    "HCCL_BUFFSIZE": (1, 2**31 - 1, "MB"),
}
_HCCL_INTRA = ("HCCL_INTRA_PCIE_ENABLE", "HCCL_INTRA_ROCE_ENABLE")


def check_alloc_conf(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find allocator settings of torch_npu that expandable segments exclude."""
    value = loaded.recipe.env.get("PYTORCH_NPU_ALLOC_CONF", "")
    excluded = ("max_split_size_mb", "garbage_collection_threshold")
    others = [name for name in excluded if name in value]
    if others and re.search(r"expandable_segments:\s*true", value, re.IGNORECASE):
        yield Finding(
            id="alloc-conf",
            level="error",
            what=(
                f"PYTORCH_NPU_ALLOC_CONF combines expandable_segments with "
                f"{' and '.join(others)}: they exclude each other"
            ),
            todo="keep only expandable_segments:True (the guide)",
            where=loaded.origin("env.PYTORCH_NPU_ALLOC_CONF"),
            seen=value,
        )


def check_hccl_intra(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find HCCL_INTRA_* alone or both 1: CANN supports neither."""
    env = loaded.recipe.env
    given = {name: env[name] for name in _HCCL_INTRA if name in env}
    what = ""
    if len(given) == 1:
        what = f"{next(iter(given))} is set alone: HCCL supports it only together with its twin"
    elif list(given.values()) == ["1", "1"]:
        what = (
            "HCCL_INTRA_PCIE_ENABLE and HCCL_INTRA_ROCE_ENABLE are both 1, "
            "which HCCL does not support"
        )
    if what:
        yield Finding(
            id="hccl-intra",
            level="error",
            what=what,
            todo="A2: set PCIE to 1 and ROCE to 0 (the guide); elsewhere: remove both",
            where=loaded.origin(f"env.{next(iter(given))}"),
            seen=" ".join(f"{name}={value}" for name, value in given.items()),
        )


def check_exec_timeout(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find values without effect in AIV mode: HCCL replaces 0, and all above its bound, by it."""
    env = loaded.recipe.env
    value = env.get("HCCL_EXEC_TIMEOUT")
    if value is None or env.get("HCCL_OP_EXPANSION_MODE") != "AIV":
        return
    seconds = _as_number(value)
    if seconds is None or not 0 < seconds <= AIV_EXEC_TIMEOUT:
        yield Finding(
            id="hccl-exec-timeout",
            level="warning",
            what=(
                f"HCCL_EXEC_TIMEOUT={value} has no effect in AIV mode: "
                f"HCCL uses {AIV_EXEC_TIMEOUT} s instead"
            ),
            todo=f"set a value from 1 to {AIV_EXEC_TIMEOUT}, or remove it",
            where=loaded.origin("env.HCCL_EXEC_TIMEOUT"),
            seen=value,
        )


def check_hccl_ranges(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find values out of range: CANN refuses them with EI0001, minutes later."""
    for name, (low, high, unit) in _HCCL_RANGES.items():
        value = loaded.recipe.env.get(name)
        if value is None:
            continue
        number = _as_number(value)
        if number is None or not low <= number <= high:
            yield Finding(
                id="hccl-range",
                level="error",
                what=f"{name}={value} is out of range: HCCL takes {low} to {high} {unit}",
                todo="correct it, or remove it",
                where=loaded.origin(f"env.{name}"),
                seen=value,
            )


def check_cpu_affinity(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find torch_npu's affinity beside vllm-ascend's binding, which is on by default."""
    recipe = loaded.recipe
    binds = is_on(read_config(recipe, "additional-config").get("enable_cpu_binding", True))
    value = recipe.env.get("CPU_AFFINITY_CONF", "0")
    has_affinity = value.partition(",")[0] not in ("", "0")
    if on_ascend(recipe) and binds and has_affinity:
        yield Finding(
            id="cpu-affinity",
            level="warning",
            what="CPU_AFFINITY_CONF and enable_cpu_binding both bind the workers to CPUs",
            todo="keep one of them: remove CPU_AFFINITY_CONF",
            where=loaded.origin("env.CPU_AFFINITY_CONF"),
            seen=value,
        )


def check_variable_names(
    loaded: LoadedRecipe, versions: Versions, known: KnownFlags | None = None
) -> Iterator[Finding]:
    """Find variables that no program reads, no longer, or under another name.

    The node's own packages decide where they were asked, else raylaunch's list.
    """
    for name in loaded.recipe.env:
        finding = _judge_name(name, versions, known)
        if finding is not None:
            yield replace(finding, where=loaded.origin(f"env.{name}"))


def _judge_name(name: str, versions: Versions, known: KnownFlags | None) -> Finding | None:
    asked = known.variables if known is not None else ()
    if name in asked:
        return None
    installed = _installed(versions)
    if name in DEAD_ENV:
        return _dead(name, f"{name} has no effect", DEAD_ENV[name], installed)
    if asked and name.startswith("VLLM_") and name in read_variables():
        what = f"{name} has no effect: {installed} on the nodes do not read it"
        return _dead(name, what, "remove it", installed)
    if not asked and name == FLASHCOMM1 and _lacks_flashcomm1(versions):
        what = f"{name} has no effect: vllm-ascend {versions['vllm-ascend']} has no FLASHCOMM1"
        return _dead(name, what, "remove it", versions["vllm-ascend"])
    return _misspelt(name, asked, installed)


def _misspelt(name: str, asked: tuple[str, ...], installed: str) -> Finding | None:
    """Return a finding for a name that is close to a known one, or that vLLM would have to know."""
    meant = probably_meant(name, asked)
    if meant:
        what = f"no program is known to read the variable {name}"
    elif name.startswith("VLLM_") and asked:
        what = f"{installed} on the nodes do not know the variable {name}"
    elif name.startswith("VLLM_ASCEND_") and name not in read_variables():
        what = f"vllm-ascend does not know the variable {name}"
    else:
        return None
    return Finding(
        id="unknown-env",
        level="warning",
        what=what,
        todo=f"did you mean {meant}?" if meant else "check the spelling, or take it out",
        seen=f"the nodes' own {installed}" if asked else LIST,
    )


def _dead(name: str, what: str, todo: str, seen: str) -> Finding:
    return Finding(id="dead-env", level="warning", what=what, todo=todo, seen=seen or name)


def _lacks_flashcomm1(versions: Versions) -> bool:
    ascend = versions.get("vllm-ascend", "")
    return bool(ascend) and version_number(ascend) > LAST_WITH_FLASHCOMM1


def _installed(versions: Versions) -> str:
    names = [name for name in ("vllm", "vllm-ascend") if name in versions]
    return " and ".join(f"{name} {versions[name]}" for name in names) or "vllm"


VARIABLE_CHECKS: tuple[Callable[[LoadedRecipe], Iterator[Finding]], ...] = (
    check_alloc_conf,
    check_hccl_intra,
    check_exec_timeout,
    check_hccl_ranges,
    check_cpu_affinity,
)


def _as_number(value: str) -> int | None:
    """Parse ASCII digits; None for anything else.

    Not `isdigit()`: it accepts "²", which `int()` refuses. Bounded: `int()` refuses 5,000 digits.
    """
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else None
