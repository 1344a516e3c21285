"""Texts from folders in the Hugging Face layout, and tokenizers trained on them."""

from pathlib import Path
from typing import Literal

import pytest
from datasets import Dataset

from experiments.texts import UNKNOWN, new_tokenizer, read_texts, without_names
from stagetrace.errors import DataError


def written(folder: Path, **columns: list[object]) -> Path:
    folder.mkdir()
    Dataset.from_dict(columns).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def test_texts_and_labels_in_the_data_sets_order(tmp_path: Path) -> None:
    read = read_texts(written(tmp_path / "d", text=["a b", "", "c d e"], label=[1, 0, 1], other=["x"] * 3), "train")
    assert read.texts == ("a b", "", "c d e")
    assert read.labels == (1, 0, 1)
    assert read.of_words(2, 2).rows == (0,)


def test_a_draw_keeps_the_order_and_follows_the_seed(tmp_path: Path) -> None:
    read = read_texts(written(tmp_path / "d", text=[str(i) for i in range(50)]), "train")
    few = read.drawn(10, seed=1)
    assert few.labels is None
    assert list(few.rows) == sorted(few.rows)
    assert few.texts == tuple(str(row) for row in few.rows)
    assert few == read.drawn(10, seed=1) != read.drawn(10, seed=2)


def test_no_column_of_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a column 'text'; it has one, two"):
        read_texts(written(tmp_path / "d", one=["a"], two=["b"]), "train")


@pytest.mark.parametrize("kind", ["words", "pieces"])
def test_an_unknown_word_of_the_data_set_is_one_token(kind: Literal["words", "pieces"]) -> None:
    tokenizer = new_tokenizer(["the cat and the dog"] * 3, kind, 60)
    assert tokenizer.tokenize(f"The cat {UNKNOWN}") == ["the", "cat", UNKNOWN]
    assert tokenizer("the", padding=True)["input_ids"] == [2, tokenizer.convert_tokens_to_ids("the"), 3]


def test_names_and_links_are_not_shown() -> None:
    assert without_names("RT @Some_1: https://t.co/x, 3 @-@ 4") == "RT @user: (link) 3 @-@ 4"
