"""Recording what Lightning's `fit` does: a callback, with the loader wrapped before."""

from typing import Any

from stagetrace.errors import refuse
from stagetrace.recording.trainers import Records


def callback_of(recording: Records) -> Any:
    """The callback; see `Recording.callback`.

    Raises:
        DescriptionError: Lightning is not installed.
    """
    Callback = _callback_class()

    class Recorder(Callback):
        """Tells the recording when training begins, when a batch is about to go forward, and when training ends."""

        def __init__(self) -> None:
            self._watch: Any = None

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            check_fit(trainer, pl_module)
            steps = trainer.estimated_stepping_batches
            told = {"steps": int(steps)} if steps not in (-1, float("inf")) else {}
            self._watch = recording.start(pl_module, trainer.optimizers[0], **told)

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self._watch.before_forward()

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
            if self._watch is not None:
                self._watch.keep()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self._end(complete=True)

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            self._end(complete=False)

        def _end(self, *, complete: bool) -> None:
            if self._watch is not None:
                self._watch = None
                recording.stop(complete=complete)

    return Recorder()


def _callback_class() -> Any:
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return __import__(package, fromlist=["Callback"]).Callback
        except ImportError:
            continue
    refuse("Recording.callback: Lightning is not installed; type: pip install lightning")


def check_fit(trainer: Any, module: Any) -> None:
    """Refuse what cannot be replayed.

    Raises:
        DescriptionError: says what, and what to do instead.
    """
    who = "Recording.callback"
    if not module.automatic_optimization:
        refuse(
            f"{who}: {type(module).__name__} steps by itself (automatic_optimization=False), where callbacks are not "
            "told what is a step; put `with Recording(folder, module, optimizer):` around a loop of your own"
        )
    if len(trainer.optimizers) != 1:  # none; Lightning refuses several
        refuse(f"{who}: {len(trainer.optimizers)} optimisers; train with one, with a parameter group for each rate")
    if trainer.world_size > 1:
        refuse(
            f"{who}: fit runs in {trainer.world_size} processes, each of which sees a part of a batch; train in one "
            "(devices=1), with accumulate_grad_batches as many times as large"
        )
    if str(trainer.precision).startswith("16"):
        refuse(
            f"{who}: precision={trainer.precision!r} scales losses so that gradients fit into float16; set "
            "precision='bf16-mixed', or train in float32"
        )
    kinds = [type(callback).__name__ for callback in trainer.callbacks]
    if any("WeightAveraging" in kind for kind in kinds):
        refuse(
            f"{who}: weights are averaged (SWA, EMA) and put into the module, where no optimiser's step leads; leave "
            "the callback out, or average a copy after the training"
        )
