"""Draw the rooms from the imports in the code into docs/images/rooms.svg and architecture.md.

`--check` only compares. The picture shows an arrow where one room imports another and no longer way leads there; the
table names every room that is imported. `raylaunch.errors` is open to all and left out of both.
"""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from test_architecture import PURE  # noqa: E402 - which rooms are pure is a rule that it holds

PACKAGE = ROOT / "raylaunch"
PICTURE = ROOT / "docs" / "images" / "rooms.svg"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: begin (python tools/architecture.py) -->", "<!-- rooms: end -->"

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 132, 46, 28, 52, 16

TIP = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path d="M0 0 8 4 0 8Z" fill="#7a8a99"/></marker></defs>'
)
Graph = dict[str, set[str]]


def main() -> int:
    files = {PICTURE: draw(reduce_graph(read_imports()))}
    files[PAGE] = with_table(PAGE.read_text(encoding="utf-8"), "\n".join(table(read_imports())))
    if sys.argv[1:] == ["--check"]:
        stale = [path.name for path, text in files.items() if not is_current(path, text)]
        print(
            f"stale: {', '.join(stale)}: run `python tools/architecture.py`"
            if stale
            else "the rooms are current"
        )
        return 1 if stale else 0
    for path, text in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


def is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def read_imports() -> Graph:
    """Room -> the rooms its modules import, at the top, inside functions or for types alike."""
    graph: Graph = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        room = room_of(file.relative_to(ROOT).with_suffix("").parts)
        if room in ("__init__", "__main__", "errors"):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            graph.setdefault(room, set()).update(targets(node))
        graph[room] -= {room}
    return {room: found & graph.keys() for room, found in graph.items()}


def targets(node: ast.AST) -> set[str]:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom) and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    return {room_of(tuple(name.split("."))) for name in names if name.startswith("raylaunch.")}


def room_of(parts: tuple[str, ...]) -> str:
    """("raylaunch", "plan", "spec") -> "plan", ("raylaunch", "api") -> "api"."""
    return parts[1]


def reduce_graph(graph: Graph) -> Graph:
    """Leave out an arrow where a longer way leads to the same room."""
    return {
        room: {
            target
            for target in targets
            if not any(target in reach(graph, other) for other in targets - {target})
        }
        for room, targets in graph.items()
    }


def reach(graph: Graph, start: str) -> set[str]:
    found, ahead = set(), [start]
    while ahead:
        for target in graph[ahead.pop()] - found:
            found.add(target)
            ahead.append(target)
    return found


def table(graph: Graph) -> list[str]:
    lines = ["| Room | Owns | Imports | Modules |", "| --- | --- | --- | --- |"]
    for room in sorted(graph, key=lambda room: (-depth(graph, room), room)):
        imports = ", ".join(f"`{target}`" for target in sorted(graph[room])) or "nothing"
        modules = modules_in(PACKAGE / room)
        lines.append(f"| `{room}` | {purpose(room)} | {imports} | {modules or 'one file'} |")
    return [*lines, "", *closet_table()]


def closet_table() -> list[str]:
    """The folders inside the rooms, each with the first sentence of its docstring."""
    lines = ["| Closet | Owns | Modules |", "| --- | --- | --- |"]
    for init in sorted(PACKAGE.glob("*/**/__init__.py")):
        closet = init.parent.relative_to(PACKAGE)
        if len(closet.parts) > 1 and (modules := modules_in(init.parent)):
            lines.append(f"| `{closet}` | {purpose(str(closet))} | {modules} |")
    return lines


def modules_in(folder: Path) -> str:
    """The modules of a folder and, with a slash, the folders in it that hold modules."""
    files = sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")
    folders = sorted(f"{init.parent.name}/" for init in folder.glob("*/__init__.py"))
    return ", ".join([*files, *folders])


def purpose(room: str) -> str:
    """The first paragraph of the room's docstring."""
    path = PACKAGE / room / "__init__.py"
    text = (
        ast.get_docstring(
            ast.parse((path if path.is_file() else PACKAGE / f"{room}.py").read_text())
        )
        or ""
    )
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())


