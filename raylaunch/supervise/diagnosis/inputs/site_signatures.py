r"""Signatures and noise that a site adds without a release: `signatures.d/*.yaml` in its home.

    signatures:
      - id: site-license
        pattern: 'licence server (\S{1,80}) does not answer'
        level: fatal
        class: transient
        cause: The licence server {0} does not answer.
        remedy: Ask the platform team.
        sample: 'RuntimeError: licence server lic1 does not answer'
    noise:
      - pattern: 'metrics exporter: retrying'
        sample: 'ERROR metrics exporter: retrying in 5 s'

A file is used when all of it is sound, by the rules that the tests hold raylaunch's own to. One
that is not is named with its problems, and the others still count.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raylaunch.recipe.yaml_limits import load_plain
from raylaunch.supervise.diagnosis.inputs.pattern_cost import find_costly
from raylaunch.supervise.diagnosis.log_lines import read_log
from raylaunch.supervise.diagnosis.root_cause import diagnose_text
from raylaunch.supervise.diagnosis.signatures import (
    Kind,
    Level,
    Signature,
    Site,
    load_signatures,
    make_signature,
)

FOLDER = "signatures.d"
MAX_FILES = 100
_PLACEHOLDER = re.compile(r"\{(\d)\}")
Text = Field(min_length=1, max_length=4000)


class _SignatureEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9]+(-[A-Za-z0-9]+)*$", max_length=60)
    pattern: str = Text
    level: Level
    kind: Kind = Field(alias="class")
    cause: str = Text
    remedy: str = Text
    source: str = ""
    sample: str = Text
    wrapper: bool = False
    symptom: bool = False
    anchor: str = ""


class _NoiseEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    pattern: str = Text
    sample: str = Text


class _SiteFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    signatures: tuple[_SignatureEntry, ...] = Field(default=(), max_length=1000)
    noise: tuple[_NoiseEntry, ...] = Field(default=(), max_length=1000)


@dataclass(frozen=True)
class SiteCheck:
    """What a site's folder holds."""

    site: Site
    files: tuple[str, ...]
    """Names of the files that are used."""
    problems: tuple[str, ...]
    """`FILE: problem` of those that are not."""


def read_site(home: Path) -> SiteCheck:
    """Read and check `signatures.d/*.yaml` below the home of raylaunch."""
    signatures: list[Signature] = []
    noise: list[re.Pattern[str]] = []
    files: list[str] = []
    problems: list[str] = []
    taken = {signature.id for signature in load_signatures()}
    paths = sorted((home / FOLDER).glob("*.yaml"))
    if len(paths) > MAX_FILES:
        problems.append(f"{FOLDER}: {len(paths)} files; the first {MAX_FILES} are read")
    for path in paths[:MAX_FILES]:
        found = check_file(path, taken)
        problems += found.problems
        if found.problems:
            continue
        files.append(path.name)
        signatures += found.site.signatures
        noise += found.site.noise
        taken |= {signature.id for signature in found.site.signatures}
    return SiteCheck(Site(tuple(signatures), tuple(noise)), tuple(files), tuple(problems))


def check_file(path: Path, taken: Collection[str] = ()) -> SiteCheck:
    """Read and check one file.

    Args:
        path: The file.
        taken: Ids that other signatures have.
    """
    try:
        value = load_plain(_read(path))
        content = _SiteFile.model_validate({} if value is None else value)
    except (OSError, yaml.YAMLError, ValidationError, ValueError) as error:
        problems = tuple(f"{path.name}: {problem}" for problem in _describe(error))
        return SiteCheck(Site(), (), problems)
    found = [
        *_entry_problems(content.signatures, taken),
        *(problem for entry in content.noise for problem in _noise_problems(entry)),
    ]
    if found:
        return SiteCheck(Site(), (), tuple(f"{path.name}: {problem}" for problem in found))
    site = Site(
        tuple(_make(entry, path.name) for entry in content.signatures),
        tuple(re.compile(entry.pattern) for entry in content.noise),
    )
    found = [problem for signature in site.signatures for problem in sample_problems(signature)]
    return SiteCheck(site, (path.name,), tuple(f"{path.name}: {problem}" for problem in found))


def _read(path: Path) -> str:
    # A pipe or a device would block, or never end.
    if not path.is_file():
        raise ValueError("it is not a file")
    return path.read_text(encoding="utf-8")


def _describe(error: Exception) -> Iterator[str]:
    """Yield what is wrong, with its place in the file."""
    if isinstance(error, ValidationError):
        for one in error.errors(include_url=False)[:10]:
            place = ".".join(str(part) for part in one["loc"])
            yield f"{place}: {one['msg']}" if place else one["msg"]
    elif isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        yield f"line {error.problem_mark.line + 1}: {error.problem}"
    else:
        yield " ".join(str(error).split())


def _entry_problems(entries: Collection[_SignatureEntry], taken: Collection[str]) -> Iterator[str]:
    ids = set(taken)
    for entry in entries:
        if entry.id in ids:
            yield f"{entry.id}: another signature has this id"
        ids.add(entry.id)
        problems = list(_pattern_problems(entry.pattern, entry.sample))
        problems += [] if problems else _rule_problems(entry)
        yield from (f"{entry.id}: {problem}" for problem in problems)


def _pattern_problems(pattern: str, sample: str) -> Iterator[str]:
    try:
        compiled = re.compile(pattern, re.MULTILINE)
    except (re.error, OverflowError, RecursionError) as error:
        yield f"its pattern is no regular expression of Python: {error}"
        return
    if costly := find_costly(pattern):
        yield f"its pattern is slow on a long line: {costly}"
    elif compiled.search(""):
        yield "its pattern matches an empty line"
    elif not compiled.search(sample[:8192]):
        yield "its pattern does not match its sample"


def _rule_problems(entry: _SignatureEntry) -> Iterator[str]:
    if (entry.kind == "harmless") != (entry.level in ("warning", "quality")):
        yield "class `harmless` belongs to level `warning` or `quality`, and to no other"
    if entry.wrapper and entry.symptom:
        yield "it is either a wrapper or a symptom"
    if entry.anchor and (entry.level == "fatal" or entry.anchor not in entry.sample):
        yield "an anchor is a text of the sample, and a fatal signature has none"
    wanted = [int(number) for number in _PLACEHOLDER.findall(entry.cause + entry.remedy)]
    if max(wanted, default=-1) >= re.compile(entry.pattern).groups:
        yield f"its texts name the group {{{max(wanted)}}}, which the pattern does not have"


def _noise_problems(entry: _NoiseEntry) -> Iterator[str]:
    for problem in _pattern_problems(entry.pattern, entry.sample):
        yield f"noise `{entry.pattern[:60]}`: {problem}"


def _make(entry: _SignatureEntry, file: str) -> Signature:
    values = entry.model_dump(by_alias=True)
    signature = make_signature({**values, "source": entry.source or f"this site's {file}"})
    return replace(signature, file=file)


def sample_problems(signature: Signature) -> Iterator[str]:
    """Yield why the sample of a signature is not diagnosed as that signature."""
    found = diagnose_text(signature.sample, site=Site((signature,)))
    if found is None:
        log = read_log(signature.sample.splitlines())
        hidden = signature.level == "fatal" and not log.errors.text.strip()
        why = ": it was logged below ERROR, where nothing is fatal" if hidden else ""
        yield f"{signature.id}: its sample has no diagnosis{why}"
    elif found.id != signature.id:
        yield f"{signature.id}: its sample is diagnosed as {found.id}"
