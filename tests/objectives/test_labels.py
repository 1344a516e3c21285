"""Labels that a loss is not for: one line with the stage, the example's index in the data set, and what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Query, Stage, trace
from stagetrace.errors import DataError, DescriptionError
from stagetrace.objectives import BinaryClassification, Classification, MaskedToken, MultiLabel, NextToken, Regression
from stagetrace.objectives.objective import label_names

N, SPOILT = 9, 7
INPUTS = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
CLASSES = torch.arange(N) % 4
YES = torch.arange(N) % 2
TOKENS = torch.randint(0, 6, (N, 5), generator=torch.Generator().manual_seed(2))
NAN = float("nan")


class Tokens(nn.Module):
    """Logits `[batch, length, 6]` from the tokens before."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(6, 3), nn.Linear(3, 6)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.table(input_ids).cumsum(dim=1))


class Shaped(nn.Module):
    """A linear layer whose output is made into something else."""

    def __init__(self, outputs: int, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.form = nn.Linear(3, outputs), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.layer(x))


def read(objective: Any, data: Any, model: nn.Module, batch_size: int = 4) -> list[Tensor]:
    """The losses of a stage's examples, batch by batch."""
    stage = Stage("fit", model=model, objective=objective, data=data, batch_size=batch_size)
    risk = Chain(stage)["fit"].risk
    with torch.no_grad():
        return [risk.losses(risk.trained_values, {}, batch) for batch in risk.read(risk.examples.batch_indices())]


def refusal(objective: Any, data: Any, model: nn.Module) -> str:
    with pytest.raises(DataError) as caught:
        read(objective, data, model)
    message = str(caught.value)
    assert "\n" not in message
    return message


def spoilt(labels: Tensor, value: Any) -> Tensor:
    """The labels with one example's replaced."""
    changed = labels.clone()
    changed[SPOILT] = value
    return changed


# One label of many is wrong


ONE_WRONG = {
    "out of range": (Classification(), spoilt(CLASSES, 9), 4, ("the label is 9", "4 logits", "0 to 3", "correct")),
    "negative": (Classification(), spoilt(CLASSES, -1), 4, ("the label is -1", "without a label")),
    "ignored": (Classification(), spoilt(CLASSES, -100), 4, ("-100", "leave these examples out")),
    "no probability": (
        Classification(),
        spoilt(nn.functional.one_hot(CLASSES, 4).float(), torch.tensor([-0.5, 1.5, 0, 0])),
        4,
        ("the probability -0.5", "at least 0"),
    ),
    "too little": (
        Classification(),
        spoilt(nn.functional.one_hot(CLASSES, 4).float(), torch.tensor([0.3, 0.3, 0.3, 0.0])),
        4,
        ("sum to 0.9, not to 1", "divide them by their sum"),
    ),
    "two ones": (
        Classification(),
        spoilt(nn.functional.one_hot(CLASSES, 4).float(), torch.tensor([1.0, 1.0, 0.0, 0.0])),
        4,
        ("sum to 2, not to 1", "MultiLabel()"),
    ),
    "NaN probability": (
        Classification(),
        spoilt(nn.functional.one_hot(CLASSES, 4).double(), torch.tensor([NAN, 1.0, 0.0, 0.0])),
        4,
        ("NaN", "correct the label"),
    ),
    "NaN target": (Regression(), spoilt(INPUTS, NAN), 3, ("the target is nan", "leave the example out")),
    "infinite target": (Regression(), spoilt(INPUTS, -float("inf")), 3, ("the target is -inf", "leave the example")),
    "a third class": (BinaryClassification(), spoilt(YES, 2), 1, ("the label is 2", "Classification()")),
    "no answer": (BinaryClassification(), spoilt(YES.float(), NAN), 1, ("the label is nan", "leave the example out")),
    "above one": (MultiLabel(), spoilt(YES[:, None].repeat(1, 4), 3), 4, ("the label is 3", "0 or 1 for every")),
    "ignored answer": (MultiLabel(), spoilt(YES[:, None].repeat(1, 4), -100), 4, ("-100", "leave these examples")),
}


