"""Folders and what is in them: the right class, the right dtype, and nothing drawn anew."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from stagetrace import hf
from stagetrace.errors import DescriptionError
from tests.hf import tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft on transformers 5

NAMES = ["BertForMaskedLM", "BertForSequenceClassification", "BertForTokenClassification", "GPT2LMHeadModel"]


@pytest.mark.parametrize("name", [*NAMES, "LlamaForCausalLM"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_folder_gives_back_the_model(name: str, dtype: torch.dtype, tmp_path: Path):
    model = tiny.model(name).to(dtype)
    folder = tiny.saved(tmp_path, model, tiny.tokenizer())
    data = [{"input_ids": [5, 6], "labels": [5, 6] if "Seq" not in name else 1}]
    stage = hf.stage("s", folder, data)
    assert type(stage.model).__name__ == name
    theirs = dict(model.named_parameters())
    for key, parameter in stage.model.named_parameters():
        assert parameter.dtype == dtype
        assert parameter.requires_grad
        assert torch.equal(parameter, theirs[key])


def test_the_tokenizer_beside_the_model_is_taken(tmp_path: Path):
    folder = tiny.saved(tmp_path, tiny.model("BertForMaskedLM"), tiny.tokenizer())
    stage = hf.stage("s", folder, tiny.rows())
    given = hf.stage("s", tiny.model("BertForMaskedLM"), tiny.rows(), tokenizer=folder)
    assert list(stage.data) == list(given.data)
    assert len(stage.data[0]["input_ids"]) == 8


def test_loading_is_silent_and_leaves_the_settings(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    log = transformers.utils.logging
    folder = tiny.saved(tmp_path, tiny.model("BertForMaskedLM"), tiny.tokenizer())
    before = (log.is_progress_bar_enabled(), log.get_verbosity())
    capfd.readouterr()
    hf.stage("s", folder, tiny.rows())
    assert capfd.readouterr() == ("", "")
    assert (log.is_progress_bar_enabled(), log.get_verbosity()) == before


def test_a_head_left_over_in_the_file_is_said(tmp_path: Path):
    """BERT's own files have a head for next sentences, which a masked language model has not."""
    from safetensors.torch import load_file, save_file

    folder = Path(tiny.saved(tmp_path, tiny.model("BertForMaskedLM"), tiny.tokenizer()))
    file = folder / "model.safetensors"
    head = {"cls.seq_relationship.weight": torch.zeros(2, 4)}
    save_file({**load_file(file), **head}, file, metadata={"format": "pt"})
    stage = hf.stage("s", folder, tiny.rows())
    assert stage.data.notices == (
        f"stage 's': the file in {folder} has a head that this model does not have, which is left out: "
        "cls.seq_relationship.weight",
    )


def without_a_weight(folder: Path) -> str:
    """A classifier's folder whose file is that of a language model: the head is not in it."""
    tiny.saved(folder, tiny.model("BertForMaskedLM"), tiny.tokenizer())
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": ["BertForSequenceClassification"]}))
    return "lacks weights, which would be random: bert.pooler.dense.bias"


def with_weights_left_over(folder: Path) -> str:
    tiny.saved(folder, tiny.model("BertForMaskedLM", num_hidden_layers=2), tiny.tokenizer())
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 1}))
    return "has weights that the model does not: bert.encoder.layer.1"


def with_weights_of_another_shape(folder: Path) -> str:
    tiny.saved(folder, tiny.model("BertForMaskedLM"), tiny.tokenizer())
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"vocab_size": tiny.SIZE + 3}))
    return "no BertForMaskedLM can be loaded from"


def of_pickles(folder: Path) -> str:
    model = tiny.model("BertForMaskedLM")
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return r"has no \*.safetensors file.*write one by model.save_pretrained\(folder\)"


