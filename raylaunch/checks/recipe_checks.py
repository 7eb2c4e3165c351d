"""Checks of the recipe's sizes, flags and features: what vLLM and vllm-ascend refuse or ignore."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from raylaunch.checks.findings import Finding, Level
from raylaunch.plan.known_flags import RAYLAUNCH_KNOWS, KnownFlags, nearest, read_flags
from raylaunch.plan.ports import HCCL_PORTS
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

FLASHCOMM1 = "VLLM_ASCEND_ENABLE_FLASHCOMM1"
LAST_WITH_FLASHCOMM1 = (0, 26)
"""vllm-ascend 0.23.0, 0.24.0rc1, 0.25.1rc1 and 0.26.0rc1 read FLASHCOMM1 (their envs.py).

It was removed on main on 2026-08-21, after 0.26.0rc1.
"""

# Keys that vllm-ascend 0.23.0.post1 or main reads (ascend_config.py, platform.py,
# moe_comm_method.py and others); it ignores every other key without a warning.
ADDITIONAL_CONFIG = frozenset(
    """
    xlite_graph_config weight_prefetch_config finegrained_tp_config ascend_compilation_config
    ascend_fusion_config ascend_log_path eplb_config refresh dump_config dump_config_path
    enable_async_exponential enable_shared_expert_dp multistream_overlap_shared_expert
    multistream_overlap_gate recompute_scheduler_enable enable_cpu_binding
    enable_sleep_mode_extra_cleanup SLO_limits_for_dynamic_batch pa_shape_list enable_kv_nz
    layer_sharding enable_sparse_sfa_c8 enable_sparse_li_c8 c8_enable_reshape_optim
    enable_mc2_hierarchy_comm enable_prefill_mc2 mega_moe_max_tokens profiling_chunk_config
    enable_balance_scheduling enable_flashcomm1 enable_flashcomm2_parallel_size
    enable_matmul_allreduce hamming_sparse mix_placement msmonitor_use_daemon enable_mlapo
    weight_nz_mode enable_fused_mc2 enable_transpose_kv_cache_by_block enable_dsa_cp
    rejection_sampler_config enable_reduce_sample multistream_dsv4_dsa_overlap dp_allreduce_on_npu
    scheduler_config
    """.split()  # noqa: SIM905 - shorter to read
)
ADDITIONAL_CONFIG_LIST = "raylaunch's list, made from vllm-ascend 0.23.0.post1 and main"


def check_cross_node_tp(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find ranks that do not fit on one node."""
    recipe = loaded.recipe
    available = recipe.npus_per_node
    needed = recipe.parallel.devices_per_rank
    if needed > available:
        nodes = -(-needed // available)  # rounded up
        data = recipe.parallel.data * nodes
        yield Finding(
            id="cross-node-tp",
            level="error",
            what=(
                f"one data-parallel rank takes {needed} NPUs (tensor x pipeline x "
                f"prefill_context) and a node has {available}: tensor parallelism across nodes "
                f"may be unstable, and raylaunch does not start it"
            ),
            todo=(
                f"set parallel.tensor={available}, parallel.data={data}, parallel.data_local=1 "
                f"(the guide: tp=8, dp=2 on two A2 nodes)"
            ),
            where=loaded.origin("parallel.tensor"),
            seen=f"{needed} > {available}",
        )


def check_server_fits(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find servers whose ranks do not fit on a node or into the server's NPUs."""
    recipe = loaded.recipe
    parallel = recipe.parallel
    per_rank = parallel.devices_per_rank
    ranks = parallel.ranks_per_server
    needed = per_rank * ranks
    if per_rank > recipe.npus_per_node:
        return  # check_cross_node_tp reports that
    if recipe.npus_per_node < needed:
        yield Finding(
            id="server-too-big",
            level="error",
            what=(
                f"a server holds {ranks} ranks of {per_rank} NPUs, {needed} in all, "
                f"and a node has {recipe.npus_per_node}"
            ),
            todo=f"set parallel.data_local={recipe.npus_per_node // per_rank} or lower",
            where=loaded.origin("parallel.data_local"),
            seen=f"{needed} > {recipe.npus_per_node}",
        )
    if recipe.npus_per_server < needed:
        yield Finding(
            id="npus-per-server",
            level="error",
            what=f"a server gets {recipe.npus_per_server} NPUs and its ranks take {needed}",
            todo="omit hardware.npus_per_server: it follows from the parallel sizes",
            where=loaded.origin("hardware.npus_per_server"),
            seen=f"{recipe.npus_per_server} < {needed}",
        )


def check_flashcomm1(loaded: LoadedRecipe, versions: Versions) -> Iterator[Finding]:
    """Check FLASHCOMM1 against expert parallelism: MiniMax-M2 needs both or neither.

    Garbled text without the pair is known of MiniMax-M2 alone (its guide's FAQ; vllm-ascend#10466
    on M2.7). The guides of the other mixture-of-experts models use expert parallelism without it.
    """
    recipe = loaded.recipe
    if not on_ascend(recipe):
        return
    if is_switched_on(recipe, FLASHCOMM1, "enable_flashcomm1"):
        yield from _flashcomm1_conditions(loaded)
    elif _needs_flashcomm1(recipe, versions):
        yield Finding(
            id="ep-without-flashcomm1",
            level="warning",
            what=(
                "expert parallelism without FLASHCOMM1: MiniMax-M2 on vllm-ascend up to 0.26 may "
                "answer with garbled text"
            ),
            todo=f"set env.{FLASHCOMM1}=1 (the guide keeps the two together)",
            where=loaded.origin("parallel.expert"),
            seen=f"vllm-ascend {versions.get('vllm-ascend', 'unknown')}",
        )


def _flashcomm1_conditions(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find FLASHCOMM1 without what it requires: vllm-ascend refuses to start."""
    recipe = loaded.recipe
    parallel = recipe.parallel
    where = loaded.origin(f"env.{FLASHCOMM1}")
    if parallel.tensor == 1:
        yield Finding(
            id="flashcomm1",
            level="error",
            what="FLASHCOMM1 needs tensor parallelism: vllm-ascend refuses to start with tp=1",
            todo="remove FLASHCOMM1, or set parallel.tensor > 1",
            where=where,
            seen="tp=1",
        )
    elif not parallel.expert:
        # For a dense model, or one of unknown type, vllm-ascend may accept it.
        level: Level = "error" if _is_moe(recipe.model.type or "") else "warning"
        yield Finding(
            id="flashcomm1",
            level=level,
            what=(
                "FLASHCOMM1 without expert parallelism: vllm-ascend refuses it for "
                "mixture-of-experts models"
            ),
            todo="set parallel.expert=true, or remove FLASHCOMM1",
            where=where,
            seen="no EP",
        )


def _needs_flashcomm1(recipe: Recipe, versions: Versions) -> bool:
    if not _is_minimax_m2(recipe):
        return False
    # An unknown version is assumed to be one that needs the pair.
    installed = version_number(versions.get("vllm-ascend", "0.23"))
    has_flashcomm1 = installed <= LAST_WITH_FLASHCOMM1
    return has_flashcomm1 and recipe.parallel.expert and recipe.parallel.tensor > 1


def check_pcp_with_dp(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find PCP together with DP: vllm-ascend 0.23 platform.py refuses the pair."""
    parallel = loaded.recipe.parallel
    if parallel.prefill_context > 1 and parallel.data > 1:
        yield Finding(
            id="pcp-dp",
            level="error",
            what=(
                "prefill-context parallelism and data parallelism cannot be combined: "
                "vllm-ascend refuses to start"
            ),
            todo=(
                "set parallel.data=1 (the guide's long-context variant), or "
                "parallel.prefill_context=1"
            ),
            where=loaded.origin("parallel.prefill_context"),
            seen=f"prefill_context={parallel.prefill_context} data={parallel.data}",
        )


def check_fused_mc2(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find fused MC2 together with hierarchical communication.

    vllm-ascend 0.23 platform.py refuses the pair, and takes the second from
    `enable_mc2_hierarchy_comm` alone: the HCCL_INTRA_* variables do not matter to it.
    """
    recipe = loaded.recipe
    config = read_config(recipe, "additional-config")
    hierarchical = is_on(config.get("enable_mc2_hierarchy_comm"))
    fused = is_switched_on(recipe, "VLLM_ASCEND_ENABLE_FUSED_MC2", "enable_fused_mc2")
    if hierarchical and fused:
        by_variable = is_on(recipe.env.get("VLLM_ASCEND_ENABLE_FUSED_MC2"))
        field = "env.VLLM_ASCEND_ENABLE_FUSED_MC2" if by_variable else "args.additional-config"
        yield Finding(
            id="fused-mc2",
            level="error",
            what=(
                "fused MC2 cannot be used with hierarchical communication: "
                "vllm-ascend refuses to start"
            ),
            todo="remove fused MC2, or enable_mc2_hierarchy_comm of additional-config",
            where=loaded.origin(field),
            seen="enable_mc2_hierarchy_comm",
        )


def check_launch_blocking(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find ASCEND_LAUNCH_BLOCKING=1 with ACL graphs: vllm-ascend 0.23 platform.py refuses them."""
    recipe = loaded.recipe
    mode = str(read_config(recipe, "compilation-config").get("cudagraph_mode", "")).upper()
    eager = is_on(given_args(recipe).get("enforce-eager")) or mode == "NONE"
    blocking = recipe.env.get("ASCEND_LAUNCH_BLOCKING", "0") not in ("", "0")
    if blocking and not eager:
        yield Finding(
            id="launch-blocking",
            level="error",
            what="ASCEND_LAUNCH_BLOCKING=1 excludes graph mode: vllm-ascend refuses to start",
            todo="remove it (it is for debugging), or set args.enforce-eager=true",
            where=loaded.origin("env.ASCEND_LAUNCH_BLOCKING"),
            seen=f"cudagraph_mode={mode or 'default'}",
        )


def check_balance_scheduling(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find balance scheduling on a server that only prefills or only decodes."""
    recipe = loaded.recipe
    role = read_config(recipe, "kv-transfer-config").get("kv_role")
    on = is_switched_on(recipe, "VLLM_ASCEND_BALANCE_SCHEDULING", "enable_balance_scheduling")
    if on and role in ("kv_producer", "kv_consumer"):
        yield Finding(
            id="balance-scheduling",
            level="error",
            what=f"balance scheduling excludes kv_role={role}: vllm-ascend refuses to start",
            todo=(
                "remove VLLM_ASCEND_BALANCE_SCHEDULING "
                "(or additional-config.enable_balance_scheduling)"
            ),
            where=loaded.origin("args.kv-transfer-config"),
            seen=str(role),
        )


def check_fault_tolerance(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find vLLM's fault tolerance: vLLM accepts it with external load balancing only."""
    recipe = loaded.recipe
    if is_on(given_args(recipe).get("enable-fault-tolerance")):
        yield Finding(
            id="fault-tolerance",
            level="error",
            what=(
                "vLLM refuses --enable-fault-tolerance outside external load balancing, and "
                "raylaunch deploys internal load balancing"
            ),
            todo="remove args.enable-fault-tolerance: raylaunch itself restarts a failed group",
            where=loaded.origin("args.enable-fault-tolerance"),
        )


def check_additional_config(
    loaded: LoadedRecipe, known: KnownFlags | None = None
) -> Iterator[Finding]:
    """Find unknown keys of additional-config: vllm-ascend ignores them without a warning.

    The keys come from the sources of the nodes' own vllm-ascend, else from raylaunch's list.
    """
    if not on_ascend(loaded.recipe):
        return
    asked = known.config_keys if known is not None else ()
    keys = asked or ADDITIONAL_CONFIG
    for key in read_config(loaded.recipe, "additional-config"):
        if key not in keys:
            yield Finding(
                id="unknown-additional-config",
                level="warning",
                what=(
                    f"vllm-ascend does not know the key {key!r} of additional-config and ignores it"
                ),
                todo=nearest(key, keys),
                where=loaded.origin("args.additional-config"),
                seen="the nodes' own vllm-ascend" if asked else ADDITIONAL_CONFIG_LIST,
            )


def check_flags(loaded: LoadedRecipe, versions: Versions) -> Iterator[Finding]:
    """Find unknown and removed flags by raylaunch's own list.

    An error where the flags of the installed vLLM are known for sure, a warning elsewhere.
    """
    known = read_flags()
    version = versions.get("vllm", "")
    installed = f"vLLM {version}" if version else ""
    level: Level = "error" if version.startswith(RAYLAUNCH_KNOWS) else "warning"
    for name, value in loaded.recipe.args.items():
        given = normalise_flag(name).partition(".")[0]
        # `args.x: false` is planned as `--no-x`.
        flag = f"no-{given}" if value is False and "." not in name else given
        where = loaded.origin(f"args.{name}")
        if flag not in known:
            yield Finding(
                id="unknown-flag",
                level=level,
                what=f"`vllm serve` has no flag --{flag}",
                todo=nearest(flag, known),
                where=where,
                seen=installed,
            )
            continue
        lifetime = known[flag]
        removed_in, absent_in = lifetime.removed_in, lifetime.absent_in
        if absent_in and version and version_number(version) <= version_number(absent_in):
            yield Finding(
                id="unknown-flag",
                level="error",
                what=f"`vllm serve` {version} has no flag --{flag}: it came after {absent_in}",
                todo=f"remove args.{name}, or use an image with a later vLLM",
                where=where,
                seen=installed,
            )
        if removed_in and (not version or version_number(version) >= version_number(removed_in)):
            yield Finding(
                id="dead-flag",
                level="error" if version else "warning",
                what=f"--{flag} was removed: vLLM {removed_in} refuses it",
                todo=f"remove args.{name}",
                where=where,
                seen=installed,
            )


def check_port_clash(loaded: LoadedRecipe) -> Iterator[Finding]:
    """Find ports of one server that are equal or lie in HCCL's range."""
    network = loaded.recipe.network
    ports = {"http_port": network.http_port}
    # A server that is alone has no handshake.
    if loaded.recipe.parallel.servers > 1:
        ports["rpc_port"] = network.rpc_port
    if len(set(ports.values())) < len(ports):
        yield Finding(
            id="port-clash",
            level="error",
            what=f"network.http_port and network.rpc_port are both {network.http_port}",
            todo="choose another rpc_port",
            where=loaded.origin("network.rpc_port"),
        )
    hccl = range(network.hccl_base_port, network.hccl_base_port + HCCL_PORTS)
    for name, port in ports.items():
        if on_ascend(loaded.recipe) and port in hccl:
            yield Finding(
                id="port-clash",
                level="error",
                what=f"network.{name}={port} is in HCCL's port range {hccl[0]}-{hccl[-1]}",
                todo="choose another port",
                where=loaded.origin(f"network.{name}"),
            )


RECIPE_CHECKS: tuple[Callable[[LoadedRecipe], Iterator[Finding]], ...] = (
    check_cross_node_tp,
    check_server_fits,
    check_pcp_with_dp,
    check_fused_mc2,
    check_launch_blocking,
    check_balance_scheduling,
    check_fault_tolerance,
    check_port_clash,
)


def _is_minimax_m2(recipe: Recipe) -> bool:
    """Judge by the model's type, else by the name of its weights ("MiniMax-M2.5")."""
    name = recipe.model.type or recipe.model.path
    return "minimax_m2" in name.lower().replace("-", "_")


def _is_moe(model_type: str) -> bool:
    return "moe" in model_type or model_type.startswith(
        ("minimax_m", "deepseek_v", "kimi_k", "glm_moe")
    )
