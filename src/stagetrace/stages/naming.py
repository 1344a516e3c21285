"""Adds the stage and the example to error messages: an objective knows only its batch, and PyTorch not even that."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from stagetrace.errors import BatchError, DataError, first_line
from stagetrace.objectives.batches import in_short
from stagetrace.objectives.objective import Objective, Plain, name_of
from stagetrace.stages.data import Batch


def place_of(where: str, batch: Batch, position: int | None = None) -> str:
    """The stage and an example of a batch, or all of them.

    Example:
        >>> place_of("stage 'x'", Batch([5010, 5011, 5012], None), 2)
        "stage 'x', example 5,012"
        >>> place_of("stage 'x'", Batch([5010, 5011, 5012], None))
        "stage 'x', examples 5,010 to 5,012"
    """
    first, last = batch.indices[0], batch.indices[-1]
    if position is not None and position < len(batch):
        first = last = batch.indices[position]
    return f"{where}, example {first:,}" if first == last else f"{where}, examples {first:,} to {last:,}"


@contextmanager
def naming(where: str, batch: Batch, out_of_range: Callable[[Batch], int | None]) -> Generator[None]:
    """Put stage and example before an objective's message about a batch, and before that of an index out of range.

    out_of_range: the place of the first example that alone raises an `IndexError`; None if it is none's.

    Raises:
        DataError: with the example's index in the data set.
    """
    try:
        yield
    except BatchError as fault:
        raise DataError(f"{place_of(where, batch, fault.position)}: {fault}") from fault
    except IndexError as cause:
        position = out_of_range(batch)
        if position is None:
            raise
        raise DataError(
            f"{place_of(where, batch, position)}: {first_line(cause)}; an input or label is outside the table that it "
            "is looked up in (a token beyond the vocabulary, a position beyond the longest text): correct the example"
        ) from cause


def failed(where: str, objective: Objective, batch: Batch, cause: Exception) -> DataError:
    """The error for a model or loss that raised one of its own on a batch."""
    if isinstance(objective, Plain):
        what = f"the loss function {name_of(objective)} failed ({type(cause).__name__}: {first_line(cause)}); it is "
        what += "called as losses(model, batch) and returns one loss per example"
    else:
        what = f"the model or the objective {name_of(objective)} failed ({type(cause).__name__}: {first_line(cause)})"
    return DataError(
        f"{place_of(where, batch)}: {what}; the batch was {in_short(batch.content)}: change the data set, give "
        "collate=..., or correct the objective"
    )
