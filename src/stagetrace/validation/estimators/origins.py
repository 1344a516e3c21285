"""Which of the last stage's parameters came from a given stage, and what the controls compute from these alone.

A control ignores how stages are coupled. It compares a query at the last stage with an example of an earlier
one in the parameters both have: those that the links, name by name, lead from the last stage down to that stage, and
that this stage itself trained (no example of it moved the others).
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from stagetrace.errors import refuse
from stagetrace.progress import Progress
from stagetrace.results.parts import join
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.chain import Chain
from stagetrace.stages.links.computed import by_name
from stagetrace.stages.space import ParameterSpace
from stagetrace.stages.stage import Stage
from stagetrace.tracing.query import Query
from stagetrace.tracing.score import Scorer


def parameter_origins(chain: Chain, stage: str, where: str) -> dict[str, str]:
    """`{last stage's parameter: the parameter of `stage` that it came from}`: the links' pairs, composed.

    Where `stage` is the last, each parameter is its own origin. Several may have come from one (a tie undone); one that
    was computed from several has no single origin, and is left out.

    where: the estimator, for messages.

    Raises:
        DescriptionError: no such stage; or none of them is one that the stage trained.
    """
    chain.check_names([stage], where)
    position = chain.names.index(stage)
    names = {name: name for name in (*chain.last.trained.names, *chain.last.inherited.names)}
    for bound in reversed(chain.bound_stages[position + 1 :]):
        pairs = by_name(bound.inherited_from | bound.anchored_to)
        names = {name: pairs[other] for name, other in names.items() if other in pairs}
    if not set(names.values()) & set(chain[stage].trained.names):
        refuse(
            f"{where}: the last stage, '{chain.last.name}', has no parameter that stage '{stage}' trained (its links "
            f"lead to {sorted(set(names.values())) or 'none of them'}), so it says nothing of that stage's examples; "
            "type the name of another stage, or use Influence(), which follows the stages' coupling"
        )
    return names


def mapped_to_origins(
    bound: BoundStage, names: Mapping[str, str], at_last: Sequence[tuple[ParameterSpace, Tensor]]
) -> Tensor:
    """A vector at the last stage's parameters as one at those the stage trained: `[trained.size, k]`, else zero.

    By the chain rule, parts of several parameters that came from one add up.

    names: the `parameter_origins`. at_last: spaces of the last stage, each with its part of the vector, `[size, k]`.
    """
    vector = bound.trained.zeros(at_last[0][1].shape[1])
    targets = bound.trained.slices()
    for space, source in at_last:
        places = space.slices()
        for name, other in names.items():
            if name in places and other in targets:
                vector[targets[other]] += source[places[name]].to(vector)
    return vector


def dot_effects(bound: BoundStage, vector: Tensor, query: Query, progress: Progress) -> Tensor:
    """`+ (d loss_i / d trained) . vector / n_examples`: what `Scores.removal_effect` is to the adjoint `vector`.

    vector: `[trained.size, k]`. Returns float64 `[n_examples]`, or `[n_queries, n_examples]`.
    """
    scorer = Scorer.of(bound.risk, vector, parts=False, rows=query.rows)
    return join(bound.name, scorer.run(lambda _: None, lambda _, __: None, progress)).removal_effect


def as_single_stage(bound: BoundStage) -> BoundStage:
    """The stage as if it had been the only one: inherited parameters count as trained, and nothing pulls on them."""
    trained = {*bound.trained.names, *bound.inherited.names}
    model = _copied(bound.stage, {}, trained)
    return Chain(replace(bound.stage, model=model, link=None)).last


def with_last_values(chain: Chain, bound: BoundStage, names: Mapping[str, str]) -> BoundStage:
    """The stage with the last stage's values in the parameters that those came from; the others are unchanged.

    names: the `parameter_origins`. Where several of the last stage's parameters came from one, it takes their mean.
    """
    last = dict(chain.last.stage.model.named_parameters())
    ours = dict(bound.stage.model.named_parameters())
    values = {
        other: torch.stack([last[name].detach().to(ours[other]) for name in names if names[name] == other]).mean(dim=0)
        for other in set(names.values())
    }
    trained = {name for name, parameter in ours.items() if parameter.requires_grad}
    return replace(bound, stage=replace(bound.stage, model=_copied(bound.stage, values, trained)))


def _copied(stage: Stage, values: Mapping[str, Tensor], trained: Collection[str]) -> nn.Module:
    """A copy of the model in eval mode with these values, `requires_grad` on `trained`; other values share memory."""
    parameters = {
        id(parameter): nn.Parameter(values.get(name, parameter).detach(), requires_grad=name in trained)
        for name, parameter in stage.evaluated.named_parameters()
    }
    return copy.deepcopy(stage.evaluated, dict[int, object](parameters))
