"""The store of words: what is kept is the gradient, in the bytes that were promised, whatever a sequence's length."""

import os
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from stagetrace import Chain, Direct, Identity, Query, Stage, trace
from stagetrace.cli.main import app
from stagetrace.errors import DescriptionError, ResultsError
from stagetrace.index import Index, build
from stagetrace.index import agreement as agreement_module
from stagetrace.index import files as files_module
from stagetrace.index.files import codes_name, part_count, read_tensors
from stagetrace.index.lookup import held_of
from stagetrace.index.rows import Room, packed, row_of, row_scores
from stagetrace.objectives import NextToken
from tests import jobs

VOCABULARY, WIDTH, PAD = 40, 16, 39
SOLVED: dict[str, Any] = {"curvature": Identity(), "solver": Direct(0.1)}
ALL: dict[str, Any] = {"numbers": 10_000, "codes": "float32"}


class Language(nn.Module):
    """Each next word from the mean of those before it; the head is the table again, or its own."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        del attention_mask  # padding follows, and nothing looks ahead
        before = self.table(input_ids).cumsum(1) / torch.arange(
            1, input_ids.shape[1] + 1, device=input_ids.device
        ).unsqueeze(1)
        return self.head(torch.tanh(self.mix(before)))


def padded(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """To the longest of the batch."""
    words = [row["input_ids"] for row in rows]
    ids = nn.utils.rnn.pad_sequence(words, batch_first=True, padding_value=PAD)
    lengths = torch.tensor([len(each) for each in words])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long()}


def sequences(count: int, seed: int, longest: int = 13) -> list[dict[str, Tensor]]:
    """From two words to the longest; the word that pads is none of them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [2 + (5 * place + seed) % (longest - 1) for place in range(count)]
    return [{"input_ids": torch.randint(PAD, (length,), generator=generator)} for length in lengths]


def job(tied: bool, batch_size: int = 4, longest: int = 13) -> tuple[Chain, Query]:
    torch.manual_seed(3)
    stage = Stage(
        "language",
        model=Language(tied).double(),
        objective=NextToken(),
        data=sequences(30, 1, longest),
        batch_size=batch_size,
        collate=padded,
    )
    return Chain(stage), Query(sequences(4, 2), collate=padded, reduction="none")


def said(index: Index, adjoints: Tensor) -> Tensor:
    """Approximate scores `[k, n]`, from the files."""
    scores, held = index.stores["language"].scorer(adjoints), index.stages["language"]
    return torch.cat([scores(held_of(index.folder, "language", n)) for n in range(part_count(held.n_examples))]).mT


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], tuple[Index, Chain, Query]]:
    """An index in which nothing is rounded and everything kept, by whether the head is tied."""
    known = dict[bool, tuple[Index, Chain, Query]]()

    def make(tied: bool) -> tuple[Index, Chain, Query]:
        if tied not in known:
            chain, query = job(tied)
            known[tied] = build(chain, query, tmp_path_factory.mktemp("words") / "index", **ALL, **SOLVED), chain, query
        return known[tied]

    return make


# What is kept


def test_with_everything_kept_and_nothing_rounded_the_store_has_the_exact_scores(built):
    index, chain, query = built(False)
    result = trace(chain, query, **SOLVED)
    held, exact = index.stages["language"], result["language"].values
    found = said(index, result.solutions["language"].value)
    assert (held.store, held.numbers, held.notes) == ("words", WIDTH * (WIDTH + 1) + VOCABULARY * WIDTH, ())
    assert (found.double() - exact).abs().max() < 1e-5 * exact.abs().max()
    assert held.recall is not None
    assert held.recall.found == (1.0,)


