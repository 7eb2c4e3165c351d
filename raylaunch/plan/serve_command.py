"""The command line of a server: each flag with its value and origin."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass

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
    """Return the directory of the weights on the seat's node."""
    model = loaded.recipe.model
    if model.tiny is None:
        return model.path
    root = seat.facts.state_dir or "$HOME/.raylaunch"
    return f"{root}/models/tiny-{model.tiny}"


def _identity(loaded: LoadedRecipe, seat: Seat, ports: PortChoice) -> list[Flag]:
    recipe = loaded.recipe
    host = recipe.network.host
    host_origin = loaded.origin("network.host")
    if host == "node":
        host = seat.place.ip
        host_origin = "node: address"
    path_origin = loaded.origin("model.tiny" if recipe.model.tiny else "model.path")
    name_origin = loaded.origin("model.served_name")
    flags = [
        Flag("", model_path(loaded, seat), path_origin),
        Flag("--served-model-name", recipe.model.served_name, name_origin),
        Flag("--host", host, host_origin),
        Flag("--port", str(ports.http.number), ports.http.origin),
    ]
    if seat.index > 0:
        flags.append(Flag("--headless", None, "raylaunch: only the primary has the API"))
    return flags


_OPTIONAL_SIZES = (
    ("pipeline", "--pipeline-parallel-size"),
    ("decode_context", "--decode-context-parallel-size"),
    ("prefill_context", "--prefill-context-parallel-size"),
)
"""Fields of `parallel` that become flags only when they are written or not 1, as in the guide."""


def _sizes(loaded: LoadedRecipe) -> list[Flag]:
    parallel = loaded.recipe.parallel
    flags = [
        Flag("--tensor-parallel-size", str(parallel.tensor), loaded.origin("parallel.tensor")),
        Flag("--data-parallel-size", str(parallel.data), loaded.origin("parallel.data")),
    ]
    for name, flag in _OPTIONAL_SIZES:
        size: int = getattr(parallel, name)
        if size != 1 or name in parallel.model_fields_set:
            flags.append(Flag(flag, str(size), loaded.origin(f"parallel.{name}")))
    if parallel.expert:
        flags.append(Flag("--enable-expert-parallel", None, loaded.origin("parallel.expert")))
    return flags


def _data_parallel(
    loaded: LoadedRecipe, seat: Seat, primary: Seat, ports: PortChoice
) -> list[Flag]:
    parallel = loaded.recipe.parallel
    local = parallel.ranks_per_server
    flags = []
    if parallel.servers > 1:
        local_origin = loaded.origin("parallel.data_local")
        address = primary.place.ip
        flags += [
            Flag("--data-parallel-size-local", str(local), local_origin),
            Flag("--data-parallel-address", address, "node: address of the primary"),
            Flag("--data-parallel-rpc-port", str(ports.rpc.number), ports.rpc.origin),
        ]
    if seat.index > 0:
        reason = (
            "raylaunch: first rank of this server "
            "(never on the primary: vLLM >= 0.28 reads 0 as hybrid balancing)"
        )
        flags.append(Flag("--data-parallel-start-rank", str(seat.index * local), reason))
    elif parallel.data > 1:
        origin = "raylaunch: left out, vLLM starts one API server per rank"
        if "parallel.api_servers" in loaded.origins:
            origin = loaded.origin("parallel.api_servers")
        flags.append(Flag("--api-server-count", str(parallel.api_servers), origin))
    return flags


@dataclass
class _Argument:
    """A flag of the recipe's `args`, folded from all entries that belong to it."""

    value: object
    origins: dict[str, None]
    """In order, each once; a mapping because 20,000 dotted entries may share one flag."""


def _own_args(loaded: LoadedRecipe) -> list[Flag]:
    flags = []
    for name, argument in _fold_dotted(loaded).items():
        flags.append(_flag(name, argument.value, "; ".join(argument.origins)))
    return flags


def _fold_dotted(loaded: LoadedRecipe) -> dict[str, _Argument]:
    """Put `compilation-config.level: 3` into the mapping `compilation-config`.

    vLLM collects dotted flags into one JSON flag that replaces the flag itself (0.32
    argparse_utils), so giving both would lose the mapping.
    """
    folded: dict[str, _Argument] = {}
    dotted: list[tuple[str, object, str]] = []
    for written, value in loaded.recipe.args.items():
        name = normalise_flag(written)
        origin = loaded.origin(f"args.{written}")
        if "." in name:
            dotted.append((name, value, origin))
        else:
            # A copy, because dotted entries are put into it and the recipe must stay as it is.
            folded[name] = _Argument(copy.deepcopy(value), {origin: None})
    for name, value, origin in dotted:
        head, _, rest = name.partition(".")
        if not rest:
            folded[name] = _Argument(value, {origin: None})
            continue
        base = folded.setdefault(head, _Argument({}, {}))
        if isinstance(base.value, dict):
            _put(base.value, rest.split("."), value)
            base.origins[origin] = None
        else:
            folded[name] = _Argument(value, {origin: None})
    return folded


def _put(mapping: dict[str, object], keys: Sequence[str], value: object) -> None:
    """Set the value at a path of keys; what stands in its way and is not a mapping is replaced."""
    for key in keys[:-1]:
        below = mapping.get(key)
        if not isinstance(below, dict):
            below = {}
            mapping[key] = below
        mapping = below
    mapping[keys[-1]] = value


def _flag(name: str, value: object, origin: str) -> Flag:
    if value is True:
        return Flag(f"--{name}", None, origin)
    if value is False:
        return Flag(f"--no-{name}", None, f"{origin} (false)")
    if isinstance(value, dict | list):
        return Flag(f"--{name}", json.dumps(value), origin)
    return Flag(f"--{name}", str(value), origin)


def _features(loaded: LoadedRecipe) -> list[Flag]:
    features = loaded.recipe.features
    flags = _parsers(loaded)
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
        drafter = json.dumps(features.speculative.config())
        flags.append(Flag("--speculative-config", drafter, _speculative_origin(loaded)))
    return flags


def _speculative_origin(loaded: LoadedRecipe) -> str:
    """Return the section's origin, and --set where that changed one of its fields."""
    section = "features.speculative"
    origins = {loaded.origin(section): None}
    for field in loaded.origins:
        if field.startswith(f"{section}.") and loaded.origin(field) == "--set":
            origins["--set"] = None
    return "; ".join(origins)


def _parsers(loaded: LoadedRecipe) -> list[Flag]:
    """Build the flags of tool calling and reasoning."""
    features = loaded.recipe.features
    calling = features.tool_calling
    if not calling.enabled:
        return _reasoning(features.reasoning_parser, loaded, "features.reasoning_parser")
    enabled_origin = loaded.origin("features.tool_calling.enabled")
    parser_origin = loaded.origin("features.tool_calling.tool_parser")
    return [
        Flag("--enable-auto-tool-choice", None, enabled_origin),
        Flag("--tool-call-parser", calling.tool_parser, parser_origin),
        *_reasoning(calling.reasoning_parser, loaded, "features.tool_calling.reasoning_parser"),
    ]


def _reasoning(parser: str | None, loaded: LoadedRecipe, field: str) -> list[Flag]:
    if not parser:
        return []
    return [Flag("--reasoning-parser", parser, loaded.origin(field))]
