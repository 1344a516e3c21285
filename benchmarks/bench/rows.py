"""What is measured: a row is one library's one method on one input."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

ONE, HUNDRED, THOUSAND = "one", "100", "1000"
TEXT, TWO_STAGE, SCORING = "text", "two-stage", "scoring"
EXAMPLES, PARAMETERS, QUERIES, RANKS = "examples", "parameters", "queries", "ranks"
CURVES = (EXAMPLES, PARAMETERS, QUERIES, RANKS)

OURS, KRONFLUENCE = "stagetrace", "kronfluence"
MOST_EXAMPLES, MOST_HIDDEN, MOST_QUERIES, MOST_RANKS = (3_000, 30_000, 300_000), (12, 120, 1200), (1, 10, 100, 1000), 2


@final
@dataclass(frozen=True)
class Ask:
    """rival: the library's module in `benchmarks/rivals`. given: the input's name. size: what a curve runs over.

    ranks: processes that share the job; 0 where the method is called without torchrun. long: measured only if `--only`
    names it.
    """

    rival: str
    part: str
    method: str
    given: str
    size: int = 0
    ranks: int = 0
    long: bool = False

    @property
    def name(self) -> str:
        size = f"/{self.size}" if self.size else ""
        return f"{self.rival}/{self.part}/{self.method}{size}"

    @property
    def slug(self) -> str:
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.name)

    def wanted(self, only: tuple[str, ...]) -> bool:
        """Whether the name begins with one of these; or all are wanted, and it is not a long one."""
        return (not only and not self.long) or any(
            self.name == each or self.name.startswith(f"{each}/") for each in only
        )


def rows(quick: bool) -> list[Ask]:
    """All, in the order in which they are measured: what is compared stands together."""
    return [*_one(), *_many(quick), *_text(quick), *_two_stage(), *_curves(quick)]


def _one() -> Iterator[Ask]:
    """One query, the mean loss of all test examples."""
    methods = {
        "curvlinops": ("CG, Hessian", "CG, GGN", "EK-FAC"),
        OURS: ("default", "Gauss-Newton", "Hessian squared", "Hessian", "EKFAC"),
        KRONFLUENCE: ("EK-FAC",),
        "captum": ("Arnoldi", "TracInCPFast"),
        "pydvl": ("CG, Hessian", "Nyström, Hessian", "EK-FAC"),
        "dattri": ("Arnoldi", "EK-FAC", "TRAK", "CG"),
        "trak": ("TRAK",),
        "bergson": ("gradients",),
    }
    for rival, names in methods.items():
        yield from (Ask(rival, ONE, name, "digits-mean") for name in names)
    yield Ask(OURS, SCORING, "score one vector", "digits-mean")


def _many(quick: bool) -> Iterator[Ask]:
    """A hundred and a thousand queries."""
    for part in (HUNDRED,) if quick else (HUNDRED, THOUSAND):
        methods = {
            KRONFLUENCE: ("EK-FAC",),
            OURS: ("Gauss-Newton, 1e-2", "Gauss-Newton, 0.1", "EKFAC", "default"),
            "curvlinops": ("EK-FAC",),
            "pydvl": ("EK-FAC",),
            "dattri": ("EK-FAC", "TRAK"),
            "trak": ("TRAK",),
        }
        if part == HUNDRED:
            methods["captum"] = ("Arnoldi",)
        for rival, names in methods.items():
            yield from (Ask(rival, part, name, f"digits-{part}") for name in names)


ONE_SOLVE = 3
"""Queries of text above which exact solves take too long for a run of half an hour."""


def _text(quick: bool) -> Iterator[Ask]:
    for queries in (1, 3) if quick else (1, 10, 100):
        given = f"text-{queries}"
        yield Ask(KRONFLUENCE, TEXT, "EK-FAC", given, queries)
        yield Ask(OURS, TEXT, "EKFAC", given, queries)
        yield Ask(OURS, TEXT, "Gauss-Newton, 0.1", given, queries, long=queries > ONE_SOLVE)


def _two_stage() -> Iterator[Ask]:
    yield Ask(OURS, TWO_STAGE, "Frozen", "frozen")
    yield Ask(OURS, TWO_STAGE, "Proximal", "proximal")


def _curves(quick: bool) -> Iterator[Ask]:
    methods = ((KRONFLUENCE, "EK-FAC"), (OURS, "EKFAC"), (OURS, "Gauss-Newton, 1e-2"))
    for size in MOST_EXAMPLES[: 1 if quick else None]:
        yield from (Ask(rival, EXAMPLES, method, f"examples-{size}", size) for rival, method in methods)
    for size in MOST_HIDDEN[: 1 if quick else None]:
        yield from (Ask(rival, PARAMETERS, method, f"hidden-{size}", size) for rival, method in methods)
    for size in MOST_QUERIES[: 2 if quick else None]:
        yield from (Ask(rival, QUERIES, method, f"digits-{size}", size) for rival, method in methods)
    for ranks in range(1, MOST_RANKS + 1):
        yield Ask(OURS, RANKS, "Gauss-Newton", "digits-mean", ranks, ranks)
