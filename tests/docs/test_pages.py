"""The site's pages: public names are on them, tables and pictures are those of the results, links lead somewhere."""

import importlib
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
import typer

import stagetrace
from docs.tools import benchmarks, picture

DOCS = Path(__file__).parents[2] / "docs"
API = sorted((DOCS / "api").glob("*.md"))
MODULES = ["stagetrace", *(f"stagetrace.{name}" for name in ("objectives", "solvers", "curvature", "validation"))]
MODULES += ["stagetrace.hf", "stagetrace.report", "stagetrace.curate", "stagetrace.export", "stagetrace.errors"]
MODULES += ["stagetrace.reweighting", "stagetrace.corpora", "stagetrace.why"]
NO_PAGE = {"__version__", "NAME", "FORMATS"}
"""Public in a module, and no API: a version, and names of files and formats."""


def directives() -> list[str]:
    """`stagetrace.Stage`, ...: what the pages document."""
    return [name for page in API for name in re.findall(r"\.\. auto\w+:: (\S+)", page.read_text())]


def named(dotted: str) -> object:
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_its_place(name):
    module = importlib.import_module(name)
    documented = [named(each) for each in directives()]
    missing = {
        each
        for each in set(module.__all__) - NO_PAGE
        if not any(getattr(module, each) is other for other in documented)
    }
    assert missing == set(), f"type them into a page of docs/api: {sorted(missing)}"


def test_no_name_is_documented_twice():
    found = [id(named(each)) for each in directives()]
    assert len(found) == len(set(found)) > 50


@pytest.mark.parametrize("page", benchmarks.PAGES, ids=lambda page: page.stem)
def test_the_tables_of_the_benchmarks_are_those_of_the_results(page):
    text = page.read_text()
    assert benchmarks.filled(text, benchmarks.PAGES[page]) == text, "type: python -m docs.tools.benchmarks"


def test_a_table_is_made_of_the_file_and_a_block_must_end(tmp_path):
    (tmp_path / "a.json").write_text('{"rows": [{"n": 1234, "s": 0.123456}, {"n": 1, "way": "x"}], "targets": []}')
    made = benchmarks.filled("<!-- table: a rows -->\nold\n<!-- end -->", tmp_path)
    lines = ["| n | s | way |", "| --- | --- | --- |", "| 1,234 | 0.123 | - |", "| 1 | - | x |"]
    assert made == "<!-- table: a rows -->\n\n" + "\n".join(lines) + "\n\n<!-- end -->"
    with pytest.raises(ValueError, match="without its"):
        benchmarks.filled("<!-- table: a rows -->\n", tmp_path)


def test_the_pictures_are_those_that_the_script_draws(tmp_path):
    app = typer.Typer()
    app.command()(picture.main)
    assert CliRunner().invoke(app, ["--out", str(tmp_path)]).exit_code == 0
    for page in picture.PAGES:
        name = f"method-{page}.svg"
        assert (tmp_path / name).read_text() == (DOCS / "figures" / name).read_text(), (
            "type: python -m docs.tools.picture"
        )


def test_the_sign_is_said_in_the_library_s_own_words():
    for page in ("index.md", "concepts.md"):
        text = " ".join((DOCS / page).read_text().split())
        assert "d(query loss)/d(epsilon)" in text
        assert "mean loss + epsilon * loss(example i)" in text
        assert "removal_effect = -values / n_examples" in text


def test_links_to_files_lead_somewhere():
    """Sphinx checks links between pages; a link out of `docs` is not its business."""
    pages = list(DOCS.rglob("*.md"))
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    local = [(page, link) for page, link in links if "://" not in link]
    assert len(local) > 50
    assert [f"{page.name}: {link}" for page, link in local if not (page.parent / link).exists()] == []


def test_what_to_cite_names_this_version():
    assert f"version: {stagetrace.__version__}\n" in (DOCS.parent / "CITATION.cff").read_text()
