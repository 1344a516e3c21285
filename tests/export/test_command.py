"""`stagetrace export`: the file is the library's, and the sign is on the screen."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stagetrace.cli.main import main
from stagetrace.results import Scores, Trace


def command(patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    patch.setattr(sys, "argv", ["stagetrace", "export", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def run(tmp_path: Path) -> Path:
    values = {"pretrain": torch.tensor([0.5, -2.0, 1.0]), "finetune": torch.tensor([3.0, -1.0])}
    Trace({name: Scores(name, each.double()) for name, each in values.items()}).save(tmp_path / "run")
    return tmp_path / "run"


def test_the_sign_is_said(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    code, out, err = command(monkeypatch, capsys, run, "--format", "quanda", "--out", tmp_path / "q")
    assert (code, err) == (0, "")
    assert "stage 'pretrain': value = -score of stagetrace: positive = proponent" in out
    assert torch.load(tmp_path / "q" / "0.pt", weights_only=True).tolist() == [[-0.5, 2.0, -1.0]]
    code, out, err = command(
        monkeypatch, capsys, run, "--stage", "finetune", "--format", "numpy", "--out", tmp_path / "a.npz"
    )
    assert (code, err) == (0, "")
    assert "stage 'finetune': score > 0 is harmful" in out
    assert np.load(tmp_path / "a.npz")["score"].tolist() == [3.0, -1.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "x", "--out", "a"), "the format must be one of quanda, kronfluence, bergson, csv, numpy"),
        (("--format", "csv", "--out", "a", "--stage", "x"), "no stage of that name has scores"),
        (("--format", "csv", "--out", "."), "is a folder"),
        (("--format", "bergson", "--out", "RUN"), "holds something already"),
    ],
)
def test_what_is_refused(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    words: tuple[str, ...],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    given = [str(run) if word == "RUN" else word for word in words]
    code, _, err = command(monkeypatch, capsys, run, *given)
    assert code == 1
    assert message in " ".join(err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
