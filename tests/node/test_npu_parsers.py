from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from raylaunch.node.probe import hccn_parsers, npu_parsers, tool_text
from raylaunch.plan.facts import Npu, NpuProcess

DATA = Path(__file__).parents[1] / "data"
# The machine may be busy: how long an example takes says nothing here.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
TABLES = ("a2_idle", "a2_busy", "a2_from_8", "a3_idle", "26_wide", "950")


def smi(name: str) -> str:
    return (DATA / "npu-smi" / f"{name}.txt").read_text()


def hccn(name: str) -> str:
    return (DATA / "hccn" / f"{name}.txt").read_text()


def test_an_a2_host_has_eight_npus_and_every_column_is_read():
    npus, processes = npu_parsers.parse_npu_smi_info(smi("a2_idle"))
    assert [npu.id for npu in npus] == list(range(8))
    assert processes == []
    assert npus[0] == Npu(0, 0, 0, "910B1", "OK", "0000:C1:00.0", 3425, 65536, 97.4, 50, 0)


def test_process_rows_are_no_devices_and_keep_blank_names():
    npus, processes = npu_parsers.parse_npu_smi_info(smi("a2_busy"))
    assert len(npus) == 8
    assert npus[0].hbm_used_mb == 56017  # "56017/ 65536": the number has grown into the slash
    assert processes == [
        NpuProcess(0, 3755936, "python", 114),
        NpuProcess(0, 3755939, "python", 114),
        NpuProcess(0, 3755935, "VLLMWorker_TP", 52245),
        NpuProcess(1, 3755936, "rayMyLLM.__in", 51829),
        NpuProcess(2, 1333928, "", 37709),
    ]


def test_an_a3_host_has_two_dies_per_card_counted_by_phy_id():
    npus, _ = npu_parsers.parse_npu_smi_info(smi("a3_idle"))
    assert [npu.id for npu in npus] == list(range(16))
    assert [(npu.card, npu.chip) for npu in npus[-2:]] == [(7, 0), (7, 1)]
    assert npus[15] == Npu(15, 7, 1, "Ascend910", "OK", "0000:83:00.0", 2876, 65536, None, 36, 0)


def test_a_process_on_an_a3_belongs_to_its_die():
    rows = "| 7       1                 | 3328327       |             | 50119                   |\n"
    _, processes = npu_parsers.parse_npu_smi_info(smi("a3_idle") + rows)
    assert processes == [NpuProcess(15, 3328327, "", 50119)]


def test_npu_smi_26_is_wider_has_a_fifth_process_cell_and_no_bottom_line():
    npus, processes = npu_parsers.parse_npu_smi_info(smi("26_wide"))
    assert [(npu.id, npu.name, npu.hbm_used_mb, npu.aicore_percent) for npu in npus] == [
        (0, "910B2", 38711, 100),
        (7, "910B3", 3403, 0),
    ]
    assert processes == [NpuProcess(0, 485946, "pytest", 5175, container_pid=None)]


def test_npu_smi_26_reports_the_pid_inside_the_container():
    _, processes = npu_parsers.parse_npu_smi_info(smi("26_wide").replace("| NA    ", "| 4711  "))
    assert processes == [NpuProcess(0, 485946, "pytest", 5175, container_pid=4711)]


def test_the_950_series_has_no_chip_column():
    npus, processes = npu_parsers.parse_npu_smi_info(smi("950"))
    assert npus == [
        Npu(0, 0, 0, "Ascend950DT", "OK", None, 4857, 98304, 377.2, 48, 5),
        Npu(1, 1, 0, "Ascend950PR", "Alarm", "0000:71:00.0", 90633, 114688, 205.7, 71, 100),
    ]
    assert processes == [NpuProcess(1, 2066378, "pytest", 360)]


def test_nothing_below_the_process_header_is_a_device():
    pair = smi("a2_idle").splitlines()[6:8]
    late = "\n".join(line.replace("| 0  ", "| 9  ", 1) for line in pair)
    assert len(npu_parsers.parse_npu_smi_info(smi("a2_idle") + late)[0]) == 8


def test_a_process_of_a_device_that_is_not_in_the_table_is_left_out():
    rows = "| 9       0                 | 77            | python      | 100                     |\n"
    assert npu_parsers.parse_npu_smi_info(smi("a2_idle") + rows)[1] == []


def test_a_sick_card_without_readings_is_still_a_device():
    sick = smi("a2_idle").replace(
        "0    / 0          3425 / 65536", "NA                 NA          "
    )
    npus, _ = npu_parsers.parse_npu_smi_info(sick.replace("97.4        50", "NA          - ", 1))
    assert len(npus) == 8
    assert (npus[0].hbm_total_mb, npus[0].power_w, npus[0].temperature_c) == (0, None, None)


