"""Parsers for the output of npu-smi. Text in, values out: no tool is run here.

Tables are split by what a cell looks like, never by column offsets. Widths differ between releases
(npu-smi 25, 26 and the 950 series), numbers grow into their neighbours ("56017/ 65536"), and the
lower border may be missing. Half a row is no row: what is not certain is left out.

No parser raises for text that it cannot read, with one exception: the two parsers of tables raise
UnreadableOutputError when there is no table. Every run of digits in a pattern has an upper bound:
int() raises ValueError above 4300 digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from raylaunch.node.probe.tool_text import first_line
from raylaunch.plan.facts import Npu, NpuProcess

_ABSENT = ("", "NA", "-")
"""How npu-smi prints a value that it does not have."""


class UnreadableOutputError(ValueError):
    """The output of a tool holds no table of the expected kind."""


@dataclass(frozen=True)
class ChipMapping:
    """One row of `npu-smi info -m`: the logic id (what CANN and Ray count by) of a chip."""

    card: int
    chip: int
    logic_id: int
    phy_id: int | None
    name: str


@dataclass(frozen=True)
class Health:
    """Answer of `npu-smi info -t health`: OK, Warning, Alarm, Critical or UNKNOWN, and the fault.

    `error` is empty when no fault is reported.
    """

    status: str
    error: str = ""


@dataclass(frozen=True)
class EccCounts:
    """One chip of `npu-smi info -t ecc`: HBM errors and isolated pages of its whole life."""

    chip: int
    corrected: int
    uncorrected: int
    isolated_pages: int


@dataclass(frozen=True)
class Board:
    """Answer of `npu-smi info -t board`; npu-smi calls the `driver` the software version."""

    driver: str | None = None
    firmware: str | None = None
    bus_id: str | None = None
    chip_name: str | None = None


def parse_npu_smi_info(text: str) -> tuple[list[Npu], list[NpuProcess]]:
    """Read the device table and the process table of `npu-smi info`.

    The id of an Npu is its Phy-ID where the table has that column (A3: two dies per card), else its
    NPU number. `hbm_total_mb` 0 means that the memory cell could not be read. Process rows that
    belong to no device of the first table are left out.

    Raises:
        UnreadableOutputError: There is no device table in the text.
    """
    lines = [" ".join(line.split()) for line in text.splitlines()]
    npus = _without_repeats(_read_npus(_device_lines(lines)))
    has_header = any(_HEADER.match(line) for line in lines)
    if not npus and not has_header:
        raise UnreadableOutputError(f"no device table in the output of npu-smi: {first_line(text)}")
    return npus, list(_read_processes(lines, npus))


def renumber(
    npus: Iterable[Npu],
    processes: Iterable[NpuProcess],
    mapping: Iterable[ChipMapping],
) -> tuple[list[Npu], list[NpuProcess]]:
    """Replace the table's numbers by logic ids.

    Some A2 boards count their NPUs from 8, while CANN and Ray count from 0.
    """
    logic_ids = {(row.card, row.chip): row.logic_id for row in mapping}
    renumbered: list[Npu] = []
    new_ids: dict[int, int] = {}
    for npu in npus:
        new_id = logic_ids.get((npu.card, npu.chip), npu.id)
        new_ids[npu.id] = new_id
        renumbered.append(replace(npu, id=new_id))
    moved = [replace(row, npu=new_ids.get(row.npu, row.npu)) for row in processes]
    return renumbered, moved


def parse_mapping(text: str) -> list[ChipMapping]:
    """Read `npu-smi info -m`.

    Rows of the management controller (Mcu, logic id "-") are left out. The 950 series has no column
    Chip Logic ID: there the NPU ID is the logic id.

    Raises:
        UnreadableOutputError: The text has no line of column names.
    """
    columns: list[str] = []
    chips: list[ChipMapping] = []
    for line in text.splitlines():
        if not columns:
            names = _MAPPING_COLUMNS.findall(line)
            columns = names if "NPU ID" in names else []
            continue
        cells = line.split(maxsplit=len(columns) - 1)
        chip = _chip(dict(zip(columns, cells, strict=False)))
        if chip is not None:
            chips.append(chip)
    if not columns:
        raise UnreadableOutputError(
            f"no column names in the output of npu-smi info -m: {first_line(text)}"
        )
    return chips


def parse_health(text: str) -> Health | None:
    """Read `npu-smi info -t health`; None when the text holds no health status."""
    fields = _fields(text)
    status = fields.get("health status") or fields.get("health")
    if not status:
        return None
    faults = [fields.get("error code", ""), fields.get("error information", "")]
    return Health(status, " ".join(fault for fault in faults if fault not in _ABSENT))


def parse_board(text: str) -> Board:
    """Read `npu-smi info -t board`; a value without a line is None."""
    fields = _fields(text)
    present = {key: value for key, value in fields.items() if value not in _ABSENT}
    return Board(
        driver=present.get("software version"),
        firmware=present.get("firmware version"),
        bus_id=present.get("pcie bus info"),
        chip_name=present.get("chip name"),
    )


def parse_ecc(text: str) -> list[EccCounts]:
    """Read `npu-smi info -t ecc`; chips whose HBM counters are missing are left out.

    The id of a chip stands behind its counters; the 950 series prints none, for it has one chip.
    The "Error Count" without "Aggregate" begins again at each reset, so it is not read.
    Source: the manual of npu-smi and the driver's own program (npu_smi), not a real machine.
    """
    found = []
    block: list[str] = []
    for line in [*text.splitlines(), "Chip ID : 0"]:
        key, _, value = line.partition(":")
        block.append(line)
        if " ".join(key.split()).lower() == "chip id":
            counts = _ecc_counts(_fields("\n".join(block)), _whole(value.strip()))
            found += [] if counts is None else [counts]
            block = []
    return found


# All patterns below are for lines whose runs of blanks have been collapsed to one.
_HEADER = re.compile(r"\| NPU(?: ID \|)? Name \| Health \|")
# "| 0 910B1 | OK | 97.4 50 0 / 0 |"; the 950 series has a border between number and name.
_UPPER = re.compile(
    r"\| (?P<card>\d{1,9}) (?:\| )?(?P<name>[^| ][^|]*?) \| (?P<health>[A-Za-z]+|-) "
    r"\| (?P<power>\S+) (?P<temperature>\S+) (?:\d+ ?/ ?\d+|NA|-) ?\|"
)
# "| 0 14 | 0000:81:00.0 | 0 0 / 0 3145 / 65536 |": the second number is the Phy-ID.
# 950: "| | | NA | ...".
_LOWER = re.compile(
    r"\| (?:(?P<chip>\d{1,9}) (?:(?P<phy>\d{1,9}) )?|\| )\| "
    r"(?P<bus>[\da-fA-F]{4,8}:[\da-fA-F]{2}:[\da-fA-F]{2}\.[\da-fA-F]|NA) "
    r"\| (?P<aicore>\S+) (?P<memory>[^|]*?) ?\|"
)
_USED_OF_TOTAL = re.compile(r"(?:^| )(\d{1,12}) ?/ ?(\d{1,12})(?= |$)")
# "| 0 0 | 3755935 | python | 52245 |"; npu-smi 26: "... | 5175 | NA |" (pid in the container);
# 950: no chip.
_PROCESS = re.compile(
    r"\| (?P<card>\d{1,9})(?: (?P<chip>\d{1,9}))? \| (?P<pid>\d{1,12}) "
    r"\| (?P<name>[^|]*)\| (?P<memory>\d{1,12}) \|(?: (?P<inner>\d{1,12}|NA|-) \|)?"
)
_MAPPING_COLUMNS = re.compile(r"NPU ID|Slot ID|Chip ID|Chip Logic ID|Chip Phy-ID|Chip Name")


def _device_lines(lines: list[str]) -> Iterator[str]:
    """Yield the lines of the device table: numbers below the words "Process id" are no devices."""
    for line in lines:
        if "Process id" in line:
            return
        yield line


def _read_npus(lines: Iterable[str]) -> Iterator[Npu]:
    """Join the two lines of each device."""
    upper = None
    for line in lines:
        found = _UPPER.fullmatch(line)
        if found:
            upper = found
            continue
        # A border ends a device: halves on its two sides do not belong together.
        if line.startswith("+"):
            upper = None
            continue
        lower = _LOWER.fullmatch(line) if upper else None
        if upper and lower:
            yield _npu(upper, lower)
            upper = None


def _npu(upper: re.Match[str], lower: re.Match[str]) -> Npu:
    used_mb = 0
    total_mb = 0
    memory = _USED_OF_TOTAL.findall(lower["memory"])
    if memory:
        # The last pair is HBM, the one before it DDR.
        used, total = memory[-1]
        used_mb = int(used)
        total_mb = int(total)
    bus_id = lower["bus"]
    return Npu(
        id=int(lower["phy"] or upper["card"]),
        card=int(upper["card"]),
        chip=int(lower["chip"] or 0),
        name=upper["name"],
        health=upper["health"],
        bus_id=None if bus_id == "NA" else bus_id,
        hbm_used_mb=used_mb,
        hbm_total_mb=total_mb,
        power_w=_number(upper["power"]),
        temperature_c=_whole(upper["temperature"]),
        aicore_percent=_whole(lower["aicore"]),
    )


def _without_repeats(npus: Iterable[Npu]) -> list[Npu]:
    """Keep the first row of each chip."""
    by_chip: dict[tuple[int, int], Npu] = {}
    for npu in npus:
        by_chip.setdefault((npu.card, npu.chip), npu)
    return list(by_chip.values())


def _read_processes(lines: list[str], npus: list[Npu]) -> Iterator[NpuProcess]:
    for line in lines:
        row = _PROCESS.fullmatch(line)
        if row is None:
            continue
        npu = _owner(row, npus)
        if npu is None:
            continue
        yield NpuProcess(
            npu=npu.id,
            pid=int(row["pid"]),
            name=row["name"].strip(),
            memory_mb=int(row["memory"]),
            container_pid=_whole(row["inner"] or "-"),
        )


def _owner(row: re.Match[str], npus: list[Npu]) -> Npu | None:
    """Find the device of a process row; None when the row fits no device, or several."""
    card = int(row["card"])
    on_card = [npu for npu in npus if npu.card == card]
    if row["chip"] is not None:
        chip = int(row["chip"])
        on_card = [npu for npu in on_card if npu.chip == chip]
    return on_card[0] if len(on_card) == 1 else None


def _chip(row: dict[str, str]) -> ChipMapping | None:
    card = _whole(row.get("NPU ID", "-"))
    chip = _whole(row.get("Chip ID", "-"))
    phy = _whole(row.get("Chip Phy-ID", "-"))
    logic = _whole(row.get("Chip Logic ID", "-"))
    is_950 = "Chip Logic ID" not in row and "Slot ID" in row
    if is_950 and phy is not None:
        logic = card
    if logic is None or card is None or chip is None:
        return None
    if "Chip Name" not in row:
        return None
    name = row["Chip Name"].strip()
    return ChipMapping(card, chip, logic, phy, name)


def _ecc_counts(fields: dict[str, str], chip: int | None) -> EccCounts | None:
    corrected = _whole(fields.get("hbm single bit aggregate total err cnt", ""))
    uncorrected = _whole(fields.get("hbm double bit aggregate total err cnt", ""))
    pages = _whole(fields.get("hbm double bit isolated pages count", ""))
    if chip is None or corrected is None or uncorrected is None or pages is None:
        return None
    return EccCounts(chip, corrected, uncorrected, pages)


def _fields(text: str) -> dict[str, str]:
    """Read lines of the form "Key : value", keys in lower case.

    The first of a repeated key counts: it belongs to the first chip.
    """
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            name = " ".join(key.split()).lower()
            fields.setdefault(name, value.strip())
    return fields


def _number(cell: str) -> float | None:
    if re.fullmatch(r"\d{1,12}(\.\d{1,12})?", cell, re.ASCII):
        return float(cell)
    return None


def _whole(cell: str) -> int | None:
    if re.fullmatch(r"\d{1,12}", cell, re.ASCII):
        return int(cell)
    return None