def with_table(page: str, text: str) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def depth(graph: Graph, room: str) -> int:
    """The longest way down from a room."""
    return max((1 + depth(graph, target) for target in graph[room]), default=0)


def row_of(graph: Graph, room: str) -> int:
    """The longest way from the top: a room stands right below its lowest importer."""
    return max((1 + row_of(graph, other) for other in graph if room in graph[other]), default=0)


def draw(graph: Graph) -> str:
    """Rooms in rows, each above everything it imports; colours that hold on light and dark pages."""
    spots = place(graph)
    left = min(x for x, _ in spots.values()) - MARGIN
    width = max(x for x, _ in spots.values()) + BOX_WIDTH + MARGIN - left
    height = max(y for _, y in spots.values()) + BOX_HEIGHT + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} 0 {width} {height}" width="{width}" role="img">',
            "<title>The rooms of raylaunch and their imports</title>",
            TIP,
            *(
                arrow(spots[room], spots[target])
                for room in sorted(graph)
                for target in sorted(graph[room])
            ),
            *(box(room, spot) for room, spot in sorted(spots.items())),
            "</svg>",
            "",
        ]
    )


def place(graph: Graph) -> dict[str, tuple[int, int]]:
    """Upper left corners of the boxes.

    Rooms with an arrow over several rows stand outside, clear of those between.
    """
    rows = {room: row_of(graph, room) for room in sorted(graph)}
    far = [room for room in rows if any(rows[target] - rows[room] > 1 for target in graph[room])]
    near = {
        number: [room for room in rows if rows[room] == number and room not in far]
        for number in rows.values()
    }
    widest = max(map(len, near.values()))
    steps = {
        room: number - (len(names) - 1) / 2
        for names in near.values()
        for number, room in enumerate(names)
    }
    for number, room in enumerate(far):
        side = -1 if number % 2 == 0 else 1
        steps[room] = side * ((widest + 1) / 2 + number // 2)
    return {
        room: (
            round(step * (BOX_WIDTH + GAP_X)) - BOX_WIDTH // 2,
            MARGIN + rows[room] * (BOX_HEIGHT + GAP_Y),
        )
        for room, step in steps.items()
    }


def arrow(source: tuple[int, int], target: tuple[int, int]) -> str:
    """Draw from below a box to the top of one in the next row; over several rows into its side."""
    x1, y1 = source[0] + BOX_WIDTH // 2, source[1] + BOX_HEIGHT
    if target[1] - source[1] > BOX_HEIGHT + GAP_Y:
        x2 = target[0] - 2 if x1 < target[0] else target[0] + BOX_WIDTH + 2
        y2 = target[1] + BOX_HEIGHT // 2
        way = f"M{x1} {y1}V{y2 - 40}Q{x1} {y2} {x1 + (40 if x1 < x2 else -40)} {y2}H{x2}"
    else:
        x2, y2 = target[0] + BOX_WIDTH // 2, target[1] - 2
        middle = (y1 + y2) // 2
        way = f"M{x1} {y1}C{x1} {middle} {x2} {middle} {x2} {y2}"
    return (
        f'<path d="{way}" fill="none" stroke="#7a8a99" stroke-width="1.5" marker-end="url(#tip)"/>'
    )


def box(room: str, spot: tuple[int, int]) -> str:
    x, y = spot
    fill, note = ("#2e7d6b", "pure") if room in PURE else ("#37527a", "")
    name_y = y + (20 if note else 28)
    words = f'<text x="{x + BOX_WIDTH // 2}" y="{name_y}" font-weight="bold">{room}</text>'
    if note:
        words += f'<text x="{x + BOX_WIDTH // 2}" y="{y + 36}" font-size="11">{note}</text>'
    shape = (
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" fill="{fill}"/>'
    )
    return f'<g font-family="sans-serif" font-size="14" text-anchor="middle" fill="#fff">{shape}{words}</g>'


if __name__ == "__main__":
    raise SystemExit(main())
