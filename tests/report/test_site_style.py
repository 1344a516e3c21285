"""Code on the site's pages fits its box: nothing of a line is hidden at its right."""

from pathlib import Path
from typing import Any

import pytest

from tests.cases import slow_but

STYLE = Path(__file__).parents[2] / "docs" / "static" / "site.css"
LINES = (
    "result = trace(chain, Query(test_digits))  # one walk" * 4,
    "x" * 300,
    "stagetrace " + "--solve pretrain=cg " * 20,
)


@pytest.mark.parametrize("width", slow_but((360, 1280), 360))
@pytest.mark.parametrize("line", LINES)
def test_a_long_line_goes_on_in_the_next_one(browser: Any, tmp_path: Path, width: int, line: str):
    # as the theme has it: blocks that scroll by themselves
    theme = ".highlight pre { overflow: auto; white-space: pre; }"
    code = f'<div class="highlight"><pre><span>{line}</span></pre></div>'
    file = tmp_path / "page.html"
    file.write_text(f"<style>{theme}</style><style>{STYLE.read_text()}</style><article>{code}</article>")
    page = browser.new_page(viewport={"width": width, "height": 600})
    page.goto(file.as_uri())
    wide, inside = page.locator("pre").evaluate("pre => [pre.scrollWidth, pre.clientWidth]")
    page.close()
    assert wide <= inside
