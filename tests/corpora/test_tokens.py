"""A file of tokens in its published order, and the documents that its rows hold, against slices of the whole."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagetrace import Chain, hf, trace
from stagetrace.corpora import TokenFile
from stagetrace.stages.own_ids import ids_of
from tests.hf import tiny

LENGTH = 6
TOKENS = np.random.default_rng(0).integers(5, tiny.SIZE, 8 * LENGTH + 3).astype(np.uint16)
ORDER = [3, 0, 7, 5, 1]


def written(folder: Path, **settings: Any) -> TokenFile:
    TOKENS.tofile(folder / "tokens.bin")
    return TokenFile(folder / "tokens.bin", dtype="uint16", length=LENGTH, **settings)


def test_an_example_is_a_row_of_the_order(tmp_path: Path):
    np.save(tmp_path / "order.npy", np.array(ORDER))
    np.save(tmp_path / "tokens.npy", TOKENS)
    for data in (
        written(tmp_path, order=tmp_path / "order.npy", batch=2),
        TokenFile(tmp_path / "tokens.npy", length=LENGTH, order=ORDER, batch=2),
    ):
        again = pickle.loads(pickle.dumps(data))
        for index, row in enumerate(ORDER):
            assert np.array_equal(again[index]["input_ids"], TOKENS[row * LENGTH : (row + 1) * LENGTH])
        ids, _ = ids_of(data, None, "stage 'fit'")
        assert list(ids or ()) == ["0/0", "0/1", "1/0", "1/1", "2/0"]
    assert len(written(tmp_path)) == 8  # three tokens are left over


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, len(TOKENS)), max_size=12))
def test_spans_say_which_tokens_are_whose(cuts: list[int]):
    starts = np.array([0, *sorted(cuts)])
    owner = np.searchsorted(starts, np.arange(len(TOKENS)), side="right") - 1  # of each token of the file
    made = object.__new__(TokenFile)
    made.__dict__ |= {"length": LENGTH, "tokens": len(TOKENS), "_order": np.array(ORDER), "_count": len(ORDER)}
    made.__dict__ |= {"_documents": starts}
    for index, row in enumerate(ORDER):
        said = [span.document for span in made.spans(index) for _ in range(span.start, span.stop)]
        assert said == owner[row * LENGTH : (row + 1) * LENGTH].tolist()


def test_scores_of_a_causal_model_are_those_of_lists(tmp_path: Path):
    model = tiny.model("LlamaForCausalLM")
    lists = [{"input_ids": TOKENS[row * LENGTH : (row + 1) * LENGTH].tolist()} for row in ORDER]

    def scores(data: Any) -> torch.Tensor:
        stage = hf.stage("fit", model, data, batch_size=2)
        return trace(Chain(stage), hf.query(lists[:1], stage=stage), curvature="identity")["fit"].values

    assert torch.equal(scores(written(tmp_path, order=ORDER)), scores(lists))
