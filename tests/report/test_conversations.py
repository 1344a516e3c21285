"""Rows of several kinds at once: pictures with texts, conversations; how they are kept, told in a line, and shown."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stagetrace import Query
from stagetrace.report.item import Reader
from stagetrace.report.preview import Preview, Sound, Turn
from stagetrace.report.previews import NAME, Previews, read_previews, write_previews
from stagetrace.report.wav import encode
from stagetrace.report.words import in_words
from stagetrace.why.answer import Answer, Example, StageAnswer
from stagetrace.why.question import Question
from stagetrace.why.write import render
from tests.report import rows
from tests.report.conftest import Opened

user, assistant = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
SAFE = "prompt user: Is it safe? / chosen assistant: No. / rejected assistant: Sure!"
LINES = [
    ({"messages": [user, assistant]}, "user: Q / assistant: A"),
    ({"messages": [user, assistant], "prompt": "Q", "prompt_id": "7"}, "user: Q / assistant: A"),
    ({"conversations": [{"from": "human", "value": "Q"}]}, "human: Q"),
    ({"system": "S", "conversations": [{"from": "human", "value": "Q"}]}, "system: S / human: Q"),
    ({"completion": [assistant], "prompt": [user]}, "prompt user: Q / completion assistant: A"),
    (rows.CHATS[3], SAFE),
    ({**rows.CHATS[3], "messages": [user]}, SAFE),
    (rows.CHATS[4], "prompt: Is it safe? / chosen: No. / rejected: Sure!"),
    ({"prompt": "P", "chosen": [assistant], "rejected": [user]}, "prompt: P / chosen assistant: A / rejected user: Q"),
    ({"chosen": [user, assistant], "rejected": [user]}, "chosen user: Q / chosen assistant: A / rejected user: Q"),
    (
        {key: value for key, value in rows.CHATS[5].items() if key == "messages"},
        'user: [image]\nWhat is this? / assistant: [thinks] who knows\n[calls] weather({"city": "Paris"}) / '
        'tool weather: {"degrees": 17}',
    ),
    ({"messages": [{"role": "a", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]}, "a: [image]"),
    ({"messages": [{"role": None, "content": 7}]}, "7"),
    ({"messages": [], "text": "t"}, "t"),
    ({"messages": [{"role": "user"}], "text": "t"}, "t"),
    ({"prompt": "P", "completion": "C"}, "prompt: P, completion: C".replace(", ", "\n")),
]


@pytest.mark.parametrize(("row", "line"), LINES)
def test_conversations_in_a_line(row: dict[str, Any], line: str):
    found = Reader.of([row]).preview("fit", 0)
    assert in_words(found) == line
    assert (found.kind == "conversation") == (" / " in line or bool(found.turns))


def test_long_turns_and_long_conversations_are_cut_and_say_so():
    found = Reader.of([*rows.CHATS, {"messages": [{"role": "r" * 500, "content": "x"}]}])
    long, many, named = (found.preview("fit", index) for index in (1, 6, 7))
    assert [(turn.role, len(turn.text), turn.cut) for turn in long.turns] == [
        ("system", 8, 0), ("human", 2_000, 1_000), ("gpt", 2, 0),
    ]  # fmt: skip
    assert (len(many.turns), many.more) == (12, ("18 more turns are not shown",))
    assert len(named.turns[0].role) == 40
    assert long.look is many.look is None


def shown(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(BytesIO(content)))


def test_pictures_come_with_their_texts():
    reader = Reader.of([*rows.PICTURES, rows.CHATS[5], {"pixel_values": torch.rand(2, 3, 30, 30), "labels": 1}])
    one, file, seven, chat, stack = (reader.preview("fit", index) for index in range(5))
    assert (one.kind, len(one.images), one.text) == ("image", 1, rows.TURN)  # and not its id
    assert (len(file.images), len(file.text), file.cut) == (1, 2_000, 3_000)
    assert shown(file.images[0]).shape == (96, 96, 3)
    assert np.abs(shown(file.images[0]).astype(float) - shown(reader_of_photograph(2)).astype(float)).mean() < 4
    assert (len(seven.images), seven.more) == (4, ("3 more pictures are not shown",))
    assert seven.text == "prompt: Which is odd?\ncompletion: The third."
    assert (chat.kind, len(chat.images), len(chat.turns)) == ("conversation", 1, 3)
    assert (stack.kind, len(stack.images), stack.label) == ("image", 2, "1")
    assert [in_words(each)[:12] for each in (one, seven, stack)] == ["picture: </s", "pictures: pr", "pictures"]


def reader_of_photograph(seed: int) -> bytes:
    return Reader.of([rows.photograph(seed)]).preview("fit", 0).images[0]


def test_a_turned_photograph_is_upright_and_other_modes_are_drawn():
    turned, written = Image.new("RGB", (40, 20)), BytesIO()
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(written, "JPEG", exif=exif)
    assert shown(Reader.of([{"image": written.getvalue()}]).preview("fit", 0).images[0]).shape == (40, 20, 3)
    deep = Image.fromarray(np.linspace(0, 60_000, 400).reshape(20, 20).astype(np.uint16))
    drawn = shown(Reader.of([deep]).preview("fit", 0).images[0])
    assert [int(drawn[place].max()) for place in ((0, 0), (10, 0), (19, 19))] == [0, 128, 255]  # stretched, not cut
    for mode in ("P", "LA", "CMYK", "1", "I", "F"):
        assert Reader.of([Image.new(mode, (20, 20))]).preview("fit", 0).kind == "image"
    broken = Reader.of([{"image": b"\x89PNG\r\n\x1a\n", "caption": "kept"}]).preview("fit", 0)
    assert (broken.kind, broken.text) == ("text", "kept")
    ((name, said),) = broken.fields
    assert (name, said[:36]) == ("image", "not readable: UnidentifiedImageError")
    assert " at 0x" not in said  # which differs from run to run


SOUND = Sound(encode(rows.tone(0.1).astype(float), 16_000), 0.1, "clean")
WHOLE = Preview(
    "a", 3, "conversation", images=(b"\x89PNG", b"x"), sounds=(SOUND, SOUND), more=("2 more turns are not shown",),
    turns=(Turn("chosen", "user", "x\u2028\ud83d", 7), Turn("", "", "")),
)  # fmt: skip


def kept(folder: Path) -> tuple[Preview, ...]:
    found = read_previews(folder)
    assert found is not None
    return found.items


def test_what_is_kept_comes_back_and_what_was_kept_before_is_read(tmp_path: Path):
    write_previews(tmp_path, Previews((WHOLE,)))
    (found,) = kept(tmp_path)
    assert found.turns[0].text == "x\u2028\\ud83d"
    assert replace(found, turns=()) == replace(WHOLE, turns=())
    assert found.turns[1] == WHOLE.turns[1]
    table = pq.read_table(tmp_path / NAME)
    before = table.drop_columns(["images", "sounds", "turns", "more"])
    before = before.add_column(4, "image", pa.array([b""], pa.binary()))
    pq.write_table(before.replace_schema_metadata({**table.schema.metadata, b"format": b"3"}), tmp_path / NAME)
    (found,) = kept(tmp_path)
    assert (found.index, found.images, found.sounds, found.turns) == (3, (), (), ())


def test_the_page_shows_turns_pictures_and_players(opened: Opened, media: Path):
    page = opened(media, width=390, scheme="dark")
    assert page.evaluate("window.stolen") is None
    assert page.locator("main iframe, main script, .turn b").count() == 0
    said = page.locator("#examples .turn .said").all_text_contents()
    assert rows.TURN in said
    assert "hi " * 666 + "hi" in said
    assert page.locator(".turn .cut").first.inner_text() == "1,000 more characters are not shown"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator(".turn .part", has_text="rejected").count() == 2
    assert page.locator(".turn .hidden-character").first.inner_text() == "U+202E"
    text = page.locator("#examples").inner_text()
    cut = ("the first 10.0 s of 34.0 s", "3 more pictures are not shown", "18 more turns are not shown")
    for words in (*cut, "not readable: DataError: it is a wav file that was cut off"):
        assert words in text
    page.wait_for_function("[...document.querySelectorAll('audio')].every(each => each.duration > 0)")
    durations = page.locator("#examples .sides audio").evaluate_all("all => all.map(each => each.duration)")
    assert sorted(durations) == pytest.approx([0.5, 0.6, 0.6, 1.5, 10], abs=1e-3)
    names = page.locator("audio, .wave").evaluate_all("all => all.map(each => each.getAttribute('aria-label'))")
    assert "sound of example 1, the first 10.0 s of 34.0 s" in names
    assert "outline of the sound, 1.5 s" in names
    assert violations(page) == []
    page.get_by_label("Search").fill("roses are red")
    assert page.locator("#examples .sides .item").count() == 1


def violations(page: Any) -> list[tuple[str, str]]:
    """What an audit of accessibility finds."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    found = axe.Axe().run(page).response["violations"]
    return [(each["id"], each["nodes"][0]["html"][:200]) for each in found]


def test_the_page_of_an_answer_shows_the_same(opened: Opened, tmp_path: Path):
    reader = Reader.of([*rows.SOUNDS, *rows.PICTURES, *rows.CHATS])
    items = [reader.preview("fit", index) for index in range(15)]
    found = tuple(Example(each.index, -1.0, 0.1, in_words(each), each.label, preview=each) for each in items)
    stage = StageAnswer("fit", 15, 15, found, (Example(3, 1.0, -0.1, rows.TURN, ""),), ())
    answer = Answer(Question("label", "a good film", "positive", "given", (), Query([0])), (stage,))
    (tmp_path / "why.html").write_text(render(answer), encoding="utf-8")
    page = opened(tmp_path / "why.html", width=390)
    assert page.evaluate("[window.stolen, document.documentElement.scrollWidth]") == [None, 390]
    assert (page.locator("audio").count(), page.locator("main img").count()) == (5, 7)
    assert rows.TURN in page.locator(".turn .said").all_text_contents()
    assert "18 more turns are not shown" in page.locator("main").inner_text()
    assert violations(page) == []
