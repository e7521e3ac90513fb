"""``GET /``: the page, one HTML file made of the parts in the folder ``page``. It asks for nothing but ``events`` beside it.

Style and script stand inside the file, so that it also works behind a path prefix and with one request. The
Content-Security-Policy names both by their hash: no other script runs, whatever a record or a message holds.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from http import HTTPStatus
from importlib import resources

from worker.telemetry.routes import PAGE, Answer, Route

_PARTS = ("format.js", "charts.js", "stream.js", "panels.js", "records.js", "app.js")
"""The parts of the script, in order."""


@cache
def page() -> Answer:
    """The page with its headers."""
    folder = resources.files("worker.telemetry") / "page"
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = "".join((folder / part).read_text(encoding="utf-8") for part in _PARTS)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    html = (folder / "page.html").read_text(encoding="utf-8")
    html = html.replace("/* style */", style).replace("/* script */", script)
    policy = (
        f"default-src 'self'; script-src {_hash(script)}; style-src {_hash(style)}; img-src 'self' data:; "
        "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    return Answer(HTTPStatus.OK, "text/html; charset=utf-8", html.encode(), headers)


def routes() -> dict[str, Route]:
    """The page by its path."""
    return {PAGE: page}


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
