"""The files of a service on one host, their places, and the names of its units."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raylaunch.recipe.yaml_reader import shorten
from raylaunch.render.systemd_unit import Settings

FOLDER = "/etc/raylaunch"
UNITS = "/etc/systemd/system"
LABEL = "raylaunch.service"
"""Label of the containers that the unit of a cluster has made; its value is the cluster's name."""
CODE = "code"
"""Below a deployment's folder: raylaunch itself, if `service install` has put it there."""
FINAL_EXIT_CODES = (2, 3, 7, 9, 12)
"""A restart does not change them.

A wrong command line (2), recipe (3) or plan (12), a launch that failed after all its own restarts
(7), a stop by `raylaunch stop` (9).
"""
INTERRUPTED = 130
WATCHDOG_S = 300
"""One question to the controller may take 92 s, while Ray restarts it."""
RESTART_S = 10


@dataclass(frozen=True)
class HostFile:
    """A file on a host."""

    path: str
    text: str
    mode: int = 0o644


@dataclass(frozen=True)
class HostService:
    """What one host gets; its units are to be enabled in this order."""

    host: str
    files: tuple[HostFile, ...]
    units: tuple[str, ...]


def cluster_unit(cluster: str) -> str:
    """Return the name of the unit that keeps Ray running on a host."""
    return f"raylaunch-cluster-{cluster}.service"


def deployment_unit(deployment: str) -> str:
    """Return the name of the unit that starts and follows a deployment."""
    return f"raylaunch-deployment-{deployment}.service"


def cluster_folder(cluster: str) -> str:
    """Return the folder of a cluster's files."""
    return f"{FOLDER}/clusters/{cluster}"


def deployment_folder(deployment: str) -> str:
    """Return the folder of a deployment's files."""
    return f"{FOLDER}/deployments/{deployment}"


def environment_path(deployment: str) -> str:
    """Return the file with the secrets of a deployment, mode 0600."""
    return f"{deployment_folder(deployment)}/environment"


def mark(deployment: str, recipe: str, what: str) -> list[str]:
    """Return the first comment of a file: it marks files that may be overwritten."""
    return [
        f"Deployment {deployment}, recipe {shorten(recipe)}: {what}.",
        "Written by `raylaunch service install`, which overwrites changes.",
    ]


def follow_settings(
    deployment: str, exec_start: str, *, kill_mode: str
) -> Iterator[tuple[str, str]]:
    """Yield the settings of a service that runs `raylaunch start --follow`."""
    yield "Type", "notify"
    yield "ExecStart", exec_start
    yield "EnvironmentFile", f"-{environment_path(deployment)}"
    yield "TimeoutStartSec", "infinity"
    yield "WatchdogSec", str(WATCHDOG_S)
    yield "KillMode", kill_mode
    yield "SuccessExitStatus", str(INTERRUPTED)
    yield "Restart", "on-failure"
    yield "RestartSec", str(RESTART_S)
    yield "RestartPreventExitStatus", " ".join(str(code) for code in FINAL_EXIT_CODES)


def outlived_settings() -> Settings:
    """Return the settings of a unit whose control group has processes that outlive its command.

    Guards and servers of deployments are in the control group of what started them. A restart of
    the unit, or one process that the kernel kills for its memory, must not stop them.
    """
    return (
        ("OOMPolicy", "continue"),
        ("TasksMax", "infinity"),
        ("LimitNOFILE", "1048576"),
        ("LimitMEMLOCK", "infinity"),
        ("IgnoreSIGPIPE", "no"),
    )


INSTALL: Settings = (("WantedBy", "multi-user.target"),)
