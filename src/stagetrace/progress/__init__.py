"""What a long job tells while it runs: one task at a time, with a total where it is known.

The library calls `Progress`; what is drawn is the caller's choice: `Silent` draws nothing and is the default, `Bars`
draws on standard error.
"""

from stagetrace.progress.bars import Bars as Bars
from stagetrace.progress.progress import KEPT as KEPT
from stagetrace.progress.progress import Advance as Advance
from stagetrace.progress.progress import Progress as Progress
from stagetrace.progress.progress import Silent as Silent
from stagetrace.progress.progress import listening as listening
from stagetrace.progress.progress import part_done as part_done
