"""What this machine adds to the diagnosis: the site's signatures, and CANN's own error codes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raylaunch.errors import NodeError
from raylaunch.home import home

if TYPE_CHECKING:
    from raylaunch.supervise.diagnosis.inputs.cann_table import CannEntry
    from raylaunch.supervise.diagnosis.inputs.site_signatures import SiteCheck
    from raylaunch.supervise.diagnosis.signatures import Site

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Knowledge:
    """What this machine adds."""

    site: Site
    cann_codes: Mapping[str, CannEntry]


def read_knowledge() -> Knowledge:
    """Read what there is. What cannot be read is left out, with a warning on stderr."""
    from raylaunch.node.probe.software import cann_homes
    from raylaunch.supervise.diagnosis.inputs.cann_table import read_node_table
    from raylaunch.supervise.diagnosis.signatures import Site

    site = Site()
    try:
        checked = check_site()
    except NodeError as error:  # a user without a home folder can read a log
        log.warning("%s", error.what)
    else:
        site = checked.site
        for problem in checked.problems:
            log.warning("not used: signatures.d/%s", problem)
    codes, problem = read_node_table(cann_homes(os.environ))
    if problem:
        log.warning("%s", problem)
    return Knowledge(site, codes)


def check_site() -> SiteCheck:
    """Read and check the signatures in this user's home of raylaunch.

    Raises:
        NodeError: there is no home folder.
    """
    from raylaunch.supervise.diagnosis.inputs.site_signatures import read_site

    return read_site(home())
