"""What npu-smi and hccn_tool print, read into values. Text in, types out: nothing is run here.

The tables are split by what a cell looks like, never by column offsets: widths differ between releases
(npu-smi 25, 26 and the 950 series), numbers grow into their neighbours ("56017/ 65536"), and the lower
border may be missing. Half a row is no row: what is not certain is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from raylaunch.plan.facts import Npu, NpuProcess


@dataclass(frozen=True)
class ChipMapping:
    """One row of `npu-smi info -m`: which logic id (what CANN and Ray count by) a chip has."""

    card: int
    chip: int
    logic_id: int
    phy_id: int | None
    name: str


@dataclass(frozen=True)
class Health:
    """Answer of `npu-smi info -t health`: OK, Warning, Alarm, Critical or UNKNOWN, and the fault when there is one."""

    status: str
    error: str = ""


@dataclass(frozen=True)
class Board:
    """Answer of `npu-smi info -t board`; `driver` is what npu-smi calls the software version."""

    driver: str | None = None
    firmware: str | None = None
    bus_id: str | None = None
    chip_name: str | None = None


@dataclass(frozen=True)
class NpuPing:
    """Answer of `hccn_tool -ping`; `loss_percent` is None when no packet was counted, `complaint` the tool's word."""

    loss_percent: float | None
    complaint: str = ""

    @property
    def reached(self) -> bool:
        """Every packet came back."""
        return self.loss_percent == 0

    @property
    def counted(self) -> bool:
        """Whether the tool sent packets at all, or said why the network took none."""
        return self.loss_percent is not None or bool(
            re.fullmatch(_NETWORK_COMPLAINT, self.complaint)
        )


def parse_npu_smi_info(text: str) -> tuple[list[Npu], list[NpuProcess]]:
    """Read the two tables of `npu-smi info`.

    An Npu's id is its Phy-ID where the table has that column (A3: two dies per card), else its NPU number.
    `hbm_total_mb` 0 means that the memory cell could not be read. Rows of the process table that belong to no
    device of the first table are left out.

    Raises:
        ValueError: There is no device table in the text.
    """
    lines = [" ".join(line.split()) for line in text.splitlines()]
    npus = list(_distinct(_read_npus(_above_processes(lines))))
    if not npus and not any(_HEADER.match(line) for line in lines):
        raise ValueError(f"no device table in the output of npu-smi: {first_line(text)}")
    return npus, list(_read_processes(lines, npus))


def renumber(
    npus: Iterable[Npu], processes: Iterable[NpuProcess], mapping: Iterable[ChipMapping]
) -> tuple[list[Npu], list[NpuProcess]]:
    """Replace table numbers by logic ids: some A2 boards count their NPUs from 8 while CANN and Ray count from 0."""
    logic = {(row.card, row.chip): row.logic_id for row in mapping}
    pairs = [(npu, replace(npu, id=logic.get((npu.card, npu.chip), npu.id))) for npu in npus]
    new_ids = {old.id: new.id for old, new in pairs}
    return [new for _, new in pairs], [
        replace(row, npu=new_ids.get(row.npu, row.npu)) for row in processes
    ]


def parse_mapping(text: str) -> list[ChipMapping]:
    """Read `npu-smi info -m`; rows of the management controller (Mcu, logic id "-") are left out.

    The 950 series has no Chip Logic ID column: there the NPU ID is the logic id.

    Raises:
        ValueError: The text has no line of column names.
    """
    lines = iter(text.splitlines())
    columns = next(
        (found for line in lines if "NPU ID" in (found := _MAPPING_COLUMNS.findall(line))), None
    )
    if columns is None:
        raise ValueError(f"no column names in the output of npu-smi info -m: {first_line(text)}")
    rows = (
        dict(zip(columns, line.split(maxsplit=len(columns) - 1), strict=False)) for line in lines
    )
    return [chip for row in rows if (chip := _chip(row)) is not None]


def parse_health(text: str) -> Health | None:
    """Read `npu-smi info -t health`; None when it holds no verdict."""
    fields = _fields(text)
    status = fields.get("Health Status") or fields.get("Health")
    if not status:
        return None
    fault = (fields.get(key, "") for key in ("Error Code", "Error Information"))
    return Health(status, " ".join(part for part in fault if part not in ("", "NA", "-")))


