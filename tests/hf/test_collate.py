"""What makes a batch, and what does not."""

from typing import Any

import numpy as np
import pytest
import torch

from stagetrace.errors import DataError
from stagetrace.hf.collate import Collation

COLLATE = Collation(pad=9, segment=3)


def test_whole_numbers_stay_whole_where_a_row_has_none():
    empty: dict[str, Any] = {"input_ids": [], "attention_mask": [], "labels": []}
    full: dict[str, Any] = {"input_ids": [5], "attention_mask": [1], "labels": [5]}
    for rows in ([empty, full], [full, empty], [empty], [{"input_ids": np.array([])}], [{"labels": torch.tensor([])}]):
        assert {tensor.dtype for tensor in COLLATE(rows).values()} == {torch.int64}
    assert COLLATE([empty, full])["input_ids"].tolist() == [[9], [5]]
    assert COLLATE([empty, full])["labels"].tolist() == [[-100], [5]]


@pytest.mark.parametrize(
    ("name", "short", "long", "batch"),
    [
        ("input_ids", [1], [1, 2], [[1, 9], [1, 2]]),
        ("token_type_ids", [1], [1, 2], [[1, 3], [1, 2]]),
        ("position_ids", [4], [4, 5], [[4, 0], [4, 5]]),
        ("decoder_input_ids", [1], [1, 2], [[1, 9], [1, 2]]),
        ("decoder_attention_mask", [1], [1, 1], [[1, 0], [1, 1]]),
        ("labels", [7], [7, 8], [[7, -100], [7, 8]]),
        ("input_ids", [[1], [2]], [[1, 2], [3, 4]], [[[1, 9], [2, 9]], [[1, 2], [3, 4]]]),
    ],
)
def test_what_has_an_entry_per_token_is_padded(name: str, short: Any, long: Any, batch: Any):
    assert COLLATE([{name: short}, {name: long}])[name].tolist() == batch


def test_features_of_tokens_go_with_the_tokens():
    boxes = [{"input_ids": [1], "bbox": [[1, 2, 3, 4]]}, {"input_ids": [1, 2], "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]}]
    assert COLLATE(boxes)["bbox"].tolist() == [[[1, 2, 3, 4], [0, 0, 0, 0]], [[1, 2, 3, 4], [5, 6, 7, 8]]]
    vectors = [{"inputs_embeds": torch.ones(n, 2), "attention_mask": [1] * n} for n in (1, 3)]
    assert COLLATE(vectors)["inputs_embeds"].sum(dim=2).tolist() == [[2, 0, 0], [2, 2, 2]]


def test_padding_is_masked_unless_positions_say_what_sees_what():
    assert COLLATE([{"input_ids": [1]}, {"input_ids": [1, 2]}])["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert set(COLLATE([{"input_ids": [1]}, {"input_ids": [2]}])) == {"input_ids"}
    packed = COLLATE([{"input_ids": [1], "position_ids": [0]}, {"input_ids": [1, 2], "position_ids": [0, 0]}])
    assert set(packed) == {"input_ids", "position_ids"}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"pixel_values": torch.ones(1, 2, 2)}, {"pixel_values": torch.ones(1, 3, 2)}],
            "'pixel_values' has another size",
        ),
        (
            [{"pixel_values": torch.ones(1, 2, 2)}, {"pixel_values": torch.ones(3, 2, 2)}],
            r"\[1, 2, 2\] and \[3, 2, 2\]",
        ),
        ([{"input_values": [0.1]}, {"input_values": [0.1, 0.2]}], "'input_values' has another size"),
        ([{"input_features": torch.ones(2, 3)}, {"input_features": torch.ones(2, 4)}], "'input_features' has another"),
        ([{"labels": [0.5]}, {"labels": [0.5, 0.5]}], "'labels' has another size"),
        ([{"input_ids": [[1], [2]]}, {"input_ids": [[1], [2], [3]]}], "'input_ids' has another size"),
        ([{"input_ids": [1], "x": [1, 2]}, {"input_ids": [1], "x": [1]}], "'x' has another size"),
        ([{"labels": 1}, {"labels": [1]}], "'labels' has another size"),
        ([{"text": "a dog"}], "'text' holds text.*hf.query"),
        ([{"tokens": ["a", "dog"]}], "'tokens' holds text"),
        ([{"input_ids": [[1, 2], [3]]}], "'input_ids' cannot be made a tensor"),
        ([{"image": object()}], "'image' cannot be made a tensor: object"),
        ([{"input_ids": [1]}, {"input_ids": [1], "labels": [1]}], "different features"),
    ],
)
def test_what_makes_no_batch_is_refused(rows: Any, says: str):
    with pytest.raises(DataError, match=says):
        COLLATE(rows)
