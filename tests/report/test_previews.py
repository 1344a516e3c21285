"""What an example looks like: each kind of data set, read without being told its kind; kept and read back."""

from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stagetrace import Scores, Trace
from stagetrace.errors import DescriptionError, ResultsError
from stagetrace.report import picture
from stagetrace.report.attachments import Attachments
from stagetrace.report.item import Reader
from stagetrace.report.model import Report
from stagetrace.report.preview import Preview
from stagetrace.report.previews import NAME, Previews, read_previews, write_previews
from stagetrace.report.render import render


@dataclass
class Data:
    """A data set of one item, with whatever else hangs on it."""

    item: Any
    features: Any = None
    classes: Any = None
    tokenizer: Any = None

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self.item


@dataclass
class Tokenised(Data):
    """A data set of features that still has the rows they were made of."""

    rows: list[Any] = field(default_factory=list)


class Letters:
    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + token) for token in ids)


NAMED = {"label": SimpleNamespace(names=["cat", "dog"])}
TEXTS = [
    ("a string", Data("two\nlines"), "two\nlines", ""),
    ("a column of text", Data({"id": "x7", "text": "said", "label": 1}, NAMED), "said", "dog"),
    ("the only text", Data({"sentence": "said", "label": 0}), "said", "0"),
    ("two texts", Data({"premise": "a", "hypothesis": "b", "label": 0}, NAMED), "premise: a\nhypothesis: b", "cat"),
    ("a pair", Data(("said", 1), classes=["no", "yes"]), "said", "yes"),
    ("tokens", Data({"input_ids": [2, 0, 1], "labels": [2, 0, 1]}, tokenizer=Letters()), "cab", ""),
    ("a tensor of tokens", Data(torch.tensor([1, 0]), tokenizer=Letters()), "ba", ""),
    ("rows behind features", Tokenised({"input_ids": [1]}, rows=[{"text": "whole", "label": 3}]), "whole", "3"),
    ("half a character", Data("a\ud83d"), "a\\ud83d", ""),
    ("a name counted from elsewhere", Data({"text": "t", "labels": 0}, NAMED), "t", "0"),
]


@pytest.mark.parametrize(("data", "text", "label"), [case[1:] for case in TEXTS], ids=[case[0] for case in TEXTS])
def test_texts(data: Data, text: str, label: str):
    found = Reader.of(data).preview("stage", 0)
    assert (found.kind, found.text, found.label, found.cut) == ("text", text, label, 0)


def test_a_long_text_is_cut_and_says_by_how_much():
    found = Reader.of(Data("ab" * 500_000)).preview(None, 0)
    assert found.text == "ab" * 1_000
    assert found.cut == 998_000


TABLES = [
    ("numbers", Data((torch.tensor([1.0, -0.5]), 2)), (("input", "1, -0.5"),), "2"),
    ("a row", Data({"age": 37, "income": 1.5, "target": 0.25}), (("age", "37"), ("income", "1.5")), "0.25"),
    ("tokens without a tokenizer", Data({"input_ids": [3, 1]}), (("input_ids", "[3, 1]"),), ""),
    ("a small matrix", Data((torch.zeros(2, 3), 1)), (("input", "float32 [2, 3]: 0, 0, 0, 0, 0, 0, ..."),), "1"),
    ("two inputs", Data((torch.tensor([1.0]), torch.tensor([2.0]), 0)), (("input 0", "1"), ("input 1", "2")), "0"),
    ("a number", Data(0.5), (("input", "0.5"),), ""),
]


@pytest.mark.parametrize(("data", "fields", "label"), [case[1:] for case in TABLES], ids=[case[0] for case in TABLES])
def test_tables(data: Data, fields: tuple[tuple[str, str], ...], label: str):
    found = Reader.of(data).preview("stage", 0)
    assert (found.kind, found.fields, found.label) == ("table", fields, label)


def test_a_table_is_short():
    found = Reader.of(Data({f"column {i}": "x" if i < 0 else i * 10**200 for i in range(40)})).preview("stage", 0)
    assert len(found.fields) == 13
    assert found.fields[-1] == ("...", "28 more fields")
    assert max(len(value) for _, value in found.fields) == 120


def test_an_example_that_cannot_be_read_says_so():
    class Broken(Data):
        def __getitem__(self, index: int) -> Any:
            raise OSError("the disk is gone")

    assert Reader.of(Broken(0)).preview("s", 0).fields == (("not readable", "OSError: the disk is gone"),)


