"""Retrainings on disk: nothing lost, nothing mixed, nothing trained twice; and what is taken out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stagetrace.errors import DescriptionError, ResultsError
from stagetrace.validation.removals import GroupRemovals, RandomRemovals, RemovalPlan, TopRemovals, predicted_effects
from stagetrace.validation.store import Key, Store

IDENTITY: dict[str, Any] = {"stage": "pretrain", "fits": {"pretrain": {"name": "Steps", "steps": 5}}}
KEYS: list[Key] = [(0, 1.0, (3,)), (0, 0.1, (3,)), (1, 1.0, (3,)), (1, 1.0, (3, 14, 15))]
LOSSES = torch.tensor([0.1, 1 / 3, 2e-17, -7.0], dtype=torch.float64)
CONTROL = torch.tensor(1 / 7, dtype=torch.float64)


def filled(folder: Path | None, losses: Tensor = LOSSES, control: Tensor = CONTROL) -> Store:
    with Store(folder, IDENTITY) as store:
        store.add(KEYS[:2], losses[:2], control, 3.0)
        store.add(KEYS[2:], losses[2:], control + 1, 1.0)
    return store


# The store


@pytest.mark.parametrize("on_disk", [False, True])
def test_effects_are_differences_from_the_control_and_kept_apart(tmp_path: Path, on_disk: bool):
    """By seed, by how much and by what was taken out; exactly, through the file and back."""
    store = filled(tmp_path / "new" / "folder" if on_disk else None)
    if on_disk:
        store = Store(tmp_path / "new" / "folder", IDENTITY)
    assert len(store) == 4
    assert store.seconds_of(KEYS) == 4.0
    for key, loss, control in zip(KEYS, LOSSES, [CONTROL, CONTROL, CONTROL + 1, CONTROL + 1], strict=True):
        assert key in store
        assert torch.equal(store.effect(key), loss - control)
    for other in [(2, 1.0, (3,)), (0, 0.5, (3,)), (0, 1.0, (4,)), (0, 1.0, (3, 14, 15)), (0, 1.0, ())]:
        assert other not in store


def test_losses_of_every_query_are_kept(tmp_path: Path):
    losses = torch.arange(8, dtype=torch.float64).reshape(4, 2) / 3
    filled(tmp_path, losses, control=torch.tensor([0.5, 0.25], dtype=torch.float64))
    found = Store(tmp_path, IDENTITY).effect(KEYS[3])
    assert torch.equal(found, losses[3] - torch.tensor([1.5, 1.25], dtype=torch.float64))


def test_a_line_cut_off_anywhere_is_trained_again_and_ends_with_the_same_file(tmp_path: Path):
    filled(tmp_path)
    path = tmp_path / "retrainings.jsonl"
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    assert len(whole) - start > 80
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        with Store(tmp_path, IDENTITY) as store:
            assert [key in store for key in KEYS] == [True, True, True, False]
            store.add(KEYS[3:], LOSSES[3:], CONTROL + 1, 0.5)
        assert path.read_bytes() == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["retraining.json", "retrainings.jsonl"]


def test_a_file_cut_off_in_its_first_line_is_empty(tmp_path: Path):
    filled(tmp_path)
    path = tmp_path / "retrainings.jsonl"
    for text in (b"", b"{", path.read_bytes().split(b"\n")[0]):
        path.write_bytes(text)
        assert len(Store(tmp_path, IDENTITY)) == 0


def test_another_identity_is_refused_with_what_differs(tmp_path: Path):
    filled(tmp_path)
    other = {"stage": "finetune", "fits": {"pretrain": {"name": "Steps", "steps": 6}}}
    with pytest.raises(ResultsError) as caught:
        Store(tmp_path, other)
    assert "another folder" in str(caught.value)
    assert 'stage: "pretrain" -> "finetune"' in str(caught.value)
    assert "fits.pretrain.steps: 5 -> 6" in str(caught.value)
    assert "fits.pretrain.name" not in str(caught.value)
    assert len(Store(tmp_path, json.loads(json.dumps(IDENTITY)))) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: replace(folder, '"loss": ', '"lost": '), r"retrainings.jsonl, line 1, .*'loss'.* delete that"),
        (lambda folder: replace(folder, "[3]", "3"), "line 1, cannot be read"),
        (lambda folder: replace(folder, "{", "\x00"), "line 1, cannot be read"),
        (lambda folder: replace(folder, '"control": 0.14', '"control": [null, 0.14'), "line 1, cannot be read"),
        (lambda folder: (folder / "retrainings.jsonl").write_bytes(b"\xff\xfe\n"), "line 1, cannot be read"),
        (lambda folder: (folder / "retraining.json").write_text("{"), "retraining.json cannot be read"),
        (lambda folder: (folder / "retraining.json").unlink(), "no retraining.json that says of what; delete"),
    ],
)
def test_a_damaged_folder_is_said_in_one_line(tmp_path: Path, spoil: Callable[[Path], object], message: str):
    filled(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ResultsError, match=message) as caught:
        Store(tmp_path, IDENTITY)
    assert "\n" not in str(caught.value)


def replace(folder: Path, old: str, new: str) -> None:
    path = folder / "retrainings.jsonl"
    path.write_text(path.read_text().replace(old, new, 1))


def test_a_folder_that_cannot_be_written_is_the_librarys_own_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot write"):
        Store(tmp_path / "file", IDENTITY)
    store = Store(tmp_path / "folder", IDENTITY)
    (tmp_path / "folder" / "retrainings.jsonl").mkdir()
    with pytest.raises(ResultsError, match="cannot write"):
        store.add(KEYS[:1], LOSSES[:1], CONTROL, 1.0)


def test_one_process_at_a_time_has_the_folder(tmp_path: Path):
    """As with a run's folder: the second is refused at once, and a store that was refused holds nothing."""
    with Store(tmp_path / "out", IDENTITY) as store:
        with pytest.raises(ResultsError, match=r"out is in use: process \d+ on .* is writing to it; .*another folder"):
            Store(tmp_path / "out", IDENTITY)
        store.add(KEYS[:1], LOSSES[:1], CONTROL, 1.0)
    for _ in range(2):
        with pytest.raises(ResultsError, match="another set of retrainings"):
            Store(tmp_path / "out", {"stage": "finetune"})
    assert KEYS[0] in Store(tmp_path / "out", IDENTITY)


