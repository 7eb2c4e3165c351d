"""From launch scripts to a recipe: the verb of this room."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from raylaunch.checks.findings import Finding
from raylaunch.errors import RecipeError
from raylaunch.importer.draft import SECTIONS, Draft, Placed
from raylaunch.importer.interpreter import read_scripts
from raylaunch.importer.place_commands import place_commands, show
from raylaunch.importer.place_environment import (
    place_container,
    place_host,
    place_platform,
    place_variables,
)
from raylaunch.importer.recipe_yaml import write_recipe
from raylaunch.importer.script_model import Beside, Server, Sources
from raylaunch.importer.server_groups import choose_group
from raylaunch.importer.unsupported import refuse_unsupported
from raylaunch.recipe.load import recipe_from_mapping
from raylaunch.recipe.model import Platform


@dataclass(frozen=True)
class Imported:
    """A recipe made from scripts, and the report: what went where, and what found no place."""

    name: str
    values: Mapping[str, Any]
    placed: tuple[Placed, ...]
    findings: tuple[Finding, ...]

    @property
    def yaml(self) -> str:
        """The recipe as a file."""
        return write_recipe(self.values, self.findings)


def import_scripts(
    files: Mapping[str, str],
    *,
    platform: str | None = None,
    pick: int | None = None,
    beside: Beside | None = None,
) -> Imported:
    """Make a recipe from the texts of launch scripts, by file name. Nothing in them is executed.

    Args:
        files: Texts by name: node0.sh, node1.sh, a page of documentation, a `docker run` line.
        platform: ascend-a2, ascend-a3 or cpu; by default it follows from images, devices and sizes.
        beside: Finds a file that a script names (`--config FILE`, `source FILE`); by default
            only the given texts are known.
        pick: Which deployment to take where the texts describe several, counted from 1.

    Raises:
        RecipeError: There is no `vllm serve` in them, `pick` or `platform` is unknown, or no
            recipe can hold it.
    """
    if platform is not None and platform not in get_args(Platform):
        raise RecipeError(
            f"there is no platform {platform!r}", todo=f"one of {', '.join(get_args(Platform))}"
        )
    reading = read_scripts(Sources(dict(files), beside))
    group = choose_group(reading, pick)
    refuse_unsupported(reading, group)
    draft = Draft()
    names = ", ".join(files)
    draft.set("description", f"imported from {names}")
    draft.set("source", f"raylaunch import {names}")
    place_commands(draft, group)
    place_platform(draft, group, reading.containers, platform)
    place_variables(draft, group)
    place_host(draft, [each for server in group.servers for each in server.host] or reading.host)
    place_container(draft, reading.containers)
    _report_others(draft, reading.servers, group.servers)
    values = {section: draft.values[section] for section in SECTIONS if section in draft.values}
    name = _name(group.primary.model or "imported", values)
    recipe_from_mapping(values, name, "import")
    # The rounds of a loop report the same.
    findings = tuple(dict.fromkeys((*reading.findings, *draft.findings)))
    return Imported(name, values, tuple(draft.placed), findings)


def _report_others(draft: Draft, servers: Sequence[Server], taken: Sequence[Server]) -> None:
    """Say that the servers of other deployments were left out, word by word."""
    for server in servers:
        if server not in taken:
            words = [server.model or "", *(show(flag) for flag in server.flags), *server.extra]
            seen = " ".join(word for word in words if word)
            draft.note(
                "other-deployment", "info", "belongs to another deployment", server.where, seen=seen
            )


def _name(model: str, values: Mapping[str, Any]) -> str:
    stem = (
        re.sub(r"[^a-z0-9.]+", "-", model.rstrip("/").rpartition("/")[2].lower()).strip("-.")
        or "imported"
    )
    return f"{stem}-{str(values['hardware']['platform']).removeprefix('ascend-')}"
