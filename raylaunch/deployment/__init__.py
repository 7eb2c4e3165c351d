"""The handle to a running deployment, its cluster, and this machine's records of deployments."""

from raylaunch.deployment.cluster_choice import (
    LOCAL,
    choose_address,
    connect_to,
    embedded_names,
    find_embedded,
    start_embedded,
    stop_embedded,
    unknown_name,
    writable_home,
)
from raylaunch.deployment.deployment_handle import Deployment, OnUpdate, kept_runs, run_file
from raylaunch.deployment.deployment_records import Overview, Silent
from raylaunch.deployment.embedded_stop import stop_deployment
from raylaunch.deployment.names import checked_name

__all__ = [
    "LOCAL",
    "Deployment",
    "OnUpdate",
    "Overview",
    "Silent",
    "checked_name",
    "choose_address",
    "connect_to",
    "embedded_names",
    "find_embedded",
    "kept_runs",
    "run_file",
    "start_embedded",
    "stop_deployment",
    "stop_embedded",
    "unknown_name",
    "writable_home",
]
