"""`raylaunch top`: frames that fit, with and without colour, and a terminal that is given back."""

from __future__ import annotations

import re
import select
import signal
import termios
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from deployments import NOW, make_status, make_usage, with_seen
from pseudo_terminal import DEADLINE_S, SGR, Terminal

from raylaunch.cli.output import COLOUR_ON, Style
from raylaunch.cli.terminal import fit, resizes
from raylaunch.cli.views.status_view import status_lines
from raylaunch.cli.views.top_view import FOOTER, TopHistory, page_lines, sparkline, top_lines
from raylaunch.supervise.deployment_status import Event
from raylaunch.supervise.state import Exit, Phase


def events(count: int) -> tuple[Event, ...]:
    return tuple(Event(number, NOW, 1, "note", f"event {number}") for number in range(count))


@pytest.mark.parametrize("servers", [1, 2, 16, 64])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 60)])
def test_a_frame_fits_the_screen(servers, width, height):
    status = replace(make_status(servers), events=events(20))
    lines = top_lines(status, TopHistory(), Style(), height)
    assert len(lines) <= height
    assert lines[-1] == FOOTER
    assert "event 19" in lines[-2]
    assert max(len(fit(line, width)) for line in lines) <= width


def test_without_colour_there_are_no_marks():
    marks = set(COLOUR_ON.values())
    status = make_status()
    plain = "".join(top_lines(status, TopHistory(), Style(), 24))
    assert not marks & set(plain)
    assert marks & set("".join(top_lines(status, TopHistory(), Style(colour=True), 24)))


def test_colours_take_no_room_and_do_not_stay_open():
    painted = Style(colour=True).paint("abcdef", "good")
    cut = fit(painted + "ghi", 4)
    assert Style().finish(cut) == "abcd"
    assert Style(colour=True).finish(cut).endswith("\x1b[0m")


def test_wide_characters_take_two_columns():
    assert fit("显存不足", 5) == "显存"
    assert fit("a显b", 2) == "a"
    assert fit("e\u0301e\u0301e\u0301", 2) == "e\u0301e\u0301"


def test_the_speed_is_that_of_the_last_readings():
    history = TopHistory()
    status = make_status()
    ranks = status.servers[0].seen.ranks
    for step in range(4):
        moved = tuple(
            replace(rank, at=NOW + 2 * step, tokens=1000 + 500 * step * (rank.rank + 1))
            for rank in ranks
        )
        history.update(with_seen(status, 0, ranks=moved))
    assert history.speeds("serve-0", 0) == (250.0, 250.0, 250.0)
    assert history.speeds("serve-0", 1) == (500.0, 500.0, 500.0)
    again = tuple(replace(rank, at=NOW + 10, tokens=5) for rank in ranks)
    history.update(with_seen(status, 0, ranks=again))
    assert history.speeds("serve-0", 0) == (), "counters of a new server begin again"


def test_a_sparkline_is_relative_to_its_greatest_value():
    assert sparkline([0, 50, 100]) == "▁▅█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([0, 100], "_#") == "_#"


def test_what_is_wrong_is_on_the_screen():
    status = with_seen(make_status(phase=Phase.RESTARTING), 1, exit=Exit(NOW, signal=9))
    text = "\n".join(top_lines(status, TopHistory(), Style(), 24))
    assert "restarting" in text
    assert "exited: signal 9" in text


def test_each_rank_has_its_own_npus_beside_it():
    status = make_status()
    npus = [replace(one, hbm_used_mb=32_768, aicore_percent=10) for one in make_usage().npus]
    npus[3] = replace(npus[3], hbm_used_mb=62_000, aicore_percent=90)
    usage = {("serve-0", 1): replace(make_usage(), npus=tuple(npus))}
    lines = top_lines(status, TopHistory(), Style(), 24, usage=usage)
    assert max(map(len, lines)) <= 80
    [header, without, with_npus] = lines[lines.index("") + 5 :][:3]
    assert header.split() == ["RANK", "RUN", "WAIT", "TOK/S", "KV", "HITS", "HBM", "NPU", "STATE"]
    assert without.split()[-3:] == ["-", "-", "ok"]
    assert with_npus.split()[-3:] == ["95%", "20%", "ok"]


def test_two_ranks_of_a_server_share_its_npus_in_order():
    status = make_status()
    servers = [replace(one, ranks=(0, 1)) for one in status.servers[:1]]
    status = replace(status, servers=tuple(servers))
    halves = [replace(one, aicore_percent=100 if one.id < 4 else 0) for one in make_usage().npus]
    halves[7] = replace(halves[7], health="Alarm")
    usage = {("serve-0", 0): replace(make_usage(), npus=tuple(halves))}
    text = "\n".join(top_lines(status, TopHistory(), Style(), 24, usage=usage))
    assert "100%  ok" in text
    assert "0%    NPU 7: Alarm" in text