def of_no_class(folder: Path) -> str:
    tiny.saved(folder, tiny.model("BertForMaskedLM"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": ["MyOwnModel"]}))
    return "names the class MyOwnModel, which transformers does not have"


def of_nothing(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return "has no config.json"


def of_adapters_without_a_base(folder: Path) -> str:
    import peft

    model = peft.get_peft_model(
        tiny.model("BertForSequenceClassification"),
        peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]),
    )
    model.save_pretrained(str(folder))
    return "does not say which base"


@pytest.mark.parametrize(
    "write",
    [
        without_a_weight,
        with_weights_left_over,
        with_weights_of_another_shape,
        of_pickles,
        of_no_class,
        of_nothing,
        of_adapters_without_a_base,
    ],
)
def test_a_folder_that_would_give_wrong_numbers_is_refused(write: Any, tmp_path: Path):
    says = write(tmp_path)
    with pytest.raises(DescriptionError, match=says) as caught:
        hf.stage("s", tmp_path, tiny.rows(2))
    assert "\n" not in str(caught.value)
    assert "stage 's'" in str(caught.value)


def test_a_name_that_is_nowhere_is_one_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DescriptionError, match="no model can be loaded from 'nobody/nothing'"):
        hf.stage("s", "nobody/nothing", tiny.rows())


@pytest.mark.parametrize(
    ("model", "settings", "says"),
    [
        (lambda: torch.nn.Linear(2, 1), {}, "or a PeftModel, got Linear; for other modules write Stage"),
        (lambda: transformers.BertModel(tiny.config("bert")), {}, "no ready-made loss for BertModel.*objective="),
        (lambda: transformers.BertLMHeadModel(tiny.config("bert")), {}, "sees the tokens it is to predict"),
        (lambda: tiny.model("BertForMaskedLM"), {"tokenizer": None}, "the texts need a tokenizer.*give tokenizer="),
        (lambda: tiny.model("BertForMaskedLM"), {"tokenizer": tiny.tokenizer(marks=False)}, "with a mask token"),
        (
            lambda: tiny.model("GPT2ForSequenceClassification", pad_token_id=None),
            {"data": tiny.rows(2)},
            "config.pad_token_id is not set; type: model.config.pad_token_id",
        ),
    ],
    ids=["module", "no head", "no decoder", "no tokenizer", "no mask token", "no padding token"],
)
def test_a_model_that_does_not_do_is_refused(model: Any, settings: dict[str, Any], says: str):
    arguments: dict[str, Any] = {"tokenizer": tiny.tokenizer(), "data": tiny.rows(), **settings}
    with pytest.raises(DescriptionError, match=says):
        hf.stage("s", model().eval(), **arguments)


def test_a_decoder_with_the_head_of_an_encoder_s_family_will_do():
    model = transformers.BertLMHeadModel(tiny.config("bert", is_decoder=True))
    tiny.stir(model, 0.4)
    stage = hf.stage("s", model, tiny.rows(), tokenizer=tiny.tokenizer(), reduction="mean")
    assert repr(stage.objective) == "NextToken(reduction='mean')"


def test_another_class_takes_a_loss_of_one_s_own():
    def losses(model: Any, batch: Any) -> torch.Tensor:
        return model(batch["input_ids"], batch["attention_mask"]).pooler_output.sum(dim=1)

    stage = hf.stage(
        "s", transformers.BertModel(tiny.config("bert")), tiny.rows(), tokenizer=tiny.tokenizer(), objective=losses
    )
    (batch,) = stage.examples.read([[0, 1]])
    assert sorted(batch.content) == ["attention_mask", "input_ids", "token_type_ids"]
    assert stage.loss.losses(stage.loss.outputs(stage.model, batch.content), batch.content).shape == (2,)


@pytest.mark.slow
def test_the_package_alone_does_not_import_transformers():
    code = "import sys, stagetrace.hf; print([m for m in ('transformers', 'peft', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("missing", ["transformers", "peft"])
def test_a_missing_package_is_one_clear_error(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "adapter_config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(DescriptionError, match=rf"needs {missing}.*pip install 'stagetrace\[hf\]'"):
        hf.stage("s", tmp_path, tiny.rows())
