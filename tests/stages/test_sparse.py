"""Models with a sparse matrix inside, as networks on graphs have one: the scores of the same model with a dense one."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Chain, Frozen, Query, Stage, trace
from stagetrace.checks.finding import Level
from stagetrace.checks.verify import verify_stage
from stagetrace.curvature.auto import Auto
from stagetrace.errors import DataError, DifferentiationError
from stagetrace.objectives import Classification
from stagetrace.stages.coverage import changed_statistics
from stagetrace.stages.sparse import parts_of, same_values, storages_of

NODES = 6
EDGES = (torch.rand(NODES, NODES, generator=torch.Generator().manual_seed(0)) > 0.5).double()
FEATURES = torch.randn(NODES, 3, generator=torch.Generator().manual_seed(1)).double()
DATA = TensorDataset(torch.arange(NODES), torch.tensor([0, 1, 0, 1, 1, 0]))
BETA = "Sparse CSR tensor support is in beta state"
pytestmark = pytest.mark.filterwarnings(f"ignore:{BETA}")


def layouts() -> dict[str, Tensor]:
    coo = EDGES.to_sparse()
    twice = (coo.indices().repeat(1, 2), coo.values().repeat(2) / 2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=BETA)
        return {
            "coo": coo,
            "coo, uncoalesced": torch.sparse_coo_tensor(*twice, EDGES.shape, check_invariants=True),
            "csr": EDGES.to_sparse_csr(),
            "csc": EDGES.to_sparse_csc(),
        }


LAYOUTS = layouts()


class Graph(nn.Module):
    """Two layers of a network on a graph; its edges are a buffer, or an attribute."""

    def __init__(self, edges: Tensor, seed: int, *, buffer: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(3, 4).double(), nn.Linear(4, 2).double()
        if buffer:
            self.register_buffer("edges", edges)
        else:
            self.edges = edges

    def forward(self, nodes: Tensor) -> Tensor:
        hidden = torch.tanh(self.edges @ self.first(FEATURES))
        return (self.edges @ self.second(hidden))[nodes]


class Headed(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.body, self.head = body, nn.Linear(2, 2).double()

    def forward(self, nodes: Tensor) -> Tensor:
        return self.head(self.body(nodes))


def chain(edges: Tensor, **settings: Any) -> Chain:
    common: dict[str, Any] = {"objective": Classification(), "data": DATA, "weight_decay": 0.1}
    first = Stage("first", model=Graph(edges, 0, **settings), **common)
    second = Stage("second", model=Headed(Graph(edges, 0, **settings)), link=Frozen({"body": ""}), **common)
    return Chain(first, second)


@pytest.mark.parametrize("buffer", [True, False], ids=["buffer", "attribute"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_of_a_sparse_matrix_are_those_of_a_dense_one(layout: str, buffer: bool):
    vectors = torch.randn(26, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found, expected = (
        Auto().operator(chain(edges, buffer=buffer)["first"]) @ vectors for edges in (LAYOUTS[layout], EDGES)
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stage_with_a_sparse_buffer_passes_its_checks(layout: str):
    for bound in chain(LAYOUTS[layout]):
        assert {finding.level for finding in verify_stage(bound)} == {Level.OK}
        assert changed_statistics(bound) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sparse_buffer_that_moved_beside_kept_weights_is_noticed(layout: str):
    moved: Any = chain(LAYOUTS[layout])
    moved.last.stage.model.body.edges = LAYOUTS[layout] * 2
    assert "'body' changed although" in changed_statistics(moved.last)[0]


def test_blocks_are_refused_with_what_to_give():
    with pytest.raises(DifferentiationError, match=r"to_sparse_csr\(\)"):
        Auto().operator(chain(EDGES.to_sparse_bsr((2, 2)))["first"])


@pytest.mark.parametrize("layout", [*LAYOUTS, "dense"])
def test_parts_and_storages_are_of_the_values(layout: str):
    tensor = LAYOUTS.get(layout, EDGES)
    assert same_values(tensor, tensor.clone())
    assert not same_values(tensor, tensor * 2)
    assert sum(parts_of(tensor)[-1].flatten()) == EDGES.sum()
    held = storages_of(tensor)
    assert parts_of(tensor)[-1].untyped_storage().data_ptr() in held or "uncoalesced" in layout
    assert all(size > 0 for size in held.values())


class Product(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.T + self.bias


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_a_batch_may_be_sparse_where_collate_makes_it_so(layout: str):
    rows = [(row, int(label)) for row, label in zip(EDGES, DATA.tensors[1], strict=True)]

    def sparse(some: list[Any]) -> tuple[Tensor, Tensor]:
        dense, labels = (torch.stack([row for row, _ in some]), torch.tensor([label for _, label in some]))
        return getattr(dense, layout)(), labels

    torch.manual_seed(0)
    model = Product(NODES, 2).double()
    common: dict[str, Any] = {"model": model, "objective": Classification(), "data": rows, "weight_decay": 0.1}
    found, expected = (
        Auto().operator(Chain(Stage("only", collate=collate, **common))["only"]).to_dense()
        for collate in (sparse, None)
    )
    torch.testing.assert_close(found, expected)


def test_sparse_rows_without_collate_are_refused():
    rows = [(row.to_sparse(), 0) for row in EDGES]
    stage = Stage("only", model=Product(NODES, 2).double(), objective=Classification(), data=rows)
    with pytest.raises(DataError, match=r"'only': examples 0\.\.\d cannot be read or collated .*collate="):
        trace(Chain(stage), Query(rows))
