"""The interface of predictions, and the checks that all of them share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, final, runtime_checkable

from torch import Tensor

from stagetrace.errors import refuse
from stagetrace.progress import Progress
from stagetrace.stages.chain import Chain
from stagetrace.tracing.query import Query


class Estimator(Protocol):
    """Predicts what removing each example of a stage does to the query loss: a score, or a control beside it.

    name: short, for tables.
    unit: `"query loss"` where the prediction is a change of the query loss, so that the slope of truth on prediction
        means something; None where only the ranking does.
    """

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str | None: ...

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        """The predicted change of the query loss if each example of `stage` were removed.

        Sign: negative = removing it helps. Unit: see `unit`.

        Returns:
            float64 on the CPU, `[n_examples]`, or `[n_queries, n_examples]` for a query that is not reduced.

        Raises:
            DescriptionError: no such stage, or the estimator does not apply to the chain.
            DataError: data or a loss cannot be used.
        """
        ...


@runtime_checkable
class TokenEstimator(Protocol):
    """A further method of estimators that predict what removing a single token does."""

    def token_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        """The predicted change of the query loss if a token's term left the loss, float64 `[tokens]`.

        Every predicted token of the stage, ordered by example and position. Sign: negative = removing it helps.
        """
        ...


def effects_of(
    estimator: Estimator, chain: Chain, query: Query, stage: str, progress: Progress | None, *, tokens: bool
) -> Tensor:
    """What an estimator predicts of the stage's examples, or of its tokens.

    Raises:
        DescriptionError: it predicts whole examples alone; or as `Estimator.removal_effects`.
    """
    if not tokens or isinstance(estimator, Precomputed):
        return estimator.removal_effects(chain, query, stage, progress)
    if not isinstance(estimator, TokenEstimator):
        refuse(f"{estimator.name}: it predicts the removal of whole examples, not of tokens")
    return estimator.token_effects(chain, query, stage, progress)


@final
@dataclass(frozen=True, eq=False)
class Precomputed:
    """An estimator whose predictions have been made, for the chain, query and stage that it is asked for."""

    name: str
    unit: str | None
    effects: Tensor

    def removal_effects(self, chain: Chain, query: Query, stage: str, progress: Progress | None = None) -> Tensor:
        """As `Estimator` says."""
        del chain, query, stage, progress
        return self.effects


def check_name(estimator: str, name: object) -> None:
    """Refuse a name that would leave a table's row without one."""
    if not isinstance(name, str) or not name.strip():
        refuse(f"{estimator}(name=...) must be a short text for tables, got {name!r}")


def check_choice(estimator: str, what: Literal["curvature", "solver"], given: object) -> None:
    """Refuse what is no curvature or solver, nor a mapping of them by stage name; None is the default of `trace`."""
    method, example = {"curvature": ("operator", "GaussNewton()"), "solver": ("prepare", "Lanczos()")}[what]
    for choice in given.values() if isinstance(given, Mapping) else [given]:
        if choice is not None and (isinstance(choice, type) or not callable(getattr(choice, method, None))):
            refuse(f"{estimator}({what}=...) must be an instance such as {example}, got {choice!r}")
