import os
from pathlib import Path

import pytest

from raylaunch.checks.ping_checks import Ping
from raylaunch.errors import NodeError
from raylaunch.node.probe import npu_tools, usage
from raylaunch.plan.facts import NpuLink, ProbeFailure

DATA = Path(__file__).parents[1] / "data"
SMI = f"""case "$*" in
  info) cat {DATA}/npu-smi/$TABLE.txt ;;
  "info -m") cat {DATA}/npu-smi/m_$TABLE.txt ;;
  "info -t ecc"*) cat {DATA}/npu-smi/ecc_a2.txt ;;
  "info -t board"*) cat {DATA}/npu-smi/board.txt ;;
  *) echo "unexpected: $*"; exit 64 ;;
esac"""
HCCN = f"""shift 2
case "$*" in
  "-ping -g address 11.12.165.80") cat {DATA}/hccn/ping.txt ;;
  "-ping -g address "*) cat {DATA}/hccn/ping_timeout.txt; exit 1 ;;
  *-g) cat {DATA}/hccn/${{1#-}}.txt ;;
esac"""


@pytest.fixture
def tools(tmp_path):
    """A folder of stand-ins that comes first on PATH: tools.add(name, script), tools.env(...)."""
    return Tools(tmp_path / "bin")


class Tools:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def add(self, name: str, script: str) -> str:
        file = self.folder / name
        file.write_text(f"#!/bin/bash\n{script}\n")
        file.chmod(0o755)
        return str(file)

    def env(self, **more: str) -> dict[str, str]:
        return {"PATH": f"{self.folder}:/usr/bin:/bin", "TABLE": "a2_idle", **more}

    def read(self, **more: str) -> npu_tools.NpuAnswer:
        return npu_tools.read_npus(
            self.env(**more), 60, hccn_default=str(self.folder / "absent" / "hccn_tool")
        )


def test_devices_links_and_versions_of_an_a2_host(tools):
    tools.add("npu-smi", SMI)
    tools.add("hccn_tool", HCCN)
    answer = tools.read()
    assert answer.failures == ()
    assert [device.id for device in answer.npus] == list(range(8))
    assert (answer.driver, answer.firmware) == ("25.5.1", "7.8.0.5.216")
    expected = (
        "11.12.165.80",
        "UP",
        "Success",
        "11.12.165.1",
        "11.12.165.1",
        False,
        1500,
        "400GE1/1/5:1",
    )
    assert answer.links == tuple(NpuLink(i, *expected) for i in range(8))


def test_all_sixteen_dies_of_an_a3_have_a_link(tools):
    tools.add("npu-smi", SMI)
    tools.add("hccn_tool", HCCN)
    assert [link.npu for link in tools.read(TABLE="a3_idle").links] == list(range(16))


def test_a_board_that_counts_from_eight_is_asked_for_its_logic_ids(tools):
    tools.add("npu-smi", SMI)
    answer = tools.read(TABLE="a2_from_8")
    assert [(device.id, device.card) for device in answer.npus] == [(0, 8), (1, 9)]
    assert [row.npu for row in answer.processes] == [1]


def test_tools_that_are_not_there_are_named(tools):
    empty = {"PATH": str(tools.folder)}
    assert [(f.probe, f.reason) for f in npu_tools.read_npus(empty).failures] == [
        ("npu-smi", "not found on PATH")
    ]
    tools.add("npu-smi", SMI)
    answer = tools.read()
    assert len(answer.npus) == 8
    assert [failure.probe for failure in answer.failures] == ["hccn_tool"]


def test_a_tool_that_fails_is_quoted(tools):
    tools.add("npu-smi", f"cat {DATA}/npu-smi/dcmi_in_use.txt; exit 255")
    answer = tools.read()
    assert answer.npus == ()
    assert [failure.probe for failure in answer.failures] == ["npu-smi"]
    assert "exit code 255: dcmi model initialized failed" in answer.failures[0].reason


def test_a_tool_that_prints_nonsense_is_quoted(tools):
    tools.add("npu-smi", f"cat {DATA}/npu-smi/dcmi_no_access.txt")
    assert "DrvMngGetConsoleLogLevel failed" in tools.read().failures[0].reason


