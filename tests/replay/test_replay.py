"""A replay comes out as recorded, or is refused: what is not the training that ran, and what is not this stage's."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from stagetrace import Chain, Query, Recording, Stage, Unrolled, trace
from stagetrace.errors import DataError, DescriptionError, ResultsError, StagetraceWarning
from stagetrace.objectives import Classification
from stagetrace.replay.examples import check_examples
from tests.replay.runs import Net, Run, Stages, data_of

Adam = torch.optim.Adam
STAGES = Stages((Run(partial(Adam, lr=0.02), epochs=2), Run(partial(Adam, lr=0.02), epochs=2, dropout=0.2)), (8, 7))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return STAGES.chain(tmp_path_factory.mktemp("recorded"))


def changed(chain: Chain, stage: int, **fields: Any) -> Chain:
    stages = list(chain.stages)
    stages[stage] = replace(stages[stage], **fields)
    return Chain(*stages)


def nudged(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(other.parameters()))[0, 0] += 1e-3
    return other


def smoothed(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none", label_smoothing=0.1)


def doubled(model: nn.Module, batch: Any) -> Tensor:
    return 2 * F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def test_a_replay_says_how_well_it_agrees(chain: Chain):
    solution = trace(chain, STAGES.query("mean")).solutions["stage0"]
    assert solution.relative_residual < 1e-12
    assert "replay agrees with the recording" in solution.notes[0]
    assert str(solution.system) == "the derivative through 4 recorded steps"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": smoothed}, "the norm of the gradient that the optimiser saw"),
        ({"data": STAGES.data(1)[:-1]}, "went over a data set of 7 examples, the stage's has 6"),
        ({"model": nudged}, "is in none of the states that the recording kept"),
    ],
)
def test_another_training_is_refused(chain: Chain, fields: dict[str, Any], message: str):
    if callable(fields.get("model")):
        fields = {"model": fields["model"](chain.stages[1].model)}
    with pytest.raises((DataError, DescriptionError), match=message):
        trace(changed(chain, 1, **fields), STAGES.query("mean"))


def test_a_multiple_of_the_loss_is_read_off_the_number_that_went_backward(chain: Chain):
    query = Query(STAGES.queries, objective=Classification())
    once, twice = (trace(c, query)["stage1"].values for c in (chain, changed(chain, 1, objective=doubled)))
    # the same loss went backward, so an example's part in it is the same
    torch.testing.assert_close(twice, once)


def test_a_stage_before_that_it_did_not_start_from_is_refused(chain: Chain):
    first = Stage("stage0", model=nudged(chain.stages[0].model), objective=Classification(), data=STAGES.data(0))
    with pytest.raises(DescriptionError, match=r"did not start from what 'stage0' left.*differ by up to 0\.001"):
        trace(Chain(first, chain.stages[1]), STAGES.query("mean"), of="stage1")


def test_what_was_not_trained_must_not_require_a_gradient(tmp_path: Path):
    model, data = Net(3, 0.0).double(), data_of(8, 3, seed=1)
    optimizer = Adam(model.head.parameters(), lr=0.1)
    with Recording(tmp_path, model, optimizer) as recording:
        for x, y in recording.loader(DataLoader(data, 4)):  # type: ignore[arg-type]
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    stage = Stage("a", model=model.eval(), objective=Classification(), data=data, link=Unrolled(recording=tmp_path))
    with pytest.raises(DescriptionError, match=r"body.0.bias.*require a gradient.*requires_grad_\(False\)"):
        trace(Chain(stage), Query(data))
    model.body.requires_grad_(False)
    assert bool(trace(Chain(stage), Query(data))["a"].values.any())


def recorded(
    folder: Path,
    step: Callable[[Net, Any, Any], None],
    collate: Any = None,
    momentum: float = 0.0,
    inputs: Any = "kept",
    tensors: bool = False,
) -> Chain:
    """One stage trained by a loop of its own."""
    torch.manual_seed(3)
    model = Net(3, 0.0).double()
    data: Any = data_of(8, 3, seed=1)
    if tensors:
        data = TensorDataset(*(torch.stack(each) for each in zip(*data, strict=True)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=momentum)
    with Recording(folder, model, optimizer, inputs="again" if collate else inputs) as recording:
        for batch in recording.loader(DataLoader(data, 4, collate_fn=collate)):  # type: ignore[arg-type]
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            step(model, optimizer, batch)
    link = Unrolled(recording=folder)
    return Chain(Stage("a", model=model.eval(), objective=Classification(), data=data, link=link, collate=collate))


def noisy(model: Net, optimizer: torch.optim.Optimizer, _: Any) -> None:
    for p in model.parameters():
        assert p.grad is not None
        p.grad += 0.01 * torch.randn_like(p)
    optimizer.step()


def shrunk(model: Net, optimizer: torch.optim.Optimizer, _: Any) -> None:
    optimizer.step()
    with torch.no_grad():
        model.head.weight.mul_(0.9)


def test_a_gradient_that_was_changed_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"norm of the gradient that the optimiser saw.*noise"):
        trace(recorded(tmp_path, noisy), Query(data_of(3, 3, seed=2)))


def test_parameters_changed_outside_the_optimiser_are_refused(tmp_path: Path):
    with pytest.raises((DataError, DescriptionError), match=r"outside optimizer.step\(\)|in none of the states"):
        trace(recorded(tmp_path, shrunk), Query(data_of(3, 3, seed=2)))


def test_batches_are_made_again_by_the_library_as_by_pytorch(tmp_path: Path):
    """PyTorch's own collation makes a list of the columns of tensors, the library slices them into a tuple."""

    def plain(model: Net, optimizer: torch.optim.Optimizer, _: Any) -> None:
        optimizer.step()

    query = Query(data_of(3, 3, seed=2))
    kept = trace(recorded(tmp_path / "kept", plain), query)["a"].values
    again = recorded(tmp_path / "again", plain, inputs="again", tensors=True)
    assert torch.equal(trace(again, query)["a"].values, kept)


