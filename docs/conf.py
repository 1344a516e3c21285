"""How Sphinx builds the site: `make docs` writes it to build/site, for any static host or to be opened as it lies."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for docs.tools

from stagetrace import __version__

project = "stagetrace"
author = "The stagetrace developers"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "docs.tools.docstrings", "sphinx.ext.napoleon"]
exclude_patterns = ["tools"]

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
add_module_names = False
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"stagetrace {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0550ae", "color-brand-content": "#0550ae"},
    "dark_css_variables": {"color-brand-primary": "#79b8ff", "color-brand-content": "#79b8ff"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
