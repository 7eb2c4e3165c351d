"""The exit code of a deployment's phase, for scripts."""

from __future__ import annotations

from raylaunch.errors import LaunchError, NotReadyError, UnknownDeploymentError
from raylaunch.supervise.deployment_status import Status
from raylaunch.supervise.state import Phase

_CODES = {
    Phase.FAILED: LaunchError.exit_code,
    Phase.STOPPED: UnknownDeploymentError.exit_code,
}


def exit_code(status: Status) -> int:
    """Return what `status` and `start` exit with: 0 when ready, 8 while it is on its way.

    0, too, while a fallback serves in the place of the recipe.
    """
    if status.serves_all:
        return 0
    return _CODES.get(status.phase, NotReadyError.exit_code)
