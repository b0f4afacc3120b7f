"""A headless Chromium over the rendered book, on loopback: nothing that it asks for leaves here.

The accessibility checker comes from npm (package-lock.json). VAE_CHROMIUM names a Chromium that is
not on the path; VAE_REQUIRE_BROWSER=1 turns skips for want of Chromium, npm's package or the built
book into failures.
"""

import functools
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, sync_playwright

HERE = Path(__file__).parent
HTML = ROOT / "_build" / "html"
OURS = ("http://127.0.0.1:", "file:", "data:")


def unavailable(reason: str) -> None:
    """Skip, or fail where everything has to be tested."""
    if os.environ.get("VAE_REQUIRE_BROWSER") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    names = ["chromium", "chromium-browser", "google-chrome"]
    path = os.environ.get("VAE_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        unavailable(
            f"NO BROWSER: none of {', '.join(names)} is on the path. The rendered pages are not "
            "tested; install Chromium or set VAE_CHROMIUM"
        )
    # Chromium's sandbox cannot start in a container or as root; the other switches keep it quiet.
    flags = ["no-sandbox", "disable-gpu", "disable-sync"]
    flags += ["disable-background-networking", "disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=[f"--{flag}" for flag in flags]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def npm() -> Path | None:
    """The folder of installed npm packages, brought up to date first; None where it cannot be."""
    lock, packages = HERE / "package-lock.json", HERE / "node_modules"
    installed = packages / ".package-lock.json"  # npm writes it last
    if installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime:
        return packages
    if shutil.which("npm"):
        command = ["npm", "ci", "--ignore-scripts"]
        if subprocess.run(command, cwd=HERE, timeout=300).returncode == 0:
            return packages
    return None


@pytest.fixture(scope="session")
def packages(npm: Path | None) -> Path:
    if npm is None:
        unavailable(
            f"NO NPM PACKAGES: accessibility untested; install npm, or run `npm ci` in {HERE}"
        )
    return npm


@pytest.fixture(scope="session")
def book() -> Iterator[str]:
    """The address of the built book."""
    if not (HTML / "index.html").exists():
        unavailable(f"NO BOOK: {HTML} is missing; run `make book` first")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=HTML)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Visit:
    """One page in a window of its own, with all that went wrong on it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.asked: set[str] = set()
        self.blocked: set[str] = set()
        self.errors: list[str] = []
        page.route(lambda url: not url.startswith(OURS), self._block)
        page.on("request", lambda request: self.asked.add(request.url))
        page.on("pageerror", lambda error: self.errors.append(error.message))
        page.on("console", self._console)

    def _block(self, route: Route) -> None:
        self.blocked.add(route.request.url)
        route.abort()

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def settle(self) -> None:
        """Wait for all that a page draws after it has loaded."""
        self.page.evaluate("async () => { await window.MathJax?.startup?.promise; }")
        self.page.evaluate("async () => { await document.fonts.ready; }")

    def stop_clock(self) -> None:
        """From here on time passes in `page.clock.run_for` only: a play is as fast as we say."""
        self.page.clock.pause_at(datetime(2100, 1, 1))


@pytest.fixture(scope="session")
def open_window(chromium: Browser) -> Callable[..., Visit]:
    """Opens a page, an address or HTML given as text; whoever opens it closes it."""

    def open_window(
        target: str, width: int = 1280, theme: str = "light", clock: bool = False, **options: Any
    ) -> Visit:
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, **options
        )
        visit = Visit(context.new_page())
        if clock:
            visit.page.clock.install()
        if target.startswith(("http:", "file:")):
            visit.page.goto(target)
        else:
            visit.page.set_content(target)
        visit.settle()
        return visit

    return open_window


@pytest.fixture
def visit(open_window: Callable[..., Visit]) -> Iterator[Callable[..., Visit]]:
    """Opens pages that are closed after the test."""
    opened = []

    def visit(*arguments: Any, **options: Any) -> Visit:
        opened.append(open_window(*arguments, **options))
        return opened[-1]

    yield visit
    for window in opened:
        window.page.context.close()
