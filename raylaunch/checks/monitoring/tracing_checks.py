"""Checks of the section `tracing`."""

from __future__ import annotations

from collections.abc import Iterator

from raylaunch.checks.findings import Finding
from raylaunch.recipe.load import LoadedRecipe

INSTALL = "pip install opentelemetry-proto"


def check_tracing(loaded: LoadedRecipe, *, installed: bool, ip: str = "") -> Iterator[Finding]:
    """Find that spans are wanted where the package for their messages is missing.

    Args:
        loaded: The recipe.
        installed: Whether the Python that runs the controller has it.
        ip: Address of the controller's node; "" for the node itself.
    """
    if loaded.recipe.tracing.endpoint is None or installed:
        return
    node = f"node {ip}" if ip else "the controller's node"
    yield Finding(
        id="tracing-package",
        level="warning",
        what=f"no spans are sent: the package opentelemetry-proto is not installed on {node}",
        todo=f"`{INSTALL}` in the Python that runs Ray there (raylaunch[otel] has it)",
        where=ip or loaded.origin("tracing.endpoint"),
    )
