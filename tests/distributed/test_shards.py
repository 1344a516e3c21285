"""Parameters that lie in shards are refused before anything is computed: no second derivative goes through them."""

import pytest
from torch import nn

from stagetrace import Stage
from stagetrace.objectives import Classification
from tests import jobs
from tests.distributed.forks import forked


def described(model: nn.Module) -> None:
    Stage("fit", model=model, objective=Classification(), data=jobs.examples(5, 0))


def sharded(rank: int) -> None:
    """One parameter as tensor parallelism has it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    model, mesh = jobs.Net(0), init_device_mesh("cpu", (2,))
    model.head.weight = nn.Parameter(distribute_tensor(model.head.weight.detach(), mesh, [Shard(0)]))
    described(model)


def fully_sharded(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = jobs.Net(0)
    fully_shard(model.head, mesh=init_device_mesh("cpu", (2,)))
    described(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "words"),
    [(sharded, "parameter 'weight' of 'head' lies in shards (a DTensor"), (fully_sharded, "lie in shards")],
)
def test_parameters_in_shards_are_refused(make, words: str):
    for outcome in forked(2, make):
        assert outcome.kind == "DescriptionError", outcome.error
        assert words in (outcome.error or "")


def test_a_sharded_parameter_is_looked_for(monkeypatch: pytest.MonkeyPatch):
    model = jobs.Net(0)
    monkeypatch.setattr("stagetrace.stages.wrappers.is_sharded", lambda value: value is model.head.weight)
    with pytest.raises(ValueError, match=r"stage 'fit': parameter 'weight' of 'head' lies in shards"):
        described(model)
