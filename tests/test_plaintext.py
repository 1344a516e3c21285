"""What reaches a terminal: the program's own words act, nobody else's."""

import io
import sys

import pytest
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from stagetrace.plaintext import printable
from stagetrace.progress import Bars
from stagetrace.results.table import Table
from stagetrace.terminal import terminal
from tests import hostile


@pytest.mark.parametrize("text", hostile.STRINGS)
def test_nothing_that_acts_is_left_and_nothing_is_lost(text: str):
    shown = printable(text)
    assert hostile.acting(shown, allowed="") == set()
    assert hostile.acting(printable(text, lines=True)) == set()
    shown.encode("utf-8")
    if "\\" not in text:
        assert shown.encode("ascii", "backslashreplace").decode("unicode_escape") == text  # written out, not removed


@pytest.mark.parametrize(
    "text", ["plain, [brackets]", "Grüße, ½ – “so”", "مرحبا שלום 数据集 नमस्ते ሰላም", "👩🏽 🏳️ e\u0301", "\u3000\xa0"]
)
def test_letters_and_pictures_of_any_script_stay(text: str):
    assert printable(text) == text


def test_lines_stay_where_they_are_asked_for():
    assert printable("a\n\tb\r\n", lines=True) == "a\n    b\\r\n"
    assert printable("a\n\tb") == "a\\n\\tb"


DROPPED = str.maketrans(dict.fromkeys("\a\b\v\f\r"))
"""What rich itself takes out of a text: here it comes to rich as it is."""


@pytest.mark.parametrize("text", hostile.STRINGS)
def test_a_terminal_shows_any_text_as_it_is_written(capsys: pytest.CaptureFixture[str], text: str):
    table = RichTable("a", text)
    table.add_row(text, Text(text))
    for stderr in (False, True):
        console = terminal(stderr=stderr)
        console.print(text, soft_wrap=True, highlight=False)
        console.print(table, Text(text, style="red"), style="bold")
    said = capsys.readouterr()
    for stream in (said.out, said.err):
        assert hostile.acting(stream) == set()
        assert printable(text.translate(DROPPED), lines=True) in stream


def test_styles_and_cursor_movements_are_the_programs_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", stream := io.StringIO())
    console = terminal()
    console.print(Text("red\x1b[32m", style="red"))
    console.control(*[])
    assert stream.getvalue() == "\x1b[31mred\\x1b[32m\x1b[0m\n"


def test_a_terminal_that_knows_few_letters_gets_the_others_written_out(monkeypatch: pytest.MonkeyPatch):
    bytes_ = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_, encoding="ascii"))
    terminal().print("ü \ud800 数")
    sys.stdout.flush()
    assert bytes_.getvalue() == b"\\xfc \\ud800 \\u6570\n"


@pytest.mark.parametrize("text", hostile.STRINGS[:-1])
def test_bars_show_names_as_they_are(text: str):
    drawn = io.StringIO()
    with Bars(Console(file=drawn, width=400, color_system=None)).task(text, 3, text) as advance:
        advance(1, text)
    assert hostile.acting(drawn.getvalue()) == set()
    assert printable(text) in drawn.getvalue()


@pytest.mark.parametrize("text", hostile.STRINGS[:-1])
def test_tables_show_names_as_they_are_in_each_of_their_forms(text: str):
    table = Table(text, ("name", text), ((text, "1"),), text)
    drawn = io.StringIO()
    Console(file=drawn, width=700, color_system=None).print(table.rich())
    for shown in (drawn.getvalue(), table.text(width=700), table.html(), table.markdown()):
        assert hostile.acting(shown) == set()
    assert printable(text, lines=True) in drawn.getvalue()
    assert "<script" not in table.html() + table.markdown()
    assert "<img" not in table.html() + table.markdown()
