"""The flags of the servers, placed into the recipe."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from raylaunch.importer.draft import Draft, Placed
from raylaunch.importer.script_model import Server
from raylaunch.importer.serve_flags import Given, is_bare, plain, value_of
from raylaunch.importer.server_groups import Group
from raylaunch.importer.shell.placeholders import needs_a_run, unknowns
from raylaunch.recipe.reserved import reserved_arg

_SIZES = {
    "tensor-parallel-size": "parallel.tensor",
    "pipeline-parallel-size": "parallel.pipeline",
    "prefill-context-parallel-size": "parallel.prefill_context",
    "decode-context-parallel-size": "parallel.decode_context",
    "data-parallel-size": "parallel.data",
    "data-parallel-size-local": "parallel.data_local",
    "api-server-count": "parallel.api_servers",
}
_PORTS = {"port": "network.http_port", "data-parallel-rpc-port": "network.rpc_port"}
_PER_NODE = {
    "data-parallel-address": "raylaunch gives every server the primary's address",
    "data-parallel-start-rank": "raylaunch numbers the ranks",
    "headless": "raylaunch makes every server but the first headless",
}
_SECRET = {"api-key": "VLLM_API_KEY", "hf-token": "HF_TOKEN"}
_PRIMARY_ONLY = ("api-server-count", "host", "port")
"""Flags of the API: on a headless server they have no meaning."""
_PROFILER = {"torch_profiler_dir": "dir", "torch_profiler_with_stack": "with_stack"}


def place_commands(draft: Draft, group: Group) -> None:
    """Place the model and the flags of all servers; those of the primary count."""
    primary = _last_given(draft, group.primary)
    _place_model(draft, group.primary)
    for given in primary.values():
        _place(draft, given, group.primary, primary)
    _settle(draft, group, primary)
    for server in group.servers[1:]:
        _compare(draft, server, _last_given(draft, server), group.primary, primary)


def show(given: Given) -> str:
    """A flag's words as a report shows them."""
    return (
        f"{given.words[0].partition('=')[0]} ..."
        if given.name in _SECRET
        else " ".join(given.words)
    )


def _last_given(draft: Draft, server: Server) -> dict[str, Given]:
    last: dict[str, Given] = {}
    for given in server.flags:
        name = given.name.removeprefix("no-") if is_bare(given.name) else given.name
        if name in last:
            draft.drop(
                f"--{name} is given twice: the last one counts",
                server.where,
                show(last[name]),
                level="info",
            )
        last[name] = given
        if given.extra and name == "served-model-name":
            draft.drop("a recipe has one name for the model", server.where, " ".join(given.extra))
        elif given.extra and name not in _SECRET:
            draft.drop(
                f"--{name} has several values, and a recipe takes one: left out",
                server.where,
                show(given),
            )
            del last[name]
    if server.extra:
        draft.drop("these words belong to no flag", server.where, " ".join(server.extra))
    return last


def _place_model(draft: Draft, server: Server) -> None:
    if not server.model:
        draft.set("model.path", "/path/to/weights")
        draft.note(
            "placeholder",
            "warning",
            "no model is given",
            server.where,
            todo="write its directory to model.path",
        )
        return
    draft.put("model.path", server.model, server.where, server.model)
    parts = server.model.split("/")
    if len(parts) == 2 and all(parts) and not unknowns(server.model) and "." != parts[0] != "..":
        scope = server.env.get("VLLM_USE_MODELSCOPE")
        site = "modelscope" if scope and scope.value.lower() in ("1", "true") else "huggingface"
        draft.set(f"model.sources.{site}", server.model)
        what = f"{server.model} is a repository: vLLM would download it on every node"
        todo = (
            "download the weights to the same directory on every node and write that to model.path"
        )
        draft.note("placeholder", "warning", what, server.where, seen=server.model, todo=todo)


def _place(draft: Draft, given: Given, server: Server, all_given: dict[str, Given]) -> None:
    name, where, text = given.name, server.where, show(given)
    if name in _SIZES:
        draft.whole_number(_SIZES[name], given.value, where, text)
    elif name in _PORTS:
        draft.whole_number(_PORTS[name], given.value, where, text, high=65535)
    elif name in _PER_NODE:
        draft.own(_PER_NODE[name], where, text)
    elif name in _SECRET:
        draft.add_secret(_SECRET[name], where, text)
    elif name == "model" and given.value != server.model:
        draft.drop("the model behind `vllm serve` counts", where, text)
    elif name in ("enable-auto-tool-choice", "tool-call-parser", "reasoning-parser"):
        _place_parser(draft, name, given, where, text, tools="enable-auto-tool-choice" in all_given)
    else:
        _place_named(draft, given, server, where, text)


