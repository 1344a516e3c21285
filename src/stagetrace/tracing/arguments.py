"""Refusals of what is easily passed instead of a chain or a query."""

from collections.abc import Collection
from pathlib import Path

from torch import nn

from stagetrace.errors import refuse
from stagetrace.stages.chain import Chain
from stagetrace.stages.stage import Stage
from stagetrace.tracing.query import Query


def check_arguments(chain: object, query: object) -> None:
    """Refuse anything but a chain and a query.

    Raises:
        DescriptionError: says what to write.
    """
    if isinstance(chain, Query) and isinstance(query, (Chain, Stage)):
        refuse("trace(chain, query): the two arguments are swapped; write trace(chain, query)")
    if not isinstance(chain, Chain):
        refuse(f"trace(chain, query): the chain is {_called(chain)}; write {_as_chain(chain)}")
    if not isinstance(query, Query):
        refuse(f"trace(chain, query): the query is {_called(query)}; write {_as_query(query)}")


def check_options(of: object, out: object, progress: object) -> None:
    """Refuse options of `trace` of another kind.

    Raises:
        DescriptionError: says what to write.
    """
    names = [of] if isinstance(of, str) else of
    if names is not None and not (isinstance(names, Collection) and all(isinstance(name, str) for name in names)):
        refuse(f"trace(of=...) must be the names of stages, as in of=['pretrain'], got {of!r}")
    if out is not None and not isinstance(out, (str, Path)):
        refuse(f"trace(out=...) must be a folder, as in out='runs/a', got {out!r}")
    if not isinstance(progress, bool) and not callable(getattr(progress, "task", None)):
        refuse(f"trace(progress=...) must be True or False, or an object with a method task, got {progress!r}")


def _as_chain(given: object) -> str:
    if isinstance(given, Stage):
        return "trace(Chain(stage), query)"
    if isinstance(given, (list, tuple)) and given and all(isinstance(stage, Stage) for stage in given):
        return f"trace(Chain({', '.join(stage.name for stage in given)}), query)"
    return "trace(Chain(pretrain, finetune), query), of Stages"


def _as_query(given: object) -> str:
    if isinstance(given, (Chain, Stage)):
        return "trace(chain, Query(examples)), of the examples whose loss is to be explained"
    if isinstance(given, type) or given is None or isinstance(given, nn.Module):
        return "trace(chain, Query(test_set))"
    return "trace(chain, Query(data)), of that data"


def _called(given: object) -> str:
    if isinstance(given, type):
        return f"the class {given.__name__}"
    return "missing (None)" if given is None else f"a {type(given).__name__}"
