"""Everything a score rests on, checked before it is trusted: data, losses, and the derivative itself."""

from stagetrace.checks.finding import Finding as Finding
from stagetrace.checks.finding import Level as Level
from stagetrace.checks.verify import in_short as in_short
from stagetrace.checks.verify import verify_query as verify_query
from stagetrace.checks.verify import verify_stage as verify_stage
