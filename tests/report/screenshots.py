"""The pictures of `docs/report.md`: a report at the width of a desk and of a phone.

stagetrace demo --out runs/digits
python -m tests.report.screenshots runs/digits/report.html docs/pictures
"""

import shutil
import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import sync_playwright

SIZES: dict[str, tuple[int, int, Literal["light", "dark"]]] = {
    "report-desktop.png": (1280, 1700, "light"),
    "report-phone.png": (390, 1700, "dark"),
}


def main(report: Path, folder: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height, scheme) in SIZES.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(report.resolve().as_uri())
            page.screenshot(path=folder / name)
            print(f"wrote {folder / name}")
        browser.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
