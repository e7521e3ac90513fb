"""A real headless Chromium for the tests of the page, driven by Playwright. The browser must be installed already."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--no-sandbox",  # containers of CI give no user namespaces
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def _installed(playwright: Any) -> str | None:
    """Chromium of the machine, or the one that ``playwright install chromium`` has put there."""
    found = next(filter(None, map(shutil.which, (os.environ.get("CHROMIUM", ""), *COMMANDS))), None)
    own = playwright.chromium.executable_path
    return found or (own if Path(own).exists() else None)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser. Without one the test is skipped with the reason; with ``REQUIRE_BROWSER=1`` that is an error."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        assert os.environ.get("REQUIRE_BROWSER") != "1", "the package playwright is not installed"
        pytest.skip("the package playwright is not installed (extra test)")

    with sync_playwright() as playwright:
        path = _installed(playwright)
        if path is None:
            reason = f"no browser: none of {', '.join(COMMANDS)} is installed, CHROMIUM names none, and playwright has none"
            assert os.environ.get("REQUIRE_BROWSER") != "1", reason
            pytest.skip(reason)
        browser = playwright.chromium.launch(executable_path=path, args=[*QUIET])
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page in the browser that notes every request and every error."""

    def __init__(
        self, browser: Any, url: str, width: int = 1280, height: int = 900, theme: str = "light"
    ) -> None:
        self.url = url
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._console)
        self.page.goto(url)

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def text(self, selector: str) -> str:
        found: str = self.page.locator(selector).first.inner_text()
        return found

    def wait(self, condition: str, timeout_s: float = 30.0) -> None:
        """Until this expression of JavaScript is true. (Playwright's own wait needs eval, which the page forbids.)"""
        deadline = time.monotonic() + timeout_s
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, (
                f"waited in vain for {condition}: {self.complaints} {self.text('body')}"
            )
            self.page.wait_for_timeout(50)

    def close(self) -> None:
        self.page.close()
