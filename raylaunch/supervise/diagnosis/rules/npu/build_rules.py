"""vllm-ascend, its kernels or a wheel that could not be built: make, ninja, CMake, pip.

pip shows the output of a build indented, so its exceptions are not at the start of a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from raylaunch.supervise.diagnosis.log_lines import ServerLog
from raylaunch.supervise.diagnosis.readings import Rank, Reading, reason, shorten
from raylaunch.supervise.diagnosis.rules.tables.build_reasons import BUILD_REASONS, fill_reason

_SOC = re.compile(r"SOC_VERSION ([\w-]{3,40}) does not support|[Uu]nsupported SOC_VERSION:? ?(\w+)")
_CMAKE = re.compile(
    r"CMake Error(?: at [^\n:]{1,200}(?::\d{1,6})?)?[^\n]{0,60}:\s{0,20}([^\n]{0,200})"
)
_FAILED = re.compile(
    r"(?:g?make(?:\[\d{1,3}\])?|ninja): (?:\*\*\* )?(?:\[([^\]\n]{1,200})\] Error \d{1,3}|"
    r"No rule to make target '([^'\n]{1,300})'|build stopped)|"
    r"CalledProcessError: Command '\[?'?(?:cmake|ninja|make|bash)[^\n]{0,400}?"
    r"(?:--target=(\w{1,60})[^\n]{0,200})?returned non-zero|"
    r"(?:Failed building wheel for|Could not build wheels for) ([\w.-]{1,60})|"
    r"Failed to build (?:installable wheels for [^\n]{0,80}\(([^)\n]{1,80})\)|'?([\w./:-]{1,120}))"
)
_COMPILER_SAID = re.compile(r"(?:fatal )?error: ([^\n]{8,300})")
_ASCEND = re.compile(r"vllm[_-]ascend|ascendc|camem|torch_npu|CANN")
_KNOWN = tuple((re.compile(each.words), each) for each in BUILD_REASONS)
# A compiler of sources, not Triton's at a start: a percentage, a source folder, pip's own lines.
_BUILD_LOG = re.compile(
    r"^\s{0,8}\[ ?\d{1,3}%\] |/csrc/|CMakeFiles/|subprocess-exited-with-error|"
    r"Building (?:wheel|editable) for|build_ext|pip-(?:build-env|install|req-build)-|"
    r"cmake (?:-S|--build) |tikcfw|kernel_macros|\bsetup\.py\b|"
    r"-- (?:Configuring|Build files|The C(?:XX)? compiler)"
)


def read_builds(log: ServerLog) -> Iterator[Reading]:
    """Yield what could not be built, with the first error of its compiler: one reading a log."""
    soc = next(iter(log.errors.find(_SOC)), None)
    if soc is not None:
        yield _no_soc(soc[0], soc[1][1] or soc[1][2])
        return
    failed = list(log.errors.find(_FAILED))
    cmake = list(log.errors.find(_CMAKE))
    if known := _known_reason(log, bool(failed or cmake)):
        covers = frozenset(line for line, _ in (*failed, *cmake))
        yield replace(known, covers=known.covers | covers)
        return
    if not failed and not cmake:
        return
    line = min(line for line, _ in (*failed, *cmake))
    covers = frozenset(line for line, _ in (*failed, *cmake))
    named = [group for _, match in failed for group in match.groups() if group]
    what = f" ({shorten(named[0], 160)})" if named else ""
    near = "\n".join(log.cleaned)
    own = next((n for n in named if _ASCEND.search(n)), None) is not None or bool(
        _ASCEND.search(near)
    )
    said = next(iter(log.errors.find(_COMPILER_SAID)), None)
    quoted = said[1][1] if said else next((match[1] for _, match in cmake if match[1]), "")
    why = f": {shorten(quoted.strip(), 200)}" if quoted.strip() else ""
    package = "vllm-ascend or its kernels" if own else "A package"
    switch = (
        " `COMPILE_CUSTOM_KERNELS=0` builds vllm-ascend without kernels of its own (no sleep mode)."
        if own
        else ""
    )
    yield Reading(
        reason(
            "build-failed",
            f"{package} could not be built{what}{why}.",
            "The compiler's first `error:` above these lines is the reason. Source CANN's and "
            "NNAL's set_env.sh before the build, set SOC_VERSION for the NPU, use gcc and cmake of "
            "the documented versions (if C++ headers are not found, name them in "
            f"CPLUS_INCLUDE_PATH), and build with `--no-build-isolation`.{switch} The release's "
            "image and wheels need no build.",
            "setup.py of vllm-ascend; vllm-ascend#591, #676",
            "deterministic",
        ),
        line,
        covers=covers,
        rank=Rank.HINT,
        certain=False,
    )


def _known_reason(log: ServerLog, failed: bool) -> Reading | None:
    """Return what the first known words of a build mean; None outside of a build."""
    found = [
        (line, number, match)
        for number, (pattern, _) in enumerate(_KNOWN)
        for line, match in log.errors.find(pattern)
    ]
    if not found:
        return None
    if not failed and not any(_BUILD_LOG.search(text) for text in log.cleaned):
        return None
    line, number, match = min(found, key=lambda each: each[:2])
    cause, remedy = fill_reason(_KNOWN[number][1], match)
    return Reading(
        reason(
            "build-failed",
            f"A build failed: {cause} (`{shorten(match[0], 160)}`).",
            remedy,
            "setup.py and CMakeLists.txt of vllm-ascend",
            "deterministic",
        ),
        line,
        covers=frozenset(each[0] for each in found),
        certain=False,
    )


def _no_soc(line: int, version: str) -> Reading:
    return Reading(
        reason(
            "soc-version-unknown",
            f"The installed CANN cannot build kernels for {version}: this NPU generation is not in "
            "its list of SOC_VERSION.",
            f"Set SOC_VERSION to the NPU that is there (`npu-smi info`), or install a CANN that "
            f"supports {version}; if no release does, this software does not run on that chip.",
            "ascendc_kernel_cmake host_config.cmake",
            "deterministic",
        ),
        line,
    )
