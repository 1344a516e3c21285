"""One training stage as the user describes it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import Any, cast, final

from torch import Tensor, nn

from stagetrace.errors import refuse
from stagetrace.objectives.objective import Objective, PlainLoss, as_objective
from stagetrace.objectives.reference import is_of_reference
from stagetrace.objectives.weights import Weights, as_weights
from stagetrace.stages.copied import private_copy
from stagetrace.stages.data import Examples
from stagetrace.stages.decay import Decay, checked_decay, decays_of
from stagetrace.stages.differentiable_layers import replace_layers
from stagetrace.stages.ids import Ids
from stagetrace.stages.links.link import Link
from stagetrace.stages.own_ids import AskedIds, ids_of
from stagetrace.stages.precision import Precision, check_precision
from stagetrace.stages.recomputing import recompute_blocks
from stagetrace.stages.reference import with_reference
from stagetrace.stages.shards import in_pieces, sizes_of, whole_shapes
from stagetrace.stages.wrappers import refuse_unmade, refuse_wrapped


@final
@dataclass(frozen=True, eq=False)
class Stage:
    """A training stage: the model as it left it, what it minimised, and on which examples.

    The stage minimised `mean_i loss_i + weight_decay / 2 * |parameters|^2` over the parameters that require a gradient
    (and that its link did not freeze), plus the pull of its link, if it has one; with weights `mean_i w_i loss_i`.

    Args:
        name: how results refer to the stage; letters, digits, `.`, `_` and `-`.
        model: the module as this stage left it. It is never changed, moved or left in another mode, and is evaluated in
            eval mode. Parameters with `requires_grad=False` are constants.
        objective: an `Objective` (`stagetrace.objectives`), or a function `losses(model, batch) -> Tensor[batch]`.
        data: a map-style data set (PyTorch, Hugging Face, a list); an example is known by its index, and its id.
        link: how the stage started from the one before it; None for the first stage of a chain.
        weight_decay: the L2 coefficient in the training loss. It belongs to the curvature, not to an example. Or a
            mapping of patterns of parameters' names, such as `{"*bias": 0.0, "*norm*": 0.0, "*": 0.01}`, where `*` is
            for the parameters that no other pattern matches.
        weights: one number of at least 0 per example, or a `stagetrace.objectives.Weights`: how much each example
            counts in the mean. They are divided by their mean, see there. None counts each example once.
        batch_size: examples evaluated at once when scoring; affects speed and memory, not the scores.
        collate: list of examples -> batch; PyTorch's default otherwise.
        training: what is left of a training that was not recorded: its optimiser, that one's `state_dict()`, or a list
            of `stagetrace.replay.Checkpoint`s. Where every later stage is differentiated through recorded steps, the
            stage is then solved by `EarlyStopping`, unless `trace` is told otherwise.
        workers: processes that load data, where a pass over it takes more than a second; 0 loads in this one.
        precision: "bf16" computes the model's matrix products in bfloat16; parameters, vectors, gradients, tangents,
            sums and losses stay float32. How far off that is, is measured and reported. None: that of the parameters.
        ids: a stable id for each example, a text or a whole number used once: the name of a column of the rows, or a
            sequence in their order. Tables, files and `stagetrace curate` then name examples by it, too. None takes
            the data set's own: its attribute `ids`, or the column 'id' of a `datasets.Dataset` or a list of dicts,
            where that can serve; else examples have their indices alone.

    Raises:
        DescriptionError: an argument is of the wrong kind; the message says what to give instead.
        DataError: the data set is empty, or two examples have the same id.

    Example:
        >>> import torch
        >>> from stagetrace.objectives import Regression
        >>> data = torch.utils.data.TensorDataset(torch.ones(4, 2), torch.zeros(4, 1))
        >>> Stage("fit", model=torch.nn.Linear(2, 1), objective=Regression(), data=data)
        Stage('fit': Linear, 3 parameters, 4 examples)
    """

    name: str
    model: nn.Module = field(kw_only=True)
    objective: Objective | PlainLoss = field(kw_only=True)
    data: Any = field(kw_only=True)
    link: Link | None = field(kw_only=True, default=None)
    weight_decay: Decay = field(kw_only=True, default=0.0)
    weights: Weights | Sequence[float] | Tensor | None = field(kw_only=True, default=None)
    batch_size: int = field(kw_only=True, default=256)
    collate: Callable[[list[Any]], Any] | None = field(kw_only=True, default=None)
    workers: int = field(kw_only=True, default=0)
    training: Any = field(kw_only=True, default=None)
    precision: Precision | None = field(kw_only=True, default=None)
    ids: AskedIds = field(kw_only=True, default=None)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", self.name):
            refuse(f"a stage's name must be letters, digits, '.', '_' or '-' (it names a folder), got {self.name!r}")
        if not isinstance(self.model, nn.Module):
            refuse(f"{self.where}: model must be a torch.nn.Module, got {type(self.model).__name__}")
        refuse_wrapped(self.model, self.where)
        object.__setattr__(self, "model", in_pieces(self.model, self.where))  # itself, unless it lies in shards
        model, objective = with_reference(self.model, self.objective, self.where)  # themselves, unless it has one
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "objective", objective)
        refuse_unmade(self.model, self.where)
        if self.link is not None and not isinstance(self.link, Link):
            got = f"the class {self.link.__name__}" if isinstance(self.link, type) else type(self.link).__name__
            refuse(f"{self.where}: link must be Frozen(...), Proximal(...) or a Link of your own, got {got}")
        if self.link is not None and self.link.recording is not None and type(self.model).__name__ == "OptimizedModule":
            # a recording names parameters as the plain module does
            object.__setattr__(self, "model", self.model.get_submodule("_orig_mod"))
        names = (name for name, _ in self.model.named_parameters())
        object.__setattr__(self, "weight_decay", checked_decay(self.weight_decay, names, self.where))
        decays_of(self.weight_decay, self._surely_trained(), self.where)  # of the others when they are known
        check_count(self.batch_size, f"{self.where}: batch_size")
        check_count(self.workers, f"{self.where}: workers", least=0)
        check_precision(self.precision, self.where)
        if self.precision is not None and whole_shapes(self.model) is not None:
            refuse(
                f"{self.where}: precision={self.precision!r} is not made for parameters that lie in shards (DTensor); "
                "leave it out, or give the plain module with the full state"
            )
        self.loss  # noqa: B018  (checked on construction)
        self.examples  # noqa: B018
        self.example_weights  # noqa: B018
        if self.ids is not None:
            object.__setattr__(self, "ids", self.example_ids)  # read once, and not again by each copy of the stage

    @property
    def where(self) -> str:
        """How messages name the stage."""
        return f"stage '{self.name}'"

    @cached_property
    def loss(self) -> Objective:
        """The objective, a plain function wrapped."""
        return as_objective(self.objective, self.where)

    @cached_property
    def examples(self) -> Examples:
        """The data set, read in the library's order."""
        return Examples(self.data, self.batch_size, self.collate, self.workers, self.where)

    @property
    def example_ids(self) -> Ids | None:
        """The ids of the examples, as asked for or as the data set has them; None where it has none."""
        return self.ids_and_notice[0]

    @cached_property
    def ids_and_notice(self) -> tuple[Ids | None, str | None]:
        """The examples' ids, and what is to be said of a column that cannot serve as such."""
        return ids_of(self.data, self.ids, self.where)

    @cached_property
    def example_weights(self) -> Tensor | None:
        """How much each example counts in the mean, float64 `[n]` on the CPU; None where each counts once."""
        given = as_weights(self.weights, self.where)
        return None if given is None else given.of(len(self.examples), self.where)

    @cached_property
    def evaluated(self) -> nn.Module:
        """A copy of the model in eval mode that shares its parameters' memory: the user's own keeps its mode."""
        return recompute_blocks(replace_layers(private_copy(self.model, self.where), self.where))

    def _surely_trained(self) -> list[str]:
        """The parameters that the stage trained, whatever came before it: those that learn and that no link kept."""
        link = self.link
        kept = [*link.pairs, *link.computed] if link is not None and link.keeps_shared else []
        return [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and not any(one in ("", name) or name.startswith(f"{one}.") for one in kept)
        ]

    def __repr__(self) -> str:
        parameters = sum(size for name, size in sizes_of(self.model).items() if not is_of_reference(name))
        kind, examples = type(self.model).__name__, len(self.examples)
        return f"Stage({self.name!r}: {kind}, {parameters:,} parameters, {examples:,} examples)"


def check_count(value: object, what: str, least: int = 1) -> None:
    """Refuse anything but a whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        refuse(f"{what} must be a whole number of at least {least}, got {value!r}")


def check_seeds(value: object, what: str) -> None:
    """Refuse anything but a sequence of whole numbers, or of none."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    numbers = cast("Sequence[object]", value) if several else [None]
    if not all(isinstance(each, Integral) and not isinstance(each, bool) for each in numbers):
        refuse(f"{what} must be whole numbers, each the seed of an order, such as (1, 2), got {value!r}")
