"""Recording what a Trainer of transformers (or of TRL, whose trainers are Trainers) does: one line before `train()`."""

from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast, final

from stagetrace.errors import DescriptionError, refuse
from stagetrace.recording.loaders import numbered
from stagetrace.recording.refused import refuse_compiled

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from stagetrace.recording.watch import Watch

IDS = "stagetrace_ids"
"""Under which name a batch carries its examples' numbers from the loader to the training step."""


class Records(Protocol):
    """What `Recording` offers to a way in."""

    def start(self, model: "nn.Module", optimizer: "Optimizer", *, steps: int | None = None) -> "Watch": ...

    def stop(self, *, complete: bool) -> None: ...

    def begin(self, ids: Sequence[int], content: Any) -> None: ...

    def over(self, loader: Any) -> None: ...


def attach(recording: Records, trainer: Any) -> None:
    """Have the next `trainer.train()` recorded; all else of the Trainer is as it was, and after it that too.

    Raises:
        DescriptionError: it is no Trainer, or it trains in a way that cannot be replayed.
    """
    try:
        from transformers import Trainer
    except ImportError:
        refuse(
            "Recording.of: transformers is not installed; for a loop of your own: Recording(folder, model, optimizer)"
        )
    if not isinstance(trainer, Trainer):
        refuse(
            f"Recording.of: got a {type(trainer).__name__}; give a transformers.Trainer (or one of TRL), for Lightning "
            "see Recording.callback, for a loop of your own Recording(folder, model, optimizer)"
        )
    check_trainer(trainer)
    train: Callable[..., Any] = trainer.train

    def recorded(*arguments: Any, **named: Any) -> Any:
        put = _Attached(recording, trainer)
        del trainer.__dict__["train"]
        try:
            result = train(*arguments, **named)
        except BaseException:
            put.off(complete=False)
            raise
        put.off(complete=True)
        return result

    trainer.train = recorded


@final
class _Attached:
    """What is exchanged on a Trainer while it trains."""

    def __init__(self, recording: Records, trainer: Any) -> None:
        from transformers import TrainerCallback

        self._recording, self._trainer, self._running = recording, trainer, False
        self._before = {name: vars(trainer).get(name) for name in ("get_train_dataloader", "training_step")}
        self._loader, self._step = trainer.get_train_dataloader, trainer.training_step
        trainer.get_train_dataloader, trainer.training_step = self._numbered, self._announced
        put = self

        class Callback(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
                put.start(named["optimizer"], int(state.max_steps - state.global_step))

            def on_save(self, args: Any, state: Any, control: Any, **named: Any) -> None:
                put.watch.keep()

        self._callback = Callback()
        trainer.add_callback(self._callback)

    def start(self, optimizer: Any, steps: int) -> None:
        """The model and the optimiser are there, the first batch is not."""
        if self._running:
            raise DescriptionError(
                "Recording.of: the Trainer began anew within one train() (auto_find_batch_size=True does that); set "
                "the batch size that fits, and record that"
            )
        check_trainer(self._trainer)  # a DeepSpeed or FSDP plugin of accelerate may have come since
        self.watch = self._recording.start(self._trainer.model, optimizer, steps=steps)
        self._running = True

    def off(self, *, complete: bool) -> None:
        """Put everything back, and end the recording."""
        self._trainer.remove_callback(self._callback)
        for name, value in self._before.items():
            if value is None:
                delattr(self._trainer, name)
            else:
                setattr(self._trainer, name, value)
        if self._running:
            self._recording.stop(complete=complete)

    def _numbered(self) -> Any:
        loader = self._loader()
        self._recording.over(loader)
        return numbered(loader, Inside)

    def _announced(self, model: Any, inputs: MutableMapping[str, Any], *rest: Any, **named: Any) -> Any:
        self._recording.begin([int(i) for i in inputs.pop(IDS)], inputs)
        return self._step(model, inputs, *rest, **named)


@final
class Inside:
    """A collation that puts the examples' numbers into the batch, where what is between loader and step leaves them."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[tuple[int, Any]]) -> Any:
        import torch

        batch = self.collate([row for _, row in rows])
        if not isinstance(batch, MutableMapping):
            refuse(
                f"Recording.of: the collator gives a {type(batch).__name__}; let it give a dict, as the Trainer expects"
            )
        cast("MutableMapping[str, Any]", batch)[IDS] = torch.tensor([index for index, _ in rows])
        return batch


def check_trainer(trainer: Any) -> None:
    """Refuse what cannot be replayed.

    Raises:
        DescriptionError: says what, and what to set instead.
    """
    args, who = trainer.args, "Recording.of"
    for kind, name in (("deepspeed", "DeepSpeed"), ("fsdp", "FSDP")):
        if getattr(trainer, f"is_{kind}_enabled", False):
            refuse(f"{who}: the Trainer uses {name}, which keeps the parameters in pieces; train without it to record")
    if args.world_size > 1 or args.n_gpu > 1:
        refuse(
            f"{who}: the Trainer runs on {max(args.world_size, args.n_gpu)} devices, each of which sees a part of a "
            "batch; train on one (CUDA_VISIBLE_DEVICES=0), with gradient_accumulation_steps times as many"
        )
    if getattr(trainer, "neftune_noise_alpha", None) is not None:
        refuse(
            f"{who}: the Trainer adds noise to embeddings (NEFTune), by a hook that is gone after the training; set "
            "neftune_noise_alpha=None"
        )
    if getattr(args, "fp16", False):
        refuse(
            f"{who}: fp16=True scales losses so that gradients fit into float16, and leaves out steps where they do "
            "not; what underflows has no derivative. Set bf16=True, or train in float32"
        )
    if trainer.train_dataset is None:
        refuse(f"{who}: the Trainer has no train_dataset; give it the data set to train on")
    if not (hasattr(trainer.train_dataset, "__len__") and hasattr(trainer.train_dataset, "__getitem__")):
        refuse(
            f"{who}: train_dataset is a stream, whose examples have no numbers; give a map-style data set (of a "
            "stream, the examples of one pass: datasets.Dataset.from_list(list(stream)))"
        )
    collator = trainer.data_collator
    if getattr(collator, "padding_free", False) or type(collator).__name__ == "DataCollatorWithFlattening":
        refuse(
            f"{who}: {type(collator).__name__} makes one row of all examples of a batch, so that no example has a loss "
            "of its own; set padding_free=False (with packing=True also packing_strategy='wrapped': an example is then "
            "a packed row)"
        )
    if hasattr(trainer, "_generate_and_score_completions") or "Online" in type(trainer).__name__:
        refuse(
            f"{who}: {type(trainer).__name__} generates within each step what it learns from, which is a choice of "
            "tokens and has no derivative; record a training on completions that are there beforehand (SFT, DPO)"
        )
    if getattr(args, "torch_compile", False) and trainer.model is not None:
        refuse_compiled(trainer.model)