def test_a_store_whose_folder_is_deleted_stops(tmp_path: Path):
    with Store(tmp_path / "out", IDENTITY) as store:
        shutil.rmtree(tmp_path / "out")
        with pytest.raises(ResultsError, match="was deleted, or taken over by another process"):
            store.add(KEYS[:1], LOSSES[:1], CONTROL, 1.0)
    assert not (tmp_path / "out").exists()


# What is taken out


@pytest.mark.parametrize(
    "choice",
    [RandomRemovals(7), RandomRemovals(7, seed=3), GroupRemovals(0.2, 6), GroupRemovals(0.5, 4, seed=2, by=0.1)],
)
def test_random_choices_do_not_look_at_a_prediction(choice: RemovalPlan):
    found = choice.removals(30, torch.zeros(30))
    assert choice.removals(30, torch.randn(30)) == found
    torch.manual_seed(99)
    assert choice.removals(30, torch.full((30,), float("nan"))) == found


def test_draws_have_their_size_and_nothing_twice():
    assert sorted(RandomRemovals(30).removals(30, torch.zeros(30))) == [(index,) for index in range(30)]
    seven = RandomRemovals(7).removals(30, torch.zeros(30))
    assert len(set(seven)) == 7
    assert RandomRemovals(7, seed=1).removals(30, torch.zeros(30)) != seven
    assert len(RandomRemovals(50).removals(30, torch.zeros(30))) == 30
    for share, size in [(0.2, 6), (0.5, 15), (0.01, 1), (1 / 3, 10)]:
        groups = GroupRemovals(share, 40).removals(30, torch.zeros(30))
        assert [len(group) for group in groups] == [size] * 40
        assert all(list(group) == sorted(set(group)) and set(group) <= set(range(30)) for group in groups)
        assert len(set(groups)) > 20
    groups = GroupRemovals(0.5, 400).removals(30, torch.zeros(30))
    counts = torch.zeros(30).index_add(0, torch.tensor(sum(groups, ())), torch.ones(6000))
    assert float(counts.min()) > 150
    assert float(counts.max()) < 250


def test_the_largest_go_by_their_absolute_value():
    predicted = torch.tensor([0.1, -3.0, 2.0, 0.0, -2.0, 2.5])
    assert TopRemovals(4).removals(6, predicted) == [(1,), (5,), (2,), (4,)]
    assert TopRemovals(9).removals(6, predicted)[-1] == (3,)


def test_predictions_of_groups_are_sums():
    effects = torch.tensor([[1.0, 10.0, 100.0, 1000.0], [2.0, 20.0, 200.0, 2000.0]], dtype=torch.float64)
    removals = [(0,), (1, 3), (0, 1, 2, 3)]
    assert predicted_effects(effects[0], removals, 1.0).tolist() == [1.0, 1010.0, 1111.0]
    assert predicted_effects(effects[0], removals, 0.5).tolist() == [0.5, 505.0, 555.5]
    assert predicted_effects(effects, removals, 1.0).tolist() == [[1.0, 1010.0, 1111.0], [2.0, 2020.0, 2222.0]]


def test_names_tell_choices_apart():
    choices = [
        TopRemovals(5),
        TopRemovals(5, by=0.1),
        RandomRemovals(5),
        RandomRemovals(5, seed=1),
        RandomRemovals(5, by=0.1),
        GroupRemovals(0.1, 5),
        GroupRemovals(0.1, 5, seed=1),
        GroupRemovals(0.2, 5),
        GroupRemovals(0.1, 5, by=0.1),
    ]
    names = [choice.name for choice in choices]
    assert len(set(names)) == len(choices)
    assert names[:3] == ["5 largest", "5 largest, 0.1 of each", "5 at random"]
    assert names[5] == "5 groups of 0.1"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TopRemovals(0), r"TopRemovals\(count=...\) must be a whole number of at least 1, got 0"),
        (lambda: RandomRemovals(2, by=0.0), "RandomRemovals: by must be above 0"),
        (lambda: GroupRemovals(by=1.5), "GroupRemovals: by must be above 0 .* at most 1 .*, got 1.5"),
        (lambda: GroupRemovals(1.0), "GroupRemovals: share must be above 0 and below 1"),
    ],
)
def test_wrong_choices_are_refused(call: Callable[[], object], message: str):
    with pytest.raises(DescriptionError, match=message):
        call()