def test_an_hccn_tool_that_refuses_is_quoted_once_for_all_devices(tools):
    tools.add("npu-smi", SMI)
    tools.add("hccn_tool", f"cat {DATA}/hccn/failed.txt; exit 1")
    answer = tools.read()
    assert answer.links == tuple(NpuLink(i) for i in range(8))
    assert [failure.probe for failure in answer.failures] == ["hccn_tool"]
    assert "NPU 0: [ERROR] Cmd execute failed" in answer.failures[0].reason
    assert "7 more" in answer.failures[0].reason


def test_one_device_without_answers_leaves_the_others_their_answers(tools):
    tools.add("npu-smi", SMI)
    tools.add("hccn_tool", f'[ "$2" = 3 ] && {{ echo "device 3 is not ready"; exit 1; }}\n{HCCN}')
    answer = tools.read()
    assert answer.links[3] == NpuLink(3)
    assert {link.link for link in answer.links if link.npu != 3} == {"UP"}
    assert [failure.reason for failure in answer.failures] == ["NPU 3: device 3 is not ready"]


def test_the_drivers_own_hccn_tool_comes_before_the_path(tools, tmp_path):
    beside = Tools(tmp_path / "driver")
    assert npu_tools.find_hccn_tool(tools.env(), beside.add("hccn_tool", "")) == str(
        beside.folder / "hccn_tool"
    )
    assert npu_tools.find_hccn_tool({"PATH": str(tools.folder)}, "/absent/hccn_tool") is None


def test_ping_reports_what_came_back(tools):
    tools.add("hccn_tool", HCCN)
    ask = {"env": tools.env(), "hccn_default": "/absent/hccn_tool"}
    assert npu_tools.ping_npu(0, "11.12.165.80", **ask).reached
    assert npu_tools.ping_npu(0, "11.12.165.81", **ask).complaint == "recv time out"


def test_an_unreadable_answer_costs_one_ping_and_no_other(tools):
    script = f'[ "$2" = 1 ] && {{ echo "3 received, 0.0.0% packet loss"; exit 0; }}\n{HCCN}'
    tools.add("hccn_tool", script)
    pings = [ping(number, "11.12.165.80") for number in range(3)]
    answers = npu_tools.ping_npus(pings, tools.env(), 60, hccn_default="/absent/hccn_tool")
    assert [one.reached for one in answers] == [True, None, True]
    assert answers[1].complaint == "unreadable packet loss: 3 received, 0.0.0% packet loss"


def test_a_tool_cannot_drive_the_terminal_that_shows_its_message(tools):
    tools.add("npu-smi", r"printf '\033]52;c;aGk=\007\033[31mfatal\033[0m\n'; exit 3")
    (failure,) = tools.read().failures
    assert failure.reason == "npu-smi info failed with exit code 3: fatal"


def test_ping_without_the_tool_names_where_it_was_searched(tools):
    with pytest.raises(NodeError, match="hccn_tool not found"):
        npu_tools.ping_npu(
            0, "11.12.165.80", env={"PATH": str(tools.folder)}, hccn_default="/absent/hccn_tool"
        )


def ping(npu_id: int, address: str) -> Ping:
    return Ping("192.0.2.10", npu_id, "11.12.165.70", "192.0.2.11", npu_id, address, straight=True)


def test_many_pings_keep_their_own_results(tools):
    tools.add("hccn_tool", HCCN)
    pings = [ping(0, "11.12.165.80"), ping(0, "11.12.165.81"), ping(1, "11.12.165.80")]
    said = npu_tools.ping_npus(pings, tools.env(), 60, hccn_default="/absent/hccn_tool")
    results = {
        (one.ping.npu, one.ping.target_address): (one.reached, one.complaint) for one in said
    }
    assert results == {
        (0, "11.12.165.80"): (True, ""),
        (0, "11.12.165.81"): (False, "recv time out"),
        (1, "11.12.165.80"): (True, ""),
    }


@pytest.mark.parametrize(
    ("sample", "reached", "complaint"),
    [
        ("ping", True, ""),
        ("ping_timeout", False, "recv time out"),
        ("ping_unreachable", False, "Destination Host Unreachable"),
        ("ping_too_long", False, "Message too long"),
        (
            "failed",
            None,
            "[ERROR] Cmd execute failed, ret is -22, permission denied, root is needed.",
        ),
    ],
)
def test_a_network_that_accepts_no_packet_differs_from_a_tool_that_sends_none(
    tools, sample, reached, complaint
):
    tools.add("hccn_tool", f"cat {DATA}/hccn/{sample}.txt")
    (one,) = npu_tools.ping_npus(
        [ping(0, "11.12.165.80")], tools.env(), 60, hccn_default="/absent/hccn_tool"
    )
    assert (one.reached, one.complaint) == (reached, complaint)


