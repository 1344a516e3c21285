"""Runs and their reports, made once; a browser, where there is one."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report import pages, rows


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the run with hostile texts."""
    return pages.hostile(tmp_path_factory.mktemp("hostile") / "run")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the run with pictures, a matrix and all that may lie beside a run."""
    return pages.pictures(tmp_path_factory.mktemp("pictures") / "run")


@pytest.fixture(scope="session")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the run in which many examples look the same."""
    return pages.alike(tmp_path_factory.mktemp("alike") / "run")


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the run with scores of tokens."""
    return pages.tokens(tmp_path_factory.mktemp("tokens") / "run")


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the run with sounds, pictures with texts, and conversations."""
    return rows.run(tmp_path_factory.mktemp("media") / "run")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; the tests that need it are skipped where it or its driver is not installed."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    names = (os.environ.get("STAGETRACE_TEST_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium is installed: apt install chromium, or name one in STAGETRACE_TEST_CHROMIUM")
    with driver.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


Opened = Callable[..., Any]


@pytest.fixture
def opened(browser: Any) -> Iterator[Opened]:
    """Opens a file as a person would; afterwards nothing may have been said in the console or asked of a network."""
    contexts: list[Any] = []
    said: list[str] = []

    def open_file(path: Path, width: int = 1280, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5_000)
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on(
            "request", lambda request: said.append(f"request: {request.url}") if is_foreign(request, path) else None
        )
        page.goto(path.as_uri())
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert said == []


def is_foreign(request: Any, path: Path) -> bool:
    """Whether a request is for anything but the file itself and what is inside it."""
    return request.url.split("#")[0] != path.as_uri() and not request.url.startswith("data:")
