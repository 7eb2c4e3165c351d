"""Charts over concurrency and over runs, and HTML pages without external resources."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from sample_runs import run_of

from raylaunch.bench import charts
from raylaunch.bench.charts import draw, make_figure, page, require_drawing
from raylaunch.errors import RaylaunchError


def test_one_concurrency_is_drawn_over_runs():
    figure = make_figure([run_of(2, mean_ttft_ms=20.0), run_of(1, mean_ttft_ms=10.0)])
    ttft = figure.panels[0]
    assert figure.axis == "run (UTC)"
    assert ttft.newest == ((1.0, 10.0), (2.0, 20.0))
    assert ttft.reference == (2.0, 3305.25)
    assert [panel.title for panel in figure.panels] == [
        "TTFT mean, ms",
        "TPOT mean, ms",
        "output tokens/s",
    ]


def test_several_concurrencies_are_drawn_with_the_newest_values_as_the_line():
    runs = [
        run_of(at, concurrency=count, mean_ttft_ms=value)
        for at, count, value in ((1, 4, 40.0), (2, 1, 10.0), (3, 4, 44.0), (4, 8, 80.0))
    ]
    figure = make_figure(runs)
    assert figure.axis == "concurrency"
    assert [label for _, label in figure.ticks] == ["1", "4", "8"]
    assert figure.panels[0].newest == ((1.0, 10.0), (4.0, 44.0), (8.0, 80.0))
    assert figure.panels[0].earlier == ((4.0, 40.0),)
    assert figure.panels[0].reference == (4.0, 3305.25)


def test_only_runs_of_the_newest_load_are_drawn():
    figure = make_figure(
        [run_of(1, scenario="short"), run_of(2), run_of(3, changes={"ignore-eos": None}), run_of(4)]
    )
    assert len(figure.ticks) == 2


def test_nothing_to_draw_is_an_error():
    with pytest.raises(RaylaunchError, match="no run to draw"):
        make_figure([])


def test_pictures_and_a_page_that_needs_no_network():
    pytest.importorskip("matplotlib")
    runs = [run_of(1), run_of(2, concurrency=8)]
    figure = make_figure(runs)
    assert draw(figure, "png").startswith(b"\x89PNG")
    svg = draw(figure, "svg").decode()
    html = page(figure, svg, runs)
    drawing = html[html.index("<svg") : html.index("</svg>") + 6]
    assert ET.fromstring(drawing).tag.endswith("svg")
    assert "run-2" in html
    assert "3305.2 ms" in html, "the reference's line"
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)|url\((?!#)|@import""", html)


def test_a_missing_matplotlib_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr(charts, "find_spec", lambda _: None)
    with pytest.raises(RaylaunchError) as refused:
        require_drawing("a.png")
    assert "raylaunch[pictures]" in refused.value.todo


@pytest.mark.parametrize("name", ["a.jpg", "a", "png"])
def test_an_unknown_format_is_refused(name):
    with pytest.raises(RaylaunchError, match="no picture can be written"):
        require_drawing(name)
