"""Scores on their way to the folder of a run, with the ids of the examples."""

from dataclasses import replace

from stagetrace.progress import Progress
from stagetrace.results import RunFolder, Scores
from stagetrace.results.parts import Part, join
from stagetrace.stages.bound import BoundStage
from stagetrace.tracing.statistics import AnyScorer

__all__ = ["scored_into"]


def scored_into(folder: RunFolder, bound: BoundStage, scorer: AnyScorer, progress: Progress) -> Scores:
    """A stage's scores: parts that the folder has are read, the others are computed and kept there.

    Raises:
        DataError: an example's loss is NaN or infinite.
    """
    ids = bound.stage.example_ids

    def kept(number: int) -> Part | None:
        return folder.part(bound.name, number)

    def keep(number: int, part: Part) -> None:
        folder.write_part(bound.name, number, part.named(ids))

    return replace(join(bound.name, scorer.run(kept, keep, progress)), ids=ids)