def test_of_a_shared_table_the_rows_of_the_sequence_and_of_its_labels_are_kept(built):
    """Each gradient by autograd alone, its rows of all other words set to zero; the last word is a label only."""
    index, chain, query = built(True)
    adjoints = trace(chain, query, **SOLVED).solutions["language"].value
    stage, bound = chain.stages[0], chain["language"]
    where = bound.trained.slices()["table.weight"]
    right = list[Tensor]()
    for row in stage.data:
        model: Any = deepcopy(stage.model)
        batch = padded([row])
        stage.objective.losses(model(**batch), batch).sum().backward()
        gradient = torch.cat([dict(model.named_parameters())[name].grad.flatten() for name in bound.trained.names])
        others = torch.ones(VOCABULARY, dtype=torch.bool)
        others[row["input_ids"]] = False
        gradient[where].view(VOCABULARY, WIDTH)[others] = 0
        right.append(-gradient @ adjoints)
    exact = torch.stack(right, dim=1)
    assert (said(index, adjoints).double() - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_kept_does_not_depend_on_what_is_read_together(built, tied, tmp_path):
    """Padding, which depends on the batch, is no word of an example."""
    index, *_ = built(tied)
    chain, query = job(tied, batch_size=1)
    alone = build(chain, query, tmp_path / "alone", queries=0, **ALL, **SOLVED)
    one, other = held_of(index.folder, "language", 0), held_of(alone.folder, "language", 0)
    assert torch.equal(one["words"].int(), other["words"].int())
    assert torch.equal(one["ends"], other["ends"])
    lengths = one["ends"].diff(prepend=torch.zeros(1, dtype=torch.int32))
    assert lengths.min() < 3 < 9 < lengths.max()
    assert PAD not in one["words"].tolist()


@pytest.mark.parametrize("numbers", [64, 81])
def test_an_example_takes_the_bytes_that_were_promised_whatever_its_length(numbers, tmp_path):
    chain, query = job(True, longest=30)
    index = build(chain, query, tmp_path / "index", numbers=numbers, queries=0, **SOLVED)
    held, kept = index.stages["language"], held_of(index.folder, "language", 0)
    room = numbers - numbers // 2 - 8
    assert (held.store, held.bytes_each, held.numbers, held.words) == ("words", numbers + 4, numbers // 2, room // 6)
    counts = kept["ends"].diff(prepend=torch.zeros(1, dtype=torch.int32)).tolist()
    for place, count in enumerate(counts):
        words, codes, _ = row_of(kept, place, Room(room, VOCABULARY, WIDTH))
        assert len(words) == count <= room // 6
        assert numbers // 2 + 4 + 4 + 4 + codes.numel() + 2 * count <= held.bytes_each
    assert held.bytes_mean == sum(each.nbytes for each in kept.values()) / 30 <= held.bytes_each
    assert f"{counts.count(room // 6)} of 30 examples have as many words as there is room for" in held.notes[0]


@pytest.mark.parametrize("kind", ["int8", "float32"])
def test_ragged_rows_are_scored_as_one_by_one(kind):
    generator = torch.Generator().manual_seed(5)
    rows = [
        (torch.randperm(70_000, generator=generator)[:count].sort().values, torch.randn(count, 9, generator=generator))
        for count in (3, 0, 7, 1, 25)
    ]
    room = Room(60, lines=70_000, directions=9)  # 7 words at most: four bytes, and four directions
    held = packed(rows, room, kind)
    queries = torch.randn(2, 70_000, 9, generator=generator)
    assert held["words"].dtype == torch.int32
    right = torch.zeros(5, 2)
    for place, (words, values) in enumerate(rows):
        count = min(len(words), 7)
        width = min(9, 60 // max(1, count) - 4)
        largest = values.norm(dim=1).topk(count).indices
        for own in largest.tolist():
            right[place] -= queries[:, words[own], :width] @ values[own, :width]
    allowed = 1e-5 if kind == "float32" else 0.02 * float(right.abs().max())
    assert (row_scores(held, room, queries) - right).abs().max() < allowed
    assert held["ends"].tolist() == [3, 3, 10, 11, 18]


# What is found


def test_a_search_shows_exact_scores_with_their_sign(built, tmp_path):
    _, chain, query = built(True)
    index = build(chain, query, tmp_path / "index", numbers=70, queries=0, **SOLVED)
    exact = trace(chain, query, **SOLVED)["language"].values
    ranking = index.search(query, top=3, rescore=10, **SOLVED)["language"].ranking
    for place in range(4):
        assert torch.allclose(ranking.harmful_scores[place], exact[place, ranking.harmful[place]], rtol=1e-9)
        assert torch.allclose(ranking.helpful_scores[place], exact[place, ranking.helpful[place]], rtol=1e-9)
        assert ranking.harmful_scores[place, 0] > 0 > ranking.helpful_scores[place, 0]
    adjoints = trace(chain, query, **SOLVED).solutions["language"].value
    both = torch.stack([exact.flatten(), said(index, adjoints).flatten().double()])
    assert torch.corrcoef(both)[0, 1] > 0.5  # of few numbers, but a harmful example looks harmful


def test_a_killed_build_goes_on_and_ends_with_the_same_files(tmp_path, monkeypatch):
    module = __import__("stagetrace.index.build", fromlist=["build"])
    for each in (files_module, module, agreement_module):
        monkeypatch.setattr(each, "PART", 12)
    chain, query = job(True)
    whole = build(chain, query, tmp_path / "whole", numbers=70, **SOLVED)
    real, written = module.write_tensors, list[Path]()

    def dying(path: Path, *rest: Any) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        real(path, *rest)
        written.append(path)

    monkeypatch.setattr(module, "write_tensors", dying)
    with pytest.raises(KeyboardInterrupt):
        build(chain, query, tmp_path / "killed", numbers=70, **SOLVED)
    monkeypatch.setattr(module, "write_tensors", real)
    times = {path: path.stat().st_mtime_ns for path in written}
    found = build(chain, query, tmp_path / "killed", numbers=70, **SOLVED)
    assert found.manifest.files == whole.manifest.files
    assert found.stages == whole.stages
    assert all(path.stat().st_mtime_ns == times[path] for path in written if path.exists())
    assert read_tensors(tmp_path / "killed" / codes_name("language", 2), found.manifest.index, "language")[
        "ends"
    ].shape == (6,)


# What is refused


def test_a_table_that_has_changed_is_noticed_by_the_rows_that_are_kept(built, monkeypatch):
    index, chain, _ = built(False)
    monkeypatch.setattr(agreement_module, "SCHEME", 99)  # as if the fingerprints could not be compared
    Index.open(index.folder, chain)
    model: Any = deepcopy(chain.stages[0].model)
    with torch.no_grad():
        model.mix.weight[0] += 0.3
    with pytest.raises(ResultsError, match=r"the gradient of example \d+ differs"):
        Index.open(index.folder, Chain(replace(chain.stages[0], model=model)))


def test_a_model_without_a_table_is_refused_and_by_itself_kept_by_components(tmp_path):
    chain, query, _ = jobs.frozen()
    with pytest.raises(DescriptionError, match=r"stage 'pretrain': a store of words needs .*--store components"):
        build(chain, query, tmp_path / "a", store="words", **SOLVED)
    assert not (tmp_path / "a").exists()
    found = build(chain, query, tmp_path / "b", numbers=70, queries=0, **SOLVED)
    assert {held.store for held in found.stages.values()} == {"components"}
    settings: Any = found.manifest.description["index"]
    assert "store" not in settings  # as format 1 has it, so that its folders go on
    with pytest.raises(DescriptionError, match="must be 'auto', 'components' or 'words', got 'lines'"):
        build(chain, query, tmp_path / "c", store="lines", **SOLVED)  # pyright: ignore[reportArgumentType]


def test_components_can_be_asked_for_and_few_numbers_take_them(built, tmp_path):
    index, chain, query = built(False)
    found = build(chain, query, tmp_path / "a", store="components", numbers=20, queries=0, **SOLVED)
    assert (found.stages["language"].store, found.stages["language"].bytes_each) == ("components", 24)
    assert build(chain, query, tmp_path / "b", numbers=20, queries=0, **SOLVED).stages["language"].store == "components"
    with pytest.raises(DescriptionError, match="takes 64 numbers or more, got 20"):
        build(chain, query, tmp_path / "c", store="words", numbers=20, **SOLVED)
    with pytest.raises(ResultsError, match=r"index\.store"):
        build(chain, query, index.folder, store="components", **ALL, **SOLVED)


def test_the_command_line_takes_the_store_and_says_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("os.environ", {**os.environ, "COLUMNS": "200"})
    runner, target = CliRunner(), f"{Path(__file__)}:target"
    words = ["--numbers", "70", "--solve", "curvature=ekfac"]
    found = runner.invoke(app, ["index", target, "--out", str(tmp_path / "a"), *words])
    assert found.exit_code == 0, found.output
    assert "language: 30 examples by words, in at most 74 bytes each (mean " in found.output
    assert "rows of at most 4 words and 35 coordinates of EK-FAC, int8); fitted on 30 examples" in found.output
    again = runner.invoke(app, ["index", f"{jobs.FILE}:frozen", "--out", str(tmp_path / "b"), "--store", "words"])
    assert "type store='components' (--store components)" in str(again.exception)


def target() -> tuple[Chain, Query]:
    return job(True)
