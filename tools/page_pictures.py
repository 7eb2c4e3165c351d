"""Draw the pictures of the page in docs/images from a recorded deployment, with Chromium.

`--check` only compares: each picture names the recording that it was drawn from.
`--record REPORT.html` takes the recording from a file that `raylaunch report` wrote. Logs, plan,
findings and events stay out: the pictures do not show them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import struct
import sys
import tempfile
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from browser import Page, find_browser, open_browser  # noqa: E402

from raylaunch.page.page_file import frozen_page  # noqa: E402

RECORDING = ROOT / "tools" / "page_recording.json"
IMAGES = ROOT / "docs" / "images"
PICTURES = {
    "page-topology": "#topology",
    "page-start": "#starts .timeline:last-of-type",
    "page-failure": "#failures .timeline",
}
"""Name of a picture -> the part of the page that it shows. The newest timeline is the first."""
WIDTH, HEIGHT, SCALE = 920, 800, 1
PAD = 12
MAX_BYTES = 150_000
SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEYWORD = b"recording"


def main() -> int:
    match sys.argv[1:]:
        case ["--check"]:
            return check()
        case ["--record", report]:
            record(Path(report))
        case []:
            pass
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return draw()


def check() -> int:
    """Compare the name of the recording in each picture with the recording."""
    wanted = name_of_recording()
    stale = [name for name in PICTURES if name_in(IMAGES / f"{name}.png") != wanted]
    if stale:
        print(f"stale: {', '.join(stale)}: run `python tools/page_pictures.py`")
        return 1
    print("the pictures are of the recording")
    return 0


def record(report: Path) -> None:
    """Keep what the pictures show of a report."""
    block = re.search(
        r'<script type="application/json" id="frozen">(.*?)</script>',
        report.read_text(encoding="utf-8"),
    )
    if block is None:
        sys.exit(f"{report} was not written by `raylaunch report`")
    page = json.loads(block[1])
    page["logs"] = []
    page["history"]["events"] = []
    page["facts"] = {key: [] for key in page["facts"]}
    for host in page["live"]["hosts"]:
        for server in host["servers"]:
            # The home of the user who recorded it.
            server["log"] = ""
    RECORDING.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")


def draw() -> int:
    program = find_browser()
    if program is None:
        print("Chromium is missing: `apt-get install chromium`", file=sys.stderr)
        return 1
    pictures = asyncio.run(take_pictures(program))
    for name, picture in pictures.items():
        if len(picture) > MAX_BYTES:
            print(f"{name}: {len(picture)} bytes, more than {MAX_BYTES}", file=sys.stderr)
            return 1
        path = IMAGES / f"{name}.png"
        path.write_bytes(with_name(picture, name_of_recording()))
        print(f"{path.relative_to(ROOT)}: {len(picture) / 1000:.0f} kB")
    return 0


async def take_pictures(program: str) -> dict[str, bytes]:
    data = json.dumps(json.loads(RECORDING.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(frozen_page(data), encoding="utf-8")
        async with (
            open_browser(program, Path(folder) / "profile") as browser,
            browser.open_page() as page,
        ):
            await page.resize(WIDTH, HEIGHT, SCALE)
            await page.open(file.as_uri())
            await page.wait_for("document.querySelectorAll('#starts .bar').length > 0")
            return {name: await picture_of(page, place) for name, place in PICTURES.items()}


async def picture_of(page: Page, place: str) -> bytes:
    box = await page.run(
        f"""(() => {{
          const box = document.querySelector({json.dumps(place)}).getBoundingClientRect();
          return [box.x + scrollX, box.y + scrollY, box.width, box.height];
        }})()"""
    )
    x, y, width, height = box
    return await page.picture(x - PAD, y - PAD, width + 2 * PAD, height + 2 * PAD)


def name_of_recording() -> str:
    return hashlib.sha256(RECORDING.read_bytes()).hexdigest()


def with_name(picture: bytes, name: str) -> bytes:
    """Return a PNG with the name of its recording: a tEXt chunk after the header."""
    # Signature, then IHDR: length, type, 13 bytes, CRC.
    end_of_header = len(SIGNATURE) + 25
    body = b"tEXt" + KEYWORD + b"\0" + name.encode()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return picture[:end_of_header] + chunk + picture[end_of_header:]


def name_in(path: Path) -> str:
    """Return the name of the recording in a picture; "" without one."""
    if not path.is_file():
        return ""
    found = re.search(rb"tEXt" + KEYWORD + rb"\0([0-9a-f]{64})", path.read_bytes())
    return "" if found is None else found[1].decode()


if __name__ == "__main__":
    sys.exit(main())
