"""How a stage is trained again with weights on its examples.

Its recorded training repeated, solved to a minimum, by steps, or by the user.
"""

from stagetrace.validation.fits.custom import CustomTraining, as_fit
from stagetrace.validation.fits.fit import Fit
from stagetrace.validation.fits.optimizers import SGD, Adam, AdamW
from stagetrace.validation.fits.rerun import Rerun, recorded_fit
from stagetrace.validation.fits.resolve import Resolve
from stagetrace.validation.fits.steps import Steps

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CustomTraining",
    "Fit",
    "Rerun",
    "Resolve",
    "Steps",
    "as_fit",
    "recorded_fit",
]
