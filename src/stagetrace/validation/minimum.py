"""The result of a minimisation."""

from dataclasses import dataclass
from typing import final

from stagetrace.errors import SolveError
from stagetrace.stages.space import Params


@final
@dataclass(frozen=True, eq=False)
class Minimum:
    """Where a minimisation ended.

    values: the trained parameters, by name.
    objective: the weighted mean loss with its penalties.
    gradient_norm: Euclidean, of that objective, measured at `values`.
    steps: Newton steps; products: with the Hessian, each over all examples.
    smallest_ritz: the smallest Ritz value of the last Hessian; its smallest eigenvalue is at most this. If it is not
        above 0, this is no strict minimum. Infinite where no product was needed. With a preconditioner it is one of
        `M^-1 H`, of the same sign.
    converged: the gradient norm is at most `tolerance`, and no negative curvature was met there.
    """

    where: str
    values: Params
    objective: float
    gradient_norm: float
    steps: int
    products: int
    smallest_ritz: float
    converged: bool
    tolerance: float

    def checked(self) -> Params:
        """The values, if they are a minimum.

        Raises:
            SolveError: they are not; the message says where it stopped.
        """
        if not self.converged:
            raise SolveError(
                f"{self.where}: no minimum found in {self.steps} Newton steps ({self.products} products): gradient "
                f"norm {self.gradient_norm:.1e}, asked for {self.tolerance:.1e}, smallest Ritz value "
                f"{self.smallest_ritz:.1e}; raise max_steps, loosen tolerance, give the stage weight_decay, or train "
                "it further first"
            )
        return self.values
