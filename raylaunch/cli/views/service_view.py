"""What clients get as lines of text: what the gateways did, and whether a fallback serves."""

from __future__ import annotations

from raylaunch.cli.output import Style
from raylaunch.cli.views.plan_view import count
from raylaunch.supervise.deployment_status import GatewayCounters, Status


def fallback_line(status: Status, style: Style) -> str:
    """Return the warning that a fallback serves instead of the recipe."""
    warning = style.paint("warning:", "warn")
    return (
        f"{warning} {status.fallback} serves instead of {status.recipe} until the lost node is back"
    )


def gateway_counts(seen: GatewayCounters) -> str:
    """Return what a gateway did: the usual numbers always, the rare ones when there are any."""
    counts = [
        count(seen.requests, "request"),
        f"{seen.queue} in the queue",
        f"{seen.held} held",
        f"{seen.repeated} repeated",
        f"{count(seen.continued, 'stream')} continued",
        f"{seen.failed} failed",
    ]
    rare = {"broken": seen.broken, "rejected": seen.rejected, "cancelled": seen.cancelled}
    return ", ".join([*counts, *(f"{number} {name}" for name, number in rare.items() if number)])
