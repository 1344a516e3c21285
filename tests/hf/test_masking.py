"""Masks: a function of seed and index alone, where they may be, and what stands in their place."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from stagetrace import hf
from stagetrace.errors import DescriptionError
from tests.hf import tiny

SIZE, MASK = 30, 4
sentences = st.lists(st.tuples(st.integers(5, SIZE - 1), st.booleans()), min_size=1, max_size=40)
maskings = st.builds(
    hf.Masking,
    probability=st.floats(0.01, 1.0),
    seed=st.integers(0, 5),
    masked=st.floats(0.0, 0.5),
    random=st.floats(0.0, 0.5),
)


def applied(masking: hf.Masking, sentence: list[tuple[int, bool]], index: int) -> tuple[list[int], list[int]]:
    tokens, special = [token for token, _ in sentence], [fixed for _, fixed in sentence]
    return masking.apply(tokens, special, index, mask=MASK, size=SIZE)


@given(maskings, sentences, st.integers(0, 10**6))
def test_a_mask_is_where_it_may_be(masking: hf.Masking, sentence: list[tuple[int, bool]], index: int):
    ids, labels = applied(masking, sentence, index)
    assert len(ids) == len(labels) == len(sentence)
    for (token, special), shown, label in zip(sentence, ids, labels, strict=True):
        assert label in (-100, token)
        assert 0 <= shown < SIZE
        if special or label == -100:
            assert (shown, label) == (token, -100)
    assert any(label != -100 for label in labels) == any(not special for _, special in sentence)


@given(maskings, sentences, st.integers(0, 10**6))
def test_the_same_index_has_the_same_mask(masking: hf.Masking, sentence: list[tuple[int, bool]], index: int):
    applied(masking, sentence, index + 1)
    np.random.random(3)
    assert applied(masking, sentence, index) == applied(dataclasses.replace(masking), sentence, index)


def test_shares_are_those_asked_for():
    masking, sentence = hf.Masking(0.3, masked=0.5, random=0.2), [(7, False)] * 20 + [(9, True)] * 5
    pairs = [pair for i in range(2000) for pair in zip(*applied(masking, sentence, i), strict=True)]
    ids, labels = np.array(pairs).T
    chosen = labels != -100
    assert chosen.mean() == pytest.approx(0.3 * 20 / 25, abs=0.01)
    assert (ids[chosen] == MASK).mean() == pytest.approx(0.5 + 0.2 / SIZE, abs=0.02)
    assert (ids[chosen] == 7).mean() == pytest.approx(0.3 + 0.2 / SIZE, abs=0.02)
    assert len(set(ids[chosen])) == SIZE  # any token may stand in for one


def test_examples_and_seeds_differ():
    sentence = [(7, False)] * 40
    masks = {tuple(applied(hf.Masking(seed=seed), sentence, index)[1]) for seed in range(4) for index in range(10)}
    assert len(masks) == 40


def test_the_batch_and_the_process_do_not_matter():
    stage = hf.stage("mlm", tiny.model("BertForMaskedLM"), tiny.rows(), tokenizer=tiny.tokenizer())
    alone = [stage.data[i] for i in range(len(stage.data))]
    for size, workers in ((3, 0), (8, 1)):
        loaded: Any = DataLoader(stage.data, batch_size=size, num_workers=workers, collate_fn=list)
        assert [example for batch in loaded for example in batch] == alone
    other = hf.query(tiny.rows()[2:], stage=stage)
    assert other.data[0] != alone[2]  # an example's mask goes by its index in its own data set


def test_no_special_token_is_masked():
    stage = hf.stage(
        "mlm", tiny.model("BertForMaskedLM"), tiny.rows(), tokenizer=tiny.tokenizer(), masking=hf.Masking(1.0)
    )
    for row, text in zip(stage.data, tiny.TEXTS, strict=False):
        plain = tiny.tokenizer()(text)["input_ids"]
        assert row["labels"] == [-100 if token < 5 else token for token in plain]
        assert [row["input_ids"][0], row["input_ids"][-1]] == [tiny.CLS, tiny.SEP]


def test_padding_in_the_data_is_not_masked():
    padded = [{"input_ids": [7, 8, 0, 0], "attention_mask": [1, 1, 0, 0], "special_tokens_mask": [0, 0, 0, 0]}]
    stage = hf.stage("mlm", tiny.model("BertForMaskedLM"), padded, tokenizer=tiny.tokenizer(), masking=hf.Masking(1.0))
    assert stage.data[0]["labels"] == [7, 8, -100, -100]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"probability": 0.0}, "probability"),
        ({"probability": 1.5}, "probability"),
        ({"probability": float("nan")}, "probability"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"masked": 0.8, "random": 0.3}, "shares"),
        ({"masked": -0.1}, "shares"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, Any], says: str):
    with pytest.raises(DescriptionError, match=says):
        hf.Masking(**settings)
