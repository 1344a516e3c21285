"""Every error and warning that stagetrace raises on purpose.

    StagetraceError
    ├── DescriptionError (ValueError)   a stage, link, chain, query or setting that does not fit together
    ├── DataError (ValueError)          an empty or changing data set, a loss of the wrong shape, a NaN loss
    │   └── BatchError                  what an objective says of a batch, before stage and example are known
    ├── DifferentiationError            an operation of the model has no derivative of the kind needed
    ├── SolveError                      a solve that has no usable answer (diverged, too large, not finite)
    ├── ResultsError                    a results folder that is foreign, unfinished or of another run
    ├── ProcessError                    another process of the job failed, was lost, or came to other numbers
    └── RemovedNameError (ImportError)  a public name that is gone, with what to write instead

    StagetraceWarning (UserWarning)
    ├── ConvergenceWarning              a solve stopped before it reached its tolerance
    └── CurvatureWarning                the curvature has negative eigenvalues: the stage is not at a minimum

Each message says where, what was wrong, what we got and what to type instead.
"""

from collections.abc import Iterable
from typing import NoReturn

__all__ = [
    "BatchError",
    "ConvergenceWarning",
    "CurvatureWarning",
    "DataError",
    "DescriptionError",
    "DifferentiationError",
    "ProcessError",
    "RemovedNameError",
    "ResultsError",
    "SolveError",
    "StagetraceError",
    "StagetraceWarning",
]


class StagetraceError(Exception):
    """The root: catch this to catch everything the library raises on purpose."""


class DescriptionError(StagetraceError, ValueError):
    """What the user described does not fit together."""


class DataError(StagetraceError, ValueError):
    """The data set, or the loss on it, cannot be used."""


class BatchError(DataError):
    """A batch that an objective cannot use.

    An objective sees a batch only; the library puts in front of its words which stage and example they are about.

    position: the example's place in the batch; None where the whole batch is meant.
    """

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class DifferentiationError(StagetraceError):
    """The model or the loss cannot be differentiated as needed."""


class SolveError(StagetraceError):
    """A linear solve has no usable answer."""


class ResultsError(StagetraceError):
    """A results folder cannot be read or written."""


class ProcessError(StagetraceError):
    """Another process of the job failed, is gone, or is no longer at the same work."""


class RemovedNameError(StagetraceError, ImportError):
    """A name that the library no longer has."""


class StagetraceWarning(UserWarning):
    """The root of the warnings: the numbers stand, but read them with this in mind."""


class ConvergenceWarning(StagetraceWarning):
    """A solve stopped before its residual reached the tolerance."""


class CurvatureWarning(StagetraceWarning):
    """The curvature is indefinite where a minimum was assumed."""


def refuse(message: str) -> NoReturn:
    """Raise a `DescriptionError`, in one line. It never returns: code after a call is not reached."""
    raise DescriptionError(message)


def some_names(names: Iterable[str], limit: int = 5) -> str:
    """A few names as a message has them, and how many more there are.

    Example:
        >>> some_names(["a", "b", "c", "d", "e"], limit=3)
        "'a', 'b', 'c' and 2 more"
    """
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(f"'{name}'" for name in listed[:limit]) + more


def first_line(error: BaseException) -> str:
    """The first sentence of an error's message, without PyTorch's advice after it."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= 200 else line[:197] + "..."
