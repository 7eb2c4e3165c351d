"""Draw the pictures of what was measured in docs/images, with matplotlib.

Launch, serving and faults beside the peers, from benchmarks/results; a start and a failure as
timelines, from the recorded deployment of `page_pictures.py`.
`--check` draws again and compares: the same values give the same file.
"""

from __future__ import annotations

import io
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from contenders import FAULTS, PEERS, RAYLAUNCH, SCRIPTS, SCRIPTS_BESIDE_RAY  # noqa: E402
from peers_report import by_level, fault_row, of, picture_name  # noqa: E402

from raylaunch.supervise.failure_timeline import LASTS  # noqa: E402
from raylaunch.supervise.start_timeline import BEFORE_LAUNCH, STAGES  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULTS = ROOT / "benchmarks" / "results"
RECORDING = ROOT / "tools" / "page_recording.json"
IMAGES = ROOT / "docs" / "images"

INK, DIM, LINE, CARD = "#1c2126", "#5c666f", "#d9dcdf", "#ffffff"
DARK = {INK: "#e6e9eb", DIM: "#a3adb5", LINE: "#363d44", CARD: "#1c2024"}
"""What a browser with a dark scheme shows instead. The colours of bars stay."""
ON_BAR = "#101418"
"""Text on a bar, which is light in both schemes."""
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "raylaunch",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": DIM,
    "axes.edgecolor": LINE,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.0,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": DIM,
    "ytick.color": INK,
    "ytick.left": False,
    "figure.facecolor": CARD,
    "axes.facecolor": CARD,
}
PEER_COLOURS = {
    SCRIPTS.name: "#8a8f94",
    SCRIPTS_BESIDE_RAY.name: "#b4b9be",
    RAYLAUNCH.name: "#3d8fd6",
    "vllm-ray": "#59a14f",
    "serve": "#f28e2b",
    "serve-dp": "#b07aa1",
}
STEP_COLOURS = (
    *("#f7bd7f", "#9cc3e6", "#a3d39c", "#d3b5dd", "#f2a3a0", "#a9d8d3", "#d8c3a5", "#e8d96f"),
)
PHASE_COLOURS = ("#a9b1b8", "#d9dee2", "#c3c8cd")
WIDTH = 9.6
"""Of every picture, in inches; so are the measures below."""
ROW = 0.3
TITLE, LEFT, RIGHT = 0.42, 3.1, 0.25
TICKS = 0.32
AXIS_NAME = 0.2
"""Room for the name of an axis, beside TICKS."""
SMALL = 8.0
BAR = 0.7
"""Part of a row that its bar fills."""
PALE = 0.35
ROOM_FOR_TEXT = 1.45
"""Length of an axis, in units of its longest bar: the values are written behind the bars."""
WIDE = 0.09
"""Part of the axis that a step must fill to have its name written on it."""
KEY_COLUMNS = 6
KEY_ROW = 0.2

Draw = Callable[[], "Figure"]


def main() -> int:
    if sys.argv[1:] not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    if find_spec("matplotlib") is None:
        print("matplotlib is missing: `pip install 'raylaunch[dev]'`", file=sys.stderr)
        return 1
    is_check = bool(sys.argv[1:])
    stale = []
    for name, drawing in pictures().items():
        path = IMAGES / f"{name}.svg"
        text = as_svg(drawing)
        if is_check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            stale.append(name)
        elif not is_check:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: {len(text) / 1000:.0f} kB")
    if stale:
        print(f"stale: {', '.join(stale)}: run `python tools/benchmark_pictures.py`")
        return 1
    return 0


