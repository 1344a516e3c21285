"""What a product with a curvature costs, and how it is computed."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Cost:
    """How products with a mean over examples are computed.

    matrix: "Hessian" or "GaussNewton". way: see `chunk.py`. examples: the number averaged over.
    gradients_per_product: seconds of a product over seconds of a gradient over the same examples.
    cached_bytes: held between products, in each process.
    no_forward_mode, not_traced: why a faster way was not taken, where one was not.
    rounding: relative, of a product, where it is coarser than the parameters' dtype.
    precision: of matrix products, where it was chosen; product_error: how far a product was from one without, over its
        size, on the example that was looked at.
    chunk_examples: how many are multiplied at once; chunk_bytes: of their intermediates.
    """

    matrix: str
    way: str
    examples: int
    gradients_per_product: float
    cached_bytes: int
    no_forward_mode: str | None = None
    not_traced: str | None = None
    rounding: float | None = None
    chunk_examples: int = 0
    chunk_bytes: int = 0
    precision: str | None = None
    product_error: float | None = None

    @property
    def held_bytes(self) -> int:
        """What products hold at most, in each process: all examples' intermediates, or those of a chunk."""
        return max(self.cached_bytes, self.chunk_bytes)

    @property
    def limitations(self) -> tuple[str, ...]:
        """Why a faster way was not taken, as text."""
        found = (("no forward mode", self.no_forward_mode), ("not traced", self.not_traced))
        return tuple(f"{what}: {why}" for what, why in found if why)

    def record(self) -> dict[str, int | float | str | None]:
        """The value as a run's record holds it."""
        return {
            "matrix": self.matrix,
            "way": self.way,
            "examples": self.examples,
            "gradients per product": self.gradients_per_product,
            "cached bytes": self.cached_bytes,
            "no forward mode": self.no_forward_mode,
            "not traced": self.not_traced,
            **({} if self.rounding is None else {"rounding": self.rounding}),
            **({} if self.precision is None else {"precision": self.precision, "product error": self.product_error}),
        }
