"""What is easily given in the place of a chain or a query."""

from torch import nn

from stagetrace.errors import refuse
from stagetrace.stages.chain import Chain
from stagetrace.stages.stage import Stage
from stagetrace.tracing.query import Query


def check_arguments(chain: object, query: object) -> None:
    """Refuse what is no chain, or no query.

    Raises:
        DescriptionError: says what to write.
    """
    if isinstance(chain, Query) and isinstance(query, (Chain, Stage)):
        refuse("trace(chain, query): the two arguments are swapped; write trace(chain, query)")
    if not isinstance(chain, Chain):
        refuse(f"trace(chain, query): the chain is {_called(chain)}; write {_as_chain(chain)}")
    if not isinstance(query, Query):
        refuse(f"trace(chain, query): the query is {_called(query)}; write {_as_query(query)}")


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
