"""The verbs that name the cause of a failure: of a deployment, a bundle, a log or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from raylaunch.api import log_input, node_knowledge
from raylaunch.api.deployment_verbs import attach
from raylaunch.deployment.names import is_target, split_target
from raylaunch.errors import ClusterError, UnknownDeploymentError
from raylaunch.home import home

if TYPE_CHECKING:
    from raylaunch.supervise.diagnosis.inputs.site_signatures import SiteCheck
    from raylaunch.supervise.diagnosis.root_cause import Diagnosis


def diagnose(target: str, address: str | None = None) -> Diagnosis | None:
    """Name the cause of the failure of a deployment, a bundle, a log file, or a folder with logs.

    Returns None when no known failure signature matched.

    Raises:
        UnknownDeploymentError: no such deployment, bundle or file.
        NodeError: the file or folder cannot be read.
    """
    from raylaunch.runtime.controller import bundle_reader

    path = Path(target)
    kind = log_input.kind_of(path)
    if kind == "file":
        with log_input.open_log(path) as stream:
            return log_input.diagnose_log(stream, path.name)
    if kind == "folder" and (path / "diagnosis.json").exists():
        return bundle_reader.diagnose_bundle(path)
    if kind == "folder" and not is_target(target):
        return log_input.diagnose_folder(path)
    if kind == "other" or not is_target(target):
        raise log_input.not_a_log(target, kind)
    name, group = split_target(target)
    try:
        return bundle_reader.diagnose_deployment(
            name, group, lambda: attach(target, address), home()
        )
    except (UnknownDeploymentError, ClusterError):
        # A deployment of that name comes first; a folder here may be meant as well.
        if kind != "folder":
            raise
        return log_input.diagnose_folder(path)


def diagnose_log(stream: BinaryIO, name: str) -> Diagnosis | None:
    """Name the cause of a failure in a log that is read from `stream`.

    Returns None when no known failure signature matched.
    """
    return log_input.diagnose_log(stream, name)


def check_signatures() -> SiteCheck:
    """Check the signatures that this site adds in `signatures.d` of its home.

    Raises:
        NodeError: there is no home folder.
    """
    return node_knowledge.check_site()
