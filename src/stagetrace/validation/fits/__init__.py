"""How a stage is trained again with weights on its examples: solved to a minimum, by steps, or by the user."""

from stagetrace.validation.fits.custom import CustomTraining as CustomTraining
from stagetrace.validation.fits.custom import as_fit as as_fit
from stagetrace.validation.fits.fit import Fit as Fit
from stagetrace.validation.fits.optimizers import SGD as SGD
from stagetrace.validation.fits.optimizers import Adam as Adam
from stagetrace.validation.fits.optimizers import AdamW as AdamW
from stagetrace.validation.fits.resolve import Resolve as Resolve
from stagetrace.validation.fits.steps import Steps as Steps
