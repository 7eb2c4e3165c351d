"""What is around the servers: their variables, the host's settings, the container, the board."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from raylaunch.importer.docker_run import ContainerRun
from raylaunch.importer.draft import Draft, hides
from raylaunch.importer.script_model import HostSetting, Server, Setting, shown
from raylaunch.importer.server_groups import Group
from raylaunch.importer.shell.placeholders import needs_a_run, unknowns
from raylaunch.recipe.reserved import reserved_env

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NPU = re.compile(r"/dev/davinci(\d+)")
_ALWAYS = {
    "--net": "raylaunch's containers share the host's network",
    "--publish": "the host's network needs none",
}
_TERMINAL = ("-i", "-t", "--interactive", "--tty", "--rm")
_PLAIN = {"--user": "user", "--ipc": "ipc", "--shm-size": "shm_size", "--name": "name"}


def place_variables(draft: Draft, group: Group) -> None:
    """Place shared variables once; report reserved ones, differences and placeholders."""
    for name in dict.fromkeys(name for server in group.servers for name in server.env):
        holders = [server for server in group.servers if name in server.env]
        settings = [server.env[name] for server in holders]
        if hides(name, settings[0].value):
            draft.add_secret(name, settings[0].where, f"{name}=...")
        elif field := reserved_env(name):
            _place_owned(draft, name, field, settings, alone=len(group.servers) == 1)
        elif any(needs_a_run(setting.value) for setting in settings):
            _leave_out(draft, name, settings)
        elif name == "LD_PRELOAD":
            _place_preload(draft, settings)
        else:
            _place_variable(draft, name, group, holders, settings)


_OF_SEVERAL = (
    *("HCCL_IF_IP", "HCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME"),
    "VLLM_HOST_IP",
)
"""Network variables that the planner sets only where servers talk to each other."""


def _place_owned(
    draft: Draft, name: str, field: str, settings: Sequence[Setting], *, alone: bool
) -> None:
    if name == "HCCL_IF_BASE_PORT":
        first = settings[0]
        draft.whole_number(
            "network.hccl_base_port", first.value, first.where, first.text, low=1024, high=65520
        )
        settings = settings[1:]
    connector = draft.get("args.kv-transfer-config") is not None
    data = draft.get("parallel.data", 1)
    single = alone and data == draft.get("parallel.data_local", data)
    for setting in settings:
        if not (single and name in _OF_SEVERAL):
            draft.own(f"raylaunch sets {name}: {field}", setting.where, setting.text)
        elif connector:
            what = (
                f"{name} is left out, and raylaunch sets it only for several servers: the KV "
                "connector advertises the address that vLLM finds by itself"
            )
            todo = f"set {name} in the environment of Ray on that node"
            draft.drop(what, setting.where, setting.text, todo)
        else:
            what = f"{name} is left out: a single server talks to no other"
            draft.note("not-needed", "info", what, setting.where, seen=setting.text)


def _place_preload(draft: Draft, settings: Sequence[Setting]) -> None:
    for number, setting in enumerate(settings):
        parts = [part for part in re.split(r"[:\s]+", setting.value) if part and not unknowns(part)]
        others = [part for part in parts if "jemalloc" not in part]
        if parts and not others:
            draft.put("tuning.jemalloc", True, setting.where, setting.text)
        elif others and number == 0:
            draft.put("env.LD_PRELOAD", ":".join(parts), setting.where, setting.text)
        else:
            draft.drop(
                "LD_PRELOAD holds nothing to preload, or differs from the primary's",
                setting.where,
                setting.text,
            )


def _place_variable(
    draft: Draft, name: str, group: Group, holders: Sequence[Server], settings: Sequence[Setting]
) -> None:
    first = settings[0]
    differs = len({setting.value for setting in settings}) > 1
    helper = any(name in server.helpers for server in holders)
    if re.search(rf"\$\{{?{name}\b", first.value):
        for setting in settings:
            what = f"{name} is added to what the node has; a recipe can only set it whole"
            draft.drop(
                what,
                setting.where,
                setting.text,
                f"set env.{name} to the whole value, or set it on the nodes",
            )
    elif helper and (differs or unknowns(first.value) or group.primary not in holders):
        for setting in settings:
            draft.note(
                "not-needed",
                "info",
                f"{name} only feeds what raylaunch sets",
                setting.where,
                seen=setting.text,
            )
    elif group.primary not in holders:
        for setting in settings:
            what = f"{name} is set on some servers only, not on {group.primary.where}"
            draft.note(
                "conflict",
                "warning",
                what,
                setting.where,
                seen=setting.text,
                todo=f"write env.{name} if all need it",
            )
    else:
        _place_common(draft, name, settings)
        if len(holders) < len(group.servers):
            draft.note(
                "conflict",
                "info",
                f"{name} is not set on every server; raylaunch gives it to all",
                first.where,
            )


def _leave_out(draft: Draft, name: str, settings: Sequence[Setting]) -> None:
    """Report a variable whose value only a run of the script could tell; never keep half of it."""
    for setting in settings:
        what = f"{name} needs the output of a command, and nothing is executed: left out"
        todo = f"write the value to env.{name}, or set it on the nodes"
        draft.drop(what, setting.where, shown(name, setting.text), todo)


def _place_common(draft: Draft, name: str, settings: Sequence[Setting]) -> None:
    first = settings[0]
    for setting in settings:
        if setting.value == first.value:
            value = setting.value
            draft.put(
                f"env.{name}",
                int(value) if re.fullmatch(r"0|[1-9]\d{0,17}", value) else value,
                setting.where,
                setting.text,
            )
        else:
            what = f"{name} differs: {first.where} has {first.value!r}, and that counts"
            draft.note(
                "conflict",
                "warning",
                what,
                setting.where,
                seen=setting.text,
                todo=f"check env.{name}",
            )


def place_host(draft: Draft, settings: Sequence[HostSetting]) -> None:
    """Place governor and sysctls."""
    for setting in settings:
        if setting.name == "governor" and re.fullmatch(r"[a-z_]+", setting.value):
            draft.put("tuning.governor", setting.value, setting.where, setting.text)
        elif setting.name != "governor" and re.fullmatch(r"-?\d{1,15}", setting.value):
            before = draft.get("tuning.sysctl", {})
            draft.set("tuning.sysctl", {**before, setting.name: int(setting.value)})
            draft.placed_at(setting.where, setting.text, f"tuning.sysctl.{setting.name}")
        else:
            draft.drop("a host setting that is no plain value", setting.where, setting.text)


def place_platform(
    draft: Draft, group: Group, containers: Sequence[ContainerRun], asked: str | None
) -> None:
    """Decide the board: as asked, or by images and devices, or by the NPUs a server takes."""
    platform, reason = (asked, "--platform") if asked else next(_hints(draft, group, containers))
    draft.set("hardware.platform", platform)
    level = "info" if asked or reason != _GUESS else "warning"
    todo = "" if level == "info" else "say it with --platform"
    what = f"hardware.platform={platform}: {reason}"
    draft.note("assumed", level, what, group.primary.where, todo=todo)  # type: ignore[arg-type]


_GUESS = "nothing says otherwise"


def _hints(
    draft: Draft, group: Group, containers: Sequence[ContainerRun]
) -> Iterator[tuple[str, str]]:
    """Return the evidence for each kind of board, the strongest first."""
    env = group.primary.env
    listed = (
        len(env["ASCEND_RT_VISIBLE_DEVICES"].value.split(","))
        if "ASCEND_RT_VISIBLE_DEVICES" in env
        else 0
    )
    npus = _npus_per_server(draft)
    boards = {board_of(run) for run in containers} - {""}
    if containers and all(run.tag.endswith("-a3") for run in containers):
        yield "ascend-a3", "the image is one for A3"
    if any(name.startswith("VLLM_CPU_") for name in env):
        yield "cpu", "VLLM_CPU_* is set"
    if any("A3" in name.split("_") for name in env):
        yield "ascend-a3", "a variable of A3 is set"
    if max(npus, listed) > 8:
        yield (
            "ascend-a3",
            f"a server takes {npus} NPUs" if npus > 8 else f"{listed} devices are listed",
        )
    if listed == 8:
        yield "ascend-a2", "8 devices are listed"
    if len(boards) == 1:
        yield boards.pop(), "image and devices of the container"
    named = re.search(r"(?i)(?<![a-z0-9])(a[23])(?![a-z0-9])", group.primary.where)
    if named:
        yield f"ascend-{named[1].lower()}", "the file's name"
    yield "ascend-a2", f"a server takes {npus} NPUs" if npus == 8 else _GUESS


def _npus_per_server(draft: Draft) -> int:
    ranks: int = draft.get("parallel.data_local", draft.get("parallel.data", 1))
    sizes: list[int] = [
        draft.get(f"parallel.{size}", 1) for size in ("tensor", "pipeline", "prefill_context")
    ]
    return math.prod(sizes) * ranks


def board_of(run: ContainerRun) -> str:
    """The platform that a container is for, as its image and devices say; "" when they do not."""
    npus = {found[1] for value in run.values("--device") if (found := _NPU.match(value))}
    devices = [
        value for value in run.values("--env") if value.startswith("ASCEND_RT_VISIBLE_DEVICES=")
    ]
    count = (
        max(len(npus), *(len(value.split(",")) for value in devices), 0) if devices else len(npus)
    )
    if run.tag.endswith("-a3") or count == 16:
        return "ascend-a3"
    return "ascend-a2" if count == 8 else ""


def place_container(draft: Draft, containers: Sequence[ContainerRun]) -> None:
    """Place the container that fits the platform; report the others."""
    if not containers:
        return
    platform = draft.get("hardware.platform")
    chosen = next((run for run in containers if board_of(run) == platform), None)
    chosen = chosen or next((run for run in containers if not board_of(run)), containers[0])
    _place_run(draft, chosen, 16 if platform == "ascend-a3" else 8)
    for run in containers:
        if run is not chosen and (run.image, run.tag, run.options) != (
            chosen.image,
            chosen.tag,
            chosen.options,
        ):
            seen = " ".join(
                word for _, _, words in run.options for word in words if "=" not in word
            )
            what = (
                f"another container than at {chosen.where}: {run.image}:{run.tag}; a recipe has one"
            )
            draft.drop(what, run.where, seen, level="info")


def _place_run(draft: Draft, run: ContainerRun, npus: int) -> None:
    # A recipe's tag is that of A2; raylaunch adds the suffix on A3.
    is_a3 = draft.get("hardware.platform") == "ascend-a3"
    tag = run.tag.removesuffix("-a3") if is_a3 else run.tag
    draft.put("container.image", run.image, run.where, run.image)
    draft.put("container.tag", tag or "latest", run.where, run.tag or "(no tag)")
    draft.set("container.name", run.image.rpartition("/")[2] or "vllm")
    if run.digest:
        draft.drop("a recipe names a tag, no digest", run.where, run.digest)
    if not run.tag:
        draft.note(
            "assumed",
            "warning",
            "the image has no tag: latest",
            run.where,
            todo="write the version to container.tag",
        )
    npu_options = {
        option for option in run.options if option[0] == "--device" and _NPU.fullmatch(option[1])
    }
    numbers = {int(option[1].removeprefix("/dev/davinci")) for option in npu_options}
    whole = numbers == set(range(npus))
    for option in run.options:
        if whole and option in npu_options:
            _append(draft, "container.devices", "/dev/davinci*", run.where, option[2], once=True)
        else:
            _place_option(draft, run.where, *option, serves=run.serves)


def _place_option(
    draft: Draft, where: str, option: str, value: str, words: tuple[str, ...], *, serves: bool
) -> None:
    text = " ".join(words)
    if option in ("-d", "--detach"):
        draft.put("container.detach", True, where, text)
    elif option == "--privileged":
        draft.put("container.privileged", value.lower() != "false", where, text)
    elif option in _PLAIN and value:
        draft.put(f"container.{_PLAIN[option]}", value, where, text)
    elif option in ("--device", "--volume") and value:
        _append(
            draft,
            "container.devices" if option == "--device" else "container.mounts",
            value,
            where,
            words,
        )
    elif option in ("--env", "--env-file") and serves:
        # The walk gave them to the server itself.
        return
    elif option == "--env":
        _place_container_variable(draft, where, value, text)
    elif option in _TERMINAL:
        draft.own(
            "raylaunch runs the container with a terminal, or in the background (container.detach)",
            where,
            text,
        )
    elif option in _ALWAYS and (option != "--net" or value == "host"):
        draft.own(_ALWAYS[option], where, text)
    else:
        draft.drop(f"a recipe's container has no {option}", where, text)


def _place_container_variable(draft: Draft, where: str, assignment: str, text: str) -> None:
    name, equals, value = assignment.partition("=")
    if hides(name, value):
        what = f"{name} is a secret: raylaunch gives it to the servers, not to the container"
        draft.add_secret(name, where, f"-e {name}=...") if _NAME.fullmatch(name) else draft.drop(
            what, where, f"-e {name}=..."
        )
    elif not equals or not _NAME.fullmatch(name):
        draft.drop("a variable of the container without a value", where, text)
    elif reserved_env(name):
        draft.own(f"raylaunch sets {name}: {reserved_env(name)}", where, text)
    else:
        draft.put(f"container.env.{name}", value, where, text)


def _append(
    draft: Draft, path: str, value: str, where: str, words: tuple[str, ...], *, once: bool = False
) -> None:
    before = draft.get(path, [])
    if not (once and value in before):
        draft.set(path, [*before, value])
        draft.ask(path, value, where)
    draft.placed_at(where, " ".join(words), path)
