"""Losses of policies, distillation, spans and groups: against closed forms, and their Gauss-Newton products."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev
from torch.utils.data import TensorDataset

from stagetrace import Chain, Direct, GaussNewton, Hessian, Objective, Query, Shift, Stage, trace
from stagetrace.errors import BatchError, DescriptionError, StagetraceError
from stagetrace.objectives import (
    Classification,
    Contrastive,
    Distillation,
    Grouped,
    MaskedToken,
    NextToken,
    SpanAnswer,
    WeightedLogProb,
)

VOCABULARY, WIDTH = 5, 3


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Language(nn.Module):
    """Logits of each token, or of where an answer begins and ends."""

    def __init__(self, outputs: int = VOCABULARY) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, outputs)
        self.double()

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.table(input_ids).cumsum(1).tanh())


class Encoder(nn.Module):
    def __init__(self, seed: int = 2) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(4, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh()


TOKENS = torch.randint(VOCABULARY, (4, 6), generator=torch.Generator().manual_seed(3))
LABELS = TOKENS.masked_fill(drawn(4, 6, seed=4) > 0.8, -100)
GOOD = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
TEACHER = drawn(4, 6, VOCABULARY, seed=5)
PAIRS = (drawn(6, 4, seed=6), drawn(6, 4, seed=7))


def rows(**columns: Tensor) -> list[dict[str, Tensor]]:
    return [{name: column[i] for name, column in columns.items()} for i in range(len(next(iter(columns.values()))))]


def stage(objective: Objective, data: Any, model: nn.Module, **settings: Any) -> Stage:
    return Stage("s", model=model, objective=objective, data=data, weight_decay=0.1, **settings)


def losses(described: Stage) -> Tensor:
    (batch,) = described.examples.read([range(len(described.examples))])
    with torch.no_grad():
        return described.loss.losses(described.loss.outputs(described.model, batch.content), batch.content)


def log_prob(logits: Tensor, i: int) -> tuple[Tensor, int]:
    """Of a text's next tokens, and their number."""
    found = [logits[i, t - 1].log_softmax(-1)[LABELS[i, t]] for t in range(1, 6) if LABELS[i, t] >= 0]
    return torch.stack(found).sum(), len(found)


@pytest.mark.parametrize("beta", [None, 0.7])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_weighted_log_probability(beta: float | None, reduction: Any):
    model = Language()
    data = rows(input_ids=TOKENS, labels=LABELS, advantage=GOOD)
    found = losses(stage(WeightedLogProb("advantage", beta, reduction), data, model))
    for i in range(4):
        value, count = log_prob(model(TOKENS), i)
        weight = GOOD[i] if beta is None else (GOOD[i] / beta).exp()
        torch.testing.assert_close(found[i], (-weight * value / (1 if reduction == "sum" else count)).detach())


def divergence(student: Tensor, teacher: Tensor, T: float) -> Tensor:
    """T^2 KL of two distributions, by the definition."""
    p, q = (teacher / T).exp() / (teacher / T).exp().sum(), (student / T).exp() / (student / T).exp().sum()
    return T**2 * (p * (p / q).log()).sum()


@pytest.mark.parametrize("labels", [0.0, 0.3])
def test_distillation_of_tokens_and_of_classes(labels: float):
    model, T = Language(), 2.0
    data = rows(input_ids=TOKENS, labels=LABELS, teacher_logits=TEACHER)
    for of, shift in ((NextToken(), 1), (MaskedToken(), 0)):
        found = losses(stage(Distillation(of, temperature=T, labels=labels), data, model))
        logits = model(TOKENS).detach()
        for i in range(4):
            places = [t for t in range(6 - shift) if LABELS[i, t + shift] >= 0]
            soft = sum(divergence(logits[i, t], TEACHER[i, t], T) for t in places) / len(places)
            hard = -sum(logits[i, t].log_softmax(-1)[LABELS[i, t + shift]] for t in places) / len(places)
            torch.testing.assert_close(found[i], (1 - labels) * soft + labels * hard)

    x, y = drawn(4, 4), torch.tensor([0, 1, 1, 0])
    teacher, student = Encoder(), Encoder()
    nn.init.normal_(teacher.layer.weight)
    objective = Distillation(Classification(), teacher, T, labels)
    found = losses(stage(objective, TensorDataset(x, y), student))
    for i in range(4):
        hard = -student(x)[i].log_softmax(-1)[y[i]]
        expected = (1 - labels) * divergence(student(x)[i], teacher(x)[i], T) + labels * hard
        torch.testing.assert_close(found[i], expected.detach())
    nn.init.zeros_(teacher.layer.weight)  # the objective keeps a copy
    torch.testing.assert_close(losses(stage(objective, TensorDataset(x, y), student)), found)
    assert all(p.requires_grad for p in teacher.parameters())