@pytest.mark.parametrize("case", ONE_WRONG)
def test_a_wrong_label_is_found_where_it_is(case: str):
    objective, labels, outputs, words = ONE_WRONG[case]
    message = refusal(objective, TensorDataset(INPUTS, labels), nn.Linear(3, outputs))
    assert message.startswith(f"stage 'fit', example {SPOILT}: ")
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("objective", "value", "words"),
    [
        (MaskedToken(), 6, ("label is 6", "0 to 5", "-100 where nothing is predicted")),
        (MaskedToken(), -1, ("label is -1",)),
        (NextToken(), 11, ("label is 11", "6 logits")),
    ],
    ids=["beyond the vocabulary", "negative", "next token"],
)
def test_a_wrong_token_is_found_where_it_is(objective: Any, value: int, words: tuple[str, ...]):
    labels = TOKENS.clone()
    labels[SPOILT, 3] = value
    rows = [{"input_ids": tokens, "labels": label} for tokens, label in zip(TOKENS, labels, strict=True)]
    message = refusal(objective, rows, Tokens())
    assert message.startswith(f"stage 'fit', example {SPOILT}: ")
    assert [word for word in words if word not in message] == [], message


def test_an_input_beyond_its_table_is_found_where_it_is():
    tokens = TOKENS.clone()
    tokens[SPOILT, 2] = 6
    rows = [{"input_ids": one, "labels": label} for one, label in zip(tokens, TOKENS, strict=True)]
    message = refusal(MaskedToken(), rows, Tokens())
    assert message.startswith(f"stage 'fit', example {SPOILT}: index out of range")
    assert "a token beyond the vocabulary" in message


def test_large_indices_are_easy_to_read():
    labels = torch.zeros(5013, dtype=torch.long)
    labels[5012] = 4
    message = refusal(Classification(), TensorDataset(torch.zeros(5013, 3), labels), nn.Linear(3, 2))
    assert message.startswith("stage 'fit', example 5,012: the label is 4")


# All labels, or the outputs, are of another kind


KINDS = {
    "floats": (Classification(), CLASSES.float(), None, ("float32", "labels.long()")),
    "bools": (Classification(), YES.bool(), None, ("bool", "labels.long()")),
    "classes from 1": (Classification(), CLASSES + 1, None, ("labels - 1",)),
    "ones of whole numbers": (Classification(), nn.functional.one_hot(CLASSES, 4), None, ("argmax(dim=1)",)),
    "an axis too many": (Classification(), CLASSES[:, None], None, ("[2, 1]", "labels.squeeze(1)")),
    "all ignored": (Classification(), torch.full((N,), -100), None, ("-100", "leave these examples out")),
    "complex targets": (Regression(), INPUTS[:, [0] * 4] * 1j, None, ("complex64", "labels.real")),
    "broadcast targets": (Regression(), INPUTS[:, 0], None, ("[2, 4]", "[2]")),
    "plus and minus one": (BinaryClassification(), 2 * YES - 1, Shaped(1, lambda z: z), ("(labels + 1) / 2",)),
    "a logit each": (BinaryClassification(), YES, None, ("one logit per example", "Classification()")),
    "one label of many": (MultiLabel(), CLASSES, None, ("[2, 4]", "[2]", "Classification()")),
    "one logit": (Classification(), YES, Shaped(1, lambda z: z), ("[2, 1]", "BinaryClassification()")),
    "one flat logit": (Classification(), YES.float(), Shaped(1, lambda z: z[:, 0]), ("[2]", "BinaryClassification()")),
    "one logit, one answer": (
        Classification(),
        YES.float()[:, None],
        Shaped(1, lambda z: z),
        ("[2, 1]", "BinaryClassification()"),
    ),
    "classes": (Classification(), CLASSES, Shaped(4, lambda z: z.argmax(dim=1)), ("int64", "argmax")),
    "decisions": (MultiLabel(), YES[:, None].repeat(1, 4), Shaped(4, lambda z: z > 0), ("bool", "decisions")),
    "complex outputs": (Regression(), INPUTS[:, [0] * 4], Shaped(4, lambda z: z * 1j), ("complex64", "real part")),
    "complex logits": (Classification(), CLASSES, Shaped(4, lambda z: z * 1j), ("complex64", "real part")),
    "twice the batch": (Classification(), CLASSES, Shaped(4, lambda z: z.repeat(2, 1)), ("[4, 4]", "2 examples")),
    "a lost batch": (Regression(), INPUTS[:, 0], Shaped(1, lambda z: z.mean()), ("outputs []", "targets [2]")),
    "a list": (Classification(), CLASSES, Shaped(4, lambda z: [z]), ("a list (float32 [2, 4])",)),
    "more names": (Classification(names=("a", "b")), CLASSES, None, ("2 names", "4 logits")),
    "more names of labels": (MultiLabel(names=("a",)), YES[:, None].repeat(1, 4), None, ("1 names", "4 logits")),
}


