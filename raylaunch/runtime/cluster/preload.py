"""Imports, soon after an actor has started, every module that it may need later.

An actor imports what its start needs, and used to import the rest at the first fault. By then the
code may be unreadable: a full or unmounted home, an exchanged file. A fault is no time to find out.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import threading
import time
from collections.abc import Iterator

log = logging.getLogger(__name__)

DELAY_S = 1.0
"""The first second belongs to the launch of a server."""
ROOMS = ("checks", "node", "plan", "recipe", "runtime", "supervise", "vllm_api")
"""What actors use; the command line, the importer and the renderers stay out."""
LAZY = (
    "httpx",
    "prometheus_client.parser",
    "ray._private.state",
    "ray.util.placement_group",
    "ray.util.scheduling_strategies",
    "yaml",
)
"""Imported inside functions, so that a start need not wait for them."""


def start_preload() -> threading.Thread:
    """Begin to import in the background; returns the thread."""
    thread = threading.Thread(target=_preload_later, name="raylaunch-preload", daemon=True)
    thread.start()
    return thread


def preload() -> list[str]:
    """Import all of it now; returns the names that could not be imported, each with the reason."""
    failed = []
    for name in (*_own_modules(), *LAZY):
        try:
            importlib.import_module(name)
        except (ImportError, OSError, SyntaxError) as error:
            failed.append(f"{name}: {error}")
            log.warning("cannot import %s ahead of its use: %s", name, error)
    _read_data_files()
    return failed


def _read_data_files() -> None:
    """Read the files beside the modules; each is read once per process."""
    from raylaunch.plan.known_flags import read_flags
    from raylaunch.plan.known_variables import read_variables
    from raylaunch.supervise.diagnosis.edges import load_edges
    from raylaunch.supervise.diagnosis.rules.error_codes import load_codes
    from raylaunch.supervise.diagnosis.signatures import load_signatures

    for read in (load_signatures, load_edges, load_codes, read_flags, read_variables):
        read()


def _preload_later() -> None:
    time.sleep(DELAY_S)
    preload()


def _own_modules() -> Iterator[str]:
    for room in ROOMS:
        package = importlib.import_module(f"raylaunch.{room}")
        yield package.__name__
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield found.name
    yield "raylaunch.errors"