def pictures() -> dict[str, Draw]:
    """Return what draws each picture, by its name."""
    found: dict[str, Draw] = {}
    for file in ("peers", "peers-moe"):
        runs = read(RESULTS / f"{file}.json")["runs"]
        found[picture_name(file)] = lambda runs=runs: draw_launches(runs)
        found[picture_name(f"{file}-serving")] = lambda runs=runs: draw_serving(runs)
        found[picture_name(f"{file}-faults")] = lambda runs=runs: draw_faults(runs)
    history = read(RECORDING)["history"]
    found["timeline-start"] = lambda: draw_start(history["starts"][0])
    found["timeline-failure"] = lambda: draw_failure(history["failures"][0])
    return found


def read(path: Path) -> Any:  # noqa: ANN401 - a JSON value
    return json.loads(path.read_text(encoding="utf-8"))


# -- beside the peers --------------------------------------------------------------------------


def draw_launches(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the median from the command to the first token of each peer, with its range."""
    peers = [peer for peer in PEERS if of(runs, peer.name)]
    figure = new_figure(rows_of(peers), "Command to first token, seconds: median and range")
    axes = add_axes(figure, len(peers), TICKS)
    for row, peer in enumerate(peers):
        times = [run["first_token_s"] for run in of(runs, peer.name) if "first_token_s" in run]
        draw_spread(axes, row, times, peer.name)
    name_rows(axes, [peer.title for peer in peers])
    return figure


def draw_serving(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the requests per second of each peer, one panel for each number of clients."""
    levels = {peer.name: by_level(runs, peer.name) for peer in PEERS}
    peers = [peer for peer in PEERS if levels[peer.name]]
    columns = sorted({level for found in levels.values() for level in found})
    figure = new_figure(rows_of(peers) + ROW, "Requests per second: median and range")
    for number, clients in enumerate(columns):
        axes = add_axes(figure, len(peers), TICKS, column=number, columns=len(columns))
        axes.set_title("1 client" if clients == 1 else f"{clients} clients", color=DIM)
        for row, peer in enumerate(peers):
            measured = levels[peer.name].get(clients, [])
            draw_spread(axes, row, [one["request_throughput"] for one in measured], peer.name)
        name_rows(axes, [peer.title if number == 0 else "" for peer in peers])
    return figure


def draw_spread(axes: Axes, row: int, values: Sequence[float], peer: str) -> None:
    """Draw a bar up to the median and a line over the range; say so where there is no value."""
    if not values:
        write(axes, 0, row, "did not start")
        return
    middle, low, high = statistics.median(values), min(values), max(values)
    axes.barh(row, middle, height=BAR, color=PEER_COLOURS[peer])
    axes.plot([low, high], [row, row], color=INK, linewidth=1.2, solid_capstyle="butt")
    write(axes, high, row, f"{middle:.1f}")
    axes.set_xlim(0, max(axes.get_xlim()[1], ROOM_FOR_TEXT * high))


def draw_faults(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw how long each fault lasted with each peer: until it was detected, until it was over."""
    rows = list(fault_rows(runs))
    title = "Seconds from the fault to its detection (first part), and on until every rank answers again"
    figure = new_figure(rows_of(rows), title)
    axes = add_axes(figure, len(rows), TICKS)
    for row, (_, _, peer, one) in enumerate(rows):
        if one is not None:
            draw_fault(axes, row, peer, one)
    name_rows(axes, [title or fault for fault, title, _, _ in rows])
    for label, (_, title, _, _) in zip(axes.get_yticklabels(), rows, strict=True):
        if not title:
            label.set_fontweight("bold")
    return figure


def draw_fault(axes: Axes, row: int, peer: str, one: Mapping[str, Any]) -> None:
    if one.get("skipped"):
        write(axes, 0, row, one["skipped"])
        return
    detected_s = one["detection_s"] or 0.0
    # Where the orphaned engine keeps serving nothing was to be recovered.
    until_s = 0.0 if one.get("served_on") else one["recovery_s"] or 0.0
    colour = PEER_COLOURS[peer]
    axes.barh(row, detected_s, height=BAR, color=colour, alpha=PALE, linewidth=0)
    if until_s > detected_s:
        axes.barh(row, until_s - detected_s, left=detected_s, height=BAR, color=colour)
    end_s = max(detected_s, until_s)
    noticed_s, _, back, _ = fault_row(one)
    write(axes, end_s, row, fault_text(noticed_s, back))
    axes.set_xlim(0, max(axes.get_xlim()[1], ROOM_FOR_TEXT * end_s))


def fault_text(noticed_s: str, back: str) -> str:
    """Return what stands behind a bar: when it was over, and when it was detected."""
    detected = "never detected" if noticed_s == "never" else f"detected after {noticed_s}"
    return f"{re.sub(r' .own start .*', '', back)} ({detected})"


def fault_rows(
    runs: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, str, str, Mapping[str, Any] | None]]:
    """Yield fault, title and name of the peer, and what was measured; a heading has no peer."""
    for fault in FAULTS:
        of_fault = [
            (fault, peer.title, peer.name, run["fault"])
            for peer in PEERS
            for run in of(runs, peer.name)
            if run.get("fault", {}).get("fault") == fault
        ]
        if of_fault:
            yield fault, "", "", None
            yield from of_fault


# -- timelines ---------------------------------------------------------------------------------


def draw_start(start: Mapping[str, Any]) -> Figure:
    """Draw a start: the phases of the group, and the stages of each server."""
    rows = [("group", start["phases"])]
    for server in start["servers"]:
        slowest = " (finished last)" if server["is_slowest"] else ""
        rows.append((f"server {server['server']}{slowest}", server["bars"]))
    colours = {
        **{str(phase): colour for phase, colour in zip(BEFORE_LAUNCH, PHASE_COLOURS, strict=True)},
        **dict(zip(STAGES, STEP_COLOURS, strict=True)),
    }
    lasted_s = start["until"] - start["at"]
    key = KEY_ROW * -(-len(colours) // KEY_COLUMNS)
    below = TICKS + AXIS_NAME + key
    title = f"A start: ready after {lasted_s:.0f} s"
    figure = new_figure(rows_of(rows) + AXIS_NAME + key, title)
    axes = add_axes(figure, len(rows), below, left=1.7)
    axes.set_xlim(0, lasted_s)
    axes.set_xlabel("seconds since the deployment was created")
    for row, (_, bars) in enumerate(rows):
        for bar in bars:
            draw_step(axes, row, bar, start["at"], colours[bar["name"]], lasted_s)
    name_rows(axes, [name for name, _ in rows])
    draw_key(figure, colours, key)
    return figure


def draw_key(figure: Figure, colours: Mapping[str, str], height: float) -> None:
    """Name the colours below a picture, in columns of one width."""
    axes = figure.add_axes((1.7 / WIDTH, 0, (WIDTH - 1.7) / WIDTH, height / figure.get_figheight()))
    axes.set_axis_off()
    rows = -(-len(colours) // KEY_COLUMNS)
    axes.set_xlim(0, KEY_COLUMNS)
    axes.set_ylim(rows - 0.3, -0.7)
    for number, (name, colour) in enumerate(colours.items()):
        row, column = divmod(number, KEY_COLUMNS)
        axes.barh(row, 0.1, left=column, height=BAR, color=colour)
        write(axes, column + 0.1, row, name)


def draw_step(
    axes: Axes, row: float, bar: Mapping[str, Any], zero: float, colour: str, length_s: float
) -> None:
    """Draw a step of a timeline, with its name and seconds on it where they fit."""
    lasted_s = bar["until"] - bar["at"]
    axes.barh(row, lasted_s, left=bar["at"] - zero, height=BAR, color=colour)
    if lasted_s > WIDE * length_s:
        middle = (bar["at"] + bar["until"]) / 2 - zero
        text = f"{bar['name']} {lasted_s:.0f} s"
        axes.text(middle, row, text, ha="center", va="center", color=ON_BAR, fontsize=SMALL)


def draw_failure(failure: Mapping[str, Any]) -> Figure:
    """Draw a failure twice: as a whole, and the steps before the servers start again."""
    zero, bars = failure["at"], failure["bars"]
    lasted_s = failure["until"] - zero
    own_s = bars[-1]["at"] - zero
    colours = dict(zip(LASTS.values(), reversed(STEP_COLOURS[: len(LASTS)]), strict=True))
    title = f"A failure: ready again {lasted_s:.0f} s after {failure['moments'][0]['text']}"
    below = TICKS + AXIS_NAME
    first = rows_of(bars[:-1]) + AXIS_NAME
    figure = new_figure(first + ROW + TICKS + ROW, title)
    whole = add_axes(figure, 1, first + ROW + TICKS, left=1.7)
    whole.set_xlim(0, lasted_s)
    for bar in bars:
        draw_step(whole, 0, bar, zero, colours[bar["name"]], lasted_s)
    name_rows(whole, ["all of it"])
    axes = add_axes(figure, len(bars) - 1, below, left=1.7)
    axes.set_title(f"Before the servers start again, {own_s:.1f} s", color=DIM)
    axes.set_xlabel("seconds since the fault")
    axes.set_xlim(0, ROOM_FOR_TEXT * own_s)
    for row, bar in enumerate(bars[:-1]):
        lasted = bar["until"] - bar["at"]
        axes.barh(row, lasted, left=bar["at"] - zero, height=BAR, color=colours[bar["name"]])
        write(axes, bar["until"] - zero, row, f"{lasted:.2f} s")
    name_rows(axes, [bar["name"] for bar in bars[:-1]])
    return figure


# -- the form of all of them -------------------------------------------------------------------


def rows_of(rows: Sequence[object]) -> float:
    """Return the height of so many rows with an axis below them."""
    return ROW * len(rows) + TICKS


def new_figure(height: float, title: str) -> Figure:
    """Return an empty picture with a title above so much room."""
    from matplotlib.figure import Figure as MatplotlibFigure

    height += TITLE
    figure = MatplotlibFigure(figsize=(WIDTH, height))
    figure.text(0.15 / WIDTH, 1 - 0.2 / height, title, va="center", fontweight="bold", fontsize=10)
    return figure


def add_axes(
    figure: Figure,
    rows: int,
    bottom: float,
    *,
    left: float = LEFT,
    column: int = 0,
    columns: int = 1,
) -> Axes:
    """Add axes for so many rows, or one column of them. Their place depends on no text's size."""
    height, gap = figure.get_figheight(), 0.15
    width = (WIDTH - left - RIGHT + gap) / columns
    axes = figure.add_axes(
        (
            (left + column * width) / WIDTH,
            bottom / height,
            (width - gap) / WIDTH,
            rows * ROW / height,
        )
    )
    axes.grid(axis="x", visible=True)
    return axes


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows, the first one at the top."""
    axes.set_yticks(range(len(names)), [name.replace("`", "") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)


def write(axes: Axes, x: float, row: float, text: str) -> None:
    """Write a text behind a place of a row."""
    axes.annotate(
        text, (x, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=SMALL
    )


def as_svg(draw: Draw) -> str:
    """Return a picture as text: without a date, with text as text, light or dark as the reader is."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    data = io.StringIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        figure = draw()
        # An explicit canvas: pyplot would choose its backend by the environment.
        FigureCanvasSVG(figure)
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    text = data.getvalue()
    # The declaration and the doctype name a file of another host.
    text = text[text.index("<svg") :]
    head, bracket, body = text.partition(">")
    return f"{head}{bracket}\n{dark_style()}{body}"


def dark_style() -> str:
    """Return the rules that exchange the colours for a dark scheme."""
    rules = [
        f'[style*="{part}: {light}"]{{{part}:{dark}!important}}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    ]
    return f"<style>@media (prefers-color-scheme:dark){{{''.join(rules)}}}</style>"


if __name__ == "__main__":
    sys.exit(main())
