"""The container of a node: the recipe's `docker run`, and how to start a server inside it."""

from __future__ import annotations

import shlex

from raylaunch.errors import RecipeError
from raylaunch.plan.launch_plan import LaunchPlan, ServerPlan
from raylaunch.recipe.model import Container, Recipe
from raylaunch.render.script import comment, file_part, script_name

EVERY_NPU = "/dev/davinci*"

_NO_VARIABLES = (
    "Unlike the guide it names neither -e ASCEND_RT_VISIBLE_DEVICES nor PYTORCH_NPU_ALLOC_CONF:",
    "each server script sets its own (Ray would shuffle the first).",
)


def render_containers(recipe: Recipe, plan: LaunchPlan) -> dict[str, str]:
    """Return a bash script per node that starts the node's container, by file name.

    A file name is "container-192.0.2.10.sh".

    Raises:
        RecipeError: The recipe names no container.
    """
    nodes: dict[str, list[ServerPlan]] = {}
    for server in plan.servers:
        nodes.setdefault(server.node.ip, []).append(server)
    return {
        f"container-{file_part(ip)}.sh": _script(recipe, plan, ip, servers)
        for ip, servers in nodes.items()
    }


def docker_command(recipe: Recipe) -> list[str]:
    """Return the `docker run` of a node, word by word.

    NPUs are never named with -e ASCEND_RT_VISIBLE_DEVICES: Ray shuffles a list that its node had
    before (measured, Ray 2.60), so the plan gives each server its own.

    Raises:
        RecipeError: The recipe names no container.
    """
    box = _container(recipe)
    mode = ["-itd"] if box.detach else ["--rm", "-it"]
    words = ["docker", "run", *mode, *_rights(box)]
    words += ["--name", box.name, "--net=host"]
    words += _contents(recipe, box)
    return [*words, image(recipe), "bash"]


def run_options(recipe: Recipe) -> list[str]:
    """Return the options of that `docker run` without name, network and mode, word by word.

    Raises:
        RecipeError: The recipe names no container.
    """
    box = _container(recipe)
    return [*_rights(box), *_contents(recipe, box)]


def image(recipe: Recipe) -> str:
    """Return image and tag for the recipe's board.

    The A3 builds of vllm-ascend have the tags `vX-a3` and `vX-a3-openeuler`.

    Raises:
        RecipeError: The recipe names no container.
    """
    box = _container(recipe)
    if recipe.hardware.platform != "ascend-a3" or "a3" in box.tag.split("-"):
        return f"{box.image}:{box.tag}"
    version = box.tag.removesuffix("-openeuler")
    return f"{box.image}:{version}-a3{box.tag.removeprefix(version)}"


def _container(recipe: Recipe) -> Container:
    if recipe.container is None:
        raise RecipeError(
            "the recipe names no container",
            todo="render it as bash, or give it a `container:` section (image, tag, name)",
        )
    return recipe.container


def _rights(box: Container) -> list[str]:
    words = []
    if box.user:
        words += ["-u", box.user]
    if box.ipc:
        words.append(f"--ipc={box.ipc}")
    if box.privileged:
        words.append("--privileged")
    for name, value in box.env.items():
        words += ["-e", f"{name}={value}"]
    return words


def _contents(recipe: Recipe, box: Container) -> list[str]:
    words = []
    if box.shm_size:
        words.append(f"--shm-size={box.shm_size}")
    for device in _devices(recipe, box):
        words += ["--device", device]
    for mount in box.mounts:
        words += ["-v", mount]
    return words


def _devices(recipe: Recipe, box: Container) -> list[str]:
    devices = []
    for device in box.devices:
        if device == EVERY_NPU:
            devices += [f"/dev/davinci{number}" for number in range(recipe.npus_per_node)]
        else:
            devices.append(device)
    return devices


def _script(recipe: Recipe, plan: LaunchPlan, ip: str, servers: list[ServerPlan]) -> str:
    box = _container(recipe)
    then = "Then, from a second shell on the node:"
    if box.detach:
        then = "Then, in the background container:"
    text = [
        f"Deployment {plan.deployment}, recipe {plan.recipe}: the container of node {ip}.",
        "Run this on the node, beside its server script(s).",
        *_NO_VARIABLES,
        then,
    ]
    for server in servers:
        text += [f"  {line}" for line in _inside(plan, box, server)]
    comments = [f"#{_indented(line)}" for line in text]
    command = _one_option_per_line(docker_command(recipe))
    lines = ["#!/usr/bin/env bash", *comments, "set -euo pipefail", "", command]
    return "\n".join(lines) + "\n"


def _indented(text: str) -> str:
    """Return the comment's text with the indentation of `text`, which `comment` would remove."""
    indentation = len(text) - len(text.lstrip())
    return " " * (1 + indentation) + comment(text).removeprefix("# ")


def _inside(plan: LaunchPlan, box: Container, server: ServerPlan) -> list[str]:
    """Copy the server script into the container and run it there.

    `bash -i` because the images set up CANN in ~/.bashrc, which only an interactive shell sources.
    """
    name = shlex.quote(box.name)
    script = script_name(server)
    secrets = "".join(f" -e {secret}" for secret in plan.secrets)
    return [
        f"docker cp {script} {name}:/root/{script}",
        f"docker exec -it{secrets} {name} bash -ic 'bash /root/{script}'",
    ]


def _one_option_per_line(words: list[str]) -> str:
    """Break the line before each option and before the image with its command."""
    lines = [" ".join(words[:2])]
    for word in words[2:-2]:
        quoted = shlex.quote(word)
        if word.startswith("-"):
            lines.append(quoted)
        else:
            lines[-1] += f" {quoted}"
    return " \\\n  ".join([*lines, shlex.join(words[-2:])])
