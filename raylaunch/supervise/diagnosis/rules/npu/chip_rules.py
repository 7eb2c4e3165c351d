"""An NPU of a generation that a package, an operator or an option is not made for.

Numbers of chips: torch_npu NpuVariables.h.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.refusal_rules import name_options
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_NUMBER = re.compile(r"(?i)\bsoc[_ ]?version:? ?(?:is )?(\d{3})\b")
_NAME = re.compile(
    r"\b(Ascend ?\d{3}\w{0,8}|AscendDeviceType\.\w{1,10}|(?:910|310|950)[A-Z]\w{0,6}|"
    r"Atlas ?[A-Z0-9]\w{0,4}(?: ?(?:I|A\d))?)\b"
)
_REFUSED = re.compile(
    r"[Nn]ot (?:yet )?support|[Uu]nsupported|[Uu]nknown|[Uu]nrecogni|[Ii]nvalid|"
    r"[Oo]nly (?:support|available|work)|[Nn]ot (?:available|implemented)|[Nn]ot match"
)
_OF_THE_CHIP = re.compile(r"(?i)\bsoc\b|soc[_ ]?version|device[_ ]?type|chip|hardware|platform")
_GENERATIONS: tuple[tuple[range, str], ...] = (
    (range(100, 110), "Ascend 910 of the first generation (Atlas 800 training)"),
    (range(200, 210), "310P (Atlas 300I)"),
    (range(220, 230), "910B (Atlas A2)"),
    (range(240, 250), "310B (Atlas 200I)"),
    (range(250, 260), "910C (Atlas A3)"),
    (range(260, 270), "950 (A5)"),
)
_IMAGES = (
    "Images and wheels of vllm-ascend are made for one generation: the plain tag for A2, `-a3` for "
    "A3, `-310p` for 310P"
)


def read_chips(log: ServerLog) -> Iterator[Reading]:
    """Yield the exceptions that refuse this generation of NPU."""
    for raised in find_exceptions(log):
        if reading := _refused_chip(raised):
            yield reading


def _refused_chip(raised: Raised) -> Reading | None:
    number = _NUMBER.search(raised.message)
    name = _NAME.search(raised.message)
    if not (number or name) or not _REFUSED.search(raised.message):
        return None
    if "soc_version does not support" in raised.message.lower():
        return None  # a build, which `build_rules` reads
    chip = _generation(int(number[1])) if number else name[1] if name else ""
    package = raised.innermost.package.replace("_", "-") if raised.innermost else "this release"
    whole = number is not None or _OF_THE_CHIP.search(raised.message) is not None
    said = shorten(raised.message, 200).rstrip(". ")
    options = name_options(raised.message)
    remedy = _other_image(package) if whole else _other_option(options)
    return Reading(
        reason(
            "npu-generation",
            f"{package} is not made for this NPU generation, {chip}: {said}."
            if whole
            else f"What {package} was asked for is not there on this NPU generation, {chip}: "
            f"{said}.",
            remedy,
            "torch_npu NpuVariables.h; vllm-ascend's table of images",
            "deterministic",
        ),
        raised.line,
        certain=False,
    )


def _generation(number: int) -> str:
    known = next((name for numbers, name in _GENERATIONS if number in numbers), "unknown")
    return f"{known} (soc version {number})"


def _other_image(package: str) -> str:
    other = "" if package == "vllm-ascend" else f" Else use a release of {package} that names it."
    return (
        f"{_IMAGES}. Compare `npu-smi info` with the image, and take the one for this NPU. A "
        f"generation without an image needs other hardware.{other}"
    )


def _other_option(options: list[str]) -> str:
    off = f"Leave out or change {' or '.join(options)}" if options else "Leave that feature out"
    return f"{off} on this NPU, or use a release that supports it there. {_IMAGES}."
