"""A folder that is not this run's is refused by what differs, and left alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from stagetrace import GaussNewton, Hessian, Lanczos
from stagetrace.errors import ResultsError
from tests.jobs import examples
from tests.refusals.described import Described, at, both, model_of, named, sound


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OTHERS = [
    ("weights", model_of("pretrain", lambda m: m.get_parameter("head.bias").data.add_(1)), ["pretrain.model.sha256"]),
    ("data", at("finetune", data=examples(40, 3)), ["stages.finetune.data.sha256"]),
    ("fewer data", at("pretrain", data=examples(39, 1)), ["stages.pretrain.data.examples", "40 -> 39"]),
    ("query", at("query", data=examples(40, 3)), ["query.data.sha256"]),
    ("reduction", at("query", reduction="sum"), ["query.reduction", "'mean' -> 'sum'"]),
    ("weight decay", at("finetune", weight_decay=0.5), ["stages.finetune.weight_decay", "0.0 -> 0.5"]),
    ("objective", both(at("finetune", objective=sound), at("settings", curvature=Hessian())), ["finetune.objective"]),
    ("curvature", at("settings", curvature=GaussNewton(examples=7)), ["curvature.pretrain.examples", "-> 7"]),
    ("solver", at("settings", solver=Lanczos(damping=0.5)), ["solver.pretrain.damping", "-> 0.5"]),
    ("scored stages", at("settings", of="finetune"), ["of"]),
    ("parts", at("settings", parts=True), ["parts", "-> true"]),
    ("names", named("pretrain", "tune"), ["tune"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    Described().trace(folder)
    return folder


@pytest.mark.parametrize(("change", "differs"), [case[1:] for case in OTHERS], ids=[case[0] for case in OTHERS])
def test_the_folder_of_another_run_is_refused_by_what_differs(
    change: Callable[[Described], None], differs: list[str], finished: Path
):
    before, described = contents(finished), Described()
    change(described)
    with pytest.raises(ResultsError, match=r"holds another run.*there -> here") as caught:
        described.trace(finished)
    message = str(caught.value).replace('"', "'")
    assert [words for words in differs if words not in message] == [], message
    assert "choose another folder" in message
    assert contents(finished) == before


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(ResultsError, match=r"not a stagetrace run folder.*choose an empty or new folder"):
        Described().trace(tmp_path)
    assert contents(tmp_path) == before