def parse_board(text: str) -> Board:
    """Read `npu-smi info -t board`; a line that is not there is None."""
    fields = {key: value for key, value in _fields(text).items() if value not in ("", "NA", "-")}
    names = ("Software Version", "Firmware Version", "PCIe Bus Info", "Chip Name")
    return Board(*(fields.get(name) for name in names))


def parse_hccn_ip(text: str) -> str | None:
    """The device's own address from `-ip -g`; without one it cannot talk to other hosts."""
    return _first(r"ipaddr:\s*([\d.]+|[\da-fA-F:]*:[\da-fA-F:]+)", text)


def parse_hccn_link(text: str) -> str | None:
    """UP or DOWN from `-link -g`."""
    return _first(r"link status:\s*(\w+)", text)


def parse_hccn_net_health(text: str) -> str | None:
    """Success, Fault, Init ... from `-net_health -g`."""
    return _first(r"net health status:\s*(\w+(?: \w+)*)", text)


def parse_hccn_netdetect(text: str) -> str | None:
    """The address that the device watches, from `-netdetect -g`; 0.0.0.0 means none is set."""
    return _first(r"netdetect address:\s*([\d.]+)", text)


def parse_hccn_gateway(text: str) -> str | None:
    """The device's gateway from `-gateway -g`; None is fine inside one subnet."""
    return _first(r"gateway:\s*([\d.]+)", text)


def parse_hccn_tls(text: str) -> bool | None:
    """Whether TLS is on, from `-tls -g`; it has to be equal on all devices of all hosts (EI0016)."""
    switch = _first(r"tls switch\[([01])\]", text)
    return None if switch is None else switch == "1"


def parse_hccn_mtu(text: str) -> int | None:
    """The device port's MTU in bytes from `-mtu -g`."""
    mtu = _first(r"mtu:\s*(\d+)", text)
    return None if mtu is None else int(mtu)


def parse_hccn_lldp(text: str) -> str | None:
    """The switch port at the other end from `-lldp -g`; None: no LLDP, or two hosts cabled back to back."""
    return _first(r"Ifname:[ \t]*(\S+)", text)


def parse_hccn_ping(text: str) -> NpuPing:
    """Read `-ping -g address X`; any loss above 0 counts as unreachable."""
    loss = _first(r"([\d.]+)% packet loss", text)
    complaint = _first(_NETWORK_COMPLAINT, text) or ""
    return NpuPing(
        None if loss is None else float(loss), complaint or ("" if loss else first_line(text))
    )


