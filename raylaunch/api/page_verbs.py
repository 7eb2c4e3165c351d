"""The verbs of the page: a deployment frozen into one file, or live in a browser."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from raylaunch.api.deployment_verbs import attach

REPORT_LINES = 300


def report(
    deployment: str,
    *,
    lines: int = REPORT_LINES,
    address: str | None = None,
    on_unsearched: Callable[[Sequence[str]], None] | None = None,
) -> str:
    """Return a deployment as one HTML file: status, timelines, diagnosis, plan, logs, benchmarks.

    Secrets are not in it: the recipe's are searched for by their values in this environment, and
    what looks like a key is masked.

    Args:
        deployment: Its name, or NAME/GROUP.
        lines: From the end of each server's log.
        address: Ray cluster, as for `attach`.
        on_unsearched: Called with the names of secrets that are not set here, if there are any.

    Raises:
        UnknownDeploymentError: there is none of that name.
        ClusterError: the cluster does not answer.
    """
    from raylaunch.page.page_file import frozen_page
    from raylaunch.web.page_source import PageSource

    source = PageSource(attach(deployment, address), os.environ, time.monotonic)
    data = source.freeze(lines)
    if source.unsearched and on_unsearched is not None:
        on_unsearched(source.unsearched)
    return frozen_page(data)


def ui(
    deployment: str,
    on_link: Callable[[str], None],
    *,
    port: int = 0,
    allow_actions: bool = False,
    address: str | None = None,
) -> None:
    """Serve the page of a deployment on 127.0.0.1, until it is stopped, or Ctrl-C.

    Args:
        deployment: Its name, or NAME/GROUP.
        on_link: Called with the link, which works once.
        port: 0 for any free one.
        allow_actions: The page can also restart, drill and stop the deployment.
        address: Ray cluster, as for `attach`.

    Raises:
        UnknownDeploymentError: there is none of that name.
        ClusterError: the cluster does not answer.
        NodeError: the port cannot be used.
    """
    import asyncio

    from raylaunch.web.page_actions import PageActions
    from raylaunch.web.page_server import serve_page
    from raylaunch.web.page_source import PageSource

    handle = attach(deployment, address)
    source = PageSource(handle, os.environ, time.monotonic)
    actions = PageActions(handle.title, address, os.environ) if allow_actions else None
    asyncio.run(serve_page(source, port, on_link, actions))
