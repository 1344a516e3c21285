"""`language`: the network against plain loops, its fits against the library's, and the experiment from end to end."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.estimators import GAUSS_NEWTON
from experiments.language import experiment
from experiments.language import text as elmo_text
from experiments.language.cost import KeptGaussNewton
from experiments.language.elmo import Elmo, Shape
from experiments.language.fits import OnFeatures
from experiments.language.models import Classifier, FullSoftmax, LanguageModel, SampledSoftmax
from experiments.language.stages import keep, stage_of_tweets, stage_of_words
from experiments.language.text import BothWays, Reader, with_words
from experiments.pages import comparisons, measures, work
from experiments.pages import texts as tables_of_texts
from experiments.pages.cells import NOT_RUN
from experiments.settings import Settings
from experiments.texts import FIRST, LAST, Corpora, Texts, new_tokenizer
from stagetrace import Chain, GaussNewton
from stagetrace.errors import DataError, DescriptionError
from stagetrace.stages.gradient import batch_gradient
from stagetrace.tracing.contract import forward_mode
from stagetrace.validation import Adam, Steps
from tests.experiments.conftest import TINY, result_of, write_texts

# Tiny stages are far from a minimum, and the trace says so.
pytestmark = pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")

WORDS = 12
SENTENCES = ("the cat sat on the mat", "a dog", "the dog saw a cat on a mat today", "birds sing")


def read(labels: tuple[int, ...] | None = None) -> Corpora:
    texts = Texts(SENTENCES, labels, tuple(range(len(SENTENCES))))
    tokenizer = new_tokenizer(SENTENCES, "words", WORDS)
    return Corpora(texts, texts, texts, texts, Reader(tokenizer, letters=7, tokens=12))


@pytest.fixture
def model() -> LanguageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LanguageModel(TINY, FullSoftmax(TINY.projection, WORDS)).double()


def lstm(layer: Any, x: Tensor) -> Tensor:
    """The textbook equations, word by word: `[time, projection]` -> the same shape."""
    h, c, states = x.new_zeros(TINY.projection), x.new_zeros(TINY.cells), []
    for word in x:
        gates = layer.weight_ih_l0 @ word + layer.bias_ih_l0 + layer.weight_hh_l0 @ h
        i, f, g, o = gates.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = layer.weight_hr_l0 @ (o.sigmoid() * c.tanh())
        states.append(h)
    return torch.stack(states)


def word_vector(elmo: Elmo, letters: list[int]) -> Tensor:
    """One word by itself, each filter slid over its letters by hand."""
    words: Any = elmo.words
    x = words.characters.weight[letters]  # [letters, character]
    found = []
    for convolution in words.filters:
        wide = convolution.kernel_size[0]
        windows = torch.stack([x[start : start + wide].T.flatten() for start in range(len(letters) - wide + 1)])
        found.append((windows @ convolution.weight.flatten(1).T + convolution.bias).max(dim=0).values)
    y = torch.cat(found).relu()
    for highway in words.highways:
        new, carry = highway(y).split(len(y))
        y = carry.sigmoid() * y + (1 - carry.sigmoid()) * new.relu()
    return words.projection(y)


def plain_states(elmo: Elmo, letters: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Top states of one sentence, forwards and backwards, `[time, projection]` each."""
    words = torch.stack([word_vector(elmo, word) for word in letters])
    found = []
    for direction, x in ((elmo.forwards, words), (elmo.backwards, words.flip(0))):
        first = lstm(direction.first, x)
        found.append(first + lstm(direction.second, first))
    return found[0], found[1].flip(0)


def plain_loss(model: LanguageModel, reader: Reader, text: str) -> Tensor:
    words = reader.words(text)
    numbers = torch.tensor(reader._numbers(words))
    ahead, back = plain_states(model.elmo, [elmo_text.spelt(word, reader.letters) for word in words])
    right = [
        F.log_softmax(model.softmax.word(state), dim=0)[n] for state, n in zip(ahead[:-1], numbers[1:], strict=True)
    ]
    right += [
        F.log_softmax(model.softmax.word(state), dim=0)[n] for state, n in zip(back[1:], numbers[:-1], strict=True)
    ]
    return -torch.stack(right).mean()


def test_the_papers_network_has_as_many_parameters_as_elmo():
    with torch.device("meta"):
        elmo = Elmo(Shape())
    letters = 262 * 16 + sum(16 * wide * count + count for wide, count in Shape().filters)
    words = letters + 2 * (2048 * 4096 + 4096) + 2048 * 512 + 512
    layer = 4 * 4096 * (512 + 512) + 4 * 4096 + 4096 * 512
    assert sum(p.numel() for p in elmo.parameters() if p.requires_grad) == words + 4 * layer == 93_600_864


def test_losses_are_those_of_the_textbook_equations(model):
    found = read()
    batch = found.reader(elmo_text.examples(found.general))
    losses = BothWays().losses(model(batch), batch)
    expected = torch.stack([plain_loss(model, found.reader, text) for text in SENTENCES])
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=0)


