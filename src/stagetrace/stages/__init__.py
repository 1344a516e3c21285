"""What the user describes: stages, the links between them, the chain they form."""

from stagetrace.stages.chain import Chain as Chain
from stagetrace.stages.links import Frozen as Frozen
from stagetrace.stages.links import Link as Link
from stagetrace.stages.links import Proximal as Proximal
from stagetrace.stages.stage import Stage as Stage
