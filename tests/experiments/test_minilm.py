"""`minilm`, cut short: a tiny encoder's folder in the place of the published one."""

from pathlib import Path
from typing import Any

import pytest
import transformers

from experiments import __main__ as command
from experiments.minilm.experiment import LORA, NAME, UPDATED, Plan, experiment
from experiments.minilm.stages import Pass, Recipe
from experiments.texts import new_tokenizer
from experiments.training import Training
from tests.experiments.conftest import result_of, write_texts

WORDS = ("cat dog red big sat ran on the a mat good bad happy old new film book house tree sun moon star " * 2).split()
LINES = [" ".join(WORDS[(3 * line + 5 * place) % 22] for place in range(10 + line % 4)) for line in range(60)]
SHORT = Plan(
    Recipe(
        pretraining=Pass(rate=1e-2, batch=6),
        finetuning=Pass(rate=3e-2, batch=6),
        adapting=Pass(rate=1e-1, batch=6),
        head=Training(epochs=2, rate=1e-2, batch=8),
        head_texts=20,
        general=30,
        tweets=24,
        tests=12,
        length=14,
        rank=2,
        keep=2,
    ),
    groups=5,
)


pytestmark = [
    # Training starts from a file that lacks the heads, and the trace says where a loss is not smooth.
    pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `--weights` names: an encoder without a head, and its tokenizer."""
    folder = tmp_path_factory.mktemp("weights")
    tokenizer = new_tokenizer(LINES, "pieces", 60, longest=64)
    tokenizer.save_pretrained(folder)
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    transformers.set_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_both_chains_are_recorded_traced_and_held_against_the_trainings_run_again(
    call: Any, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    labels = [place % 2 for place in range(len(LINES))]
    data = tmp_path / "data"
    data.mkdir()
    write_texts(data, wikitext2={"text": LINES}, gop_debate={"text": LINES, "label": labels})
    monkeypatch.setitem(command.EXPERIMENTS, NAME, experiment(SHORT))
    assert call(NAME, "--data", data, "--out", tmp_path / "out", "--weights", weights) == 0
    found = result_of(tmp_path / "out")
    assert set(found["training"]["0"]) == {"pretrain", "finetune-lora", "finetune-updated"}
    for chain in (LORA, UPDATED):
        (seed,) = found["retraining"][chain]["each_seed"]
        exact = seed["estimators"]["exact, through the steps"]
        assert seed["groups"] == 5
        assert seed["examples_in_a_group"] == 3
        # how near they are is for the real run to say: a tenth of so few lines, at such rates, is no small change
        effects = seed["effects"]
        assert all(len(set(effects[name])) == 5 for name in ("true", "exact, through the steps"))
        assert -1 <= exact["pearson_r"] <= 1
        assert max(found["chains"][chain]["traces"]["recorded steps"]["replay agrees to"].values()) < 1e-4
    assert call(NAME, "--data", data, "--out", tmp_path / "none") == 1  # without weights
