"""The HTML of the page: one file with its style, its script and, when frozen, its data.

Nothing is fetched, so it works in a site without access to the internet. The content security
policy permits the one script and the one style by their hashes: an inline script that came from a
text could not run even if it became markup.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

SCRIPTS = ("dom.js", "overview.js", "timelines.js", "charts.js", "logs.js", "actions.js", "page.js")
"""In the order of their definitions."""


@cache
def _asset(name: str) -> str:
    return files("raylaunch.page").joinpath("assets", name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    parts = "\n".join(_asset(name) for name in SCRIPTS)
    return f'"use strict";\n(() => {{\n{parts}\n}})();\n'


def live_page() -> str:
    """Return the page that reads its data from the server it came from."""
    return _fill("", "")


def live_policy() -> str:
    """Return the value of the header `Content-Security-Policy` for `live_page`."""
    return f"{_policy()}; connect-src 'self'; frame-ancestors 'none'"


def frozen_page(data: str) -> str:
    """Return the page with its data in it.

    Args:
        data: A `FrozenPage`, encoded as JSON in ASCII.
    """
    # A data block ends at `</script`, and `<!--` changes how it is parsed.
    harmless = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    meta = f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">'
    block = f'<script type="application/json" id="frozen">{harmless}</script>'
    return _fill(meta, block)


def _policy() -> str:
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash_of(_script())}",
            f"style-src {_hash_of(_asset('page.css'))}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )


def _hash_of(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _fill(meta: str, data: str) -> str:
    parts = {
        "META": meta,
        "STYLE": f"<style>{_asset('page.css')}</style>",
        "DATA": data,
        "SCRIPT": f"<script>{_script()}</script>",
    }
    page = _asset("page.html")
    for name, text in parts.items():
        page = page.replace(f"<!-- {name} -->", text)
    return page
