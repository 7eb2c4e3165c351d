"""Every error raylaunch raises on purpose: what happened, why, what to do next, and the evidence.

Each class has its own process exit code, so scripts can tell failures apart (docs/cli.md lists
them). Errors travel through Ray between processes, so each one survives pickling with its parts
intact.
"""

from __future__ import annotations

from typing import Any


class RaylaunchError(Exception):
    """Base of all deliberate errors.

    Args:
        what: One sentence: what happened.
        why: The cause, when it is known.
        todo: The next action for the person who reads it.
        evidence: Log tail, findings, host, port, pid: whatever shows that `what` is true.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", todo: str = "", evidence: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.todo = todo
        self.evidence = evidence

    def __str__(self) -> str:
        parts = [self.what]
        if self.why:
            parts.append(f"why: {self.why}")
        if self.evidence:
            parts.append(self.evidence.rstrip())
        if self.todo:
            parts.append(f"next: {self.todo}")
        return "\n".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"why": self.why, "todo": self.todo, "evidence": self.evidence}
        return _rebuild, (type(self), self.what, state)

    def as_dict(self) -> dict[str, str]:
        """The parts by name, as they cross process boundaries and appear in `-o json`."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "why": self.why,
            "todo": self.todo,
            "evidence": self.evidence,
        }


def _rebuild(kind: type[RaylaunchError], what: str, parts: dict[str, str]) -> RaylaunchError:
    return kind(what, **parts)


def from_dict(parts: dict[str, str]) -> RaylaunchError:
    """Rebuild an error from `as_dict`; an unknown class name becomes a plain RaylaunchError."""
    kinds = {kind.__name__: kind for kind in _all_kinds(RaylaunchError)}
    kind = kinds.get(parts.get("error", ""), RaylaunchError)
    return kind(
        parts["what"],
        why=parts.get("why", ""),
        todo=parts.get("todo", ""),
        evidence=parts.get("evidence", ""),
    )


def _all_kinds(kind: type[RaylaunchError]) -> list[type[RaylaunchError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _all_kinds(child))]


class RecipeError(RaylaunchError):
    """The recipe is unknown, malformed, or asks for something that cannot be."""

    exit_code = 3


class ChecksFailedError(RaylaunchError):
    """At least one check found an error, so nothing was launched."""

    exit_code = 4


class ClusterError(RaylaunchError):
    """There is no usable Ray cluster: none found, no answer, or the authentication differs."""

    exit_code = 5


class PlacementError(RaylaunchError):
    """The cluster cannot give the NPUs that the recipe needs, now."""

    exit_code = 6


class LaunchError(RaylaunchError):
    """Servers were started and the deployment failed; the evidence has diagnosis and log tails."""

    exit_code = 7


class NotReadyError(RaylaunchError):
    """The deployment did not become ready within the time the caller was willing to wait."""

    exit_code = 8


class UnknownDeploymentError(RaylaunchError):
    """No deployment of that name is known to this cluster."""

    exit_code = 9


class BusyError(RaylaunchError):
    """The name is taken or another operator's command is under way."""

    exit_code = 10


class NodeError(RaylaunchError):
    """One machine refused: a process could not be started or ended, a file could not be written."""

    exit_code = 11


class PlanError(RaylaunchError):
    """The recipe cannot be laid out on the given nodes."""

    exit_code = 12


class ClusterFileError(RaylaunchError):
    """The file given to --cluster is missing, unreadable, or not one for `ray up`."""

    exit_code = 13


class HeadError(RaylaunchError):
    """The cluster's head cannot be reached over SSH or run raylaunch, or the connection broke."""

    exit_code = 14


class VerifyError(RaylaunchError):
    """The deployment runs, but its service does not do all that its recipe promises."""

    exit_code = 15