def test_an_npu_that_hangs_the_ping_costs_only_its_own(tools):
    tools.add("hccn_tool", f'[ "$2" = 1 ] && exec /bin/sleep 1000\n{HCCN}')
    pings = [ping(n, "11.12.165.80") for n in range(3)]
    said = npu_tools.ping_npus(pings, tools.env(), 5, hccn_default="/absent/hccn_tool")
    assert [one.reached for one in said] == [True, None, True]
    assert "no answer in 5 s" in said[1].complaint


def test_pings_for_which_no_time_is_left_are_not_begun(tools):
    (one,) = npu_tools.ping_npus(
        [ping(0, "11.12.165.80")], tools.env(), 0, hccn_default="/absent/hccn_tool"
    )
    assert (one.reached, one.complaint) == (None, "not done within 0 s")


def test_tools_print_english_in_every_locale(tools):
    tool = tools.add("npu-smi", 'echo "$LC_ALL $LANG $EXTRA"')
    said = npu_tools.run_tool(
        [tool], env=tools.env(LC_ALL="zh_CN.UTF-8", LANG="zh_CN.UTF-8", EXTRA="kept"), timeout_s=60
    )
    assert said == "C C kept\n"


def test_bytes_that_are_no_text_do_no_harm(tools):
    tool = tools.add("npu-smi", r"printf 'a\xff\n'")
    assert npu_tools.run_tool([tool], env=tools.env(), timeout_s=60) == "a\ufffd\n"


def test_a_file_that_cannot_be_run_is_an_error_of_the_node(tools):
    with pytest.raises(NodeError, match="npu-smi info: No such file"):
        npu_tools.run_tool([str(tools.folder / "npu-smi"), "info"], env=tools.env(), timeout_s=60)


def test_a_hanging_tool_is_killed_with_all_it_started(tools, tmp_path):
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    tool = tools.add("npu-smi", f"exec 3>{fifo}; echo up >&3; /bin/sleep 1000 & wait")
    try:
        for patience_s in (1, 5, 30):  # only so that a slow machine gets the tool started at all
            with pytest.raises(NodeError, match=rf"no answer in {patience_s} s: npu-smi info"):
                npu_tools.run_tool([tool, "info"], env=tools.env(), timeout_s=patience_s)
            if os.read(reader, 64) == b"up\n":
                break
        assert os.read(reader, 64) == b""  # end of file: the tool and its child are both gone
    finally:
        os.close(reader)


def test_a_hanging_npu_smi_becomes_a_failure(tools):
    tools.add("npu-smi", "exec /bin/sleep 1000")
    answer = npu_tools.read_npus(tools.env(), 1)
    assert answer.failures == (
        ProbeFailure("npu-smi", "no answer in 1 s: npu-smi info", hung=True),
    )


def test_a_device_that_hangs_hccn_tool_keeps_its_earlier_answers(tools):
    tools.add("npu-smi", SMI)
    tools.add("hccn_tool", f'[ "$2 $3" = "1 -net_health" ] && exec /bin/sleep 1000\n{HCCN}')
    answer = npu_tools.read_npus(tools.env(TABLE="a2_from_8"), 5, hccn_default="/absent/hccn_tool")
    assert answer.links[1] == NpuLink(1, ip="11.12.165.80", link="UP")
    assert answer.links[0].mtu == 1500
    assert [failure.probe for failure in answer.failures] == ["hccn_tool"]
    assert answer.failures[0].reason.startswith("NPU 1: no answer in")


def test_the_ecc_counters_have_the_ids_of_the_device_table(tools):
    tools.add("npu-smi", SMI)
    npus = usage.read_npus(tools.env(), 60)
    assert npus is not None
    counts = usage.read_ecc(npus, tools.env(), 60)
    assert [(one.npu, one.corrected, one.uncorrected) for one in counts] == [
        (number, 12, 2) for number in range(8)
    ]


def test_a_driver_without_ecc_counters_is_an_error_that_names_the_call(tools):
    tools.add("npu-smi", SMI.replace("info -t ecc", "info -t other"))
    npus = usage.read_npus(tools.env(), 60)
    assert npus is not None
    with pytest.raises(NodeError, match="info -t ecc -i 0"):
        usage.read_ecc(npus, tools.env(), 60)
