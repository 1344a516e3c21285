"""Several processes must be given the same job: each computes a part of what all add up."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from typing import Any

import torch
from torch import nn

from stagetrace.errors import refuse
from stagetrace.parallel import backends, world
from stagetrace.stages.chain import Chain
from stagetrace.stages.identity import Identity
from stagetrace.stages.risk import Risk
from stagetrace.stages.shards import whole_values
from stagetrace.tracing.query import Query

__all__ = ["check_same_job"]


def check_same_job(chain: Chain, query: Query, **settings: object) -> None:
    """Refuse processes whose parameters, data or settings differ: their parts would belong to different sums.

    settings: by the words for them; what stands at an address in memory is not compared.

    Raises:
        DescriptionError: names what differs, and which process has it.
    """
    if world().size == 1:
        return
    if "cpu" not in backends():
        refuse(
            f"the process group has no backend for the CPU ({backends()}); start it by "
            "torch.distributed.init_process_group('cpu:gloo,cuda:nccl')"
        )
    with world().together("comparing the processes' jobs"):
        job = _job(chain, query, settings)
    first, *others = world().gather(job)
    with world().together("comparing the processes' jobs"):
        if world().is_first:
            _compare(first, others)


def _compare(first: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
    for rank, other in enumerate(others, start=1):
        differ = [what for what in first if first[what] != other.get(what)]
        if differ:
            refuse(
                f"process {rank} was given another job than process 0: {differ[0]} differs; build the same chain and "
                "query in every process (load the same checkpoints, or set the same seed before weights or data are "
                "drawn)"
            )


def _job(chain: Chain, query: Query, settings: Mapping[str, object]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "the number or the names of the stages": chain.names,
        "PyTorch's version": torch.__version__,
    }
    found |= {what: text for what, value in settings.items() if " at 0x" not in (text := repr(value))}
    for bound in chain:
        where = bound.stage.where
        found[f"{where}: the value of a parameter or buffer"] = _digest(bound.stage.model)
        found[f"{where}: the class of the objective"] = type(bound.stage.loss).__qualname__
        found[f"{where}: the weight decay"] = bound.stage.weight_decay
        if bound.recording is None:  # one that is replayed may draw its data anew each time
            found |= _data(bound.risk)
    found["the query's reduction"] = query.reduction
    return found | _data(query.risk(chain.last))


def _data(risk: Risk) -> dict[str, Any]:
    """How many examples there are, in which batches, and what a few of them are."""
    examples, where = risk.examples, risk.where
    total = len(examples)
    found: dict[str, Any] = {f"{where}: the number of examples": total, f"{where}: batch_size": examples.batch_size}
    walk = Identity().walk()
    for place in sorted({0, total // 2, total - 1}):
        for batch in examples.read([[place]]):
            digest = walk.digest(batch.content, "batch")
            if not walk.unidentified:
                found[f"{where}: example {place}"] = digest
    return found


def _digest(model: nn.Module) -> bytes:
    """Of the values alone, which two copies of a model share."""
    seal = blake2b(digest_size=16)
    for name, tensor in chain(whole_values(model), model.named_buffers()):
        seal.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        if tensor.layout is torch.strided:
            seal.update(tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return seal.digest()
