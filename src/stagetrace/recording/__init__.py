"""Training recorded as it runs: what each step saw and did, in plain files."""

from stagetrace.recording.link import Unrolled
from stagetrace.recording.recorded import Recorded
from stagetrace.recording.recording import Recording

__all__ = ["Recorded", "Recording", "Unrolled"]
