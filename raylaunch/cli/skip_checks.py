"""Reads the values of --skip-check."""

from __future__ import annotations

import typer


def read_skips(skips: list[str]) -> dict[str, str]:
    """Read the values of --skip-check: id of the check -> the reason for skipping it.

    Raises:
        typer.BadParameter: a reason is missing, or no check has the id.
    """
    from raylaunch.checks.findings import hint_for

    reasons = {}
    for skip in skips:
        check, _, reason = skip.partition("=")
        if not check or not reason.strip():
            raise typer.BadParameter(
                f"{skip!r}: write ID=REASON; the reason is kept in the events",
                param_hint="--skip-check",
            )
        if hint := hint_for(check):
            raise typer.BadParameter(
                f"no check has the id {check!r}: {hint}", param_hint="--skip-check"
            )
        reasons[check] = reason.strip()
    return reasons
