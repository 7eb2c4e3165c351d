"""Which releases belong together: vllm-ascend's own table of versions.

Source: docs/source/community/versioning_policy.md of vllm-ascend, 2026-08.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class ReleaseSet(NamedTuple):
    """One release of vllm-ascend and what it is made for; "" where it names none."""

    ascend: str
    vllm: str
    python: str
    cann: str
    torch: str
    torch_npu: str
    triton_ascend: str


# Newest first.
_SETS = (
    ReleaseSet("0.23.0", "0.23.0", ">= 3.10, < 3.13", "9.1.0", "2.10.0", "2.10.0.post4", "3.2.2"),
    ReleaseSet(
        "0.23.0rc1", "0.23.0", ">= 3.10, < 3.13", "9.0.1", "2.10.0", "2.10.0.post2", "3.2.1"
    ),
    ReleaseSet("0.22.1rc1", "0.22.1", ">= 3.10, < 3.13", "9.0.0", "2.10.0", "2.10.0", "3.2.1"),
    ReleaseSet("0.21.0rc1", "0.21.0", ">= 3.10, < 3.13", "9.0.0", "2.10.0", "2.10.0", "3.2.1"),
    ReleaseSet("0.20.2rc1", "0.20.2", ">= 3.10, < 3.12", "9.0.0", "2.10.0", "2.10.0", "3.2.1"),
    ReleaseSet("0.19.1rc1", "0.19.1", ">= 3.10, < 3.12", "8.5.1", "2.9.0", "2.9.0", "3.2.0"),
    ReleaseSet(
        "0.18.0",
        "0.18.0",
        ">= 3.10, < 3.12",
        "8.5.1",
        "2.9.0",
        "2.9.0.post1+git4c901a4",
        "3.2.0.dev20260322",
    ),
    ReleaseSet("0.18.0rc1", "0.18.0", ">= 3.10, < 3.12", "8.5.1", "2.9.0", "2.9.0", "3.2.0"),
    ReleaseSet("0.17.0rc1", "0.17.0", ">= 3.10, < 3.12", "8.5.1", "2.9.0", "2.9.0", "3.2.0"),
    ReleaseSet("0.16.0rc1", "0.16.0", ">= 3.10, < 3.12", "8.5.1", "2.9.0", "2.9.0", "3.2.0"),
    ReleaseSet("0.15.0rc1", "0.15.0", ">= 3.10, < 3.12", "8.5.0", "2.9.0", "2.9.0", "3.2.0"),
    ReleaseSet("0.14.0rc1", "0.14.1", ">= 3.10, < 3.12", "8.5.0", "2.9.0", "2.9.0", "3.2.0"),
    ReleaseSet("0.13.0rc3", "0.13.0", ">= 3.10, < 3.12", "8.5.1", "2.8.0", "2.8.0.post2", "3.2.0"),
    ReleaseSet("0.13.0", "0.13.0", ">= 3.10, < 3.12", "8.5.0", "2.8.0", "2.8.0.post2", "3.2.0"),
    ReleaseSet("0.13.0rc2", "0.13.0", ">= 3.10, < 3.12", "8.5.0", "2.8.0", "2.8.0.post1", "3.2.0"),
    ReleaseSet("0.13.0rc1", "0.13.0", ">= 3.10, < 3.12", "8.3.RC2", "2.8.0", "2.8.0", ""),
    ReleaseSet("0.12.0rc1", "0.12.0", ">= 3.10, < 3.12", "8.3.RC2", "2.8.0", "2.8.0", ""),
    ReleaseSet("0.11.0", "0.11.0", ">= 3.9, < 3.12", "8.3.RC2", "2.7.1", "2.7.1.post1", ""),
    ReleaseSet("0.11.0rc3", "0.11.0", ">= 3.9, < 3.12", "8.3.RC2", "2.7.1", "2.7.1.post1", ""),
    ReleaseSet("0.11.0rc2", "0.11.0", ">= 3.9, < 3.12", "8.3.RC2", "2.7.1", "2.7.1", ""),
    ReleaseSet("0.11.0rc1", "0.11.0", ">= 3.9, < 3.12", "8.3.RC1", "2.7.1", "2.7.1", ""),
    ReleaseSet(
        "0.11.0rc0", "0.11.0rc3", ">= 3.9, < 3.12", "8.2.RC1", "2.7.1", "2.7.1.dev20250724", ""
    ),
    ReleaseSet(
        "0.10.2rc1", "0.10.2", ">= 3.9, < 3.12", "8.2.RC1", "2.7.1", "2.7.1.dev20250724", ""
    ),
    ReleaseSet(
        "0.10.1rc1",
        "0.10.1, 0.10.1.1",
        ">= 3.9, < 3.12",
        "8.2.RC1",
        "2.7.1",
        "2.7.1.dev20250724",
        "",
    ),
    ReleaseSet(
        "0.10.0rc1", "0.10.0", ">= 3.9, < 3.12", "8.2.RC1", "2.7.1", "2.7.1.dev20250724", ""
    ),
    ReleaseSet(
        "0.9.2rc1", "0.9.2", ">= 3.9, < 3.12", "8.1.RC1", "2.5.1", "2.5.1.post1.dev20250619", ""
    ),
    ReleaseSet("0.9.1", "0.9.1", ">= 3.9, < 3.12", "8.2.RC1", "2.5.1", "2.5.1.post1", ""),
    ReleaseSet("0.9.1rc3", "0.9.1", ">= 3.9, < 3.12", "8.2.RC1", "2.5.1", "2.5.1.post1", ""),
    ReleaseSet("0.9.1rc2", "0.9.1", ">= 3.9, < 3.12", "8.2.RC1", "2.5.1", "2.5.1.post1", ""),
    ReleaseSet(
        "0.9.1rc1", "0.9.1", ">= 3.9, < 3.12", "8.1.RC1", "2.5.1", "2.5.1.post1.dev20250528", ""
    ),
    ReleaseSet("0.9.0rc2", "0.9.0", ">= 3.9, < 3.12", "8.1.RC1", "2.5.1", "2.5.1", ""),
    ReleaseSet("0.9.0rc1", "0.9.0", ">= 3.9, < 3.12", "8.1.RC1", "2.5.1", "2.5.1", ""),
    ReleaseSet("0.8.5rc1", "0.8.5.post1", ">= 3.9, < 3.12", "8.1.RC1", "2.5.1", "2.5.1", ""),
    ReleaseSet("0.8.4rc2", "0.8.4", ">= 3.9, < 3.12", "8.0.0", "2.5.1", "2.5.1", ""),
    ReleaseSet("0.7.3.post1", "0.7.3", ">= 3.9, < 3.12", "8.1.RC1", "2.5.1", "2.5.1", ""),
    ReleaseSet("0.7.3", "0.7.3", ">= 3.9, < 3.12", "8.1.RC1", "2.5.1", "2.5.1", ""),
)
_OF_ASCEND = re.compile(
    r"vllm[_-]ascend(?:==|-|[:=] ?v?|/v| +v?)(\d\.\d{1,2}\.\d{1,2}(?:rc\d{1,2}|\.post\d)?)|"
    r"vllm-ascend:v(\d\.\d{1,2}\.\d{1,2}(?:rc\d{1,2}|\.post\d)?)"
)
_OF_VLLM = re.compile(
    r"LLM engine \(v(\d\.\d{1,2}\.\d{1,2}(?:rc\d{1,2}|\.post\d)?)\S{0,40}\) with config|"
    r"vLLM API server version v?(\d\.\d{1,2}\.\d{1,2}(?:rc\d{1,2}|\.post\d)?)|"
    r"  version v?(\d\.\d{1,2}\.\d{1,2}(?:rc\d{1,2}|\.post\d)?)(?:\+\S{1,40})?\s*$"
)
_ON_ASCEND = re.compile(r"(?i)ascend|torch_npu|\bnpu\b")


def find_set(lines: Iterable[str]) -> ReleaseSet | None:
    """Return the set of the release that a log on NPUs names; None when it names no known one."""
    vllm = ""
    on_ascend = False
    for line in lines:
        if found := _OF_ASCEND.search(line):
            return _named(found[1] or found[2], "ascend")
        if not vllm and (found := _OF_VLLM.search(line)):
            vllm = found[1] or found[2] or found[3]
        on_ascend = on_ascend or _ON_ASCEND.search(line) is not None
    return _named(vllm, "vllm") if vllm and on_ascend else None


def _named(version: str, field: str) -> ReleaseSet | None:
    """Return the newest final release for a version, else the newest candidate."""
    sets = [each for each in _SETS if version in getattr(each, field).split(", ")]
    finals = [each for each in sets if "rc" not in each.ascend]
    return next(iter(finals or sets), None)


def describe_set(found: ReleaseSet) -> str:
    """Return one sentence with the releases that belong together."""
    triton = f", triton-ascend {found.triton_ascend}" if found.triton_ascend else ""
    return (
        f"By vllm-ascend's table of versions these belong together: vllm-ascend {found.ascend}, "
        f"vllm {found.vllm}, Python {found.python}, CANN {found.cann} (toolkit, kernels and NNAL), "
        f"torch {found.torch}, torch_npu {found.torch_npu}{triton}."
    )


_ABOUT_RELEASES = (
    *("versions-differ", "symbol-undefined", "cann-too-old", "custom-op-missing", "triton-wrong"),
    *("extension-not-built", "ascend-patch-failed", "pip-refused", "cann-compiler-init"),
    *("build-failed", "plugin-failed", "soc-version-unknown"),
)


def name_set(id_: str, lines: Iterable[str]) -> str:
    """Return what belongs together, for a failure that is about releases; else ""."""
    if id_ not in _ABOUT_RELEASES:
        return ""
    found = find_set(lines)
    return f" {describe_set(found)}" if found else ""
