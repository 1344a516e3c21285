"""What a GPU does as the CPU does, and how: `make gpu` runs these where there is a card; elsewhere they are skipped."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from stagetrace import EKFAC, Chain, Direct, Frozen, GaussNewton, Hessian, Lanczos, Query, Shift, Stage, trace
from stagetrace.errors import StagetraceWarning
from stagetrace.objectives import Classification
from stagetrace.solvers import vectors
from stagetrace.solvers.basis import Basis
from stagetrace.stages.device import send, to_device
from stagetrace.stages.gradient import mean_gradient
from tests import jobs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")]

GPU = "cuda"

WAYS: dict[str, dict[str, Any]] = {
    "Hessian": {"curvature": Hessian(), "solver": Lanczos(0.1)},
    "Gauss-Newton": {"curvature": GaussNewton(), "solver": Lanczos(0.05, 1e-8, filter=Shift)},
    "EK-FAC": {"curvature": EKFAC(), "solver": Direct(0.05, Shift)},
}


def chain_on(device: str) -> Chain:
    """Two stages in float64, the models on the device and the data on the CPU."""
    made = jobs.chain(Frozen("embedding"), sizes=(37, 23))
    for stage in made.stages:
        stage.model.to(device)
    return made.refreshed()


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("way", WAYS)
def test_scores_are_those_of_the_cpu(way: str, reduction: Any):
    query = Query(jobs.examples(12, 9), batch_size=4, reduction=reduction)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StagetraceWarning)
        there, here = (trace(chain_on(device), query, **WAYS[way]) for device in (GPU, "cpu"))
    for name in here:
        wanted = here[name].values.double()
        torch.testing.assert_close(there[name].values.double(), wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


def test_batches_arrive_whole_while_the_gpu_works():
    """Many batches on a stream of their own, each used at once, while the GPU is kept busy."""
    data = [torch.full((256, 256), float(number)) for number in range(64)]
    stream, busy = torch.cuda.Stream(), torch.randn(2048, 2048, device=GPU)
    found = list[Tensor]()
    under_way = [send((each,), torch.float32, torch.device(GPU), "the data", stream) for each in data]
    for each in under_way:
        busy = (busy @ busy).tanh()
        (content,) = each.received()
        found.append(content.sum())
    assert torch.stack(found).tolist() == [256.0 * 256.0 * number for number in range(64)]


def test_what_comes_from_the_gpu_is_there_when_it_is_read():
    busy = torch.randn(4096, 4096, device=GPU)
    for number in range(16):
        busy = (busy @ busy).tanh()
        sent = to_device(torch.full((1 << 20,), float(number), device=GPU), torch.float32, torch.device("cpu"))
        assert bool((sent == number).all())


def test_vectors_go_to_the_cpu_where_memory_is_short(monkeypatch: pytest.MonkeyPatch):
    like = torch.zeros(1000, dtype=torch.float64, device=GPU)
    columns = torch.randn(1000, 40, dtype=torch.float64, device=GPU, generator=torch.Generator(GPU).manual_seed(0))
    orthonormal = torch.linalg.qr(columns)[0]
    found = list[Tensor]()
    for kept_free in (0.25, 2.0):  # twice all memory: nothing is to spare
        monkeypatch.setattr(vectors, "KEPT_FREE", kept_free)
        basis = Basis(like, 40)
        for q in orthonormal.unbind(1):
            basis.keep(q)
        place = "cuda" if kept_free < 1 else "cpu"
        assert {block.device.type for block in basis._blocks} == {place}
        w = basis.orthogonalise(torch.ones_like(like))
        found.append(torch.cat([w, basis.combine([0.5] * 40), basis.vectors(basis.coordinates(columns))[:, 3]]))
        assert found[-1].is_cuda
    torch.testing.assert_close(found[1], found[0])


def test_memory_that_runs_out_halves_the_batch():
    """A limit on what PyTorch may take, which one gradient of all examples passes and that of an eighth does not."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4096), torch.nn.Tanh(), torch.nn.Linear(4096, jobs.CLASSES)).to(GPU)
    examples = jobs.examples(16384, 0, torch.float32)
    stage = Stage("fit", model=model, objective=Classification(), data=examples, batch_size=16384)
    risk = Chain(stage).last.risk
    wanted = mean_gradient(risk).trained
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.4 * peak / total)
    try:
        with pytest.warns(StagetraceWarning, match="memory ran out"):
            found = mean_gradient(risk).trained
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert risk.examples.held["the gradient"] < 16384
