"""Whether a model can run on what its rows have, before anything long starts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stagetrace.errors import DataError, StagetraceError, first_line, refuse
from stagetrace.hf.packages import base_of
from stagetrace.hf.signature import main_of, needs, reads_images, takes
from stagetrace.hf.task import Task
from stagetrace.objectives import Seq2Seq
from stagetrace.objectives.objective import Objective, splits
from stagetrace.stages.device import to_device
from stagetrace.stages.stage import Stage

DECODER = "decoder_input_ids"


def check_fits(stage: Stage, task: Task) -> None:
    """Refuse a first example from which the model's forward lacks something. A custom loss is not checked.

    task: by the model's class. A class without a ready-made loss, and one that reads no tokens, is run on it.

    A first example that cannot be read is left to the reading, which names it.

    Raises:
        DescriptionError: what is missing, and what the rows have.
    """
    if not _ready_made(stage.loss):
        return
    try:
        batch: Any = stage.examples.collate([stage.data[0]])
    except DataError:
        return
    if not isinstance(batch, Mapping):
        return
    base, has = base_of(stage.model), f"the examples have {', '.join(map(repr, batch))}"
    missing = [name for name in needs(stage.model) if name not in batch]
    if missing:
        some = ", ".join(map(repr, missing))
        refuse(f"{stage.where}: {type(base).__name__} needs {some}, and {has}; add what is missing to the rows")
    labels = batch.get("labels")
    of_tokens = isinstance(labels, Tensor) and labels.ndim == 2 and not labels.is_floating_point()
    made = isinstance(stage.loss, Seq2Seq)  # from the labels
    if DECODER in takes(stage.model) and DECODER not in batch and of_tokens and not made:
        refuse(
            f"{stage.where}: {type(base).__name__} reads '{DECODER}', which training made from the labels, and {has}; "
            "add that column, by model.prepare_decoder_input_ids_from_labels(torch.tensor([row['labels']]))[0].tolist()"
        )
    if task is Task.OTHER or main_of(stage.model) != "input_ids" or reads_images(stage.model):
        _try(stage, batch, has)


def _try(stage: Stage, batch: Any, has: str) -> None:
    """One forward pass of one example, for a class of which nothing is known here."""
    some = next(stage.model.parameters())
    try:
        with torch.no_grad():
            stage.loss.outputs(stage.evaluated, to_device(batch, some.dtype, some.device))
    except StagetraceError:
        raise
    except Exception as cause:
        arguments = ", ".join(sorted(takes(stage.model) - {"labels"}))
        refuse(
            f"{stage.where}: {type(base_of(stage.model)).__name__} does not run on the first example "
            f"({type(cause).__name__}: {first_line(cause)}); {has}, and the model takes {arguments}"
        )


def _ready_made(loss: Objective) -> bool:
    return type(loss).__module__.startswith("stagetrace.") and splits(loss)