def first_line(text: str) -> str:
    """The first line that says something, cut to what fits a message."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no output")[:200]


_NETWORK_COMPLAINT = r"(recv time out|Destination Host Unreachable|Message too long)"

# All patterns are for lines whose runs of blanks have been collapsed to one.
_HEADER = re.compile(r"\| NPU(?: ID \|)? Name \| Health \|")
# "| 0 910B1 | OK | 97.4 50 0 / 0 |"; the 950 series has a cell border between number and name.
_UPPER = re.compile(
    r"\| (?P<card>\d+) (?:\| )?(?P<name>[^| ][^|]*?) \| (?P<health>[A-Za-z]+|-) "
    r"\| (?P<power>\S+) (?P<temperature>\S+) (?:\d+ ?/ ?\d+|NA|-) ?\|"
)
# "| 0 14 | 0000:81:00.0 | 0 0 / 0 3145 / 65536 |"; the second number is the Phy-ID; 950: "| | | NA | ...".
_LOWER = re.compile(
    r"\| (?:(?P<chip>\d+) (?:(?P<phy>\d+) )?|\| )\| "
    r"(?P<bus>[\da-fA-F]{4,8}:[\da-fA-F]{2}:[\da-fA-F]{2}\.[\da-fA-F]|NA) \| (?P<aicore>\S+) (?P<memory>[^|]*?) ?\|"
)
_USED_OF_TOTAL = re.compile(r"(?:^| )(\d+) ?/ ?(\d+)(?= |$)")
# "| 0 0 | 3755935 | python | 52245 |", 26: "... | 5175 | NA |" (pid in container), 950: no chip.
_PROCESS = re.compile(
    r"\| (?P<card>\d+)(?: (?P<chip>\d+))? \| (?P<pid>\d+) \| (?P<name>[^|]*)\| (?P<memory>\d+) \|"
    r"(?: (?P<inner>\d+|NA|-) \|)?"
)
_MAPPING_COLUMNS = re.compile(r"NPU ID|Slot ID|Chip ID|Chip Logic ID|Chip Phy-ID|Chip Name")


def _above_processes(lines: list[str]) -> Iterator[str]:
    """The lines of the device table: below the words "Process id" numbers are no devices any more."""
    for line in lines:
        if "Process id" in line:
            return
        yield line


def _read_npus(lines: Iterable[str]) -> Iterator[Npu]:
    upper = None
    for line in lines:
        if found := _UPPER.fullmatch(line):
            upper = found
        elif line.startswith(
            "+"
        ):  # a border ends a device: halves on its two sides do not belong together
            upper = None
        elif upper and (lower := _LOWER.fullmatch(line)):
            yield _npu(upper, lower)
            upper = None


def _npu(upper: re.Match[str], lower: re.Match[str]) -> Npu:
    memory = _USED_OF_TOTAL.findall(lower["memory"])
    used, total = memory[-1] if memory else (0, 0)  # the last pair is HBM, the one before it DDR
    return Npu(
        id=int(lower["phy"] or upper["card"]),
        card=int(upper["card"]),
        chip=int(lower["chip"] or 0),
        name=upper["name"],
        health=upper["health"],
        bus_id=None if lower["bus"] == "NA" else lower["bus"],
        hbm_used_mb=int(used),
        hbm_total_mb=int(total),
        power_w=_number(upper["power"]),
        temperature_c=_whole(upper["temperature"]),
        aicore_percent=_whole(lower["aicore"]),
    )


def _distinct(npus: Iterable[Npu]) -> Iterator[Npu]:
    seen: set[tuple[int, int]] = set()
    for npu in npus:
        if (npu.card, npu.chip) not in seen:
            seen.add((npu.card, npu.chip))
            yield npu


def _read_processes(lines: list[str], npus: list[Npu]) -> Iterator[NpuProcess]:
    for line in lines:
        row = _PROCESS.fullmatch(line)
        npu = _owner(row, npus) if row else None
        if row and npu:
            yield NpuProcess(
                npu=npu.id,
                pid=int(row["pid"]),
                name=row["name"].strip(),
                memory_mb=int(row["memory"]),
                container_pid=_whole(row["inner"] or "-"),
            )


def _owner(row: re.Match[str], npus: list[Npu]) -> Npu | None:
    chip = None if row["chip"] is None else int(row["chip"])
    on_card = [npu for npu in npus if npu.card == int(row["card"]) and chip in (None, npu.chip)]
    return on_card[0] if len(on_card) == 1 else None


def _chip(row: dict[str, str]) -> ChipMapping | None:
    logic, card, chip = (
        _whole(row.get(key, "-")) for key in ("Chip Logic ID", "NPU ID", "Chip ID")
    )
    phy = _whole(row.get("Chip Phy-ID", "-"))
    if "Chip Logic ID" not in row and "Slot ID" in row and phy is not None:
        logic = card
    if logic is None or card is None or chip is None or "Chip Name" not in row:
        return None
    return ChipMapping(card, chip, logic, phy, row["Chip Name"].strip())


def _fields(text: str) -> dict[str, str]:
    """Lines of the form "Key : value"; the first of a repeated key counts (the first chip)."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(" ".join(key.split()), value.strip())
    return fields


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found.group(1) if found else None


def _number(cell: str) -> float | None:
    return float(cell) if re.fullmatch(r"\d+(\.\d+)?", cell, re.ASCII) else None


def _whole(cell: str) -> int | None:
    return int(cell) if re.fullmatch(r"\d+", cell, re.ASCII) else None
