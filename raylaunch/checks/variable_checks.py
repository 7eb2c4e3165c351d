"""Checks of the recipe's environment variables: values that HCCL, torch_npu or vLLM refuse.

Also those that they change or ignore.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from raylaunch.checks.findings import Finding
from raylaunch.checks.recipe_checks import FLASHCOMM1, LAST_WITH_FLASHCOMM1
from raylaunch.plan.known_flags import nearest
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.recipe_settings import Versions, is_on, on_ascend, read_config, version_number

AIV_EXEC_TIMEOUT = 1091
"""Upper bound of HCCL_EXEC_TIMEOUT in AIV mode, in seconds (CANN documentation)."""

# vllm-ascend 0.23 envs.py.
ASCEND_ENV = frozenset(
    f"VLLM_ASCEND_{name}"
    for name in """
    ENABLE_MATMUL_ALLREDUCE ENABLE_FLASHCOMM1 FLASHCOMM2_PARALLEL_SIZE ENABLE_MLAPO ENABLE_NZ
    ENABLE_FUSED_MC2 BALANCE_SCHEDULING FUSION_OP_TRANSPOSE_KV_CACHE_BY_BLOCK ENABLE_BATCH_MEMCPY
    """.split()  # noqa: SIM905 - shorter to read
)

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


def check_dead_env(loaded: LoadedRecipe, versions: Versions) -> Iterator[Finding]:
    """Find variables that no program reads, or no longer."""
    ascend = versions.get("vllm-ascend", "")
    has_flashcomm1 = not ascend or version_number(ascend) <= LAST_WITH_FLASHCOMM1
    for name in loaded.recipe.env:
        where = loaded.origin(f"env.{name}")
        if name in DEAD_ENV:
            yield Finding(
                id="dead-env",
                level="warning",
                what=f"{name} has no effect",
                todo=DEAD_ENV[name],
                where=where,
            )
        elif name.startswith("VLLM_ASCEND_") and name not in ASCEND_ENV:
            yield Finding(
                id="unknown-env",
                level="warning",
                what=f"vllm-ascend does not know the variable {name}",
                todo=nearest(name, ASCEND_ENV),
                where=where,
            )
        elif name == FLASHCOMM1 and not has_flashcomm1:
            yield Finding(
                id="dead-env",
                level="warning",
                what=f"{name} has no effect: vllm-ascend {ascend} has no FLASHCOMM1",
                todo="remove it",
                where=where,
                seen=ascend,
            )


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
