"""What covers how many of a stage's parameters, counted and in words."""

from collections import Counter

from stagetrace.curvature.ekfac.factors import Factor
from stagetrace.curvature.ekfac.fit import form_of
from stagetrace.errors import SolveError, some_names
from stagetrace.taps.find import Tapped

__all__ = ["WORDS", "check_shares", "coverage_text"]

WORDS = {
    "Kronecker": "by Kronecker factors",
    "table": "by one side's basis",
    "exact": "by exact blocks",
    "diagonal": "by the diagonal",
}


def check_shares(tapped: Tapped) -> None:
    """Every trained parameter is in exactly one group.

    Raises:
        SolveError: one is not; a fault of the library.
    """
    counted = Counter(name for group in tapped.groups for name in group.names)
    names = tapped.risk.trained.names
    wrong = [name for name in names if counted[name] != 1]
    if wrong or len(counted) != len(names):
        raise SolveError(f"{tapped.risk.where}: EKFAC covers {some_names(wrong)} not once; please report this")


def coverage_text(tapped: Tapped, exact: int, factor: Factor, draws: int) -> str:
    """How many parameters each form covers, which were left to autograd, and how labels are drawn."""
    sizes = Counter[str]()
    for group in tapped.groups:
        sizes[form_of(group, exact)] += group.layout.size
    parts = ", ".join(f"{sizes[form]:,} {words}" for form, words in WORDS.items() if sizes[form])
    total = sum(sizes.values())
    text = f"EK-FAC covers all {total:,} parameters: {parts}; {factor.text(draws)}"
    names = [name for group in tapped.rest for name in group.names]
    if names:
        text += f"; of {some_names(names, 3)} each example's gradient is autograd's ({tapped.rest[0].why})"
    return text
