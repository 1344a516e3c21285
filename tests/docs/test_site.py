"""The site is built strictly, and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

for needed in ("sphinx", "furo", "myst_parser", "peft", "transformers"):
    pytest.importorskip(needed)

ROOT = Path(__file__).parents[2]
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]*)\"|<link\b[^>]*\bhref=\"([^\"]*)\"")
"""What a browser fetches without being asked to; a link that is clicked is none of it."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = ["-m", "sphinx", "--fail-on-warning", "--keep-going", "--fresh-env", "--quiet", "-d"]
    ended = subprocess.run(
        [sys.executable, *command, str(out / "doctrees"), str(ROOT / "docs"), str(out / "html")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return ended, out / "html"


@pytest.mark.slow
def test_the_build_has_nothing_to_warn_of(built):
    ended, _ = built
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.slow
def test_every_page_is_built(built):
    _, site = built
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")}
    assert pages <= {page.relative_to(site) for page in site.rglob("*.html")}


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(built):
    _, site = built
    found = [
        (page.name, src or href) for page in site.rglob("*.html") for src, href in LOADED.findall(page.read_text())
    ]
    assert len(found) > 100
    assert [each for each in found if "//" in each[1]] == []
    assert [css.name for css in site.rglob("*.css") if re.search(r"url\(\W?(https?:)?//", css.read_text())] == []


@pytest.mark.slow
def test_an_argument_s_words_reach_the_reference(built):
    _, site = built
    text = re.sub(r"<[^>]+>", "", (site / "api" / "describe.html").read_text())
    assert "strength of the pull, in loss units per squared parameter unit" in " ".join(text.split())
