"""Stages in the order they were trained."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import final

from stagetrace.errors import refuse
from stagetrace.renamed import renamed_attributes
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.links.computed import sources_of
from stagetrace.stages.stage import Stage


@final
@renamed_attributes(anew="refreshed", problems="bound_stages")
class Chain:
    """Training stages, first to last; each later stage says by its link how it started from the one before.

    Checked on construction: names are unique, links are where they belong, shared names and shapes agree, and
    parameters that a link froze still have the values the previous stage left.

    Args:
        stages: one or more; with one stage the trace is the ordinary, single-stage influence function.

    Raises:
        DescriptionError: the stages do not fit together; the message names stage and parameter.

    Example:
        >>> import torch
        >>> from stagetrace import Frozen, Stage
        >>> from stagetrace.objectives import Regression
        >>> data, model = [(torch.ones(2), torch.ones(1))], torch.nn.Linear(2, 1)
        >>> first = Stage("first", model=model, objective=Regression(), data=data)
        >>> second = Stage("second", model=model, objective=Regression(), data=data, link=Frozen("weight"))
        >>> Chain(first, second)
        Chain(first -> second)
        >>> Chain(first, second)["second"].inherited_from
        {'weight': 'weight'}
    """

    def __init__(self, *stages: Stage) -> None:
        if not stages:
            refuse("a chain needs stages: Chain(pretrain, finetune)")
        for position, stage in enumerate(stages):
            if not isinstance(stage, Stage):
                what = f"the class {stage.__name__}" if isinstance(stage, type) else type(stage).__name__
                how = "Chain(*stages)" if isinstance(stage, (list, tuple)) else "Chain(pretrain, finetune)"
                refuse(f"argument {position + 1} of Chain is {what}; write {how}, of Stages")
        names = [stage.name for stage in stages]
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            refuse(f"two stages are called '{repeated[0]}'; results are stored by name, so give each its own")
        self.stages = stages
        self.bound_stages = tuple(
            BoundStage.of(stage, before) for stage, before in zip(stages, (None, *stages), strict=False)
        )
        for previous, bound in itertools.pairwise(self.bound_stages):
            _check_reaches(previous, bound)

    def refreshed(self) -> "Chain":
        """The same stages as they are now, without anything that was cached about their models.

        Raises:
            DescriptionError: the stages do not fit together any more.
        """
        return Chain(*(replace(stage) for stage in self.stages))

    @property
    def names(self) -> tuple[str, ...]:
        """The stages' names, in training order."""
        return tuple(stage.name for stage in self.stages)

    @property
    def last(self) -> BoundStage:
        """The stage whose model answers queries."""
        return self.bound_stages[-1]

    def __getitem__(self, name: str) -> BoundStage:
        self.check_names([name], "chain")
        return self.bound_stages[self.names.index(name)]

    def __iter__(self) -> Iterator[BoundStage]:
        return iter(self.bound_stages)

    def __reversed__(self) -> Iterator[BoundStage]:
        return reversed(self.bound_stages)

    def __len__(self) -> int:
        return len(self.stages)

    def check_names(self, names: object, what: str) -> None:
        """Refuse an unknown stage name.

        Raises:
            DescriptionError: with the names there are.
        """
        for name in names:  # pyright: ignore[reportGeneralTypeIssues,reportUnknownVariableType]
            if name not in self.names:
                refuse(
                    f"{what}: no stage is called {name!r}; the chain's stages are {', '.join(map(repr, self.names))}"
                )

    def __repr__(self) -> str:
        return f"Chain({' -> '.join(self.names)})"


def _check_reaches(previous: BoundStage, bound: BoundStage) -> None:
    """Refuse a link through which nothing can flow: every shared parameter is a constant of the previous stage."""
    shared = sources_of((*bound.inherited_from.values(), *bound.anchored_to.values()))
    if not shared:
        refuse(
            f"{bound.stage.where} shares nothing with {previous.stage.where}, so its examples can have no influence; "
            "name in its link what it took over"
        )
    if shared <= set(previous.constant_names):
        refuse(
            f"{bound.stage.where} shares only parameters that {previous.stage.where} did not train "
            f"('{min(shared)}' has requires_grad=False there), so its examples can have no influence; set "
            "requires_grad_(True) on what it trained"
        )
