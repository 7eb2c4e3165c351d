"""The faults that a drill can inject, and the outcome of one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A kind of fault. `target` is the server it hits, `action` what its agent executes."""

    name: str
    what: str
    target: str
    action: str


FAULTS: tuple[Fault, ...] = (
    Fault("kill-engine", "SIGKILL the engine core of the last server", "last", "kill-engine"),
    Fault(
        "kill-headless", "SIGKILL the main process of a headless server", "headless", "kill-server"
    ),
    Fault("kill-primary", "SIGKILL the main process of the primary", "primary", "kill-server"),
    Fault(
        "stop-headless",
        "SIGSTOP a headless server with all its processes: a hang",
        "headless",
        "stop-server",
    ),
    Fault("kill-agent", "SIGKILL the agent of the last server", "last", "kill-agent"),
    Fault("kill-guard", "SIGKILL the guard of the last server", "last", "kill-guard"),
    Fault("kill-controller", "kill the controller", "", ""),
    Fault(
        "steal-port", "occupy the handshake port while the group restarts", "primary", "steal-port"
    ),
    Fault("kill-gcs", "SIGKILL the GCS of Ray", "ray", "kill-gcs"),
    Fault(
        "kill-raylet",
        "SIGKILL the raylet of a node: the node is lost, where nothing starts it again",
        "far",
        "kill-raylet",
    ),
    Fault(
        "kill-ray",
        "SIGKILL the GCS, the raylets and all workers of Ray on a host",
        "ray",
        "kill-ray",
    ),
    Fault(
        "restart-ray",
        "SIGTERM the GCS and the raylets on a host, as `ray stop` does",
        "ray",
        "restart-ray",
    ),
    Fault("cut-node", "cut a node's network", "far", "cut-node"),
)
ON_REQUEST = ("kill-gcs", "kill-raylet", "kill-ray", "restart-ray", "cut-node")
"""Faults that also hit other jobs on the node: injected only when they are named."""
OF_RAY = ("kill-gcs", "kill-raylet", "kill-ray", "restart-ray")
"""Faults after which the servers run on, where something starts Ray again."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of one fault. Durations in seconds from the injection; None: not reached."""

    fault: str
    what: str = ""
    """What was injected: which signal to which process."""
    detected_by: str = ""
    detection_s: float | None = None
    recovery_s: float | None = None
    start_s: float | None = None
    """What the servers took from launch to ready."""
    requests: int = 0
    failed: int = 0
    adopted: bool = False
    """The servers ran on, and another agent or controller took them over."""
    left: tuple[str, ...] = ()
    """Processes of an earlier attempt that are still alive."""
    skipped: str = ""
    """Why the fault was not injected."""
    problem: str = ""
    """What went wrong; "" when the deployment recovered as it should."""

    @property
    def beyond_s(self) -> float | None:
        """Recovery time beyond the servers' own start-up, in seconds."""
        if self.recovery_s is None or self.start_s is None:
            return None
        return self.recovery_s - self.start_s
