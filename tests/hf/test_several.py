"""Several examples are read as each by itself, though their texts are tokenised in one call."""

from typing import Any

import pytest

from stagetrace import hf
from stagetrace.errors import DataError
from tests.hf import tiny

CHOSEN = (5, 0, -1, 3)


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "BertForMaskedLM", "GPT2LMHeadModel"])
def test_several_are_read_as_each_by_itself(name: str):
    labelled = "Sequence" in name
    model = tiny.model(name, **({"num_labels": 3} if labelled else {}))
    rows: Any = tiny.rows(3 if labelled else None)
    tokenizer = tiny.tokenizer(marks="GPT2" not in name)
    data = hf.stage("s", model, rows, tokenizer=tokenizer, max_length=5).data
    assert data.__getitems__(CHOSEN) == [data[index] for index in CHOSEN]
    rows[3]["text"] = 7
    with pytest.raises(DataError, match="'text' of example 3 must be a string, got int"):
        data.__getitems__(CHOSEN)