def test_a_warning_between_the_lines_of_a_device_does_no_harm():
    lines = smi("a2_idle").splitlines()
    lines.insert(7, "[WARN] DrvMngGetConsoleLogLevel failed. (g_conLogLevel=3)")
    assert npu_parsers.parse_npu_smi_info("\n".join(lines)) == npu_parsers.parse_npu_smi_info(
        smi("a2_idle")
    )


def test_halves_on_two_sides_of_a_border_are_no_device():
    lines = smi("a2_idle").splitlines()
    del lines[7], lines[8]  # the lower line of device 0, the upper one of device 1
    assert [npu.id for npu in npu_parsers.parse_npu_smi_info("\n".join(lines))[0]] == list(
        range(2, 8)
    )


def test_a_table_without_devices_is_an_answer():
    assert npu_parsers.parse_npu_smi_info("\n".join(smi("a2_idle").splitlines()[:6])) == ([], [])


@pytest.mark.parametrize(
    "text", ["", smi("dcmi_in_use"), smi("m_a2"), "bash: npu-smi: command not found"]
)
def test_no_table_at_all_is_an_error_that_quotes_the_tool(text):
    with pytest.raises(ValueError, match="no device table") as caught:
        npu_parsers.parse_npu_smi_info(text)
    assert tool_text.first_line(text) in str(caught.value)


@unhurried
@given(st.sampled_from(TABLES), st.integers(0, 6000))
def test_a_truncated_table_gives_nothing_that_the_whole_one_does_not(table, length):
    text = smi(table)
    npus, processes = _parse_or_nothing(text[:length])
    all_npus, all_processes = npu_parsers.parse_npu_smi_info(text)
    assert npus == all_npus[: len(npus)]
    # A row that is cut after its fourth cell has lost only the pid inside the container.
    assert [row.pid for row in processes] == [row.pid for row in all_processes[: len(processes)]]


@unhurried
@given(st.sampled_from(TABLES), st.data())
def test_lost_repeated_and_garbled_lines_never_make_a_device_up(table, data):
    lines = smi(table).splitlines()
    known = {npu.id for npu in npu_parsers.parse_npu_smi_info(smi(table))[0]}
    for _ in range(data.draw(st.integers(1, 12))):
        index = data.draw(st.integers(0, max(len(lines) - 1, 0)))
        lines = data.draw(st.sampled_from([_lose, _repeat, _garble, _interject]))(
            lines, index, data
        )
    npus, processes = _parse_or_nothing("\n".join(lines))
    assert {npu.id for npu in npus} <= known
    assert len(npus) == len({(npu.card, npu.chip) for npu in npus})
    assert {row.npu for row in processes} <= known


@unhurried
@given(
    st.text(alphabet=st.sampled_from("|+-=/ \t\n0123456789.:ANKOProces id"), max_size=400)
    | st.text()
)
def test_any_text_is_read_or_refused(text):
    _parse_or_nothing(text)
    npu_parsers.parse_board(text)
    npu_parsers.parse_health(text)
    hccn_parsers.parse_hccn_ping(text)
    hccn_parsers.parse_hccn_mtu(text)
    try:
        npu_parsers.parse_mapping(text)
    except ValueError as error:
        assert "column names" in str(error)  # noqa: PT017 (both outcomes are right)


def _parse_or_nothing(text):
    try:
        return npu_parsers.parse_npu_smi_info(text)
    except ValueError as error:
        # int() and float() must not be what failed.
        assert "no device table" in str(error)  # noqa: PT017
        return [], []


def _lose(lines, index, data):
    return lines[:index] + lines[index + 1 :]


def _repeat(lines, index, data):
    return lines[:index] + lines[index : index + data.draw(st.integers(1, 4))] + lines[index:]


def _garble(lines, index, data):
    if not lines or not lines[index]:
        return lines
    at = data.draw(st.integers(0, len(lines[index]) - 1))
    mess = data.draw(st.text(alphabet="\ufffd#x|+-", min_size=1, max_size=3))
    return [
        *lines[:index],
        lines[index][:at] + mess + lines[index][at + len(mess) :],
        *lines[index + 1 :],
    ]


def _interject(lines, index, data):
    return [*lines[:index], data.draw(st.text(max_size=40)), *lines[index:]]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("m_a2", [(0, 0, 0, None, "Ascend 910B3"), (1, 0, 1, None, "Ascend 910B3")]),
        ("m_a2_from_8", [(8, 0, 0, None, "Ascend 910B3"), (9, 0, 1, None, "Ascend 910B3")]),
        ("m_a3", [(c, d, 2 * c + d, 2 * c + d, "Ascend910") for c in (0, 1) for d in (0, 1)]),
        ("m_950", [(0, 0, 0, 0, "Ascend950DT"), (1, 0, 1, 1, "Ascend950DT")]),
    ],
)
def test_every_layout_of_the_mapping_is_read_without_the_management_controller(sample, expected):
    assert npu_parsers.parse_mapping(smi(sample)) == [
        npu_parsers.ChipMapping(*row) for row in expected
    ]


