"""`smoothness` on small images, cut short."""

from pathlib import Path

import pytest

from experiments.smoothness import MINIMUM, OURS, SEGMENTS
from tests.experiments.conftest import result_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")]


def test_what_is_said_beforehand_stands_beside_what_was_found(call, data, tmp_path: Path):
    asked = "smoothness", "--data", data, "--out", tmp_path, "--examples", 40
    assert call(*asked) == 0
    result = result_of(tmp_path)
    assert result["failed"] == {}
    assert set(result["seeds"]) == {"SGD 0.005, three times the steps", "Adam 2e-3"}
    for (seed,) in result["seeds"].values():
        assert set(seed["choices"]) == {"4 at random", "4 groups of 0.05", "4 groups of 0.1"}
        for choice in seed["choices"].values():
            told = choice["beforehand"]
            assert told["said_to_hold"] == (told["size"] <= seed["holds_for"])
            assert choice["estimators"][OURS]["pearson_r"] > 0.8  # a few small steps are smooth
    hybrids = result["summary"]["ways"]["Adam 2e-3"]["4 groups of 0.1"]["hybrids"]
    assert set(hybrids) == {*SEGMENTS, MINIMUM}
    assert hybrids["exact, then stopped early in 6 segments"]["pearson_r"]["mean"] > 0.5
    before = (tmp_path / "Adam-2e-3" / "beforehand.json").read_text()
    assert call(*asked) == 0  # found again, not computed
    again = result_of(tmp_path)
    assert again["summary"] == result["summary"]
    assert (tmp_path / "Adam-2e-3" / "beforehand.json").read_text() == before
