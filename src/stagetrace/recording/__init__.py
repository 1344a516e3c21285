"""Training recorded as it runs: what each step saw and did, in plain files."""

from stagetrace.recording.link import Unrolled as Unrolled
from stagetrace.recording.recorded import Recorded as Recorded
from stagetrace.recording.recording import Recording as Recording
