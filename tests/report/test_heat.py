"""The heat map of tokens: each in its colour, with its number; the words of tokens; what a run kept before has none."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stagetrace import Chain, Lanczos, Query, Stage, Trace, hf, trace
from stagetrace.objectives import NextToken
from stagetrace.report import previews as previews_module
from stagetrace.report.collect import collect
from stagetrace.report.numbers import MINUS
from stagetrace.report.pieces import pieces_of
from stagetrace.report.previews import read_previews
from stagetrace.results import ExampleTokens
from tests.hf import tiny
from tests.report import pages
from tests.report.conftest import Opened

SPANS = """all => all.map(p => [...p.children].map(each =>
    [each.textContent, each.className.replace("token ", ""), each.title]))"""


def test_each_token_has_its_colour_and_its_number(opened: Opened, tokens: Path):
    page, found = opened(tokens), Trace.load(tokens.parent).tokens["pretrain"]
    page.get_by_label("Search").fill("plain words")
    ((first, *others),) = page.locator("#examples .sides .text").evaluate_all(SPANS)
    values, largest = found[0].values.tolist(), float(found[0].values.abs().max())
    assert first == ["plain", "", ""]
    for value, (text, look, title) in zip(values, others, strict=True):
        strength = -(-4 * abs(value) // largest)
        assert look == f"{'harmful' if value > 0 else 'helpful'} h{int(strength)}"
        assert float(title.replace(MINUS, "-")) == pytest.approx(value, rel=0.005)
        assert text in (" words", " here")
    words = page.locator("#examples .sides li").first.inner_text()
    assert "Largest token scores (query loss, + harmful): \u201c" in words
    assert "solid underline: harmful" in page.locator("#heat-legend").inner_text()


def test_hostile_tokens_are_texts_and_the_rest_is_said(opened: Opened, tokens: Path):
    page, found = opened(tokens, width=390), Trace.load(tokens.parent).tokens["pretrain"]
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("window.stolen") is None
    assert page.locator("main img, main iframe, main b, #harmful script").count() == 0
    shown = "".join(page.locator("#examples .sides .text").all_inner_texts())
    assert pages.HOSTILE[0][:40] in shown
    assert "U+202E" in shown
    assert "Tokens whose scores were not kept: " in page.locator("#examples .sides").inner_text()
    assert float(found[len(pages.HOSTILE[:12])].left_out) != 0


def test_a_run_without_them_has_no_legend_and_no_spans(opened: Opened, pictures: Path):
    page = opened(pictures)
    assert page.locator("#heat-legend, .token").count() == 0


def test_previews_of_the_format_before_are_read(tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table = pq.read_table(tokens.parent / previews_module.NAME)
    image = pa.array([b"\x89PNG"] * len(table), pa.binary())
    older = table.drop_columns(["pieces", "images", "sounds", "turns", "more"]).add_column(4, "image", image)
    older = older.replace_schema_metadata({**table.schema.metadata, b"format": b"2"})
    monkeypatch.setattr(previews_module, "_run", lambda _: table.schema.metadata[b"run"].decode())
    pq.write_table(older, tmp_path / previews_module.NAME)
    found = read_previews(tmp_path)
    assert found is not None
    assert {(item.images, item.pieces, item.turns) for item in found.items} == {((b"\x89PNG",), (), ())}


def example(index: int, **tokens: int) -> ExampleTokens:
    """Predicted tokens by position, `p3=7`."""
    at, ids = torch.tensor([int(name[1:]) for name in tokens]), torch.tensor(list(tokens.values()))
    return ExampleTokens(index, at, ids, torch.zeros(len(at)), torch.tensor(0.0))


class Rows(list[Any]):
    """Rows with how they are read."""

    def __init__(self, rows: list[Any], reader: Any) -> None:
        super().__init__(rows)
        self.reader = reader


def test_tokens_in_words():
    words = tiny.tokenizer(marks=False)
    causal = hf.stage("fit", tiny.model("GPT2LMHeadModel"), tiny.rows(), tokenizer=words)
    assert pieces_of(causal.data, example(1)) == ("a", " dog", " ran")
    masks = hf.Masking(0.9, seed=1)
    masked = hf.stage("fit", tiny.model("BertForMaskedLM"), tiny.rows(), tokenizer=tiny.tokenizer(), masking=masks)
    labels = masked.data[1]["labels"]
    told = {f"p{position}": label for position, label in enumerate(labels) if label != -100}
    assert pieces_of(masked.data, example(1, **told)) == ("[CLS]", " a", " dog", " ran", " [SEP]")
    seq2seq = SimpleNamespace(task=SimpleNamespace(name="SEQ2SEQ"), tokenizer=words)
    written = Rows([{"input_ids": [5, 6, 7], "labels": [8, 10, -100]}], seq2seq)
    assert pieces_of(written, example(0, p0=8, p1=10))[:2] == ("dog", " ran")
    assert pieces_of([{"input_ids": [5]}], example(0, p3=7)) == ()
    assert pieces_of([(torch.tensor([5, 6]), torch.tensor([6, 7]))], example(0)) == (" 6", " 7")  # inputs, targets
    assert pieces_of(torch.tensor([[5, 6, 8]]), example(0)) == (" 5", " 6", " 8")
    assert pieces_of([{"pixels": torch.zeros(2, 2)}], example(0)) == ()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_report_keeps_the_words_of_what_it_shows(reduction: Any):
    data = torch.randint(6, (5, 4), generator=torch.manual_seed(0))
    model = torch.nn.Sequential(torch.nn.Embedding(6, 3), torch.nn.Linear(3, 6))
    stage = Stage("fit", model=model, objective=NextToken(), data=data)
    chain, query = Chain(stage), Query(data[:2], reduction=reduction)
    result = trace(chain, query, tokens=True, curvature="identity", solver=Lanczos(damping=0.0))
    made = collect(result, chain, query).by_place()
    assert made["fit", 3].pieces == tuple(f" {word}" for word in data[3].tolist())
