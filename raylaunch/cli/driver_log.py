"""The driver's log on stderr, as -v asks for it. Loaded only then: `logging` slows down --help."""

from __future__ import annotations

import logging

from raylaunch.cli.output import printable


class _PrintableFormatter(logging.Formatter):
    """Formats a record without control characters: records quote nodes, servers and Ray."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_to_stderr(verbosity: int) -> None:
    """Show raylaunch's log records on stderr: INFO for a verbosity of 1, DEBUG from 2 on.

    Other libraries stay at WARNING: at INFO httpx logs each request.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    level = logging.INFO if verbosity == 1 else logging.DEBUG
    logging.getLogger("raylaunch").setLevel(level)
