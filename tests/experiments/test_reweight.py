"""`reweight` from end to end, on small images and texts."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import pages, reweight
from tests.experiments.conftest import result_of, write_images, write_texts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def out(call: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "cifar10", classes=10, size=(16, 16, 3), counts=(240, 80))
    words = ["good", "bad", "fine", "poor", "great", "sad"]
    tweets = [f"this debate was {words[place % 6]} and it was {words[place // 6 % 6]}" for place in range(72)]
    lines = [
        f"the river {place} runs from the old town to the sea and past the {words[place % 6]} mill"
        for place in range(72)
    ]
    write_texts(
        folder,
        wikitext2={"text": lines},
        gop_debate={"text": tweets, "label": [place % 2 for place in range(72)]},
    )
    found = tmp_path_factory.mktemp("out") / "reweight"
    assert call("reweight", "--data", folder, "--out", found, "--examples", 40) == 0
    return found


def test_the_gains_are_those_of_the_losses_that_were_kept(out: Path):
    result = result_of(out)
    assert set(result["gains"]) == {"cifar-updated", "bert"}
    for name, seeds in result["chains"].items():
        assert [seed["seed"] for seed in seeds] == [0, 1]
        for count in map(str, reweight.ORDERS[name]):
            gains = result["gains"][name][count]["held_out"]
            for words, used in (("used", True), ("others", False)):
                each = [
                    [
                        one["uniform"] - one["weighted"]
                        for one in seed["orders"][count]["held_out"]
                        if one["used"] == used
                    ]
                    for seed in seeds
                ]
                assert gains[words]["each"] == pytest.approx([sum(some) / len(some) for some in each])
            assert result["gains"][name][count]["target"]["used"]["mean"] > 0


def test_a_second_call_finds_what_was_kept(out: Path, call: Any):
    kept = json.loads((out / "bert" / "seed-0" / "orders-1.json").read_text())
    assert result_of(out)["chains"]["bert"][0]["orders"]["1"] == kept


def test_the_page_shows_them(out: Path, tmp_path: Path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reweight").symlink_to(out)
    page = tmp_path / "reweight.md"
    blocks = ("weight-gains", "weight-losses", "weight-sizes")
    page.write_text("".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in blocks))
    text = pages.filled(page, tmp_path / "results")
    gain = result_of(out)["gains"]["bert"]["2"]["held_out"]["others"]["mean"]
    assert "| bert | 2 |" in text
    assert f"{gain:+.4f} (" in text


def test_halves_are_apart_and_together_all():
    one, other = reweight.halves_of(11, seed=3)
    assert sorted([*one.tolist(), *other.tolist()]) == list(range(11))
    assert len(one) == 5
