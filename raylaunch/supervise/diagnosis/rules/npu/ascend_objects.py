"""Objects of vllm-ascend that lack what the code of vLLM asks of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason
from raylaunch.supervise.diagnosis.rules.tables.features import advise_release, name_features
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_OBJECT = re.compile(
    r"(?:'((?:NPU|Ascend|ACL|Torchair)\w{2,60})' object|type object '((?:NPU|Ascend)\w{2,60})') "
    r"has no attribute '(\w{1,80})'"
)


def read_objects(log: ServerLog) -> Iterator[Reading]:
    """Yield the attributes that vLLM or another package asks of a class of vllm-ascend in vain."""
    for raised in find_exceptions(log):
        if reading := _of_vllm_ascend(raised) or _enum_member(raised):
            yield reading


def _of_vllm_ascend(raised: Raised) -> Reading | None:
    found = _OBJECT.search(raised.message) if raised.type == "AttributeError" else None
    # torch's `Module.__getattr__` raises for the one that asks.
    asking = (each for each in raised.frames if each.function != "__getattr__")
    frame = next(asking, raised.innermost)
    if found is None or frame is None or frame.package == "vllm_ascend":
        return None
    owner, name = found[1] or found[2], found[3]
    features = name_features(f"{name} {frame.module_path} {frame.function}", raised.process)
    through = " and ".join(each for each, _ in features)
    off = [remedy for _, remedy in features if remedy]
    about = f", for {through}" if through else ""
    without = f" To start with this one, try {' or '.join(off)}." if off else ""
    return Reading(
        reason(
            "versions-differ",
            f"vllm-ascend's `{owner}` has no `{name}`, which {frame.package} ({frame.module_path}, "
            f"{frame.function}) uses{about}: the two are of different releases, or this release "
            "of vllm-ascend does not support that.",
            "Install the releases of vLLM and vllm-ascend that belong together (`pip list | grep "
            "-i vllm`; vllm-ascend's table of versions). If they do, use a newer release or image "
            f"of vllm-ascend.{without}",
            "exception by type and place; vllm-ascend#5514",
            "deterministic",
        ),
        raised.line,
        rank=Rank.HINT,
        certain=False,
    )


def _enum_member(raised: Raised) -> Reading | None:
    """Read a member that an enumeration of vLLM does not have: Python says only its name."""
    if raised.type != "AttributeError" or len(raised.frames) < 2:
        return None
    if not raised.message.isidentifier() or not raised.frames[0].path.endswith("/enum.py"):
        return None
    caller = raised.frames[1]
    owner = re.search(rf"\b([A-Z]\w{{2,60}})\.{raised.message}\b", caller.code)
    if owner is None or caller.package != "vllm_ascend":
        return None
    features = name_features(f"{caller.module_path} {caller.function}", raised.process)
    return Reading(
        reason(
            "versions-differ",
            f"The installed vLLM's `{owner[1]}` has no `{raised.message}`, which vllm-ascend "
            f"({caller.module_path}, {caller.function}) uses: the two are of different releases.",
            "Install the releases of vLLM and vllm-ascend that belong together (`pip list | grep "
            "-i vllm`; vllm-ascend's table of versions). If they do: "
            f"{advise_release('vllm-ascend', features)}",
            "exception by type and place; vllm-ascend#8336",
            "deterministic",
        ),
        raised.line,
        rank=Rank.HINT,
        certain=False,
    )
