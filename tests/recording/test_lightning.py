"""Lightning's `fit`, recorded by a callback and a wrapped loader. (Skipped where Lightning is not installed.)"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from stagetrace import Chain, Query, Recording, Stage, Unrolled, trace
from stagetrace.errors import DescriptionError
from stagetrace.objectives import Classification
from stagetrace.recording import Recorded
from tests.replay.runs import Net, data_of

lightning = pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore")
DATA: Any = [(x.float(), y) for x, y in data_of(23, 3, seed=1)]


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = Net(3, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, number: int) -> Tensor:
        del number
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.03, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 4)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class ByHand(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def fit(module: Module, folder: Path | None, *, part: bool = False, **settings: Any) -> Module:
    lightning.seed_everything(5, verbose=False)
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    recording = None if folder is None else Recording(folder, module.net if part else None)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[] if recording is None else [recording.callback()],
        **({"gradient_clip_val": 0.5, "accumulate_grad_batches": 2} | off | settings),
    )
    loader = DataLoader(DATA, 5, shuffle=True)
    trainer.fit(module, loader if recording is None else recording.loader(loader))
    return module


@pytest.mark.parametrize(
    ("settings", "allowed"), [({}, 1e-5), ({"part": True}, 1e-5), ({"precision": "bf16-mixed"}, 3e-2)]
)
def test_fitted_as_without_and_replayed(settings: dict[str, Any], allowed: float, tmp_path: Path):
    alone, fitted = fit(Module(), None, **settings), fit(Module(), tmp_path, **settings)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), fitted.parameters(), strict=True))
    recorded = Recorded.load(tmp_path)
    steps = [step for block in recorded.blocks for step in recorded.read(block)]
    assert [len(step.micros) for step in steps] == [2, 2, 1, 2, 2, 1]
    assert recorded.states == (0, 3, 6)
    assert any(clip.norm > clip.limit for step in steps for clip in step.clips)
    model: nn.Module = fitted.net if "part" in settings else fitted
    stage = Stage("only", model=model.eval(), objective=Classification(), data=DATA, link=Unrolled(recording=recorded))
    found = trace(Chain(stage), Query(DATA[:2]))
    assert found.solutions["only"].relative_residuals[0] < allowed
    assert bool((found["only"].values != 0).all())


def test_checkpoints_are_states_that_are_kept(tmp_path: Path):
    callback = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path / "saved", every_n_train_steps=4)
    module, recording = Module(), Recording(tmp_path / "recording", every=5)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[recording.callback(), callback],
    )  # fmt: skip
    trainer.fit(module, recording.loader(DataLoader(DATA, 5)))
    assert {0, 4, 5, 8, 10} <= set(Recorded.load(tmp_path / "recording").states)


def test_what_cannot_be_replayed_is_refused(tmp_path: Path):
    with pytest.raises(DescriptionError, match="automatic_optimization=False"):
        fit(ByHand(), tmp_path, gradient_clip_val=None, accumulate_grad_batches=1)
