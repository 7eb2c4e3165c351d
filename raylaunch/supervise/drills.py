"""The faults a drill knows, and what one of them did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A kind of harm. `target` is the server it hits, `action` what its agent is told to do."""

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
    Fault("steal-port", "take the handshake port while the gang restarts", "primary", "steal-port"),
    Fault("kill-raylet", "SIGKILL Ray's daemon of a node: the node is lost", "far", "kill-raylet"),
    Fault("cut-node", "take a node's network away", "far", "cut-node"),
)
ON_REQUEST = ("kill-raylet", "cut-node")
"""Faults that also hit what else is on the node: only when they are named."""


@dataclass(frozen=True)
class Outcome:
    """What one fault did. Durations in seconds, counted from the harm; None: it did not come to that."""

    fault: str
    what: str = ""
    """The harm itself: which signal to which process."""
    detected_by: str = ""
    detection_s: float | None = None
    recovery_s: float | None = None
    start_s: float | None = None
    """What the servers themselves took from launch to ready."""
    requests: int = 0
    failed: int = 0
    left: tuple[str, ...] = ()
    """Processes of an earlier attempt that still live."""
    skipped: str = ""
    """Why the fault was not injected."""
    problem: str = ""
    """What went wrong; "" when the deployment recovered as it should."""

    @property
    def beyond_s(self) -> float | None:
        """Recovery beyond the servers' own start-up."""
        return (
            None
            if self.recovery_s is None or self.start_s is None
            else self.recovery_s - self.start_s
        )
