"""Docstrings on their way to the site: what Markdown's marks become, and that docutils then has nothing to say."""

import io

import pytest

from docs.tools.docstrings import as_rst, plain_signature

CASES = [
    pytest.param("`x` and `a b`", "``x`` and ``a b``", id="code"),
    pytest.param("code `over\ntwo lines`", "code ``over\ntwo lines``", id="code over two lines"),
    pytest.param("a size |x|, code `|x|`", r"a size \|x\|, code ``|x|``", id="bars"),
    pytest.param("x: one. y, z: two", "* ``x``: one.\n* ``y``, ``z``: two", id="fields in one line"),
    pytest.param("Text.\nx: one\n  more", "Text.\n\n* ``x``: one\n  more", id="a field after text"),
    pytest.param("H: any name,\n    hanging\nW: next", "* H: any name,\n  hanging\n* W: next", id="hanging names"),
    pytest.param("note: no field", "note: no field", id="no field"),
    pytest.param("So:\n\n    a |b|", "So:\n\n::\n\n    a |b|", id="a formula"),
    pytest.param(">>> `|x|`\nx: 1", ">>> `|x|`\nx: 1", id="an example"),
    pytest.param("Args:\n    x: `|a|`\n    y: |b|", "Args:\n    x: ``|a|``\n    y: \\|b\\|", id="a section"),
    pytest.param(
        "Args:\n    x: `a`\n\n    y: |b|", "Args:\n    x: ``a``\n\n    y: \\|b\\|", id="a section of two parts"
    ),
    pytest.param("Example:\n    >>> `x`\n    |1|", "Example:\n    >>> `x`\n    |1|", id="an example in its section"),
    pytest.param(
        "Example:\n    `a`\n\n    >>> `x`\n    |1|", "Example:\n    ``a``\n\n    >>> `x`\n    |1|", id="after words"
    ),
]


@pytest.mark.parametrize(("markdown", "expected"), CASES)
def test_each_mark(markdown, expected):
    assert "\n".join(as_rst(markdown.split("\n"), ["x", "y", "z"])) == expected


def test_without_fields_nothing_is_an_item():
    assert as_rst(["x: one"]) == ["x: one"]


@pytest.mark.parametrize(
    ("signature", "shown"),
    [("(a: int = 1)", "(a: int = 1)"), ("(a=<factory>)", "(a=...)"), ("(*args, **kwargs)", ""), (None, None)],
)
def test_signatures(signature, shown):
    assert plain_signature(signature) == shown


@pytest.mark.parametrize("markdown", [case.values[0] for case in CASES if ":\n    " not in str(case.values[0])])
def test_docutils_finds_nothing_to_warn_of(markdown):
    core = pytest.importorskip("docutils.core")
    said = io.StringIO()
    core.publish_doctree(
        "\n".join(as_rst(markdown.split("\n"), ["x", "y", "z"])),
        settings_overrides={"warning_stream": said, "report_level": 1},
    )
    assert said.getvalue() == ""
