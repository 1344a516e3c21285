"""`language`: an ELMo-shaped language model, and tweets classified on top of it (Chen et al., section 4.5)."""

from experiments.language.experiment import NAME as NAME
from experiments.language.experiment import SIZES as SIZES
from experiments.language.experiment import run as run
