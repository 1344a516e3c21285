"""Embedding similarity against cosines one by one."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Frozen, Query, Stage
from stagetrace.errors import DataError, DescriptionError
from stagetrace.objectives import Classification
from stagetrace.stages.fingerprint import fingerprint_model
from stagetrace.validation.estimators import EmbeddingSimilarity
from tests.chains import FROZEN_LOGISTIC, FROZEN_RIDGE, STRONG_TANH, chain_of, query_of
from tests.oracles import solved
from tests.validation.shared import each_reduction, reduced


def cosines(queries: Tensor, examples: Tensor) -> Tensor:
    rows = [[float(q @ e) / math.sqrt(float(q @ q) * float(e @ e)) for e in examples] for q in queries]
    return torch.tensor(rows, dtype=torch.float64)


@each_reduction
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("case", [FROZEN_RIDGE, FROZEN_LOGISTIC, STRONG_TANH], ids=lambda case: case.name)
def test_embedding_similarity_is_the_cosine_under_the_last_model(case, position, reduction):
    chain, query = chain_of(case, solved(case)), query_of(case, reduction=reduction)
    layer, stage = solved(case)[-1], case.stages[position]
    columns = layer["embedding.weight"].shape[1]

    def oracle(x: Tensor) -> Tensor:
        return x[:, :columns] @ layer["embedding.weight"].T + layer.get("embedding.bias", torch.zeros(1))

    expected = reduced(cosines(oracle(case.query_x), oracle(stage.x)), reduction)

    def embed(model: nn.Module, batch: Any) -> Tensor:
        return model.get_submodule("embedding")(batch[0][:, :columns])

    for given in ("embedding", embed):
        found = EmbeddingSimilarity(given).removal_effects(chain, query, stage.name)
        assert found.dtype is torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Pooled(nn.Module):
    """Token embeddings, an LSTM and a head; dropout, so that the mode shows."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 4)
        self.recurrent = nn.LSTM(4, 3, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(3, classes)
        self.spare = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.head(self.drop(self.recurrent(self.tokens(x))[0][:, -1]))
        except Exception:
            return torch.zeros(len(x), self.head.out_features)


def texts_chain(lengths: tuple[int, int] = (5, 5)) -> tuple[Chain, Query, Pooled]:
    """Two small text models (the second apart again); labels of the first stage go beyond the second's two classes."""
    torch.manual_seed(3)
    first, second = Pooled(4), Pooled(2)
    second.tokens.load_state_dict(first.tokens.state_dict())
    data = [
        TensorDataset(torch.randint(0, 11, (n, length)), torch.arange(n) % classes)
        for n, length, classes in ((9, lengths[0], 4), (8, lengths[1], 2), (3, lengths[1], 2))
    ]
    chain = Chain(
        Stage("pretrain", model=first, objective=Classification(), data=data[0], batch_size=4),
        Stage("finetune", model=second, objective=Classification(), data=data[1], batch_size=4, link=Frozen("tokens")),
    )
    return chain, Query(data[2], batch_size=2), second


@pytest.mark.parametrize("name", ["tokens", "recurrent", "drop"])
def test_a_submodules_output_is_flattened_and_the_head_never_reached(name: str):
    chain, query, model = texts_chain()
    before, modes = [fingerprint_model(stage.model) for stage in chain.stages], [s.model.training for s in chain.stages]
    found = EmbeddingSimilarity(name).removal_effects(chain, query, "pretrain")

    def oracle(x: Tensor) -> Tensor:
        with torch.no_grad():
            tokens = model.tokens(x)
            outputs = model.recurrent(tokens)[0]
        return {"tokens": tokens, "recurrent": outputs, "drop": outputs[:, -1]}[name].flatten(start_dim=1).double()

    expected = cosines(oracle(query.data.tensors[0]), oracle(chain.stages[0].data.tensors[0])).mean(dim=0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert [fingerprint_model(stage.model) for stage in chain.stages] == before
    assert [stage.model.training for stage in chain.stages] == modes
    assert not any(m._forward_hooks for s in chain.stages for m in (*s.model.modules(), *s.evaluated.modules()))


def test_a_zero_embedding_is_similar_to_none():
    case = FROZEN_RIDGE
    chain = chain_of(case, solved(case))
    found = EmbeddingSimilarity(lambda model, batch: batch[0] * 0).removal_effects(chain, query_of(case), "pretrain")
    assert torch.equal(found, torch.zeros(23, dtype=torch.float64))


@pytest.mark.parametrize(
    ("lengths", "embed", "message"),
    [
        ((5, 5), "nothing", "stage 'finetune' has no submodule 'nothing'; it has 'tokens', 'recurrent'"),
        ((5, 5), "spare", "submodule 'spare' was not called"),
        ((5, 7), "tokens", "stage 'pretrain': the embedding has 20 numbers, the query's 28"),
        ((5, 5), lambda model, batch: batch[1].float(), r"the query: an embedding must be .*\[2, d\], got \[2\]"),
        ((5, 5), lambda model, batch: torch.ones(5, 2), r"must be .*\[2, d\], got \[5, 2\]"),
        ((5, 5), lambda model, batch: "text", "got str"),
        ((5, 5), lambda model, batch: model.missing, "cannot embed examples 0..1 .*AttributeError"),
        ((5, 5), lambda model, batch: torch.full((len(batch[0]), 2), math.nan), "the embedding of example 0 is nan"),
    ],
)
def test_what_is_no_embedding_is_refused(lengths, embed, message):
    chain, query, _ = texts_chain(lengths)
    with pytest.raises((DescriptionError, DataError), match=message):
        EmbeddingSimilarity(embed).removal_effects(chain, query, "pretrain")
