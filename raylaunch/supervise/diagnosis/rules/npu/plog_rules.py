"""Lines of CANN's components that explain what its codes and Mooncake only report."""

from __future__ import annotations

from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.plog_lines import explain_telling
from raylaunch.supervise.diagnosis.readings import Rank, Reading


def read_plogs(log: ServerLog) -> Iterator[Reading]:
    """Yield the subject of the first lines of CANN, if it is one that others follow from."""
    lines = [line for line in log.errors.lines if log.cleaned[line].lstrip().startswith("[ERROR]")]
    if told := explain_telling([log.cleaned[line] for line in lines]):
        index, meaning = told
        yield Reading(meaning, lines[index], rank=Rank.HINT, certain=False)
