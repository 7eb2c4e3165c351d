"""Objects that lack what is asked of them, where neither side is vLLM's own code.

A class of a compiled package carries the package in its name: `mooncake.store.Store`. A model's
configuration lacks a field that vllm-ascend reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason
from raylaunch.supervise.diagnosis.rules.tables.features import name_features
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_QUALIFIED = re.compile(
    r"'([a-z]\w{1,40})\.(?:[a-z_]\w{0,40}\.){0,4}([A-Z]\w{1,60})' object has no attribute "
    r"'(\w{1,80})'"
)
_OWN = ("vllm", "vllm_ascend", "torch", "builtins", "transformers_modules")
_CALLER = re.compile(r"\b([a-z]\w{2,40})\.v1\.|/(?:site|dist)-packages/([a-z]\w{2,40})/")
_CONFIG = re.compile(r"'(\w{2,60}Config)' object has no attribute '(\w{1,80})'")
_OF_VLLM = re.compile(
    r"^(?:Vllm|Model|Parallel|Cache|Scheduler|Ascend|NPU|Speculative|Compilation)|Quant|^Torchair"
)


def read_foreign_objects(log: ServerLog) -> Iterator[Reading]:
    """Yield packages that are older or newer than their callers, and models that are not known."""
    for line, match in log.errors.find(_QUALIFIED):
        package, owner, name = match.groups()
        if package not in _OWN:
            yield _other_release(line, package, owner, name, _caller(log.cleaned[line], package))
    for raised in find_exceptions(log):
        if reading := _model_field(raised):
            yield reading


def _caller(text: str, package: str) -> str:
    found = _CALLER.search(text)
    name = (found[1] or found[2]) if found else ""
    return name if name and name != package else "its caller"


def _other_release(line: int, package: str, owner: str, name: str, caller: str) -> Reading:
    return Reading(
        reason(
            "versions-differ",
            f"The installed {package} has no `{owner}.{name}`, which {caller} uses: their releases "
            "do not belong together.",
            f"Install the {package} release that {caller} was made for (`pip list | grep -iE "
            f"'{package}|lmcache|vllm'`; a newer {package}, or an older caller), the same on all "
            "nodes, or use the release's container image.",
            "exception by its words; LMCache#1514",
            "deterministic",
        ),
        line,
        rank=Rank.HINT,
        certain=False,
    )


def _model_field(raised: Raised) -> Reading | None:
    """Read that vllm-ascend asks the model's own configuration for a field it does not have."""
    found = _CONFIG.search(raised.message) if raised.type == "AttributeError" else None
    if found is None or _OF_VLLM.match(found[1]):
        return None
    own = next((f for f in raised.frames if f.package != "transformers"), None)
    if own is None or own.package != "vllm_ascend":
        return None
    features = name_features(f"{own.module_path} {own.function}", raised.process)
    off = [remedy for _, remedy in features if remedy]
    about = f" for {' and '.join(name for name, _ in features)}" if features else ""
    switch = f" To start with this one, try {' or '.join(off)}." if off else ""
    return Reading(
        reason(
            "ascend-unsupported",
            f"vllm-ascend ({own.module_path}, {own.function}) reads `{found[2]}` of the model's "
            f"configuration{about}, and `{found[1]}` has none: this release does not know this "
            "model's kind (the field may be in a nested part, as text_config), or config.json is "
            "incomplete.",
            "Use a newer release or image of vllm-ascend that lists this model; compare "
            f"config.json under `model.path` with the hub.{switch}",
            "exception by type and place",
            "deterministic",
        ),
        raised.line,
        rank=Rank.HINT,
        certain=False,
    )