@pytest.mark.parametrize("case", KINDS)
def test_labels_and_outputs_of_another_kind_are_refused(case: str):
    objective, labels, model, words = KINDS[case]
    message = refusal(objective, TensorDataset(INPUTS, labels), model or nn.Linear(3, 4))
    assert message.startswith(("stage 'fit', examples 0 to 1: ", "stage 'fit', example "))
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(x, "cat") for x in INPUTS], ("('cat', 'cat')", "return numbers")),
        ([(x, [1, 2]) for x in INPUTS], ("a list of 2 numbers", "give a tensor")),
    ],
    ids=["names", "lists"],
)
def test_labels_that_are_no_tensor_are_refused(rows: Any, words: tuple[str, ...]):
    message = refusal(Classification(), rows, nn.Linear(3, 4))
    assert [word for word in words if word not in message] == [], message


def test_labels_on_another_device_are_refused():
    elsewhere = torch.zeros(2, dtype=torch.long, device="meta")
    with pytest.raises(DataError, match="the labels are on meta, the outputs on cpu"):
        Classification().losses(torch.zeros(2, 3), (None, elsewhere))


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.int8, torch.uint8])
def test_whole_numbers_of_any_width_are_classes(kind: torch.dtype):
    model = nn.Linear(3, 4)
    found = read(Classification(), TensorDataset(INPUTS, CLASSES.to(kind)), model)
    assert torch.equal(torch.cat(found), torch.cat(read(Classification(), TensorDataset(INPUTS, CLASSES), model)))


def test_whole_numbers_are_targets():
    model = nn.Linear(3, 1)
    found = torch.cat(read(Regression(), TensorDataset(INPUTS, YES), model)).mean()
    torch.testing.assert_close(found, nn.functional.mse_loss(model(INPUTS)[:, 0], YES.float()).detach())


# Labels that are shifted twice, or not at all


def next_tokens(tokens: Tensor) -> Tensor:
    return torch.cat([tokens[:, 1:], torch.full((len(tokens), 1), -100)], dim=1)


SHIFTED = {
    "next tokens": ([{"input_ids": t, "labels": next_tokens(t[None])[0]} for t in TOKENS], "second"),
    "rolled": ([{"input_ids": t, "labels": t.roll(-1)} for t in TOKENS], "second"),
    "cut": ([{"input_ids": t[:-1], "targets": t[1:]} for t in TOKENS], "second"),
    "not shifted": (TensorDataset(TOKENS, TOKENS), "does not shift"),
}


@pytest.mark.parametrize("case", SHIFTED)
def test_the_shift_of_next_tokens_is_this_loss_s(case: str):
    rows, says = SHIFTED[case]
    message = refusal(NextToken(), rows, Tokens())
    assert says in message
    assert message.startswith("stage 'fit', example ")


def test_right_shifts_of_next_tokens_agree():
    model, same = Tokens(), torch.full((N, 5), 3)
    forms: list[Any] = [TensorDataset(TOKENS), list(TOKENS), TensorDataset(TOKENS[:, :-1], TOKENS[:, 1:])]
    forms.append([{"input_ids": t, "labels": t} for t in TOKENS])
    forms.append([{"input_ids": t, "targets": t} for t in TOKENS])
    first, *others = (torch.cat(read(NextToken(), rows, model)) for rows in forms)
    for other in others:
        torch.testing.assert_close(other, first)
    read(NextToken(), TensorDataset(same, same), model)  # tokens that say nothing of a shift
    read(NextToken(), [{"input_ids": t, "labels": t} for t in same], model)