def _place_named(draft: Draft, given: Given, server: Server, where: str, text: str) -> None:
    name = given.name.removeprefix("no-") if is_bare(given.name) else given.name
    if name == "model":
        draft.put("model.path", server.model, where, text)
    elif name == "host":
        _place_host(draft, given, where, text)
    elif name == "served-model-name":
        draft.put("model.served_name", given.value or server.model or "model", where, text)
    elif name == "enable-expert-parallel":
        draft.put("parallel.expert", not given.name.startswith("no-"), where, text)
    elif name.partition(".")[0] in ("speculative-config", "profiler-config"):
        _place_feature(draft, given, where, text)
    elif field := reserved_arg(name):
        draft.drop(f"--{name} is not for a recipe: {field}", where, text)
    else:
        _place_arg(draft, given, name, where, text)


def _place_host(draft: Draft, given: Given, where: str, text: str) -> None:
    host = given.value or ""
    if not host or unknowns(host) or _is_own_address(host):
        draft.put("network.host", "node", where, text)
    else:
        draft.put("network.host", host, where, text)


def _is_own_address(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return not address.is_unspecified and not address.is_loopback


def _place_parser(
    draft: Draft, name: str, given: Given, where: str, text: str, *, tools: bool
) -> None:
    if name == "enable-auto-tool-choice":
        draft.put("features.tool_calling.enabled", True, where, text)
    elif not given.value:
        draft.drop(f"--{name} has no value", where, text)
    elif name == "tool-call-parser":
        draft.put("features.tool_calling.tool_parser", given.value, where, text)
    elif tools:
        draft.put("features.tool_calling.reasoning_parser", given.value, where, text)
    else:
        draft.put("features.reasoning_parser", given.value, where, text)


def _place_feature(draft: Draft, given: Given, where: str, text: str) -> None:
    feature = given.name.partition("-")[0]
    head, _, rest = given.name.partition(".")
    config = _nested(rest, value_of(given)) if rest else value_of(given)
    if not isinstance(config, dict) or not config:
        draft.drop(
            f"--{head} is no JSON mapping", where, text, f"write it to features.{feature} by hand"
        )
    elif feature == "speculative":
        _place_speculative(draft, config, where, text)
    else:
        _place_profiler(draft, config, where, text)


def _place_speculative(draft: Draft, config: dict[str, Any], where: str, text: str) -> None:
    before = draft.get("features.speculative", {})
    number = config.get("num_speculative_tokens", 1)
    wrong = not isinstance(number, int) or isinstance(number, bool) or number < 1
    if (
        wrong
        or "enabled" in config
        or any(not isinstance(config.get(key, ""), str) for key in ("method", "model"))
    ):
        return draft.drop(
            "--speculative-config has values that a recipe refuses",
            where,
            text,
            "write features.speculative by hand",
        )
    draft.put("features.speculative", {"enabled": True, **before, **config}, where, text)
    for value in config.values():
        if isinstance(value, str):
            draft.ask("features.speculative", value, where)
    return None


def _place_profiler(draft: Draft, config: dict[str, Any], where: str, text: str) -> None:
    known = {_PROFILER[key]: value for key, value in config.items() if key in _PROFILER}
    if (
        len(known) + ("profiler" in config) < len(config)
        or config.get("profiler", "torch") != "torch"
    ):
        return draft.drop(
            "raylaunch knows only the torch profiler's folder and stacks", where, text
        )
    if not isinstance(known.get("dir", ""), str) or not isinstance(
        known.get("with_stack", False), bool
    ):
        return draft.drop("--profiler-config has values that a recipe refuses", where, text)
    before = draft.get("features.profiling", {})
    return draft.put("features.profiling", {"enabled": True, **before, **known}, where, text)


def _place_arg(draft: Draft, given: Given, name: str, where: str, text: str) -> None:
    if name != given.name:  # --no-enable-prefix-caching
        return draft.put(f"args.{name}", False, where, text)
    if given.value is not None and needs_a_run(given.value):
        what = f"--{name} needs the output of a command, and nothing is executed: left out"
        return draft.drop(what, where, text, f"write the value to args.{name}")
    head, _, rest = name.partition(".")
    value = value_of(given)
    if not rest:
        before = draft.get(f"args.{head}")
        value = (
            {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
        )
    else:
        before = draft.get(f"args.{head}", {})
        if not isinstance(before, dict):
            return draft.drop(f"--{head} is also given as a whole", where, text)
        value = _into(before, rest.split("."), value)
    draft.put(f"args.{head}", value, where, text)
    if isinstance(value, dict | list):
        draft.ask(f"args.{head}", json.dumps(value), where)
    return None


def _nested(path: str, value: Any) -> dict[str, Any]:  # noqa: ANN401 - YAML holds anything
    return _into({}, path.split("."), value)


def _into(mapping: dict[str, Any], keys: list[str], value: Any) -> dict[str, Any]:  # noqa: ANN401 - YAML holds anything
    below = mapping.get(keys[0])
    inner = below if isinstance(below, dict) else {}
    return {**mapping, keys[0]: _into(inner, keys[1:], value) if keys[1:] else value}


def _settle(draft: Draft, group: Group, given: dict[str, Given]) -> None:
    """What vLLM takes when nothing is said, where a recipe's own default is another."""
    where = group.primary.where
    if "host" not in given:
        draft.set("network.host", "0.0.0.0")  # noqa: S104 - vLLM's own default, written into a file
        draft.note(
            "assumed",
            "info",
            "no --host: vLLM listens on all addresses, network.host=0.0.0.0",
            where,
        )
    if draft.get("model.served_name") is None:
        draft.set("model.served_name", draft.get("model.path"))
        draft.note("assumed", "info", "no --served-model-name: the model's path is its name", where)
    if "enable-auto-tool-choice" in given and "reasoning-parser" not in given:
        draft.set("features.tool_calling.reasoning_parser", "")
    _settle_sizes(draft, group)
    data = draft.get("parallel.data", 1)
    if data > 1:
        draft.set("network.interface", "auto")
    if (
        "api-server-count" not in given
        and data > 1
        and "data-parallel-start-rank" not in given
        and not group.primary.headless
    ):
        draft.set("parallel.api_servers", data)
        draft.note(
            "assumed",
            "info",
            f"no --api-server-count: vLLM starts one per rank, parallel.api_servers={data}",
            where,
        )


def _settle_sizes(draft: Draft, group: Group) -> None:
    where, found = group.primary.where, len(group.servers)
    data, local = draft.get("parallel.data"), draft.get("parallel.data_local")
    if data is None and local is not None:
        data = local * found
        draft.set("parallel.data", data)
        draft.note("assumed", "warning", f"no --data-parallel-size: parallel.data={data}", where)
    if data is not None and local is None and found > 1 and data % found == 0:
        local = data // found
        draft.set("parallel.data_local", local)
        draft.note(
            "assumed",
            "info",
            f"no --data-parallel-size-local: {found} scripts, so {local} rank(s) each",
            where,
        )
    if data is not None and local is not None and data % local:
        draft.values["parallel"].pop("data_local")
        what = f"data-parallel-size {data} is not a multiple of data-parallel-size-local {local}"
        draft.note(
            "not-placed", "warning", what, where, seen=str(local), todo="set parallel.data_local"
        )
    wanted = data // local if data and local and data % local == 0 else 1
    if wanted != found:
        what = f"the sizes ask for {wanted} server(s), {found} script(s) were given"
        level = "info" if found < wanted else "warning"
        draft.note("assumed", level, f"{what}; the recipe follows the sizes", where)  # type: ignore[arg-type]


def _compare(
    draft: Draft, server: Server, given: dict[str, Given], primary: Server, theirs: dict[str, Given]
) -> None:
    """Place flags that all servers share; of others, report the conflict and use the primary's."""
    if server.model != primary.model:
        draft.note(
            "conflict",
            "warning",
            f"another model than {primary.where}",
            server.where,
            seen=str(server.model),
        )
    elif server.model:
        _repeat(draft, server.where, server.model, "model.path")
    for name, mine in given.items():
        text = show(mine)
        other = theirs.get(name)
        if name in _PER_NODE:
            draft.own(_PER_NODE[name], server.where, text)
        elif other and (mine.name, _same(mine)) == (other.name, _same(other)):
            _repeat(draft, server.where, text, _target(draft, primary.where, show(other)))
        elif name in _PRIMARY_ONLY:
            draft.own("only the primary's counts: this server has no API", server.where, text)
        else:
            said = (
                f"{primary.where} says {show(other)}"
                if other
                else f"{primary.where} does not have it"
            )
            todo = "all servers of a group must agree; check the recipe"
            draft.note(
                "conflict",
                "warning",
                f"--{name} differs: {said}; that counts",
                server.where,
                seen=text,
                todo=todo,
            )
    for name, other in theirs.items():
        if name not in given and name not in (*_PER_NODE, *_PRIMARY_ONLY, "api-server-count"):
            what = (
                f"--{name} is missing here: raylaunch gives it to every server, "
                f"as {primary.where} has it"
            )
            draft.note("conflict", "info", what, server.where, seen=show(other))


def _same(given: Given) -> Any:  # noqa: ANN401 - compared only
    return None if given.value is None else plain(given.value)


def _repeat(draft: Draft, where: str, text: str, target: str) -> None:
    if target:
        draft.placed.append(Placed(where, text, target))
    else:
        draft.drop("the same words found no place on the primary", where, text, level="info")


def _target(draft: Draft, where: str, text: str) -> str:
    return next(
        (placed.target for placed in draft.placed if (placed.where, placed.text) == (where, text)),
        "",
    )
