"""An NPU of a generation that a package, an operator or an option is not made for.

Numbers of chips: torch_npu NpuVariables.h.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.tables.option_names import name_options
from raylaunch.supervise.diagnosis.tracebacks import Raised, find_exceptions

_NUMBER = re.compile(r"(?i)\bsoc[_ ]?version:? ?(?:is )?(\d{3})\b")
_NAME = re.compile(
    r"\b(Ascend ?\d{3}\w{0,8}|Ascend(?:DeviceType|SocVersion)\.\w{1,10}|"
    r"(?:910|310|950)[A-Z]\w{0,6}|Atlas ?[A-Z0-9]\w{0,4}(?: ?(?:I|A\d))?)\b"
)
_REFUSED = re.compile(
    r"[Nn]ot (?:yet )?support|[Uu]nsupported|[Uu]nknown|[Uu]nrecogni|[Ii]nvalid|"
    r"[Oo]nly (?:support|available|work)|[Nn]ot (?:available|implemented)|[Nn]ot match"
)
_BUILT_FOR = re.compile(
    r"[Dd]evice type: ?([\w.]{2,40}) does not match[^\n]{0,40} device type: ?([\w.]{2,40}\w)"
)
_BIN_PACKAGE = re.compile(
    r"soc ?ver\w{4,5} (\w{4,30}) of bin package does not match the current device soc ?ver\w{4,5} "
    r"([\w-]{4,30})"
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
    """Yield the exceptions, and a line of an installer, that refuse this generation of NPU."""
    for line, match in log.errors.find(_BIN_PACKAGE):
        yield _other_build(line, match[2], match[1], "package of operators")
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
    package = _who(raised)
    whole = number is not None or _OF_THE_CHIP.search(raised.message) is not None
    if built := _BUILT_FOR.search(raised.message):
        return _other_build(raised.line, built[1], built[2], package)
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


def _who(raised: Raised) -> str:
    if raised.innermost:
        return raised.innermost.package.replace("_", "-")
    # torch_npu raises in C++, without a frame, and says it in these words (NpuVariables.cpp).
    return "torch_npu" if "soc version" in raised.message.lower() else "vllm-ascend"


def _generation(number: int) -> str:
    known = next((name for numbers, name in _GENERATIONS if number in numbers), "unknown")
    return f"{known} (soc version {number})"


def _other_image(package: str) -> str:
    return (
        f"Use a newer release of {package} that supports this NPU (`npu-smi info`), and its image "
        f"made for it. {_IMAGES}. A generation without an image needs other hardware."
    )


def _other_build(line: int, chip: str, built: str, package: str) -> Reading:
    return Reading(
        reason(
            "npu-generation",
            f"The installed {package} was built for another NPU generation ({built}) than this "
            f"NPU is of ({chip}).",
            f"Use the image made for {chip.partition('.')[2] or chip}, or build {package} again "
            f"with that SOC_VERSION. {_IMAGES}; newer generations from the release on that lists "
            "them.",
            "vllm-ascend utils.py, check_ascend_device_type",
            "deterministic",
        ),
        line,
    )


def _other_option(options: list[str]) -> str:
    off = f"Leave out or change {' or '.join(options)}" if options else "Leave that feature out"
    return f"{off} on this NPU, or use a release that supports it there. {_IMAGES}."
