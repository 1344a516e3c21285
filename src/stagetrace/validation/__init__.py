"""What really happens: stages solved again to a strict minimum, and how well scores predicted it."""

from stagetrace.validation.agreement import Agreement as Agreement
from stagetrace.validation.minimum import Minimum as Minimum
from stagetrace.validation.newton import minimise as minimise
from stagetrace.validation.resolve import Resolved as Resolved
from stagetrace.validation.resolve import leave_out as leave_out
from stagetrace.validation.resolve import polish as polish
from stagetrace.validation.resolve import query_loss as query_loss
from stagetrace.validation.resolve import removal_effects as removal_effects
from stagetrace.validation.resolve import resolve as resolve
