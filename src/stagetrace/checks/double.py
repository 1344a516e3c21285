"""The same losses in float64, to judge derivatives by."""

import copy
from dataclasses import replace

import torch

from stagetrace.errors import StagetraceError
from stagetrace.stages.data import Batch
from stagetrace.stages.device import to_device
from stagetrace.stages.evaluation import Evaluation
from stagetrace.stages.risk import Risk
from stagetrace.stages.space import ParameterSpace, Params

LARGEST = 2**27
"""Parameters above which no second copy of a model is made: a gibibyte in float64."""


def in_double(risk: Risk, batch: Batch) -> tuple[Risk, Batch] | None:
    """The risk and the batch in float64; None where the model is float64 already, too large, or does not allow it."""
    model = risk.evaluation.model
    if risk.trained.dtype == torch.float64 or sum(p.numel() for p in model.parameters()) > LARGEST:
        return None
    try:
        trained, inherited = _widened(risk.trained_values), _widened(risk.inherited_values)
        wide = replace(
            risk,
            evaluation=Evaluation(copy.deepcopy(model).double()),
            trained=ParameterSpace.of(trained),
            inherited=ParameterSpace.of(inherited, like=next(iter(trained.values()))),
            trained_values=trained,
            inherited_values=inherited,
        )
        widened = Batch(batch.indices, to_device(batch.content, torch.float64, risk.trained.device))
        with torch.no_grad():
            if wide.losses(trained, inherited, widened).dtype != torch.float64:
                return None
    except StagetraceError:
        raise
    except Exception:
        return None
    return wide, widened


def _widened(values: Params) -> Params:
    return {name: value.double() for name, value in values.items()}
