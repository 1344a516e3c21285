"""Recording a training as it runs, so that it can be replayed and differentiated step by step."""

import hashlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, final

import torch
from torch import nn

from stagetrace.errors import refuse
from stagetrace.recording.loaders import Watched
from stagetrace.recording.names import plain_name
from stagetrace.recording.optimizers import rule_for
from stagetrace.recording.watch import Watch
from stagetrace.recording.writer import Spacing, Writer


@final
class Recording:
    """Records a training into a folder, for `Unrolled`; the training itself runs as it would without.

        with Recording("runs/finetune/recording", model, optimizer) as recording:
            for batch in recording.loader(loader):
                ...                                     # the loop as it is

    Kept are, of every batch, the examples' numbers, its content, the random generators' states before the forward pass
    and the loss that went backward; of every step the optimiser's settings as used, how the gradient was clipped, and
    its norm; parameters, buffers and optimiser state before some of the steps and after the last. A batch that went
    backward in several parts, and several batches for one step (accumulation), are seen as they happen.

    Args:
        folder: where to; it must hold no recording yet.
        model: the module that is trained; its parameters as they are when the first batch comes are the start.
        optimizer: the only optimiser that steps while recording.
        every: a state is kept every so many steps; "auto" keeps those before the steps 0, 1, 4, 9, ... What is kept is
            read from disk block by block, and the states within a block are computed again and held in memory.
        inputs: "kept" stores the batches (what a collation drew at random is then part of the record); "again" stores
            digests, and the batches are made again from the stage's data set when they are needed.

    Raises:
        DescriptionError: the optimiser has no derivative here (it is named, with those that have one), or trains
            parameters of another model.
        ResultsError: the folder holds a recording, or the file system refused.
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        every: int | Literal["auto"] = "auto",
        inputs: Literal["kept", "again"] = "kept",
    ) -> None:
        if not isinstance(model, nn.Module):
            refuse(f"Recording: model must be a torch.nn.Module, got {type(model).__name__}")
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper has no hooks of its own
        if not isinstance(optimizer, torch.optim.Optimizer):
            refuse(f"Recording: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if inputs not in ("kept", "again"):
            refuse(f"Recording: inputs must be 'kept' or 'again', got {inputs!r}")
        rule_for(optimizer)
        self.folder, self._model, self._optimizer = Path(folder), model, optimizer
        self._every, self._inputs = every, inputs
        self._examples: int | None = None
        self._watch: Watch | None = None
        self._writer: Writer | None = None
        self._spacing = Spacing(every)
        _check_parameters(model, optimizer)

    def __enter__(self) -> Self:
        described: dict[str, Any] = {}
        self._writer = Writer(self.folder, self._spacing, described)
        self._watch = Watch(self._model, self._optimizer, self._writer, keeps_inputs=self._inputs == "kept")
        kind = type(self._optimizer)
        described |= {
            "optimizer": f"{kind.__module__}.{kind.__qualname__}",
            "groups": self._watch.groups,
            "trained": [name for name, p in self._watch.trained.items() if p.requires_grad],
            "constants": constants_digest(self._model, self._watch.trained),
            "inputs": self._inputs,
            "examples": None,
            "threads": torch.get_num_threads(),
        }
        self._described = described
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is None or self._writer is None:
            return
        last = self._watch.stop()
        if last is not None:
            self._writer.finish(last, complete=error is None)

    def loader(self, loader: Any) -> Watched:
        """What the loop goes over in place of its loader: the same batches, in the same order.

        Raises:
            DescriptionError: it is no PyTorch loader over a map-style data set.
        """
        watched = Watched(loader, self._begin)
        self._of(len(getattr(loader, "base_dataloader", loader).dataset))
        return watched

    @contextmanager
    def batch(self, ids: Sequence[int], content: Any) -> Generator[None]:
        """For loops without a loader: around forward and backward of the examples with these numbers.

        content: the batch as the stage's objective takes it.
        """
        self._begin(ids, content)
        yield

    def _begin(self, ids: Sequence[int], content: Any) -> None:
        if self._watch is None:
            refuse("recording: it has not begun; write `with Recording(...) as recording:` around the training")
        self._watch.begin(ids, content)

    def _of(self, examples: int) -> None:
        if self._examples not in (None, examples):
            refuse(
                f"recording.loader: loaders over {self._examples:,} and {examples:,} examples in one recording; "
                "examples are known by their numbers in one data set, so give each its own recording"
            )
        self._examples = examples
        if self._watch is not None:
            self._described["examples"] = examples


def constants_digest(model: nn.Module, trained: Any) -> str:
    """A digest of the parameters that the optimiser does not have."""
    found = hashlib.sha256()
    for name, parameter in sorted((plain_name(n), p) for n, p in model.named_parameters()):
        if name not in trained:
            found.update(name.encode())
            found.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _check_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    own = {id(p) for p in model.parameters()}
    foreign = sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
    if foreign:
        refuse(
            f"Recording: {foreign} of the optimiser's parameters are not the model's; give the module that was handed "
            "to the optimiser (before it was moved or wrapped, if that made copies)"
        )
