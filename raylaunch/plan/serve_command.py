"""The command line of a server: each flag with its value and origin."""

from __future__ import annotations

import json
from typing import Any

from raylaunch.plan.launch_plan import Flag
from raylaunch.plan.layout import Seat
from raylaunch.plan.ports import PortChoice
from raylaunch.recipe.load import LoadedRecipe
from raylaunch.recipe.reserved import normalise_flag


def build_flags(
    loaded: LoadedRecipe, seat: Seat, primary: Seat, ports: PortChoice
) -> tuple[Flag, ...]:
    """Build the flags of the server on `seat`, in the order of the guide."""
    return (
        *_identity(loaded, seat, ports),
        *_sizes(loaded),
        *_data_parallel(loaded, seat, primary, ports),
        *_own_args(loaded),
        *_features(loaded),
    )


def model_path(loaded: LoadedRecipe, seat: Seat) -> str:
    """Directory of the weights on the seat's node."""
    model = loaded.recipe.model
    if model.tiny is None:
        return model.path
    return f"{seat.facts.state_dir or '$HOME/.raylaunch'}/models/tiny-{model.tiny}"


def _identity(loaded: LoadedRecipe, seat: Seat, ports: PortChoice) -> list[Flag]:
    recipe = loaded.recipe
    own_address = recipe.network.host == "node"
    host = seat.place.ip if own_address else recipe.network.host
    flags = [
        Flag(
            "",
            model_path(loaded, seat),
            loaded.origin("model.tiny" if recipe.model.tiny else "model.path"),
        ),
        Flag("--served-model-name", recipe.model.served_name, loaded.origin("model.served_name")),
        Flag("--host", host, "node: address" if own_address else loaded.origin("network.host")),
        Flag("--port", str(ports.http.number), ports.http.origin),
    ]
    if seat.index > 0:
        flags.append(Flag("--headless", None, "raylaunch: only the primary has the API"))
    return flags


_SIZES = (
    ("pipeline", "--pipeline-parallel-size"),
    ("decode_context", "--decode-context-parallel-size"),
    ("prefill_context", "--prefill-context-parallel-size"),
)


def _sizes(loaded: LoadedRecipe) -> list[Flag]:
    parallel = loaded.recipe.parallel
    flags = [
        Flag("--tensor-parallel-size", str(parallel.tensor), loaded.origin("parallel.tensor")),
        Flag("--data-parallel-size", str(parallel.data), loaded.origin("parallel.data")),
    ]
    for name, flag in _SIZES:
        if getattr(parallel, name) != 1 or name in parallel.model_fields_set:
            flags.append(
                Flag(flag, str(getattr(parallel, name)), loaded.origin(f"parallel.{name}"))
            )
    if parallel.expert:
        flags.append(Flag("--enable-expert-parallel", None, loaded.origin("parallel.expert")))
    return flags


def _data_parallel(
    loaded: LoadedRecipe, seat: Seat, primary: Seat, ports: PortChoice
) -> list[Flag]:
    parallel = loaded.recipe.parallel
    flags = []
    if parallel.servers > 1:
        local = str(parallel.ranks_per_server)
        flags += [
            Flag("--data-parallel-size-local", local, loaded.origin("parallel.data_local")),
            Flag("--data-parallel-address", primary.place.ip, "node: address of the primary"),
            Flag("--data-parallel-rpc-port", str(ports.rpc.number), ports.rpc.origin),
        ]
    if seat.index > 0:
        start = str(seat.index * parallel.ranks_per_server)
        reason = "raylaunch: first rank of this server (never on the primary: vLLM >= 0.28 reads 0 as hybrid balancing)"
        flags.append(Flag("--data-parallel-start-rank", start, reason))
    elif parallel.data > 1:
        written = "parallel.api_servers" in loaded.origins
        reason = "raylaunch: left out, vLLM starts one API server per rank"
        origin = loaded.origin("parallel.api_servers") if written else reason
        flags.append(Flag("--api-server-count", str(parallel.api_servers), origin))
    return flags


def _own_args(loaded: LoadedRecipe) -> list[Flag]:
    named = {
        normalise_flag(name): (value, loaded.origin(f"args.{name}"))
        for name, value in loaded.recipe.args.items()
    }
    return [_flag(name, value, origin) for name, (value, origin) in _fold_dotted(named).items()]


def _fold_dotted(named: dict[str, tuple[Any, str]]) -> dict[str, tuple[Any, str]]:
    """Put `compilation-config.level: 3` into the mapping `compilation-config`.

    vLLM collects dotted flags into one JSON flag that replaces the flag itself (0.32 argparse_utils), so giving both
    would lose the mapping.
    """
    folded: dict[str, tuple[Any, str]] = {}
    for name, (value, origin) in sorted(named.items(), key=lambda item: "." in item[0]):
        head, _, rest = name.partition(".")
        base, base_origin = folded.get(head, ({}, ""))
        if rest and isinstance(base, dict):
            folded[head] = (
                _put(base, rest.split("."), value),
                "; ".join(filter(None, (base_origin, origin))),
            )
        else:
            folded[name] = (value, origin)
    return folded


def _put(mapping: dict[str, Any], keys: list[str], value: Any) -> dict[str, Any]:  # noqa: ANN401 - YAML holds anything
    below = mapping.get(keys[0])
    inner = below if isinstance(below, dict) else {}
    return {**mapping, keys[0]: _put(inner, keys[1:], value) if keys[1:] else value}


def _flag(name: str, value: Any, origin: str) -> Flag:  # noqa: ANN401 - YAML holds anything
    if value is True:
        return Flag(f"--{name}", None, origin)
    if value is False:
        return Flag(f"--no-{name}", None, f"{origin} (false)")
    return Flag(
        f"--{name}", json.dumps(value) if isinstance(value, dict | list) else str(value), origin
    )


def _features(loaded: LoadedRecipe) -> list[Flag]:
    features = loaded.recipe.features
    flags = []
    if features.tool_calling.enabled:
        origin = loaded.origin("features.tool_calling.enabled")
        flags += [
            Flag("--enable-auto-tool-choice", None, origin),
            Flag(
                "--tool-call-parser",
                features.tool_calling.tool_parser,
                loaded.origin("features.tool_calling.tool_parser"),
            ),
        ]
        if features.tool_calling.reasoning_parser:
            origin = loaded.origin("features.tool_calling.reasoning_parser")
            flags.append(Flag("--reasoning-parser", features.tool_calling.reasoning_parser, origin))
    elif features.reasoning_parser:
        flags.append(
            Flag(
                "--reasoning-parser",
                features.reasoning_parser,
                loaded.origin("features.reasoning_parser"),
            )
        )
    if features.profiling.enabled:
        config = {
            "profiler": "torch",
            "torch_profiler_dir": features.profiling.dir,
            "torch_profiler_with_stack": features.profiling.with_stack,
        }
        reason = (
            "features.profiling: current vLLM ignores the guide's VLLM_TORCH_PROFILER_* variables"
        )
        flags.append(Flag("--profiler-config", json.dumps(config), reason))
    if features.speculative.enabled:
        config = features.speculative.config()
        flags.append(
            Flag("--speculative-config", json.dumps(config), loaded.origin("features.speculative"))
        )
    return flags
