"""The experiment on word vectors: its pairs, its loss, its symmetry, and the whole of it on a few made-up texts."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from experiments.checkpoints import Checkpoints
from experiments.estimators import OURS
from experiments.pages.blocks import TABLES
from experiments.protocol import Prepared
from experiments.settings import Settings
from experiments.texts import Texts
from experiments.word_vectors import data as words_data
from experiments.word_vectors import experiment
from experiments.word_vectors.data import Drawing, Vocabulary, lines_of, pairs_of
from experiments.word_vectors.model import NegativeSampling, SkipGram
from experiments.word_vectors.stages import prepare
from stagetrace import Chain, Lanczos, trace
from stagetrace.errors import DataError
from stagetrace.progress import Silent
from stagetrace.solvers import Shift
from stagetrace.stages.revalued import with_values
from stagetrace.validation import Resolve, TopRemovals
from tests.experiments.conftest import SMALL_WORDS, Call, result_of, write_texts

WORDS = [f"{first}{second}" for first in "bdfgklm" for second in ("a", "e", "i", "o", "u")]
EVEN = np.linspace(0, 1, 11)[1:]
"""The running sum of ten equally likely negatives."""


def sentence(random: np.random.Generator, words: int) -> str:
    """Words in proportion to 1 / (place + 1)."""
    shares = 1 / np.arange(1, len(WORDS) + 1)
    return " ".join(random.choice(WORDS, words, p=shares / shares.sum()))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder given as --data: `wikitext2` and `gop_debate`; a tweet's label is whether it has an early word."""
    random = np.random.default_rng(0)
    lines = [sentence(random, int(random.integers(3, 15))) for _ in range(60)]
    tweets = [sentence(random, 9) for _ in range(40)]
    labels = [int(text.split().count("da") > 0) for text in tweets]
    columns = {"wikitext2": {"text": lines}, "gop_debate": {"text": tweets, "label": labels}}
    return write_texts(tmp_path_factory.mktemp("texts"), **columns)


@pytest.fixture(scope="module")
def both(call: Call, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("both")
    return prepare(Settings(texts, folder), SMALL_WORDS, Checkpoints(folder), Silent())


def test_pairs_stand_within_the_window_and_are_as_many_as_asked_for() -> None:
    line = np.arange(1, 9)  # a word's number is its place
    centres, targets = pairs_of(line, EVEN, Drawing(window=3, pairs=1000, negatives=4), np.random.default_rng(0))
    distance = np.abs(centres - targets[:, 0])
    assert set(distance.tolist()) == {1, 2, 3}
    assert targets.shape[1] == 5
    reach = {int(centre): int(distance[centres == centre].max()) for centre in set(centres.tolist())}
    expected = {(c, n) for c, r in reach.items() for n in line.tolist() if 0 < abs(c - n) <= r}
    assert set(zip(centres.tolist(), targets[:, 0].tolist(), strict=True)) == expected
    few = pairs_of(line, EVEN, Drawing(window=3, pairs=5, negatives=4), np.random.default_rng(0))
    assert len(few[0]) == 5
    assert len(pairs_of(line[:1], EVEN, Drawing(), np.random.default_rng(0))[0]) == 0


def test_negatives_follow_the_counts_to_the_power() -> None:
    counts = np.array([0, 1, 16, 81, 256])
    vocabulary = Vocabulary(_Numbers(), ("", "1", "2", "3", "4"), counts)
    line = Texts((" ".join(["1 2 3 4"] * 300),), None, (7,))
    drawn = lines_of(line, vocabulary, Drawing(window=5, pairs=5000, negatives=5), 0)[0]
    _, _, targets, mask = drawn.tensors
    negatives = targets[mask][:, 1:].flatten()
    shares = torch.bincount(negatives, minlength=5) / len(negatives)
    expected = torch.tensor([0.0, 1, 8, 27, 64]) / 100  # 16^0.75 = 8, 81^0.75 = 27, 256^0.75 = 64
    torch.testing.assert_close(shares, expected, atol=0.01, rtol=0)


class _Numbers:
    """A tokenizer of numbers in words, above those that are skipped."""

    def __call__(self, texts: list[str], **options: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[int(w) - 1 + words_data.SKIPPED for w in text.split()] for text in texts]}


def test_a_lines_pairs_follow_its_row_and_the_seed_alone(both: Prepared) -> None:
    place, lines = 5, both.data.general
    alone = lines_of(lines.chosen([place]), both.data.reader, SMALL_WORDS.drawing, 0)[0]
    other = lines_of(lines.chosen([place]), both.data.reader, SMALL_WORDS.drawing, 1)[0]
    assert torch.equal(alone.tensors[2][0], both.chain.stages[0].data.tensors[2][place])
    assert not torch.equal(other.tensors[2], alone.tensors[2])


