"""The container of a node: the `docker run` of the recipe, and how a server is started inside it."""

from __future__ import annotations

import shlex

from raylaunch.errors import RecipeError
from raylaunch.plan.launch_plan import LaunchPlan, ServerPlan
from raylaunch.recipe.model import Container, Recipe
from raylaunch.render.script import comment, file_part, script_name

EVERY_NPU = "/dev/davinci*"


def render_containers(recipe: Recipe, plan: LaunchPlan) -> dict[str, str]:
    """Return a bash script per node that starts the node's container, by file name ("container-192.0.2.10.sh").

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

    NPUs are never named with -e ASCEND_RT_VISIBLE_DEVICES: Ray shuffles a list that its node had before (measured,
    Ray 2.60), so the plan gives each server its own.

    Raises:
        RecipeError: The recipe names no container.
    """
    box = _container(recipe)
    how = ["-itd"] if box.detach else ["--rm", "-it"]
    named = ["--name", box.name, "--net=host"]
    return [
        "docker",
        "run",
        *how,
        *_rights(box),
        *named,
        *_contents(recipe, box),
        image(recipe),
        "bash",
    ]


def run_options(recipe: Recipe) -> list[str]:
    """Return the options of that `docker run` but for name, network and how it is attached, word by word.

    Raises:
        RecipeError: The recipe names no container.
    """
    box = _container(recipe)
    return [*_rights(box), *_contents(recipe, box)]


def image(recipe: Recipe) -> str:
    """Return image and tag for the recipe's board: the A3 builds of vllm-ascend are `vX-a3` and `vX-a3-openeuler`.

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
    words = ["-u", box.user] if box.user else []
    words += [f"--ipc={box.ipc}"] if box.ipc else []
    words += ["--privileged"] if box.privileged else []
    return words + [word for name, value in box.env.items() for word in ("-e", f"{name}={value}")]


def _contents(recipe: Recipe, box: Container) -> list[str]:
    words = [f"--shm-size={box.shm_size}"] if box.shm_size else []
    words += [word for device in _devices(recipe, box) for word in ("--device", device)]
    return words + [word for mount in box.mounts for word in ("-v", mount)]


def _devices(recipe: Recipe, box: Container) -> list[str]:
    every = [f"/dev/davinci{number}" for number in range(recipe.npus_per_node)]
    return [each for device in box.devices for each in (every if device == EVERY_NPU else [device])]


def _script(recipe: Recipe, plan: LaunchPlan, ip: str, servers: list[ServerPlan]) -> str:
    box = _container(recipe)
    story = [
        f"Deployment {plan.deployment}, recipe {plan.recipe}: the container of node {ip}.",
        "Run this on the node, beside its server script(s).",
        "Then, in the background container:"
        if box.detach
        else "Then, from a second shell on the node:",
        *(f"  {line}" for server in servers for line in _inside(plan, box, server)),
    ]
    lines = [
        "#!/usr/bin/env bash",
        *("#" + _indented(text) for text in story),
        "set -euo pipefail",
        "",
    ]
    return "\n".join([*lines, _one_option_per_line(docker_command(recipe))]) + "\n"


def _indented(text: str) -> str:
    return (" " * (1 + len(text) - len(text.lstrip()))) + comment(text)[2:]


def _inside(plan: LaunchPlan, box: Container, server: ServerPlan) -> list[str]:
    """Copy the server script into the container and run it there.

    `bash -i` because the images set up CANN in ~/.bashrc, which only an interactive shell reads.
    """
    name, script = shlex.quote(box.name), script_name(server)
    secrets = "".join(f" -e {secret}" for secret in plan.secrets)
    return [
        f"docker cp {script} {name}:/root/{script}",
        f"docker exec -it{secrets} {name} bash -ic 'bash /root/{script}'",
    ]


def _one_option_per_line(words: list[str]) -> str:
    """Break before each option; `docker run` stays together, and so do the image and its command."""
    lines = [" ".join(words[:2])]
    for word in words[2:-2]:
        quoted = shlex.quote(word)
        if word.startswith("-"):
            lines.append(quoted)
        else:
            lines[-1] += f" {quoted}"
    return " \\\n  ".join([*lines, shlex.join(words[-2:])])
