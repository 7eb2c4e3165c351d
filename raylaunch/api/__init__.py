"""The verbs of the command line as functions. Ray is loaded only where a cluster is needed."""

from raylaunch.api.change_verbs import restart, rotate_keys, scale, upgrade
from raylaunch.api.deployment_verbs import (
    attach,
    deploy,
    deployments,
    drill,
    overview,
    run_on_head,
    stop,
    verify,
)
from raylaunch.api.diagnosis_verbs import check_signatures, diagnose, diagnose_log
from raylaunch.api.follow_verb import follow
from raylaunch.api.host_verbs import clean, cluster_file, preflight, tune, weights
from raylaunch.api.monitoring_verbs import monitoring_files
from raylaunch.api.page_verbs import report, ui
from raylaunch.api.recipe_arguments import RecipeLike, Settings, load
from raylaunch.api.recipe_verbs import (
    EXAMPLE_NIC,
    check,
    configure_engine,
    import_scripts,
    make_plan,
    plan,
    recipes,
    render_files,
)
from raylaunch.api.service_verbs import (
    install_service,
    remove_service,
    service_files,
    service_status,
)
from raylaunch.deployment import Deployment

__all__ = [
    "EXAMPLE_NIC",
    "Deployment",
    "RecipeLike",
    "Settings",
    "attach",
    "check",
    "check_signatures",
    "clean",
    "cluster_file",
    "configure_engine",
    "deploy",
    "deployments",
    "diagnose",
    "diagnose_log",
    "drill",
    "follow",
    "import_scripts",
    "install_service",
    "load",
    "make_plan",
    "monitoring_files",
    "overview",
    "plan",
    "preflight",
    "recipes",
    "remove_service",
    "render_files",
    "report",
    "restart",
    "rotate_keys",
    "run_on_head",
    "scale",
    "service_files",
    "service_status",
    "stop",
    "tune",
    "ui",
    "upgrade",
    "verify",
    "weights",
]