def test_a_restart_counts_down():
    status = make_status(phase=Phase.RESTARTING)
    waiting = replace(status.groups[0], relaunch_at=NOW + 12)
    lines = top_lines(replace(status, groups=(waiting,)), TopHistory(), Style(), 24)
    assert "  serve-0: next launch in 12.0 s" in lines
    shown = list(status_lines(replace(status, groups=(waiting,)), Style()))
    assert "back-off  serve-0: next launch in 12.0 s" in shown


def test_a_fallback_that_serves_is_on_the_screen():
    status = replace(make_status(phase=Phase.DEGRADED), fallback="a2-single")
    frames = [top_lines(one, TopHistory(), Style(), 24) for one in (status, make_status())]
    named = [any("a2-single serves instead of a2-dual" in line for line in one) for one in frames]
    assert named == [True, False]


def test_a_page_shows_the_end_of_a_text():
    lines = page_lines("log", [str(number) for number in range(100)], Style(), 24)
    assert len(lines) == 24
    assert lines[-2] == "99"


def test_keys_change_the_page_and_the_terminal_is_given_back():
    with Terminal() as terminal:
        terminal.read_until("q quit")
        assert "\x1b[?1049h" in terminal.text
        assert "TOK/S" in terminal.text
        terminal.type("1")
        terminal.read_until("line of server 1")
        terminal.type("d")
        terminal.read_until("no known failure signature matched")
        terminal.type("\x1b[A")
        terminal.read_until("q quit")
        terminal.type("q")
        terminal.read_until("gone")
        assert "\x1b[?1049l" in terminal.text
        assert terminal.process.wait(DEADLINE_S) == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before


LONG = "resize 显存 " + "x" * 200


@pytest.mark.parametrize("page", ["r", "e", "l"])
def test_a_resized_terminal_is_drawn_again_at_its_new_size(page):
    with Terminal(servers=40, event=LONG) as terminal:
        terminal.read_frame()
        terminal.type(page)
        terminal.read_frame()
        for columns, lines in ((120, 40), (60, 20), (80, 24)):
            terminal.resize(columns, lines)
            shown = terminal.read_frame()
            assert shown.problems == []
            assert len(shown.rows) in (lines, lines - 1), "it fills the new height"
            # A wide character that does not fit leaves one column.
            assert max(map(shown.width_of, shown.rows)) in (columns, columns - 1)
            assert shown.rows[-1] == FOOTER[:columns].rstrip()


def test_a_resize_is_noticed_by_a_wait_that_its_signal_does_not_end():
    """As when the signal comes just before the system call: no handler in Python runs meanwhile."""
    waiting = threading.get_native_id()

    def signal_this_thread():
        deadline = time.monotonic() + DEADLINE_S
        wchan = Path(f"/proc/self/task/{waiting}/wchan")
        while not re.search("select|poll", wchan.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        signal.pthread_kill(threading.get_ident(), signal.SIGWINCH)

    other = threading.Thread(target=signal_this_thread)
    with resizes() as resized:
        other.start()
        assert select.select([resized], [], [], DEADLINE_S)[0] == [resized]
    other.join()


def test_colours_are_drawn_and_none_with_no_color():
    with Terminal(event=LONG) as terminal:
        assert re.search(SGR, terminal.read_frame().text)
    with Terminal(event=LONG, NO_COLOR="1") as terminal:
        frame = terminal.read_frame()
        assert "TOK/S" in frame.text
        terminal.type("e")
        terminal.read_until("q quit")
        terminal.type("q")
        terminal.read_until("gone")
        assert not re.search(SGR, terminal.all_text)


def test_the_terminal_of_the_test_finds_lines_that_wrap_and_frames_that_scroll():
    with Terminal() as terminal:
        terminal.columns, terminal.lines = 10, 3
        wrapped = terminal.show("\x1b[H" + "x" * 11 + "\x1b[K\x1b[J")
        assert wrapped.problems == ["line 1 wraps"]
        assert terminal.show("\x1b[H12345678显\x1b[K\x1b[J").problems == []
        assert terminal.show("\x1b[H123456789显\x1b[K\x1b[J").problems == ["line 1 wraps"]
        assert terminal.show("\x1b[H1\r\n2\r\n3\r\n4\x1b[J").problems == ["it scrolls"]
        unknown = terminal.show("\x1b[H\x1b[2A\x1b[J")
        assert unknown.problems == ["unknown sequence '\\x1b[2A'"]