def test_an_optimiser_may_hold_the_state_of_what_it_moves_no_more(tmp_path: Path):
    """As after a first phase that trained everything: the body's moments stay where they are."""
    model, data = Net(3, 0.0).double(), data_of(8, 3, seed=1)
    optimizer = Adam(model.parameters(), lr=0.01)
    loader: Any = DataLoader(data, 2)  # type: ignore[arg-type]
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.body.requires_grad_(False)
    optimizer.zero_grad()
    with Recording(tmp_path, model, optimizer) as recording:
        for x, y in recording.loader(loader):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    link = Unrolled(recording=tmp_path)
    stage = Stage("a", model=model.eval(), objective=Classification(), data=data, link=link)
    assert bool(trace(Chain(stage), Query(data_of(3, 3, seed=2)))["a"].values.any())


class Augmented:
    """A collation that adds noise, or not."""

    def __init__(self, size: float) -> None:
        self.size = size

    def __call__(self, rows: Any) -> Any:
        x, y = (torch.stack(each) for each in zip(*rows, strict=True))
        return x + self.size * torch.randn_like(x), y


def test_batches_made_again_must_be_the_same(tmp_path: Path):
    def plain(model: Net, optimizer: torch.optim.Optimizer, _: Any) -> None:
        optimizer.step()

    query = Query(data_of(3, 3, seed=2), collate=Augmented(0.0))
    kept = trace(recorded(tmp_path / "kept", plain), Query(data_of(3, 3, seed=2)))["a"].values
    again = trace(recorded(tmp_path / "again", plain, Augmented(0.0)), query)["a"].values
    assert torch.equal(kept, again)
    with pytest.raises((ResultsError, DataError), match=r"differs|random"):
        trace(recorded(tmp_path / "noise", plain, Augmented(0.1)), query)


def test_examples_under_other_numbers_are_refused(chain: Chain):
    """The batches were kept, so every number would come out as it is; the names of the examples would be wrong."""
    data = STAGES.data(1)
    with pytest.raises(DescriptionError, match="are not those that were recorded under these numbers"):
        trace(changed(chain, 1, data=data[::-1]), STAGES.query("mean"))


class Noisy(Dataset[Any]):
    """Inputs drawn anew at each reading, labels as they are."""

    def __len__(self) -> int:
        return len(STAGES.data(1))

    def __getitem__(self, index: int) -> Any:
        x, y = STAGES.data(1)[index]
        return x + torch.randn_like(x), y


def test_of_examples_that_draw_the_labels_are_compared(chain: Chain):
    """Their inputs differ from the recorded ones, and each time; their labels tell them apart."""
    bound = changed(chain, 1, data=Noisy()).last
    (remark,) = check_examples(bound, bound.recording)
    assert remark == "of the recorded batches [1] is that of the stage's examples, the rest was drawn at random"


@pytest.mark.parametrize("numbers", [["a"], [0.5], [-1]])
def test_numbers_of_examples_are_whole(numbers: Any, tmp_path: Path):
    model = Net(3, 0.0).double()
    optimizer = Adam(model.parameters())
    with (
        Recording(tmp_path, model, optimizer) as recording,
        pytest.raises(DescriptionError, match="examples are known by their index in the data set"),
        recording.batch(numbers, torch.zeros(1)),
    ):
        pass


def reset_momentum(model: Net, optimizer: torch.optim.Optimizer, _: Any) -> None:
    optimizer.step()
    for state in optimizer.state.values():
        state["momentum_buffer"].zero_()


def test_an_optimiser_s_state_changed_between_steps_is_refused(tmp_path: Path):
    """At a step whose state is kept the replay starts from the changed one, so that steps alone agree."""
    with pytest.raises(DataError, match=r"optimiser's state .* loaded, cleared or changed between two steps"):
        trace(recorded(tmp_path, reset_momentum, momentum=0.9), Query(data_of(3, 3, seed=2)))


def test_what_the_link_does_not_name_is_said(chain: Chain):
    """A bias that fine-tuning took over and the link leaves out carries influence that no score has."""
    link = chain.stages[1].link
    assert isinstance(link, Unrolled)
    part = changed(chain, 1, link=Unrolled("body.0.weight", link.recording))
    with pytest.warns(StagetraceWarning, match=r"'body\.0\.bias' started at the values of the stage before"):
        trace(part, STAGES.query("mean"))