# Nothing to learn


@pytest.mark.parametrize(
    ("objective", "rows"),
    [
        (MaskedToken(), [{"input_ids": t, "labels": torch.full((5,), -100)} for t in TOKENS]),
        (NextToken(), [{"input_ids": t, "labels": torch.tensor([1, -100, -100, -100, -100])} for t in TOKENS]),
        (NextToken(), [{"input_ids": t[:1]} for t in TOKENS]),
        (NextToken(), TensorDataset(TOKENS, torch.full((N, 5), -100))),
    ],
    ids=["masked", "only the first", "one token", "shifted"],
)
def test_examples_without_a_single_label_are_refused(objective: Any, rows: Any):
    stage = Stage("fit", model=Tokens(), objective=objective, data=rows)
    with pytest.raises(DataError, match="'fit', examples 0 to 8: none of the 9 examples looked at has a label"):
        trace(Chain(stage), Query(rows), curvature="identity")


def test_a_sentence_without_labels_among_others_has_loss_and_score_zero():
    rows = [{"input_ids": t, "labels": t if i else torch.full((5,), -100)} for i, t in enumerate(TOKENS)]
    stage = Stage("fit", model=Tokens(), objective=NextToken(), data=rows)
    values = trace(Chain(stage), Query(rows), curvature="identity")["fit"].values
    assert float(values[0]) == 0.0
    assert bool((values[1:] != 0).all())


# Binary classification and several labels


@pytest.mark.parametrize("axis", [(), (1,)], ids=["[batch]", "[batch, 1]"])
@pytest.mark.parametrize("logits", [(), (1,)], ids=["logits [batch]", "logits [batch, 1]"])
@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32, torch.float64, torch.uint8], ids=str)
def test_one_logit_has_pytorch_s_loss(kind: torch.dtype, logits: tuple[int, ...], axis: tuple[int, ...]):
    model = Shaped(1, lambda z: z.reshape(-1, *logits))
    labels = YES.to(kind).reshape(N, *axis)
    losses = torch.cat(read(BinaryClassification(), TensorDataset(INPUTS, labels), model))
    assert losses.shape == (N,)
    expected = nn.BCEWithLogitsLoss(reduction="none")(model.layer(INPUTS)[:, 0], YES.float())
    torch.testing.assert_close(losses, expected.detach())


def test_one_logit_is_half_of_two():
    """Cross-entropy of the logits 0 and z, and the binary one of z, are one loss."""
    z, labels = torch.randn(N, 1), torch.rand(N)
    binary = BinaryClassification().losses(z, (None, labels))
    two = Classification().losses(torch.cat([torch.zeros(N, 1), z], 1), (None, torch.stack([1 - labels, labels], 1)))
    torch.testing.assert_close(binary, two)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float64], ids=str)
def test_several_labels_have_pytorch_s_loss(kind: torch.dtype):
    model, labels = nn.Linear(3, 4), torch.arange(N * 4).reshape(N, 4) % 3 == 0
    losses = torch.cat(read(MultiLabel(), TensorDataset(INPUTS, labels.to(kind)), model))
    torch.testing.assert_close(losses.mean(), nn.BCEWithLogitsLoss()(model(INPUTS), labels.float()).detach())


# Names


@pytest.mark.parametrize("objective", [Classification, MultiLabel, BinaryClassification])
def test_names_are_for_reports_and_change_nothing(objective: Any):
    named = objective(names=["cat", "dog"])
    assert label_names(named) == named.names == ("cat", "dog")
    assert label_names(objective()) == ()
    assert repr(named) == repr(objective())
    assert hash(named) != hash(objective())


@pytest.mark.parametrize("objective", [Classification, MultiLabel, BinaryClassification])
@pytest.mark.parametrize("names", ["cd", ("a", "a"), (1, 2), 3, None], ids=repr)
def test_names_are_different_strings(objective: Any, names: Any):
    with pytest.raises(DescriptionError, match=rf"{objective.__name__}\(names=...\)"):
        objective(names=names)


def test_one_logit_has_two_names():
    with pytest.raises(DescriptionError, match="two names, of class 0 and of class 1"):
        BinaryClassification(names=("a", "b", "c"))