def test_a_batch_is_its_distinct_words_in_order_and_where_they_stand():
    reader = read().reader
    batch = reader([{"text": "the dog saw a cat"}, {"text": "a dog"}])
    words = sorted({FIRST, LAST, "the", "dog", "saw", "a", "cat"})
    assert batch["characters"].tolist() == [elmo_text.spelt(word, 7) for word in words]
    one = [FIRST, "the", "dog", "saw", "a", "cat", LAST]
    other = [FIRST, "a", "dog", LAST]
    assert [words[place] for place in batch["sentences"][0]] == one
    assert [words[place] for place in batch["sentences"][1][:4]] == other
    assert batch["turned"].tolist() == [[6, 5, 4, 3, 2, 1, 0], [3, 2, 1, 0, 4, 5, 6]]
    assert batch["answers"][:9].tolist() == reader._numbers(one[1:] + other[1:])
    assert batch["answers"][9:].tolist() == reader._numbers(one[:-1] + other[:-1])


def test_no_state_knows_the_word_that_it_predicts(model):
    reader = read().reader
    one, other = (reader([{"text": text}]) for text in ("the cat sat on the mat", "the cat sat on the dog"))
    (ahead, back), (ahead2, back2) = (model.elmo(batch)[-1][0].chunk(2, dim=1) for batch in (one, other))
    changed = (ahead != ahead2).any(dim=1), (back != back2).any(dim=1)
    last = one["sentences"].shape[1] - 2  # the word that differs; the end follows it
    assert changed[0].tolist() == [False] * last + [True, True]
    assert changed[1].tolist() == [True] * (last + 1) + [False]


def test_sampled_softmax_is_the_loss_over_the_drawn_words():
    softmax = SampledSoftmax(projection=4, vocabulary=30, negatives=9, seed=3).double()
    states, answers = torch.randn(5, 4, dtype=torch.float64), torch.tensor([2, 7, int(softmax.drawn[0]), 29, 0])
    found = F.cross_entropy(softmax(states, {"answers": answers}), torch.zeros(5, dtype=torch.long), reduction="none")
    chance = [math.log((w + 2) / (w + 1)) / math.log(31) for w in range(30)]
    rows = softmax.word(states).tolist()
    for row, answer, loss in zip(rows, answers.tolist(), found.tolist(), strict=True):
        logits = [row[w] - math.log(9 * chance[w]) for w in (answer, *softmax.drawn.tolist())]
        others = [z for z, w in zip(logits[1:], softmax.drawn.tolist(), strict=True) if w != answer]
        expected = math.log(math.exp(logits[0]) + sum(map(math.exp, others))) - logits[0]
        assert loss == pytest.approx(expected, rel=1e-6)
    again = SampledSoftmax(projection=4, vocabulary=30, negatives=9, seed=3)
    assert torch.equal(again.drawn, softmax.drawn)
    assert softmax.drawn.unique().numel() > 3