def test_a_span_is_two_cross_entropies_and_padding_of_a_batch_is_no_place():
    model = Language(2)
    starts, ends, own = torch.tensor([0, 2, 9, 1]), torch.tensor([5, 2, 3, 4]), torch.tensor([6, 6, 6, 3])
    data = rows(input_ids=TOKENS, start_positions=starts, end_positions=ends, own_length=own)
    found = losses(stage(SpanAnswer(), data, model))
    for i in range(4):
        logits = model(TOKENS[i : i + 1, : own[i]])[0]
        both = [logits[:, k].log_softmax(0)[p[i]] if p[i] < own[i] else 0 for k, p in enumerate((starts, ends))]
        torch.testing.assert_close(found[i], torch.as_tensor(-sum(both) / 2).detach().double())


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_group_of_pairs_is_an_example(symmetric: bool):
    model = Encoder()
    data = Grouped(TensorDataset(*PAIRS), 3)
    found = losses(stage(Contrastive(0.2, symmetric), data, model))
    assert found.shape == (2,)
    for group in range(2):
        a, p = (model(part[3 * group : 3 * group + 3]).detach() for part in PAIRS)
        cosines = torch.stack(
            [torch.stack([a[i] @ p[j] / a[i].norm() / p[j].norm() for j in range(3)]) for i in range(3)]
        )
        forth = -sum((cosines / 0.2).log_softmax(1)[i, i] for i in range(3)) / 3
        back = -sum((cosines / 0.2).log_softmax(0)[i, i] for i in range(3)) / 3
        torch.testing.assert_close(found[group], (forth + back) / 2 if symmetric else forth)


def test_groups_of_several_lengths_are_padded_where_a_mask_says_so():
    """As by themselves: a mean over tokens that counts none of the padding."""

    def embed(model: nn.Module, part: Any) -> Tensor:
        kept = part["attention_mask"].unsqueeze(-1).double()
        return (model(part["rows"].unsqueeze(-1).expand(-1, -1, 4)) * kept).sum(1) / kept.sum(1)

    def group(rows: list[Tensor]) -> tuple[Any, Any]:
        found = [torch.nn.utils.rnn.pad_sequence(rows[half::2], batch_first=True) for half in (0, 1)]
        return tuple({"rows": part, "attention_mask": (part != 0).long()} for part in found)  # pyright: ignore

    rows = [torch.arange(1.0, 2 + n % 4).double() + n for n in range(8)]
    data = Grouped(rows, [[0, 1, 4, 5], [2, 3, 6, 7]], collate=group)
    model, loss = Encoder().double(), Contrastive(0.2, embed=embed)
    together = losses(Stage("s", model=model, objective=loss, data=data, collate=Grouped.padded))
    alone = [losses(Stage("s", model=model, objective=loss, data=[each])) for each in data]
    torch.testing.assert_close(together, torch.cat(alone))
    bare = [tuple({"rows": part["rows"]} for part in each) for each in data]
    with pytest.raises(BatchError, match=r"'rows' has several lengths in the groups.*no 'attention_mask'"):
        Grouped.padded(bare)


STAGES = {
    "log-probability": lambda: stage(
        WeightedLogProb("advantage", 0.7), rows(input_ids=TOKENS, labels=LABELS, advantage=GOOD), Language()
    ),
    "distillation": lambda: stage(
        Distillation(NextToken(), temperature=2.0, labels=0.3),
        rows(input_ids=TOKENS, labels=LABELS, teacher_logits=TEACHER),
        Language(),
    ),
    "a teacher": lambda: stage(
        Distillation(Classification(), Encoder(9), 2.0),
        TensorDataset(drawn(4, 4), torch.tensor([0, 1, 1, 0])),
        Encoder(),
    ),
    "span": lambda: stage(
        SpanAnswer(),
        rows(
            input_ids=TOKENS,
            start_positions=torch.tensor([0, 2, 9, 1]),
            end_positions=torch.tensor([5, 2, 3, 2]),
            own_length=torch.tensor([6, 6, 6, 3]),
        ),
        Language(2),
    ),
    "groups": lambda: stage(Contrastive(0.5), Grouped(TensorDataset(*PAIRS), 3), Encoder()),
}


