"""The service of a deployment on an embedded cluster: one unit on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raylaunch.recipe.load import LoadedRecipe
from raylaunch.render.host_service import (
    INSTALL,
    UNITS,
    HostFile,
    HostService,
    deployment_unit,
    follow_settings,
    mark,
    outlived_settings,
)
from raylaunch.render.systemd_unit import command_line, escape_specifiers, quote_word, render_unit


def render_local_service(
    loaded: LoadedRecipe,
    deployment: str,
    *,
    python: str,
    recipe: str,
    user: str,
    environment: Mapping[str, str],
    sets: Sequence[str] = (),
) -> HostService:
    """Return the files for this machine. The embedded cluster keeps its own Ray running.

    Args:
        loaded: The recipe.
        deployment: Its name.
        python: Path of an interpreter with raylaunch.
        recipe: Name of a shipped recipe, or an absolute path.
        user: Who runs it.
        environment: Variables to set. Everybody can read them.
        sets: Changes to the recipe, as for `--set`.

    Raises:
        NodeError: a value that cannot be written into a unit.
    """
    words = [python, "-m", "raylaunch", "start", recipe, "--follow", "--name", deployment]
    words += ["--address", "local"]
    for setting in sets:
        words += ["--set", setting]
    unit = [
        ("Description", escape_specifiers(f"raylaunch deployment {deployment}")),
        ("Wants", "network-online.target"),
        ("After", "network-online.target"),
        ("StartLimitIntervalSec", "0"),
    ]
    mounts = [path for path in (python, loaded.recipe.model.path) if path.startswith("/")]
    unit.append(("RequiresMountsFor", " ".join(quote_word(path) for path in mounts)))
    variables = [quote_word(f"{name}={value}") for name, value in environment.items()]
    service = [
        ("User", escape_specifiers(user)),
        ("NotifyAccess", "main"),
        *([("Environment", " ".join(variables))] if variables else []),
        # The embedded cluster, its guards and its servers are in the unit's control group.
        *follow_settings(deployment, command_line(words), kill_mode="process"),
        *outlived_settings(),
    ]
    text = render_unit(
        mark(deployment, loaded.name, "starts it and follows it"),
        {"Unit": unit, "Service": service, "Install": INSTALL},
    )
    name = deployment_unit(deployment)
    return HostService("", (HostFile(f"{UNITS}/{name}", text),), (name,))