def test_scores_by_forward_mode_are_products_with_gradients(model):
    stage = stage_of_words(model, read(), 0.0)
    risk = Chain(stage)["pretrain"].risk
    batch = next(iter(risk.read([range(len(SENTENCES))])))
    direction = torch.randn(risk.trained.size, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, dots = forward_mode(risk, batch, direction)
    for index in range(len(SENTENCES)):
        one = next(iter(risk.read([[index]])))
        assert float(batch_gradient(risk, one).trained[:, 0] @ direction[:, 0]) == pytest.approx(float(dots[index, 0]))


def test_heads_trained_on_features_are_those_trained_on_sentences(model):
    found = read((0, 1, 1, 0))
    classifier = Classifier(TINY, 5, 2).double()
    keep(classifier, model)
    chain = Chain(stage_of_words(model, found, 0.0), stage_of_tweets(classifier.eval(), found, 1e-2))
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
    before = {name: torch.stack([p, p + 0.3]).detach() for name, p in model.named_parameters()}
    steps, bound = Steps(Adam(1e-1), steps=7, batch_size=3), chain["finetune"]
    whole, quick = steps(bound, weights, before, 0), OnFeatures(steps)(bound, weights, before, 0)
    assert set(quick) == set(whole)
    for name, value in whole.items():
        torch.testing.assert_close(quick[name], value, rtol=1e-8, atol=1e-10)
    moved = (whole["head.hidden.weight"] - classifier.head.hidden.weight).abs().amax(dim=(1, 2))
    assert bool((moved > 0.1).all())


def test_curvature_without_trials_is_the_same(model):
    bound = Chain(stage_of_words(model, read(), 1e-2))["pretrain"]
    vector = torch.randn(bound.trained.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    few = GaussNewton(examples=3, seed=1)
    expected = few.operator(bound) @ vector
    torch.testing.assert_close(KeptGaussNewton(few).operator(bound) @ vector, expected, rtol=1e-8, atol=1e-10)


def test_what_cannot_be_is_refused():
    with pytest.raises(DescriptionError, match="projects its cells to fewer"):
        Shape(projection=8, cells=8)
    with pytest.raises(DescriptionError, match="2 characters wide"):
        replace(experiment.SMALL, shape=TINY, letters=1)
    with pytest.raises(DataError, match="no sentence of 20 to 30 words among 4"):
        with_words(read().general, read().reader, 20, 30)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """The folder given as --data: sentences of few words, and tweets whose label is in them."""
    nouns, verbs = ("cat", "dog", "bird", "fish", "bear"), ("saw", "met", "fed", "hid")
    lines = [f"the {a} {v} the {b} today" for a in nouns for v in verbs for b in nouns]
    tweets = [f"{'good' if place % 2 else 'bad'} {line}" for place, line in enumerate(lines)]
    labels = [place % 2 for place in range(len(tweets))]
    columns = {"obw": {"text": lines}, "gop_debate": {"text": tweets, "label": labels}}
    return write_texts(tmp_path_factory.mktemp("texts"), **columns)


@pytest.fixture(scope="module")
def out(call, texts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "language"
    assert call("language", "--data", texts, "--out", folder, "--size", "paper") == 0
    assert call("language", "--data", texts, "--out", folder) == 0
    return folder


@pytest.mark.slow
def test_every_control_stands_beside_the_score(out):
    found = result_of(out)["small"]
    assert [seed["seed"] for seed in found["each_seed"]] == [0]
    for seed in found["each_seed"]:
        groups = seed["choices"]["groups"]
        assert groups["reliability"]["runs"] == 2
        assert len(groups["estimators"]) == len(groups["lds"]) == 8
        assert groups["estimators"][GAUSS_NEWTON]["n"] == 4
        assert groups["mean_absolute_effect"] > 0
    assert (out / "agreement.png").stat().st_size > 10_000


@pytest.mark.slow
def test_sentences_of_chosen_tweets(out):
    found = result_of(out)["small"]["sentences"]
    assert found["sampled"] == 50
    wrong = [tweet["said"] != tweet["label"] for tweet in found["tweets"]]
    assert wrong == sorted(wrong, reverse=True)
    for tweet in found["tweets"]:
        sizes = [abs(row["score"]) for row in (*tweet["largest"], *tweet["smallest"])]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] > tweet["mean_absolute_score"] > sizes[-1]
        assert (tweet["probability_of_its_label"] < 0.5) == (tweet["said"] != tweet["label"])


@pytest.mark.slow
def test_the_cost_of_a_score(out):
    found = result_of(out)["paper"]
    shared = sum(p.numel() for p in Elmo(TINY).parameters() if p.requires_grad)
    assert found["parameters"]["shared"] == shared
    assert found["parameters"]["pretrain"] == shared + 25 * (TINY.projection + 1)
    assert found["seconds_an_example"] * found["sentences"] == pytest.approx(found["seconds"]["all of trace"])
    assert found["words_a_sentence"] == 6
    assert found["mean_absolute_score"] > 0


@pytest.mark.slow
def test_a_call_keeps_what_the_other_size_found(out, tmp_path):
    found = result_of(out)
    (tmp_path / "result.json").write_text((out / "result.json").read_text())
    for size, other in (("small", "paper"), ("paper", "small")):
        merged = experiment._with_other_size(size, Settings(tmp_path, tmp_path), {"new": 1})
        assert merged[size]["new"] == 1
        assert merged[other] == found[other]


@pytest.mark.parametrize(
    ("words", "message"),
    [(("language", "--size", "huge"), "small, paper"), (("similarity", "--size", "small"), "has no sizes")],
)
def test_sizes_are_those_of_language(words, message, call, texts, capsys):
    assert call(*words, "--data", texts) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_tables_of_the_page(out):
    found = result_of(out)
    groups = comparisons.agreement(found, "groups")
    records = [seed["choices"]["groups"]["estimators"] for seed in found["small"]["each_seed"]]
    mean = sum(each[GAUSS_NEWTON]["spearman_r"] for each in records) / len(records)
    row = next(line for line in groups.splitlines() if line.startswith(f"| {GAUSS_NEWTON} |"))
    assert row.split("|")[3].strip().startswith(f"{mean:.3f} (")
    assert "reliability of the mean of 2 runs" in groups
    tweets = found["small"]["sentences"]["tweets"]
    shown = tables_of_texts.sentences(found)
    assert all(f"{tweet['largest'][0]['score']:+.1e}" in shown for tweet in tweets)
    assert f"| {found['paper']['seconds_an_example']:.3f} |" in measures.price(found)
    assert measures.price({"small": {}}) == NOT_RUN
    assert comparisons.by_seed(found).count("\n| ") == 2
    assert "| examples | 60 | 40 |" in work.training(found)
    assert work.cost(found).count("| cpu |") == 2


def test_texts_in_tables_name_no_one():
    text = "RT @someone: look|here https://t.co/abc #now " + "x" * 300
    assert tables_of_texts.quoted(text).startswith("`` RT @user: look\\|here (link) #now xxx")
    assert tables_of_texts.quoted(text).endswith("xxx... ``")
