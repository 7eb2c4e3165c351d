"""Why a deployment is not ready: its status as an error."""

from __future__ import annotations

from raylaunch.errors import NotReadyError
from raylaunch.supervise.deployment_status import Status
from raylaunch.supervise.state import Phase


def explain_degraded(status: Status) -> NotReadyError:
    """Return the error of a start after which some groups serve and the others failed."""
    name = status.deployment
    failed = [group for group in status.groups if group.phase is Phase.FAILED]
    errors = {group.name: (group.error or {}).get("what", "") for group in failed}
    serving = [group.name for group in status.groups if group.phase is Phase.READY]
    return NotReadyError(
        f"{len(failed)} of {len(status.groups)} groups of {name} failed",
        why=f"{', '.join(serving)} serve without them",
        evidence="\n".join(f"{group}: {what}" for group, what in errors.items()),
        todo=f"`raylaunch diagnose {name}/{failed[0].name}` names the cause; "
        f"`raylaunch restart {name} --group {failed[0].name}` tries again",
    )


def explain_late(status: Status, timeout: float) -> NotReadyError:
    """Return the error of a wait that took longer than `timeout` seconds."""
    name = status.deployment
    missing = "; ".join(status.waiting_for) or "unknown"
    return NotReadyError(
        f"{name} is not ready after {timeout:g} s",
        why=f"{status.phase}; still missing: {missing}",
        todo=f"it keeps starting: `raylaunch status {name}` follows it, "
        f"`raylaunch stop {name}` stops it",
    )
