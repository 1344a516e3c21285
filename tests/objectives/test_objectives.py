"""The ready-made losses: PyTorch's and transformers' own, per example, whatever the batch around an example."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from stagetrace.errors import DataError, DescriptionError, StagetraceError
from stagetrace.objectives import Classification, MaskedToken, NextToken, Objective, Regression
from tests.objectives import tiny

INPUTS = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 2, 1, 3, 0, 1, 1])
PROBABILITIES = torch.rand(7, 4, generator=torch.Generator().manual_seed(2)).softmax(dim=1)
TARGETS = torch.randn(7, 4, generator=torch.Generator().manual_seed(3))


class Returns(nn.Module):
    """A linear model whose `forward` takes `x` and `mask` by name and returns its output in some form."""

    def __init__(self, outputs: int = 4, form: Callable[[Tensor], Any] = lambda z: z) -> None:
        super().__init__()
        self.layer, self.form = nn.Linear(3, outputs), form

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return self.form(self.layer(x if mask is None else x * mask))


class TakesAnything(Returns):
    """The same behind `**kwargs`, as wrappers have it."""

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        return super().forward(*inputs, **named)


def loss_of(objective: Objective, model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        return objective.losses(objective.outputs(model.eval(), batch), batch)


# Classification and regression


@pytest.mark.parametrize(
    ("objective", "targets", "theirs"),
    [
        (Classification(), LABELS, nn.CrossEntropyLoss()),
        (Classification(), PROBABILITIES, nn.CrossEntropyLoss()),
        (Regression(), TARGETS, nn.MSELoss()),
    ],
    ids=["classes", "probabilities", "regression"],
)
@pytest.mark.parametrize(
    "batch_of",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: {"x": x, "labels": y},
        lambda x, y: {"image": x, "label": y},
        lambda x, y: {"x": x, "target": y, "index": torch.arange(7), "text": ["a"] * 7},
    ],
    ids=["tuple", "list", "dict", "another name", "columns forward does not take"],
)
def test_the_mean_is_that_of_pytorch(
    objective: Objective, targets: Tensor, theirs: nn.Module, batch_of: Callable[[Tensor, Tensor], Any]
):
    model = Returns()
    losses = loss_of(objective, model, batch_of(INPUTS, targets))
    assert losses.shape == (7,)
    torch.testing.assert_close(losses.mean(), theirs(model(INPUTS), targets))
    alone = torch.cat([loss_of(objective, model, batch_of(INPUTS[[i]], targets[[i]])) for i in range(7)])
    torch.testing.assert_close(losses, alone)


@pytest.mark.parametrize(
    "form",
    [
        lambda z: SequenceClassifierOutput(logits=z),
        lambda z: SequenceClassifierOutput(loss=z.sum(), logits=z),
        lambda z: {"logits": z, "hidden": z + 1},
        lambda z: (z, z + 1),
        lambda z: (z,),
    ],
    ids=["ModelOutput", "ModelOutput with a loss", "dict", "tuple", "tuple of one"],
)
@pytest.mark.parametrize("objective", [Classification(), Regression()], ids=repr)
def test_outputs_are_found_in_what_a_model_returns(objective: Objective, form: Callable[[Tensor], Any]):
    plain, wrapped = Returns(), Returns(form=form)
    wrapped.load_state_dict(plain.state_dict())
    targets = LABELS if isinstance(objective, Classification) else TARGETS
    torch.testing.assert_close(
        loss_of(objective, wrapped, (INPUTS, targets)), loss_of(objective, plain, (INPUTS, targets))
    )


def test_several_inputs_go_in_by_position_or_by_name():
    model, mask = Returns(), torch.tensor([1.0, 0.0, 1.0])
    expected = nn.functional.cross_entropy(model(INPUTS, mask), LABELS, reduction="none")
    masks = mask.expand(7, 3)
    torch.testing.assert_close(loss_of(Classification(), model, (INPUTS, masks, LABELS)), expected)
    torch.testing.assert_close(
        loss_of(Classification(), model, {"mask": masks, "labels": LABELS, "x": INPUTS}), expected
    )


def test_a_model_that_takes_anything_gets_every_input():
    model = TakesAnything()
    batch = {"x": INPUTS, "mask": torch.zeros(7, 3), "labels": LABELS}
    expected = nn.functional.cross_entropy(model(INPUTS * 0), LABELS, reduction="none")
    torch.testing.assert_close(loss_of(Classification(), model, batch), expected)
    torch.testing.assert_close(  # a lone input under a name of its own goes in by position
        loss_of(Classification(), model, {"image": INPUTS * 0, "labels": LABELS}), expected
    )


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 1, 1)], ids=str)
def test_a_single_output_may_have_targets_without_its_axis(shape: tuple[int, ...]):
    model, targets = Returns(outputs=1), torch.randn(7)
    expected = nn.functional.mse_loss(model(INPUTS).squeeze(1), targets, reduction="none")
    torch.testing.assert_close(loss_of(Regression(), model, (INPUTS, targets.reshape(shape))), expected)
    squeezed = Returns(outputs=1, form=lambda z: z.squeeze(1))
    squeezed.load_state_dict(model.state_dict())
    torch.testing.assert_close(loss_of(Regression(), squeezed, (INPUTS, targets.reshape(shape))), expected)


def test_regression_on_images_averages_over_an_example_s_outputs():
    outputs, targets = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    losses = Regression().losses(outputs, (None, targets))
    torch.testing.assert_close(losses.mean(), nn.functional.mse_loss(outputs, targets))
    assert losses.shape == (2,)


def test_a_classifier_from_transformers_has_transformers_loss():
    model = tiny.bert_classifier().eval()
    batch = {**tiny.padded(tiny.SENTENCES), "labels": torch.tensor([0, 2, 1, 1, 0])}
    losses = loss_of(Classification(), model, batch)
    with torch.no_grad():
        torch.testing.assert_close(losses.mean(), model(**batch).loss)


# Tokens


MODELS = [
    (tiny.gpt2, NextToken, 1),
    (tiny.llama, NextToken, 1),
    (tiny.bert, MaskedToken, 2),
]
modelled = pytest.mark.parametrize(
    ("make", "objective", "every"), MODELS, ids=[f"{m.__name__}-{o.__name__}" for m, o, _ in MODELS]
)
reduced = pytest.mark.parametrize("reduction", ["mean", "sum"])


@modelled
@reduced
def test_a_sentence_s_loss_is_its_own(make: Callable[[], nn.Module], objective: Any, every: int, reduction: str):
    model, loss = make(), objective(reduction=reduction)
    alone = torch.cat([loss_of(loss, model, tiny.labelled(tiny.padded([s]), every)) for s in tiny.SENTENCES])
    assert float(alone.min()) > 0.1
    for extra in (0, 3):
        batch = tiny.labelled(tiny.padded(tiny.SENTENCES, extra=extra), every)
        torch.testing.assert_close(loss_of(loss, model, batch), alone, rtol=1e-5, atol=1e-5)
    backwards = tiny.labelled(tiny.padded(tiny.SENTENCES[::-1]), every)
    torch.testing.assert_close(loss_of(loss, model, backwards), alone.flip(0), rtol=1e-5, atol=1e-5)


@modelled
def test_a_sentence_s_loss_is_transformers_loss(make: Callable[[], nn.Module], objective: Any, every: int):
    model = make().eval()
    for sentence in tiny.SENTENCES:
        batch = tiny.labelled(tiny.padded([sentence]), every)
        with torch.no_grad():
            theirs = model(**batch).loss
        torch.testing.assert_close(loss_of(objective(), model, batch)[0], theirs)


@modelled
def test_the_sum_is_the_mean_times_the_labelled_tokens(make: Callable[[], nn.Module], objective: Any, every: int):
    model, batch = make(), tiny.labelled(tiny.padded(tiny.SENTENCES), every)
    labels = batch["labels"][:, 1:] if objective is NextToken else batch["labels"]
    counts = (labels != -100).sum(dim=1)
    torch.testing.assert_close(
        loss_of(objective(reduction="sum"), model, batch), loss_of(objective(), model, batch) * counts
    )


@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
@reduced
def test_without_labels_the_attention_mask_says_what_is_predicted(left: bool, reduction: Any):
    # Rotary positions are relative: nothing but the loss can tell where a sentence lies.
    model, loss = tiny.llama(), NextToken(reduction=reduction)
    alone = torch.cat([loss_of(loss, model, tiny.labelled(tiny.padded([s]))) for s in tiny.SENTENCES])
    batch = tiny.padded(tiny.SENTENCES, left=left, extra=2)
    torch.testing.assert_close(loss_of(loss, model, batch), alone, rtol=1e-5, atol=1e-5)


def test_next_token_takes_tokens_in_three_forms():
    model = tiny.gpt2()
    tokens = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    expected = loss_of(NextToken(), model, {"input_ids": tokens, "labels": tokens})
    torch.testing.assert_close(loss_of(NextToken(), model, {"input_ids": tokens}), expected)
    torch.testing.assert_close(loss_of(NextToken(), model, tokens), expected)
    shifted = (tokens[:, :-1], tokens[:, 1:])
    torch.testing.assert_close(loss_of(NextToken(), model, shifted), expected)


@reduced
@pytest.mark.parametrize("objective", [MaskedToken, NextToken])
def test_only_labelled_tokens_count(objective: Any, reduction: str):
    logits = torch.randn(3, 4, 5)
    labels = torch.tensor([[1, -100, 2, -100], [-100, 3, -100, -100], [-100, -100, -100, -100]])
    losses = objective(reduction=reduction).losses(logits, {"labels": labels})
    each = -logits.log_softmax(dim=-1)
    if objective is MaskedToken:
        by_hand = [[each[0, 0, 1], each[0, 2, 2]], [each[1, 1, 3]]]
    else:  # position t predicts the token at t + 1
        by_hand = [[each[0, 1, 2]], [each[1, 0, 3]]]
    combine = torch.mean if reduction == "mean" else torch.sum
    expected = torch.stack([*(combine(torch.stack(row)) for row in by_hand), torch.tensor(0.0)])
    torch.testing.assert_close(losses, expected)


def test_a_sentence_without_labels_has_no_gradient():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    losses = MaskedToken().losses(logits, {"labels": torch.tensor([[-100] * 3, [1, 2, 3]])})
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert bool((gradient[0] == 0).all())
    assert bool((gradient[1] != 0).all())


def test_a_sentence_of_one_token_predicts_nothing():
    assert loss_of(NextToken(), tiny.gpt2(), {"input_ids": torch.tensor([[3], [4]])}).tolist() == [0.0, 0.0]


# What cannot be a batch


ONES = torch.ones(2, 3)
WRONG = {
    "class indices with an axis": (Classification(), ONES, (None, torch.ones(2, 1, dtype=torch.long))),
    "fewer class indices": (Classification(), ONES, (None, torch.ones(1, dtype=torch.long))),
    "other classes": (Classification(), ONES, (None, torch.ones(2, 4))),
    "token logits": (Classification(), torch.ones(2, 3, 4), (None, torch.ones(2, dtype=torch.long))),
    "fewer targets": (Regression(), ONES, (None, torch.ones(2, 2))),
    "targets for another batch": (Regression(), ONES, (None, torch.ones(3, 2))),
    "targets transposed": (Regression(), torch.ones(2, 3, 4), (None, torch.ones(2, 4, 3))),
    "other tokens": (MaskedToken(), torch.ones(2, 3, 4), {"labels": torch.ones(2, 2, dtype=torch.long)}),
    "one label a sentence": (MaskedToken(), torch.ones(2, 3, 4), {"labels": torch.ones(2, dtype=torch.long)}),
    "no token axis": (NextToken(), ONES, {"input_ids": torch.ones(2, 3, dtype=torch.long)}),
    "no axis but the batch": (NextToken(), torch.ones(2), {"input_ids": torch.ones(2, 3, dtype=torch.long)}),
    "one next token a sentence": (NextToken(), torch.ones(2, 3, 4), {"labels": torch.ones(2, dtype=torch.long)}),
}


@pytest.mark.parametrize("case", WRONG)
def test_shapes_that_do_not_fit_are_one_clear_error(case: str):
    objective, outputs, batch = WRONG[case]
    targets = batch[1] if isinstance(batch, tuple) else next(iter(batch.values()))
    with pytest.raises(DataError) as caught:
        objective.losses(outputs, batch)
    message = str(caught.value)
    assert "\n" not in message
    assert str(list(outputs.shape)) in message
    assert type(objective).__name__ in message or "token loss" in message
    if case != "token logits":
        assert str(list(targets.shape)) in message


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"x": INPUTS}, "without labels or label; its keys are ['x']"),
        ((INPUTS,), "(inputs, targets) or a dict with labels, got a tuple (float32 [7, 3])"),
        (INPUTS, "(inputs, targets) or a dict with labels, got float32 [7, 3]"),
    ],
    ids=["dict", "tuple of one", "tensor"],
)
@pytest.mark.parametrize("objective", [Classification(), Regression(), MaskedToken()], ids=repr)
def test_a_batch_without_targets_is_refused(objective: Objective, batch: Any, says: str):
    with pytest.raises(DataError) as caught:
        objective.losses(torch.ones(7, 3), batch)
    assert says in str(caught.value)


def test_tokens_that_are_no_batch_are_refused():
    for batch in ({"x": INPUTS}, SimpleNamespace(input_ids=INPUTS)):
        with pytest.raises(DataError, match="NextToken needs a dict with input_ids"):
            NextToken().losses(torch.ones(7, 3, 4), batch)


def test_an_output_without_a_tensor_is_refused():
    with pytest.raises(DataError, match="the model returned SimpleNamespace, from which no output tensor"):
        Classification().outputs(Returns(form=lambda z: SimpleNamespace(z=z)), (INPUTS, LABELS))


@pytest.mark.parametrize("objective", [MaskedToken, NextToken])
@pytest.mark.parametrize("reduction", ["none", "token", None])
def test_a_reduction_over_tokens_is_the_mean_or_the_sum(objective: Any, reduction: Any):
    with pytest.raises(DescriptionError, match="must be 'mean' or 'sum'"):
        objective(reduction=reduction)


def test_every_error_is_the_library_s():
    assert issubclass(DataError, StagetraceError)
    assert issubclass(DescriptionError, StagetraceError)