@pytest.mark.parametrize("name", STAGES)
def test_products_are_those_of_dense_matrices_and_a_trace_runs(name: str):
    described = STAGES[name]()
    (bound,) = Chain(described)
    space = bound.trained
    (batch,) = described.examples.read([range(len(described.examples))])
    flat = space.flatten(bound.trained_values)

    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = described.model

        def forward(self) -> Tensor:
            return described.loss.outputs(self.inner, batch.content)

    wrapped = Outputs()

    def outputs(v: Tensor) -> Tensor:
        return functional_call(wrapped, {f"inner.{n}": p for n, p in space.unflatten(v).items()}, ())

    n, at = len(described.examples), outputs(flat).detach()
    eye = torch.eye(space.size, dtype=torch.float64)
    J = jacrev(outputs)(flat).reshape(at.numel(), -1)
    inner = hessian(lambda z: described.loss.losses(z, batch.content).sum())(at).reshape(at.numel(), at.numel())
    expected = J.mT @ inner @ J / n + 0.1 * eye
    torch.testing.assert_close(GaussNewton().operator(bound).apply(eye), expected, atol=1e-9, rtol=1e-7)
    whole = hessian(lambda v: described.loss.losses(outputs(v), batch.content).mean())(flat) + 0.1 * eye
    torch.testing.assert_close(Hessian().operator(bound).apply(eye), whole, atol=1e-9, rtol=1e-7)

    query = Query(described.data, collate=described.collate)
    scores = trace(Chain(described), query, curvature=GaussNewton(), solver=Direct(0.1, Shift))["s"].values
    gradients = jacrev(lambda v: described.loss.losses(outputs(v), batch.content))(flat)
    dense = -gradients @ torch.linalg.solve(expected + 0.1 * eye, gradients.mean(0))
    assert float((scores - dense).abs().max()) < 1e-8 * float(dense.abs().max())


def test_what_does_not_fit_is_refused():
    for make, said in (
        (lambda: WeightedLogProb(""), "column must name one of the batch"),
        (lambda: WeightedLogProb("a", 0.0), "must be a number above 0"),
        (lambda: Distillation(nn.Linear(1, 1)), "must be Classification"),  # pyright: ignore[reportArgumentType]
        (lambda: Distillation(Classification(), temperature=0), "temperature"),
        (lambda: Contrastive(0), "temperature"),
        (lambda: Grouped([1, 2, 3], 2), "leave out the last 1"),
        (lambda: Grouped([1, 2, 3], [[0, 5]]), "there is no row 5"),
    ):
        with pytest.raises(DescriptionError, match=said):
            make()
    tokens = rows(input_ids=TOKENS)
    for objective, data, model, said in (
        (WeightedLogProb("advantage"), tokens, Language(), "needs a dict with 'advantage'"),
        (
            WeightedLogProb("advantage"),
            rows(input_ids=TOKENS, advantage=GOOD * float("nan")),
            Language(),
            "the target is nan",
        ),
        (Distillation(NextToken()), tokens, Language(), "needs a dict with 'teacher_logits'"),
        (SpanAnswer(), tokens, Language(2), "needs a dict with 'start_positions' and 'end_positions'"),
        (
            SpanAnswer(),
            rows(input_ids=TOKENS, start_positions=torch.full((4,), -1), end_positions=torch.ones(4).long()),
            Language(2),
            "a position of the answer is -1",
        ),
        (Contrastive(), TensorDataset(*PAIRS), Encoder(), "each \\[batch, group"),
        (Contrastive(), Grouped(TensorDataset(*PAIRS), 1), Encoder(), "a group of one pair has loss 0"),
    ):
        described = stage(objective, data, model)
        with pytest.raises(StagetraceError, match=said):
            trace(Chain(described), Query(data))


def test_a_loss_over_the_batch_is_refused_with_what_to_do():
    def in_batch(model: nn.Module, batch: Any) -> Tensor:
        a, p = (nn.functional.normalize(model(part), dim=1) for part in batch)
        return nn.functional.cross_entropy(a @ p.mT, torch.arange(len(a)), reduction="none")

    data = TensorDataset(*PAIRS)
    with pytest.raises(StagetraceError, match="make each fixed group of rows one example"):
        trace(Chain(stage(in_batch, data, Encoder())), Query(data))  # pyright: ignore[reportArgumentType]