GREY = torch.tensor([[0, 51], [102, 255]], dtype=torch.uint8).repeat_interleave(4, 0).repeat_interleave(4, 1)
COLOUR = torch.stack([GREY, 255 - GREY, GREY // 3])
PICTURES = [
    ("bytes", GREY, GREY),
    ("from 0 to 1", GREY.double() / 255, GREY),
    ("up to 255", GREY.float(), GREY),
    ("one channel first", GREY[None].float() / 255, GREY),
    ("channels first", COLOUR, COLOUR.movedim(0, -1)),
    ("channels last", COLOUR.movedim(0, -1).numpy(), COLOUR.movedim(0, -1)),
    ("standardised", (GREY.float() - 100) / 50, GREY),
    ("pillow", Image.fromarray(GREY.numpy()), GREY),
]


@pytest.mark.parametrize(("image", "pixels"), [case[1:] for case in PICTURES], ids=[case[0] for case in PICTURES])
def test_pictures_keep_their_pixels(image: Any, pixels: torch.Tensor):
    found = Reader.of(Data((image, 0))).preview("stage", 0)
    assert found.kind == "image"
    shown = np.asarray(Image.open(BytesIO(found.images[0])))
    np.testing.assert_array_equal(shown, pixels.numpy())


def test_a_large_picture_becomes_small_and_keeps_its_shape():
    found = Reader.of(Data({"pixel_values": torch.rand(3, 300, 150), "labels": 1})).preview("stage", 0)
    assert Image.open(BytesIO(found.images[0])).size == (48, 96)


def test_pictures_are_not_changed_by_being_shown():
    image = Image.fromarray(np.zeros((300, 300), dtype=np.uint8))
    Reader.of(Data(image)).preview("stage", 0)
    assert image.size == (300, 300)


@pytest.mark.parametrize("value", [torch.zeros(8, 8).long(), torch.zeros(7, 7), torch.zeros(5, 9, 9), [1.0], "text"])
def test_what_is_no_picture(value: Any):
    assert not picture.is_picture(value)


def test_without_pillow_a_picture_is_a_table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(picture, "available", lambda: False)
    found = Reader.of(Data((torch.zeros(1, 8, 8), 3))).preview("stage", 0)
    assert (found.kind, found.label) == ("table", "3")
    assert found.fields[0][1].startswith("float32 [1, 8, 8]: 0")


WHOLE = Previews(
    (
        Preview("a", 3, "image", images=(b"\x89PNG",), label="cat"),
        Preview("a", 4, "text", "x\u2028y\n\u202e", cut=998_000),
        Preview(None, 0, "table", fields=(("n", "1"), ("m", "<b>")), prediction="dog (9%)", loss=0.1 + 0.2),
    ),
    {"query_loss": 0.25, "command": "a 'b'"},
)


def test_previews_come_back_as_they_were_and_the_same_ones_give_the_same_bytes(tmp_path: Path):
    write_previews(tmp_path, WHOLE)
    before = (tmp_path / NAME).read_bytes()
    assert read_previews(tmp_path) == WHOLE
    write_previews(tmp_path, WHOLE)
    assert (tmp_path / NAME).read_bytes() == before
    assert WHOLE.by_place()["a", 4].cut == 998_000


def test_a_run_without_previews_has_none_and_damaged_ones_are_refused(tmp_path: Path):
    assert read_previews(tmp_path) is None
    (tmp_path / NAME).write_bytes(b"PAR1 no")
    with pytest.raises(ResultsError, match=r"previews.parquet cannot be read .*stagetrace report .* --target"):
        read_previews(tmp_path)


@pytest.mark.parametrize("bad", [{"kind": "video"}, {"index": -1}])
def test_a_preview_is_checked_at_birth(bad: dict[str, Any]):
    with pytest.raises(DescriptionError, match=r"Preview: (kind must be one of image|index must be at least 0)"):
        replace(Preview("a", 0, "text"), **bad)


def test_only_a_picture_of_a_size_to_be_shown_is_one(tmp_path: Path):
    small = picture.png(torch.rand(3, 8, 8))
    assert picture.is_png(small, 8)
    assert not picture.is_png(small, 7)
    huge = small[:16] + (60_000).to_bytes(4) + small[20:]
    for content in (huge, b"", b"<svg onload=alert(1)>", small[:8], small[:20], b"root:x:0:0:root:/root:/bin/bash"):
        assert not picture.is_png(content, 10_000)
        item = Preview("a", 0, "image", images=(content,))
        trace = Trace({"a": Scores("a", torch.tensor([1.0]).double())})
        (tmp_path / "agreement.png").write_bytes(content)
        page = render(Report.of(trace, Previews((item,)), Attachments.read(tmp_path)))
        assert "data:image" not in page
