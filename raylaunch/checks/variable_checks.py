"""Checks on the recipe's environment variables: values that HCCL, torch_npu and vLLM refuse, change or ignore."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from raylaunch.checks.findings import Finding
from raylaunch.plan.known_flags import nearest
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.recipe_settings import Versions, is_on, on_ascend, read_config, version_number

AIV_EXEC_TIMEOUT = 1091
"""Upper bound of HCCL_EXEC_TIMEOUT in AIV mode, in seconds (CANN documentation)."""

# vllm-ascend 0.23 envs.py.
ASCEND_ENV = frozenset(
    f"VLLM_ASCEND_{name}"
    for name in """
    ENABLE_MATMUL_ALLREDUCE ENABLE_FLASHCOMM1 FLASHCOMM2_PARALLEL_SIZE ENABLE_MLAPO ENABLE_NZ ENABLE_FUSED_MC2
    BALANCE_SCHEDULING FUSION_OP_TRANSPOSE_KV_CACHE_BY_BLOCK ENABLE_BATCH_MEMCPY
    """.split()  # noqa: SIM905 - shorter to read
)

DEAD_ENV = {
    "VLLM_RPC_TIMEOUT": "vLLM no longer reads it: take it out",
    "VLLM_USE_V1": "vLLM has only its V1 engine now: take it out",
    "VLLM_ATTENTION_BACKEND": "vLLM no longer reads it: use args.attention-backend",
}
"""Variables that vLLM 0.32 no longer knows."""


def check_alloc_conf(loaded: LoadedRecipe) -> Iterator[Finding]:
    """torch_npu: expandable segments exclude the two other allocator settings."""
    value = loaded.recipe.env.get("PYTORCH_NPU_ALLOC_CONF", "")
    others = [
        name for name in ("max_split_size_mb", "garbage_collection_threshold") if name in value
    ]
    if others and re.search(r"expandable_segments:\s*true", value, re.IGNORECASE):
        yield Finding(
            "alloc-conf",
            "error",
            f"PYTORCH_NPU_ALLOC_CONF mixes expandable_segments with {' and '.join(others)}: they exclude each other",
            "keep only expandable_segments:True (the guide)",
            loaded.origin("env.PYTORCH_NPU_ALLOC_CONF"),
            value,
        )


def check_hccl_intra(loaded: LoadedRecipe) -> Iterator[Finding]:
    """CANN: both 1 is unsupported, and so is one of the two alone."""
    names = ("HCCL_INTRA_PCIE_ENABLE", "HCCL_INTRA_ROCE_ENABLE")
    given = {name: loaded.recipe.env[name] for name in names if name in loaded.recipe.env}
    what = ""
    if len(given) == 1:
        what = f"{next(iter(given))} stands alone: HCCL supports it only together with its twin"
    elif list(given.values()) == ["1", "1"]:
        what = "HCCL_INTRA_PCIE_ENABLE and HCCL_INTRA_ROCE_ENABLE are both 1, which HCCL does not support"
    if what:
        seen = " ".join(f"{name}={value}" for name, value in given.items())
        todo = "A2: set PCIE to 1 and ROCE to 0 (the guide); elsewhere: take both out"
        yield Finding(
            "hccl-intra", "error", what, todo, loaded.origin(f"env.{next(iter(given))}"), seen
        )


def check_exec_timeout(loaded: LoadedRecipe) -> Iterator[Finding]:
    """In AIV mode HCCL takes 0, and everything above its bound, as the bound."""
    env = loaded.recipe.env
    value = env.get("HCCL_EXEC_TIMEOUT")
    if value is None or env.get("HCCL_OP_EXPANSION_MODE") != "AIV":
        return
    if not value.isdigit() or not 0 < int(value) <= AIV_EXEC_TIMEOUT:
        yield Finding(
            "hccl-exec-timeout",
            "warning",
            f"HCCL_EXEC_TIMEOUT={value} has no effect in AIV mode: HCCL takes {AIV_EXEC_TIMEOUT} s instead",
            f"set a value from 1 to {AIV_EXEC_TIMEOUT}, or take it out",
            loaded.origin("env.HCCL_EXEC_TIMEOUT"),
            value,
        )


_HCCL_RANGES = {
    "HCCL_CONNECT_TIMEOUT": (120, 7200, "seconds"),
    "HCCL_BUFFSIZE": (1, 2**31 - 1, "MB"),
}


def check_hccl_ranges(loaded: LoadedRecipe) -> Iterator[Finding]:
    """CANN refuses a value out of range with EI0001, minutes later."""
    for name, (low, high, unit) in _HCCL_RANGES.items():
        value = loaded.recipe.env.get(name)
        if value is not None and not (value.isdigit() and low <= int(value) <= high):
            what = f"{name}={value} is out of range: HCCL takes {low} to {high} {unit}"
            yield Finding(
                "hccl-range",
                "error",
                what,
                "correct it, or take it out",
                loaded.origin(f"env.{name}"),
                value,
            )


def check_cpu_affinity(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Two hands on the same CPUs: torch_npu's affinity and vllm-ascend's binding, which is on by default."""
    recipe = loaded.recipe
    binds = read_config(recipe, "additional-config").get("enable_cpu_binding", True)
    value = recipe.env.get("CPU_AFFINITY_CONF", "0")
    if on_ascend(recipe) and is_on(binds) and value.partition(",")[0] not in ("", "0"):
        yield Finding(
            "cpu-affinity",
            "warning",
            "CPU_AFFINITY_CONF and enable_cpu_binding both bind the workers to CPUs",
            "keep one of them: take CPU_AFFINITY_CONF out",
            loaded.origin("env.CPU_AFFINITY_CONF"),
            value,
        )


def check_dead_env(loaded: LoadedRecipe, versions: Versions) -> Iterator[Finding]:
    """Variables that nobody reads, or not any more."""
    recipe, ascend = loaded.recipe, versions.get("vllm-ascend")
    for name in recipe.env:
        where = loaded.origin(f"env.{name}")
        if name in DEAD_ENV:
            yield Finding("dead-env", "warning", f"{name} has no effect", DEAD_ENV[name], where)
        elif name.startswith("VLLM_ASCEND_") and name not in ASCEND_ENV:
            what = f"vllm-ascend does not know the variable {name}"
            yield Finding("unknown-env", "warning", what, nearest(name, ASCEND_ENV), where)
        elif (
            name == "VLLM_ASCEND_ENABLE_FLASHCOMM1" and ascend and version_number(ascend) >= (0, 24)
        ):
            what = f"{name} has no effect: vllm-ascend {ascend} has no FLASHCOMM1"
            yield Finding("dead-env", "warning", what, "take it out", where, ascend)


VARIABLE_CHECKS: tuple[Callable[[LoadedRecipe], Iterator[Finding]], ...] = (
    check_alloc_conf,
    check_hccl_intra,
    check_exec_timeout,
    check_hccl_ranges,
    check_cpu_affinity,
)
