"""Checks on the recipe's sizes, flags and features: what vLLM and vllm-ascend refuse or ignore."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raylaunch.checks.findings import Finding, Level
from raylaunch.plan.known_flags import RAYLAUNCH_KNOWS, nearest, read_flags
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.model import Recipe
from raylaunch.recipe.recipe_settings import (
    Versions,
    given_args,
    is_on,
    is_switched_on,
    on_ascend,
    read_config,
    version_number,
)
from raylaunch.recipe.reserved import normalise_flag

# vllm-ascend 0.23 and main, ascend_config.py; it ignores every other key without a word.
ADDITIONAL_CONFIG = frozenset(
    """
    xlite_graph_config weight_prefetch_config finegrained_tp_config ascend_compilation_config eplb_config refresh
    dump_config dump_config_path enable_async_exponential enable_shared_expert_dp multistream_overlap_shared_expert
    multistream_overlap_gate recompute_scheduler_enable enable_cpu_binding enable_sleep_mode_extra_cleanup
    SLO_limits_for_dynamic_batch pa_shape_list enable_kv_nz layer_sharding enable_sparse_sfa_c8 enable_sparse_li_c8
    c8_enable_reshape_optim enable_mc2_hierarchy_comm enable_prefill_mc2 mega_moe_max_tokens profiling_chunk_config
    enable_balance_scheduling enable_flashcomm1 enable_matmul_allreduce flashcomm2_parallel_size msmonitor_use_daemon
    enable_mlapo weight_nz_mode enable_fused_mc2 enable_transpose_kv_cache_by_block enable_dsa_cp
    rejection_sampler_config enable_reduce_sample multistream_dsv4_dsa_overlap dp_allreduce_on_npu scheduler_config
    dynamic_spec_config rl_config
    """.split()  # noqa: SIM905 - shorter to read
)


def check_cross_node_tp(loaded: LoadedRecipe) -> Iterator[Finding]:
    """A rank must fit on one node."""
    recipe, size = loaded.recipe, loaded.recipe.npus_per_node
    needed = recipe.parallel.devices_per_rank
    if needed > size:
        nodes = -(-needed // size)
        yield Finding(
            "cross-node-tp",
            "error",
            f"one data-parallel rank takes {needed} NPUs (tensor x pipeline x prefill_context) and a node has {size}: "
            f"tensor parallelism across nodes may be unstable, and raylaunch does not start it",
            f"set parallel.tensor={size}, parallel.data={recipe.parallel.data * nodes}, parallel.data_local=1 "
            f"(the guide: tp=8, dp=2 on two A2 nodes)",
            loaded.origin("parallel.tensor"),
            f"{needed} > {size}",
        )


def check_server_fits(loaded: LoadedRecipe) -> Iterator[Finding]:
    """All ranks of a server must fit on its node and into the NPUs the recipe gives it."""
    recipe, parallel = loaded.recipe, loaded.recipe.parallel
    needed = parallel.devices_per_rank * parallel.ranks_per_server
    if parallel.devices_per_rank > recipe.npus_per_node:
        return  # that is check_cross_node_tp's to tell
    if recipe.npus_per_node < needed:
        yield Finding(
            "server-too-big",
            "error",
            f"a server holds {parallel.ranks_per_server} ranks of {parallel.devices_per_rank} NPUs, {needed} in all, "
            f"and a node has {recipe.npus_per_node}",
            f"set parallel.data_local={recipe.npus_per_node // parallel.devices_per_rank} or lower",
            loaded.origin("parallel.data_local"),
            f"{needed} > {recipe.npus_per_node}",
        )
    if recipe.npus_per_server < needed:
        yield Finding(
            "npus-per-server",
            "error",
            f"a server is given {recipe.npus_per_server} NPUs and its ranks take {needed}",
            "leave hardware.npus_per_server out: it follows from the parallel sizes",
            loaded.origin("hardware.npus_per_server"),
            f"{recipe.npus_per_server} < {needed}",
        )


def check_flashcomm1(loaded: LoadedRecipe, versions: Versions) -> Iterator[Finding]:
    """vllm-ascend up to 0.23 wants EP and FLASHCOMM1 together for MiniMax-M2; later ones have no FLASHCOMM1.

    Garbled text without the pair is known of MiniMax-M2 alone (its guide's FAQ; vllm-ascend#10466 on M2.7). The guides
    of the other mixture-of-experts models use expert parallelism without it.
    """
    recipe, parallel = loaded.recipe, loaded.recipe.parallel
    if not on_ascend(recipe):
        return
    on = is_switched_on(recipe, "VLLM_ASCEND_ENABLE_FLASHCOMM1", "enable_flashcomm1")
    needs_pair = version_number(versions.get("vllm-ascend", "0.23")) < (0, 24)
    if _is_minimax_m2(recipe) and parallel.expert and parallel.tensor > 1 and needs_pair and not on:
        yield Finding(
            "ep-without-flashcomm1",
            "warning",
            "expert parallelism without FLASHCOMM1: MiniMax-M2 on vllm-ascend up to 0.23 may answer with garbled text",
            "set env.VLLM_ASCEND_ENABLE_FLASHCOMM1=1 (the guide keeps the two together)",
            loaded.origin("parallel.expert"),
            f"vllm-ascend {versions.get('vllm-ascend', 'unknown')}",
        )
    where = loaded.origin("env.VLLM_ASCEND_ENABLE_FLASHCOMM1")
    if on and parallel.tensor == 1:
        what = "FLASHCOMM1 needs tensor parallelism: vllm-ascend refuses to start with tp=1"
        yield Finding(
            "flashcomm1",
            "error",
            what,
            "take FLASHCOMM1 out, or set parallel.tensor > 1",
            where,
            "tp=1",
        )
    elif on and not parallel.expert:
        level: Level = "error" if _is_moe(recipe.model.type or "") else "warning"
        what = "FLASHCOMM1 without expert parallelism: vllm-ascend refuses it for mixture-of-experts models"
        yield Finding(
            "flashcomm1",
            level,
            what,
            "set parallel.expert=true, or take FLASHCOMM1 out",
            where,
            "no EP",
        )


def check_pcp_with_dp(loaded: LoadedRecipe) -> Iterator[Finding]:
    """vllm-ascend 0.23 platform.py: PCP and DP cannot be enabled simultaneously."""
    parallel = loaded.recipe.parallel
    if parallel.prefill_context > 1 and parallel.data > 1:
        yield Finding(
            "pcp-dp",
            "error",
            "prefill-context parallelism and data parallelism cannot be combined: vllm-ascend refuses to start",
            "set parallel.data=1 (the guide's long-context variant), or parallel.prefill_context=1",
            loaded.origin("parallel.prefill_context"),
            f"prefill_context={parallel.prefill_context} data={parallel.data}",
        )


def check_fused_mc2(loaded: LoadedRecipe) -> Iterator[Finding]:
    """vllm-ascend 0.23 platform.py: no fused MC2 with hierarchical communication, as HCCL_INTRA_* turn it on."""
    recipe = loaded.recipe
    pair = (recipe.env.get("HCCL_INTRA_PCIE_ENABLE"), recipe.env.get("HCCL_INTRA_ROCE_ENABLE"))
    hierarchical = pair == ("1", "0") or is_on(
        read_config(recipe, "additional-config").get("enable_mc2_hierarchy_comm")
    )
    if hierarchical and is_switched_on(recipe, "VLLM_ASCEND_ENABLE_FUSED_MC2", "enable_fused_mc2"):
        yield Finding(
            "fused-mc2",
            "error",
            "fused MC2 cannot be used with hierarchical communication: vllm-ascend refuses to start",
            "A2: take fused MC2 out. A3: take HCCL_INTRA_PCIE_ENABLE and HCCL_INTRA_ROCE_ENABLE out",
            loaded.origin(
                "env.VLLM_ASCEND_ENABLE_FUSED_MC2"
                if is_on(recipe.env.get("VLLM_ASCEND_ENABLE_FUSED_MC2"))
                else "args.additional-config"
            ),
            f"HCCL_INTRA_PCIE_ENABLE={pair[0]} HCCL_INTRA_ROCE_ENABLE={pair[1]}",
        )


def check_launch_blocking(loaded: LoadedRecipe) -> Iterator[Finding]:
    """vllm-ascend 0.23 platform.py: ACL graph is incompatible with ASCEND_LAUNCH_BLOCKING=1."""
    recipe = loaded.recipe
    mode = str(read_config(recipe, "compilation-config").get("cudagraph_mode", "")).upper()
    eager = is_on(given_args(recipe).get("enforce-eager")) or mode == "NONE"
    if recipe.env.get("ASCEND_LAUNCH_BLOCKING", "0") not in ("", "0") and not eager:
        yield Finding(
            "launch-blocking",
            "error",
            "ASCEND_LAUNCH_BLOCKING=1 does not go with graph mode: vllm-ascend refuses to start",
            "take it out (it is for debugging), or set args.enforce-eager=true",
            loaded.origin("env.ASCEND_LAUNCH_BLOCKING"),
            f"cudagraph_mode={mode or 'default'}",
        )


def check_balance_scheduling(loaded: LoadedRecipe) -> Iterator[Finding]:
    """vllm-ascend: balance scheduling is for servers that both prefill and decode."""
    recipe = loaded.recipe
    role = read_config(recipe, "kv-transfer-config").get("kv_role")
    on = is_switched_on(recipe, "VLLM_ASCEND_BALANCE_SCHEDULING", "enable_balance_scheduling")
    if on and role in ("kv_producer", "kv_consumer"):
        yield Finding(
            "balance-scheduling",
            "error",
            f"balance scheduling does not go with kv_role={role}: vllm-ascend refuses to start",
            "take VLLM_ASCEND_BALANCE_SCHEDULING (or additional-config.enable_balance_scheduling) out",
            loaded.origin("args.kv-transfer-config"),
            str(role),
        )


def check_additional_config(loaded: LoadedRecipe) -> Iterator[Finding]:
    """vllm-ascend ignores unknown keys without a word."""
    if on_ascend(loaded.recipe):
        for key in read_config(loaded.recipe, "additional-config"):
            if key not in ADDITIONAL_CONFIG:
                what = (
                    f"vllm-ascend does not know the key {key!r} of additional-config and ignores it"
                )
                where = loaded.origin("args.additional-config")
                yield Finding(
                    "unknown-additional-config",
                    "warning",
                    what,
                    nearest(key, ADDITIONAL_CONFIG),
                    where,
                )


def check_flags(loaded: LoadedRecipe, versions: Versions) -> Iterator[Finding]:
    """An error where the flags of the installed vLLM are known for sure, a warning elsewhere."""
    known, version = read_flags(), versions.get("vllm", "")
    level: Level = "error" if version.startswith(RAYLAUNCH_KNOWS) else "warning"
    for name, value in loaded.recipe.args.items():
        given, where = normalise_flag(name).partition(".")[0], loaded.origin(f"args.{name}")
        flag = f"no-{given}" if value is False and "." not in name else given
        if flag not in known:
            what = f"`vllm serve` has no flag --{flag}"
            yield Finding(
                "unknown-flag",
                level,
                what,
                nearest(flag, known),
                where,
                version and f"vLLM {version}",
            )
        elif known[flag] and (
            not version or version_number(version) >= version_number(known[flag])
        ):
            what = f"--{flag} is gone: vLLM {known[flag]} refuses it"
            gone: Level = "error" if version else "warning"
            yield Finding(
                "dead-flag",
                gone,
                what,
                f"take args.{name} out",
                where,
                version and f"vLLM {version}",
            )


def check_port_clash(loaded: LoadedRecipe) -> Iterator[Finding]:
    """The ports of one server must differ."""
    network = loaded.recipe.network
    several = loaded.recipe.parallel.servers > 1
    ports = {"http_port": network.http_port, **({"rpc_port": network.rpc_port} if several else {})}
    if len(set(ports.values())) < len(ports):
        what = f"network.http_port and network.rpc_port are both {network.http_port}"
        yield Finding(
            "port-clash",
            "error",
            what,
            "choose another rpc_port",
            loaded.origin("network.rpc_port"),
        )
    hccl = range(network.hccl_base_port, network.hccl_base_port + 16)
    for name, port in ports.items():
        if on_ascend(loaded.recipe) and port in hccl:
            what = f"network.{name}={port} lies in HCCL's port range {hccl[0]}-{hccl[-1]}"
            yield Finding(
                "port-clash", "error", what, "choose another port", loaded.origin(f"network.{name}")
            )


RECIPE_CHECKS: tuple[Callable[[LoadedRecipe], Iterator[Finding]], ...] = (
    check_cross_node_tp,
    check_server_fits,
    check_pcp_with_dp,
    check_fused_mc2,
    check_launch_blocking,
    check_balance_scheduling,
    check_additional_config,
    check_port_clash,
)


def _is_minimax_m2(recipe: Recipe) -> bool:
    """By its type; where the recipe names none, by the name of its weights ("MiniMax-M2.5")."""
    name = recipe.model.type or recipe.model.path
    return "minimax_m2" in name.lower().replace("-", "_")


def _is_moe(model_type: str) -> bool:
    return "moe" in model_type or model_type.startswith(
        ("minimax_m", "deepseek_v", "kimi_k", "glm_moe")
    )
