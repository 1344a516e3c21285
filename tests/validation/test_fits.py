"""What identifies a fit, and the order of a stage's parameters in it."""

import torch
from torch import nn

from stagetrace.validation import SGD, Adam, Resolve, Steps
from stagetrace.validation.fits import CustomTraining
from stagetrace.validation.fits.fit import described
from tests.chains import chain_of
from tests.oracles import own_names, solved, unflatten
from tests.validation.fits import UNTIED, saved


def test_a_description_tells_fits_apart():
    state = saved()
    fits = [
        Resolve(),
        Resolve(1e-9),
        Resolve(proximity=0.1),
        Steps(Adam(), 3, 4),
        Steps(Adam(state=state), 3, 4),
        Steps(Adam(state=saved(steps=2)), 3, 4),
        Steps(SGD(), 3, 4),
        Steps(SGD(momentum=0.1), 3, 4),
        Steps(SGD(), 3, 4, "cold"),
        Steps(SGD(), 3, 4, schedule="cosine"),
        CustomTraining(lambda weights: nn.Linear(1, 1)),
        CustomTraining(lambda weights, seed: nn.Linear(1, 1)),
    ]
    known = [str(described(fit)) for fit in fits]
    assert len(set(known)) == len(fits)
    assert [str(described(fit)) for fit in fits] == known
    assert described(Steps(Adam(state=saved()), 3, 4)) == described(fits[4])


def test_unflatten_is_the_oracles():
    """The order of the own parameters is that of the module, as a saved optimiser state has it."""
    bound = chain_of(UNTIED, solved(UNTIED)).bound_stages[1]
    vector = torch.arange(float(bound.trained.size), dtype=torch.float64)
    like = unflatten(vector, solved(UNTIED)[1], own_names(UNTIED.stages[1]))
    assert all(torch.equal(bound.trained.unflatten(vector)[name], value) for name, value in like.items())
