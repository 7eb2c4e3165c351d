"""Codes of DCMI, the driver's management library, as device plug-ins and npu-smi report them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten

_CODE = re.compile(
    r"\b(?:dcmi|DCMI|npu|NPU|device|davinci|chip)\b[^\n]{0,100}?"
    r"(?:[Rr]et(?:urn)?(?: ?code)?|[Ee]rror(?: ?code)?|[Cc]ode)(?: is)? ?[:=]? ?\[?(-8\d{3})(?!\d)"
)
_HOST = "Run `npu-smi info` on the host and where the call was made"
_ACCESS = (
    f"{_HOST}; map the device files and the driver (/usr/local/Ascend/driver, /usr/local/dcmi) "
    "into the container, and run it privileged or as a member of HwHiAiUser."
)
_FIT = (
    f"{_HOST}; compare driver, firmware and the program that calls it (plug-in, exporter): it may "
    "not know this type of NPU; restart it after a change of driver."
)
_RESET = (
    f"{_HOST}, and `dmesg -T | grep -i davinci`; reset the NPU (`npu-smi set -t reset -i N -c 0`) "
    "when nothing uses it, else reboot the host."
)
# dcmi_interface_api.h. -8005 and -8020 at initialisation have a signature of their own.
_CODES: dict[int, tuple[str, str]] = {
    -8001: ("a parameter is invalid", _FIT),
    -8002: ("the user may not do this", _ACCESS),
    -8003: ("memory could not be used", _RESET),
    -8005: ("an internal error, as when the driver is not reachable", _ACCESS),
    -8006: ("the NPU did not answer in time", _RESET),
    -8007: ("the device number is invalid", _FIT),
    -8008: ("the device does not exist", _ACCESS),
    -8009: ("a call into the driver (ioctl) failed", _ACCESS),
    -8010: ("a message could not be sent to the NPU, or this type of NPU does not take it", _FIT),
    -8011: ("the NPU did not answer a message", _RESET),
    -8012: ("the NPU is not ready (starting, being reset, or lost)", _RESET),
    -8013: ("the call is not supported in a container", "Make the call on the host."),
    -8017: ("the firmware is being upgraded", "Wait until the upgrade is complete."),
    -8020: ("the device is used by another container or process", _ACCESS),
    -8255: ("this NPU or driver does not support the call", _FIT),
}


def read_dcmi(log: ServerLog) -> Iterator[Reading]:
    """Yield the first code of DCMI whose meaning is known."""
    for line, match in log.errors.find(_CODE):
        known = _CODES.get(int(match[1]))
        if known is None or "initialize" in match[0]:
            continue
        meaning, remedy = known
        yield Reading(
            reason(
                "dcmi-code",
                f"The driver of a device refused a query ({match[1]}: {meaning}): "
                f"{shorten(log.cleaned[line].strip(), 160)}.",
                remedy,
                "dcmi_interface_api.h",
                "transient",
            ),
            line,
            rank=Rank.HINT,
            certain=False,
        )
        return
