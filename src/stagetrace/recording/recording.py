"""Recording a training as it runs, so that it can be replayed and differentiated step by step."""

import hashlib
import time
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
from stagetrace.recording.optimizers import class_of, rule_for
from stagetrace.recording.refused import check_model
from stagetrace.recording.spacing import Spacing
from stagetrace.recording.watch import Watch
from stagetrace.recording.writer import Writer


@final
class Recording:
    """Records a training into a folder, for `Unrolled`; the training itself runs as it would without.

        with Recording("runs/finetune/recording", model, optimizer) as recording:
            for batch in recording.loader(loader):
                ...                                     # the loop as it is

    For a Trainer of transformers or TRL see `of`, for Lightning `callback`; what accelerate has prepared is recorded as
    above.

    Kept are, of every batch, the examples' numbers, its content, the random generators' states before the forward pass
    and the loss that went backward; of every step the optimiser's settings as used, how the gradient was clipped, and
    its norm; parameters, buffers and optimiser state before some of the steps and after the last. A batch that went
    backward in several parts, and several batches for one step (accumulation), are seen as they happen. How much that
    is, one line of the logger "stagetrace" says after the first step (level INFO). Files are written by a thread of
    its own, from copies: up to three states are in memory at once beside the training's own.

    Args:
        folder: where to; it must hold no recording yet.
        model: the module that is trained; its parameters as they are when the first batch comes are the start.
        optimizer: the only optimiser that steps while recording.
        every: a state is kept every so many steps; "auto" keeps those before the steps 0, 1, 4, 9, ..., or every square
            root of the steps where their number is known; "200 MB" as many of these as fit. What is kept is read from
            disk block by block, and the states within a block are computed again and held in memory.
        average: the moving average of the parameters (`torch.optim.swa_utils.AveragedModel`, a ModelEma of timm, an
            EMAModel of diffusers), updated after steps of this training; a stage may then end at the average.
        inputs: "kept" stores the batches (what a collation drew at random is then part of the record); "again" stores
            digests, and the batches are made again from the stage's data set when they are needed.

    Raises:
        DescriptionError: the optimiser has no derivative here (it is named, with those that have one), or trains
            parameters of another model; the model is spread over devices, or compiled with dropout.
        ResultsError: the folder holds a recording. Later, in the training's loop, that the file system refused.
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int | Literal["auto"] | str = "auto",
        inputs: Literal["kept", "again"] = "kept",
        average: Any = None,
    ) -> None:
        if inputs not in ("kept", "again"):
            refuse(f"Recording: inputs must be 'kept' or 'again', got {inputs!r}")
        self.folder, self._inputs, self._spacing, self._average = Path(folder), inputs, Spacing(every), average
        self._model = model if model is None else _module(model)
        self._optimizer = optimizer if optimizer is None else _stepping(optimizer)
        if self._model is not None and self._optimizer is not None:
            _check(self._model, self._optimizer)
        self._examples: int | None = None
        self._batches: int | None = None
        self._watch: Watch | None = None
        self._writer: Writer | None = None

    @staticmethod
    def of(trainer: Any, folder: str | Path, **settings: Any) -> "Recording":
        """Record the next `trainer.train()` of a Trainer of transformers or TRL: one line before it.

            Recording.of(trainer, "runs/finetune/recording")
            trainer.train()

        A state is also kept at each step at which the Trainer saves a checkpoint, so that the best one can be traced.

        settings: `every`, `inputs` and `average`, as for `Recording`.

        Raises:
            DescriptionError: it is no Trainer, or trains in a way that cannot be replayed; says what to do.
        """
        from stagetrace.recording.trainers import attach

        recording = Recording(folder, **settings)
        attach(recording, trainer)
        return recording

    def callback(self) -> Any:
        """A callback of Lightning that records `fit`, with the loader wrapped:

            recording = Recording("runs/finetune/recording")
            Trainer(callbacks=[recording.callback()]).fit(module, recording.loader(loader))

        The model is the LightningModule; or the part of it that was given as `Recording(folder, module.net)`.

        Raises:
            DescriptionError: Lightning is not installed; later, in `fit`, what `Recording` raises.
        """
        from stagetrace.recording.lightning import callback_of

        return callback_of(self)

    def __enter__(self) -> Self:
        if self._model is None or self._optimizer is None:
            refuse("Recording: what is trained? with Recording(folder, model, optimizer) as recording: ...")
        self.start(self._model, self._optimizer)
        return self

    def start(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int | None = None) -> Watch:
        """Begin; `with` does it, and frameworks that know the model and the optimiser only later.

        model: unless one was given. steps: how many there will be, where that is known.
        """
        model = self._model or _module(model)
        optimizer = _stepping(optimizer)
        _check(model, optimizer)
        if steps is not None:
            self._spacing.told(steps)
        described: dict[str, Any] = {}
        self._writer = Writer(self.folder, self._spacing, described, self._batches, steps)
        keeps = self._inputs == "kept"
        self._watch = Watch(model, optimizer, self._writer, keeps_inputs=keeps, average=self._average)
        described |= {
            "optimizer": class_of(optimizer),
            "groups": self._watch.groups,
            "trained": self._watch.required,  # which grows where more is thawed
            "constants": constants_digest(model, self._watch.trained),
            "inputs": self._inputs,
            "examples": self._examples,
            "threads": torch.get_num_threads(),
        }
        self._described, self._started = described, time.perf_counter()
        self._watch.start()
        return self._watch

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(complete=error is None)

    def stop(self, *, complete: bool) -> None:
        """End: what is left is written, and nothing is watched any more. complete: the training ended as meant."""
        assert self._watch is not None
        assert self._writer is not None
        ended, last = time.perf_counter(), self._watch.stop()
        if last is None:
            self._writer.wait()
            return
        self._writer.finish(last)
        now = time.perf_counter()
        # what recording took, of all that the training took; and of the processor beside it
        spent = {
            "recording": self._watch.seconds + now - ended,
            "training": now - self._started,
            "writer": self._writer.seconds,
        }
        self._described["seconds"] = {name: round(seconds, 6) for name, seconds in spent.items()}
        self._writer.record(complete=complete)

    def loader(self, loader: Any) -> Watched:
        """What the loop goes over in place of its loader: the same batches, in the same order.

        Raises:
            DescriptionError: it is no PyTorch loader over a map-style data set.
        """
        watched = Watched(loader, self.begin)
        self.over(loader)
        return watched

    @contextmanager
    def batch(self, ids: Sequence[int], content: Any) -> Generator[None]:
        """For loops without a loader: around forward and backward of the examples with these numbers.

        content: the batch as the stage's objective takes it.
        """
        self.begin(ids, content)
        yield

    def begin(self, ids: Sequence[int], content: Any) -> None:
        """The examples with these numbers are about to go forward; `loader` and `batch` say so."""
        if self._watch is None:
            refuse("recording: it has not begun; write `with Recording(...) as recording:` around the training")
        self._watch.begin(ids, content)

    def over(self, loader: Any) -> None:
        """The training goes over this loader; `loader` says so.

        Raises:
            DescriptionError: another one went over a data set of another size.
        """
        inner = getattr(loader, "base_dataloader", loader)
        examples = len(inner.dataset)
        if self._examples not in (None, examples):
            refuse(
                f"recording.loader: loaders over {self._examples:,} and {examples:,} examples in one recording; "
                "examples are known by their numbers in one data set, so give each its own recording"
            )
        self._examples = examples
        try:
            self._batches = len(inner)
        except TypeError:  # a sampler without a length
            self._batches = None
        if self._watch is not None and self._writer is not None:
            self._described["examples"] = examples
            self._writer.batches = self._batches


def constants_digest(model: nn.Module, trained: Any) -> str:
    """A digest of the parameters that the optimiser does not have."""
    found = hashlib.sha256()
    for name, parameter in sorted((plain_name(n), p) for n, p in model.named_parameters()):
        if name not in trained:
            found.update(name.encode())
            found.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _module(model: object) -> nn.Module:
    if not isinstance(model, nn.Module):
        refuse(f"Recording: model must be a torch.nn.Module, got {type(model).__name__}")
    return model


def _stepping(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser itself: the wrappers of accelerate and Lightning have no hooks of their own."""
    for name in ("optimizer", "_optimizer"):
        inner = getattr(optimizer, name, None)
        if isinstance(inner, torch.optim.Optimizer):
            optimizer = inner
    if not isinstance(optimizer, torch.optim.Optimizer):
        refuse(f"Recording: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def _check(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    check_model(model)
    rule_for(optimizer)
    own = {id(p) for p in model.parameters()}
    foreign = sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
    if foreign:
        refuse(
            f"Recording: {foreign} of the optimiser's parameters are not the model's; give the module that was handed "
            "to the optimiser (before it was moved or wrapped, if that made copies)"
        )
