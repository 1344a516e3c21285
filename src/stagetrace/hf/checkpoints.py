"""What a Trainer left of its training: its checkpoints with the optimiser's state, and the rate of each step."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from stagetrace.errors import refuse
from stagetrace.replay.checkpoints import Checkpoint

KNOWN = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
EARLY = 0.05
"""Of the steps: before so much of them is done, a rate must have been logged."""


def checkpoints(source: Any, model: nn.Module | None = None) -> list[Checkpoint]:
    """The checkpoints of a Trainer's run that have an optimiser's state, for `Stage(training=...)`.

    Rates are those of a Trainer's own schedule; of a folder those in its log, by straight lines between the steps that
    were logged (`logging_steps=1` logs each).

    Args:
        source: a `transformers.Trainer` after `train()`, whose last checkpoint is its model as it is now; or the folder
            of a run (`output_dir`), or of one checkpoint in it.
        model: of a folder, the stage's model: a `PreTrainedModel` whose values are those of the last checkpoint.

    Raises:
        DescriptionError: there is no state of an optimiser that is known (Adam, AdamW, SGD), its rates are not known,
            or the folder has a checkpoint of another run.
    """
    if isinstance(source, str | Path):
        if not isinstance(model, nn.Module):
            refuse(f"hf.checkpoints: of which model? hf.checkpoints({str(source)!r}, model)")
        return _of_folder(Path(source), model)
    last = last_of(source)
    if last is None:
        refuse(
            "hf.checkpoints: the Trainer has no optimiser's state that is known (Adam, AdamW or SGD of torch.optim, "
            "after train(), with a schedule of transformers); give Checkpoint(optimizer.state_dict(), rates=[...])"
        )
    names, rates, steps = _names(source), _rates(source), int(source.state.global_step)
    kept = [(step, folder) for step, folder in _folders(Path(source.args.output_dir)) if step < steps]
    found, since = list[Checkpoint](), 0
    for step, folder in kept:
        _check_run(folder, source.state.log_history)
        found.append(Checkpoint(_state(folder, names), values=_values(folder), rates=rates[since:step]))
        since = step
    return [*found, Checkpoint(last.state, rates=rates[since:])]


def last_of(trainer: Any) -> Checkpoint | None:
    """Where a Trainer ended, by its own optimiser; None where that is not known, or its model is an earlier one."""
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it
    if type(optimizer) not in KNOWN or not optimizer.state or not trainer.state.global_step:
        return None
    if trainer.args.load_best_model_at_end or not _lambdas(trainer):
        return None
    return Checkpoint(optimizer, rates=_rates(trainer))


def _lambdas(trainer: Any) -> Any:
    """The Trainer's schedule, where it says the rate of any step."""
    scheduler = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
    return scheduler if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR) else None


def _rates(trainer: Any) -> list[float]:
    """The rate of each step of the first group."""
    scheduler = _lambdas(trainer)
    base, factor = scheduler.base_lrs[0], scheduler.lr_lambdas[0]
    return [float(base * factor(step)) for step in range(int(trainer.state.global_step))]


def _names(trainer: Any) -> list[list[str]]:
    """The names of the parameters in each group of the Trainer's optimiser."""
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in trainer.optimizer.param_groups]


def _of_folder(folder: Path, model: nn.Module) -> list[Checkpoint]:
    kept = list(_folders(folder)) or [(_step(folder), folder)]
    _, last = kept[-1]
    groups = len(torch.load(last / "optimizer.pt", weights_only=True)["param_groups"])
    names = _as_grouped(model, groups, last)
    rates, found, since = _logged(last), list[Checkpoint](), 0
    for step, each in kept:
        _check_run(each, _told(last)["log_history"])
        values = None if each is last else _values(each)
        found.append(Checkpoint(_state(each, names), values=values, rates=rates[since:step]))
        since = step
    return found


def _folders(run: Path) -> Iterator[tuple[int, Path]]:
    """The checkpoints of a run with their steps, in order, as far as they have all that is needed."""
    found = [path for path in run.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=_step):
        if (path / "optimizer.pt").exists() and (path / "model.safetensors").exists():
            yield _step(path), path


def _step(folder: Path) -> int:
    if not (folder / "optimizer.pt").exists():
        refuse(
            f"hf.checkpoints: {folder} has no checkpoint with the optimiser's state (optimizer.pt); the Trainer writes "
            "it unless save_only_model=True"
        )
    return (
        int(folder.name.rpartition("-")[2])
        if folder.name.rpartition("-")[2].isdigit()
        else _told(folder)["global_step"]
    )


def _check_run(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """A checkpoint's log must be how that of the run begins: the folder may hold checkpoints of an older run.

    Raises:
        DescriptionError: it is not.
    """
    logged = _told(folder)["log_history"]
    if logged != [dict(each) for each in history[: len(logged)]]:
        refuse(
            f"hf.checkpoints: {folder} was not written by the training that led to the last one: its log is another. "
            "Move what an older run left out of the folder, or give the checkpoints of this one: "
            "[Checkpoint(state, values=..., rates=[...]), ...]"
        )


def _told(folder: Path) -> Mapping[str, Any]:
    return json.loads((folder / "trainer_state.json").read_text())


def _values(folder: Path) -> Mapping[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _state(folder: Path, names: Sequence[Sequence[str]]) -> Mapping[str, Any]:
    """The optimiser's state, with the names of its parameters."""
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    groups = state["param_groups"]
    there, here = [len(group["params"]) for group in groups], [len(each) for each in names]
    if there != here:
        refuse(
            f"hf.checkpoints: {folder} has parameter groups of {there} parameters, the model {here}; give the model "
            "that was trained"
        )
    return {**state, "param_groups": [{**g, "param_names": list(n)} for g, n in zip(groups, names, strict=True)]}


def _as_grouped(model: nn.Module, groups: int, folder: Path) -> list[list[str]]:
    """The parameters as a Trainer groups them: those whose weights decay, then all others."""
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    if groups == 1:
        return [trained]
    if groups != 2:
        refuse(
            f"hf.checkpoints: {folder} has {groups} parameter groups, a Trainer's own are two; give the Trainer itself"
        )
    from transformers import Trainer

    decayed = set(Trainer.get_decay_parameter_names(None, model))  # pyright: ignore
    return [[n for n in trained if n in decayed], [n for n in trained if n not in decayed]]


def _logged(folder: Path) -> list[float]:
    """The rate of each step by the log of a checkpoint, by straight lines between those that were logged."""
    told = _told(folder)
    steps = int(told["global_step"])
    # the log of step s has the rate that it used
    logged = {
        int(each["step"]) - 1: float(each["learning_rate"]) for each in told["log_history"] if "learning_rate" in each
    }
    if not logged or min(logged) > EARLY * steps:
        refuse(
            f"hf.checkpoints: the log in {folder} has no rates of its first steps; log them (logging_steps=1), give "
            "the Trainer itself, or Checkpoint(state, values=..., rates=[...])"
        )
    known = sorted(logged)
    return np.interp(np.arange(steps), known, [logged[step] for step in known]).tolist()
