"""Folders that are not there, or not what they seem: one line at once, no network, and no code run."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest

from stagetrace import hf
from stagetrace.errors import DescriptionError
from tests.hf import tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft on transformers 5


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that the Hub was asked for; it never answers."""
    names: list[str] = []

    def model_info(self: Any, name: str, **settings: Any) -> Any:
        del self
        assert settings["timeout"] <= 5
        names.append(name)
        raise ConnectionError("no network here")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    return names


@pytest.mark.parametrize("name", ["./nowhere", "~/nowhere", "/no/where", "a/b/c", "models/bert", "no where", "a\\b"])
def test_a_mistyped_folder_is_said_at_once(
    name: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "berta").mkdir(parents=True)
    with pytest.raises(DescriptionError, match="stage 's': there is no folder ") as caught:
        hf.stage("s", name, tiny.rows())
    assert asked == []
    assert "\n" not in str(caught.value)
    assert ("berta" in str(caught.value)) == (name == "models/bert")


def test_a_path_is_never_a_name(asked: list[str], tmp_path: Path):
    with pytest.raises(DescriptionError, match="there is no folder nowhere"):
        hf.stage("s", Path("nowhere"), tiny.rows())
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(DescriptionError, match="is a file; give the folder it lies in"):
        hf.stage("s", file, tiny.rows())
    assert asked == []


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing"])
def test_a_name_is_asked_for_once(name: str, asked: list[str]):
    with pytest.raises(DescriptionError, match=f"no model can be loaded from '{name}'.*the Hub has none or does not"):
        hf.stage("s", name, tiny.rows())
    assert asked == [name]


def test_a_tokenizer_is_looked_for_likewise(asked: list[str]):
    with pytest.raises(DescriptionError, match=r"there is no folder \./tok.*as tokenizer"):
        hf.stage("s", tiny.model("BertForMaskedLM"), tiny.rows(), tokenizer="./tok")
    assert asked == []


def edit(file: Path, **changes: Any) -> None:
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in {**settings, **changes}.items() if v is not None}))


EVIL = "import pathlib\npathlib.Path(__file__).with_name('was_run').touch()\nclass Evil: pass\n"


def with_code(folder: Path) -> str:
    tiny.saved(folder, tiny.model("BertForMaskedLM"), tiny.tokenizer())
    edit(folder / "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModelForMaskedLM": "evil.Evil"})
    return r"wants to run its own code \(auto_map for AutoConfig, AutoModelForMaskedLM\).*give it as model="


def with_code_of_an_unknown_kind(folder: Path) -> str:
    with_code(folder)
    edit(folder / "config.json", model_type="evil")
    return "wants to run its own code"


def with_code_for_the_tokenizer(folder: Path) -> str:
    tiny.saved(folder, tiny.model("BertForMaskedLM"), tiny.tokenizer())
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    return "wants to run its own code.*give it as tokenizer="


def with_a_base_that_has_code(folder: Path) -> str:
    base = folder / "base"
    with_code(base)
    (base / "evil.py").write_text(EVIL)
    adapters(folder, str(base))
    return "wants to run its own code"


def with_a_module_to_import(folder: Path) -> str:
    base = tiny.saved(folder / "base", tiny.model("BertForMaskedLM"), tiny.tokenizer())
    adapters(folder, base)
    edit(folder / "adapter_config.json", megatron_config={"x": 1}, megatron_core="evil")
    return "asks for a module to be imported"


def with_a_base_that_is_nowhere(folder: Path) -> str:
    adapters(folder, "../nowhere")
    return r"the base that adapter_config.json in .* names: there is no folder \.\./nowhere"


def adapters(folder: Path, base: str) -> None:
    model = tiny.model("BertForMaskedLM")
    peft.get_peft_model(model, peft.LoraConfig(r=1, target_modules=["query"])).save_pretrained(str(folder))
    edit(folder / "adapter_config.json", base_model_name_or_path=base)


def without_a_class(folder: Path) -> str:
    tiny.saved(folder, tiny.model("BertForMaskedLM"))
    edit(folder / "config.json", architectures=None)
    return "does not name the model's class.*give it as model="


def of_a_class_that_is_no_model(folder: Path) -> str:
    tiny.saved(folder, tiny.model("BertForMaskedLM"))
    edit(folder / "config.json", architectures=["pipeline"])
    return "names the class pipeline, which transformers does not have"


def quantised(folder: Path) -> str:
    tiny.saved(folder, tiny.model("BertForMaskedLM"))
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    return "quantised .*full precision"


def of_broken_settings(folder: Path) -> str:
    tiny.saved(folder, tiny.model("BertForMaskedLM"))
    (folder / "config.json").write_text("{")
    return "cannot be read as JSON"


def of_settings_that_are_a_list(folder: Path) -> str:
    tiny.saved(folder, tiny.model("BertForMaskedLM"))
    (folder / "config.json").write_text("[]")
    return "holds no settings"


def of_adapters_with_broken_settings(folder: Path) -> str:
    (folder / "adapter_config.json").write_text("{")
    return "cannot be read as JSON"


def of_broken_weights(folder: Path) -> str:
    tiny.saved(folder, tiny.model("BertForMaskedLM"), tiny.tokenizer())
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    return "no BertForMaskedLM can be loaded"


def of_a_broken_tokenizer(folder: Path) -> str:
    tiny.saved(folder, tiny.model("BertForMaskedLM"), tiny.tokenizer())
    (folder / "tokenizer.json").write_text("{}")
    return "no tokenizer can be loaded"


@pytest.mark.parametrize(
    "write",
    [
        with_code,
        with_code_of_an_unknown_kind,
        with_code_for_the_tokenizer,
        with_a_base_that_has_code,
        with_a_module_to_import,
        with_a_base_that_is_nowhere,
        without_a_class,
        of_a_class_that_is_no_model,
        quantised,
        of_broken_settings,
        of_settings_that_are_a_list,
        of_adapters_with_broken_settings,
        of_broken_weights,
        of_a_broken_tokenizer,
    ],
)
def test_a_folder_is_refused_in_one_line(write: Any, asked: list[str], tmp_path: Path):
    says = write(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    with pytest.raises(DescriptionError, match=says) as caught:
        hf.stage("s", str(tmp_path), tiny.rows())
    assert "\n" not in str(caught.value)
    assert "stage 's'" in str(caught.value)
    assert not list(tmp_path.rglob("was_run"))
    assert asked == []


def test_a_stage_before_is_a_stage():
    model = tiny.model("BertForMaskedLM")
    cases: list[tuple[Any, str]] = [("pretrain", "the name 'pretrain'"), (model, "BertForMaskedLM")]
    for given, what in cases:
        with pytest.raises(DescriptionError, match=f"after= must be a Stage.*got {what}; describe that stage first"):
            hf.stage("s", tiny.model("BertForMaskedLM"), tiny.rows(), tokenizer=tiny.tokenizer(), after=given)