def test_the_commonest_words_are_left_out(both: Prepared) -> None:
    words = both.data.reader.words
    assert not {"ba", "be"} & set(words)
    assert both.data.reader.counts[0] == 0
    line, numbers = both.data.general.texts[0], both.chain.stages[0].data.tensors[0][0]
    assert both.data.reader.text(numbers) == " ".join(w for w in line.split() if w in words)


def test_no_line_with_a_word_is_refused() -> None:
    with pytest.raises(DataError, match="no line has a word"):
        Vocabulary.of(["zz yy"], ["aa bb cc dd ee"] * 9, 3)


def test_loss_is_the_mean_over_a_lines_pairs() -> None:
    model = SkipGram(6, 3).double()
    centres = torch.tensor([[1, 2, 0], [3, 0, 0]])
    targets = torch.tensor([[[2, 4], [1, 5], [0, 0]], [[4, 3], [0, 0], [0, 0]]])
    objective, batch = NegativeSampling(), (centres, centres, targets, centres > 0)
    found = objective.losses(objective.outputs(model, batch), batch)

    def pair(centre: int, near: int, negative: int) -> float:
        v, u = (matrix.weight.detach() for matrix in (model.vectors, model.contexts))
        sigmoid = lambda a, b: 1 / (1 + math.exp(-float(a @ b)))  # noqa: E731
        return -math.log(sigmoid(v[centre], u[near])) - math.log(1 - sigmoid(v[centre], u[negative]))

    expected = [(pair(1, 2, 4) + pair(2, 1, 5)) / 2, pair(3, 4, 3)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_turning_both_matrices_together_changes_no_score(both: Prepared) -> None:
    """The flat family of minima: `vectors R` and `contexts R`, and the second stage's head turned with them."""
    turn = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    first, second = (bound.stage for bound in both.chain.bound_stages)

    def turned(stage: str, name: str) -> Tensor:
        return both.chain[stage].stage.model.get_parameter(name).detach() @ turn

    first = with_values(first, {name: turned("pretrain", name) for name in ("vectors.weight", "contexts.weight")})
    second = with_values(second, {name: turned("finetune", name) for name in ("vectors.weight", "head.weight")})
    solver = Lanczos(damping=1e-3, filter=Shift, rtol=1e-10)
    before, after = (trace(chain, both.query, solver=solver) for chain in (both.chain, Chain(first, second)))
    assert before["pretrain"].values.abs().max() > 1e-6
    torch.testing.assert_close(after["pretrain"].values, before["pretrain"].values, rtol=1e-6, atol=1e-12)


def test_small_stages_are_at_a_minimum_and_predict_solving_again(both: Prepared, tmp_path: Path) -> None:
    for bound in both.chain.bound_stages:
        assert bound.stationarity.norm() < 1e-8
    pull, choices = 1e-2, [TopRemovals(6, by=0.1)]
    fit = Resolve(tolerance=1e-9, proximity=pull)
    settings = Settings(tmp_path, tmp_path).of_seed(0)
    found = experiment.variant("again", both, settings, pull, fit, choices).validate(Silent())
    agreement = found.measured[0].agreement[OURS]
    assert agreement.pearson_r > 0.99
    assert agreement.slope == pytest.approx(1, abs=0.1)


@pytest.mark.filterwarnings("ignore")  # a few lines and steps end far from a minimum
@pytest.mark.slow
def test_the_whole_experiment_and_its_tables(call: Call, texts: Path, tmp_path: Path) -> None:
    assert call("word-vectors", "--data", texts, "--out", tmp_path) == 0
    result = result_of(tmp_path)
    assert list(result["seeds"]) == ["pull 0.001", "pull 0.0001", "adam"]
    assert result["failed"] == {}
    queries = [entry["query"] for entry in result["lines"]["small"]]
    assert queries[0] == "the mean loss over the test tweets"
    assert len(queries) == 3
    for entry in (*result["lines"]["small"], *result["lines"]["large"]):
        harmful, helpful = ([row["score"] for row in entry[end]] for end in ("most_harmful", "most_helpful"))
        assert harmful == sorted(harmful, reverse=True)
        assert helpful == sorted(helpful)
        assert min(harmful) >= max(helpful)
    for block in ("ours", "spearman", "truths", "stages", "larger", "lines small", "cost"):
        name, *words = block.split()
        assert TABLES[name](result, *words).count("\n|") > 1