def test_a_mapping_header_with_single_blanks_is_read():
    text = "NPU ID  Chip ID  Chip Logic ID  Chip Phy-ID Chip Name\n0 1 1 1 Ascend\n0 2 - - Mcu"
    assert npu_parsers.parse_mapping(text) == [npu_parsers.ChipMapping(0, 1, 1, 1, "Ascend")]


def test_a_board_that_counts_from_eight_is_renumbered_with_its_processes():
    npus, processes = npu_parsers.renumber(
        *npu_parsers.parse_npu_smi_info(smi("a2_from_8")),
        npu_parsers.parse_mapping(smi("m_a2_from_8")),
    )
    assert [(npu.id, npu.card) for npu in npus] == [(0, 8), (1, 9)]
    assert [row.npu for row in processes] == [1]


def test_health_and_board_are_read():
    assert npu_parsers.parse_health(smi("health_ok")) == npu_parsers.Health("OK")
    alarm = npu_parsers.parse_health(smi("health_alarm"))
    assert alarm is not None
    assert alarm.status == "Alarm"
    assert "80E01801" in alarm.error
    assert "multi bit ECC" in alarm.error
    assert npu_parsers.parse_health(smi("dcmi_no_access")) is None
    assert npu_parsers.parse_board(smi("board")) == npu_parsers.Board(
        "25.5.1", "7.8.0.5.216", "0000:C1:00.0", "910B1"
    )
    assert npu_parsers.parse_board(smi("dcmi_in_use")) == npu_parsers.Board()


@pytest.mark.parametrize(
    ("parse", "sample", "expected"),
    [
        (hccn_parsers.parse_hccn_ip, "ip", "11.12.165.80"),
        (hccn_parsers.parse_hccn_link, "link", "UP"),
        (hccn_parsers.parse_hccn_link, "link_down", "DOWN"),
        (hccn_parsers.parse_hccn_net_health, "net_health", "Success"),
        (hccn_parsers.parse_hccn_net_health, "net_health_fault", "Fault"),
        (hccn_parsers.parse_hccn_netdetect, "netdetect", "11.12.165.1"),
        (hccn_parsers.parse_hccn_gateway, "gateway", "11.12.165.1"),
        (hccn_parsers.parse_hccn_tls, "tls", False),
        (hccn_parsers.parse_hccn_tls, "tls_on", True),
        (hccn_parsers.parse_hccn_mtu, "mtu", 1500),
        (hccn_parsers.parse_hccn_lldp, "lldp", "400GE1/1/5:1"),
        (hccn_parsers.parse_hccn_lldp, "lldp_empty", None),
    ],
)
def test_hccn_tool_answers(parse, sample, expected):
    assert parse(hccn(sample)) == expected
    assert parse(hccn("failed")) is None


@pytest.mark.parametrize(
    ("sample", "expected", "reached"),
    [
        ("ping", hccn_parsers.NpuPing(0.0), True),
        ("ping_timeout", hccn_parsers.NpuPing(100.0, "recv time out"), False),
        ("ping_unreachable", hccn_parsers.NpuPing(100.0, "Destination Host Unreachable"), False),
        ("ping_too_long", hccn_parsers.NpuPing(None, "Message too long"), False),
        ("failed", hccn_parsers.NpuPing(None, hccn("failed").strip()), False),
    ],
)
def test_hccn_ping(sample, expected, reached):
    assert hccn_parsers.parse_hccn_ping(hccn(sample)) == expected
    assert expected.reached is reached


def test_the_ecc_counters_of_a_card_are_those_of_its_life():
    assert npu_parsers.parse_ecc(smi("ecc_a2")) == [npu_parsers.EccCounts(0, 12, 2, 1)]
    assert npu_parsers.parse_ecc(smi("ecc_950")) == [npu_parsers.EccCounts(0, 0, 0, 0)]


def test_each_chip_of_a_card_has_its_ecc_counters_and_its_controller_none():
    second = smi("ecc_a2").replace("Chip ID                                  : 0", "Chip ID : 1")
    both = smi("ecc_a2") + second.replace(": 12", ": 40") + "Chip ID : 2\n"
    found = npu_parsers.parse_ecc(both)
    assert [(one.chip, one.corrected) for one in found] == [(0, 12), (1, 40)]


@pytest.mark.parametrize("text", ["", "This device does not support querying ecc.", "Chip ID : 0"])
def test_an_answer_without_ecc_counters_has_none(text):
    assert npu_parsers.parse_ecc(text) == []
