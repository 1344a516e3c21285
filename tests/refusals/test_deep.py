"""What is wrong deep in the data, where only the run itself looks, is named as well."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace import Hessian, Identity, Lanczos, Trace
from stagetrace.errors import DataError, ResultsError
from tests.jobs import examples
from tests.refusals.described import NEITHER_NAN, Described, spoilt


def root(model: nn.Module, batch: Any) -> Tensor:
    """A loss with a finite value and an infinite slope at the origin."""
    return torch.sqrt(model(batch[0]).sum(dim=1).square() * batch[0][:, 0].square())


DEEP = 150
STAGES = ("pretrain", "finetune", "query")


@pytest.mark.parametrize("where", STAGES)
@pytest.mark.parametrize(
    ("spoilt_by", "words"),
    [(float("nan"), "the loss of example 150 is nan"), (float("inf"), "the loss of example 150")],
)
@pytest.mark.parametrize("curvature", [Hessian(), Hessian(examples=50), Identity()], ids=repr)
def test_a_bad_example_deep_in_the_data_is_named(
    where: str, spoilt_by: float, words: str, curvature: Hessian | Identity, tmp_path: Path
):
    """Nothing of the stage it belongs to is kept but, where the curvature did not see it, the solution."""
    described, out = Described(), tmp_path / "out"
    getattr(described, where).update(data=spoilt(200, DEEP, spoilt_by), batch_size=64)
    described.settings = {"curvature": curvature, "solver": Lanczos(damping=0.01)}
    whose = "the query" if where == "query" else f"stage '{where}'"
    with pytest.raises(DataError, match=f"^{whose}: {words}.*{NEITHER_NAN}.*$"):
        described.trace(out)
    kept = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
    if where == "query" or (where == "finetune" and curvature == Hessian()):
        assert not out.exists()
    elif where == "finetune":
        assert kept == ["adjoints/finetune.safetensors", "run.json"]
    else:
        assert not (out / "scores" / "pretrain").exists()
    if out.exists():
        with pytest.raises(ResultsError, match="not finished"):
            Trace.load(out)


def test_the_folder_of_a_run_refused_before_anything_was_kept_takes_it_once_it_is_put_right(tmp_path: Path):
    described, out = Described(), tmp_path / "out"
    described.finetune |= {"data": spoilt(100, 50, float("nan"))}
    with pytest.raises(DataError, match="example 50"):
        described.trace(out)
    described.finetune |= {"data": examples(100, 1)}
    assert list(described.trace(out)) == ["pretrain", "finetune"]


@pytest.mark.parametrize("curvature", [Hessian(), Identity()], ids=repr)
def test_a_loss_without_a_slope_names_example_and_parameter(curvature: Hessian | Identity):
    described = Described()
    data = examples(100, 1)
    data.tensors[0][50] = 0
    described.finetune |= {"objective": root, "data": data}
    described.settings = {"curvature": curvature}
    with pytest.raises(DataError, match=r"^stage 'finetune': the .*example 50.*$"):
        described.trace()
