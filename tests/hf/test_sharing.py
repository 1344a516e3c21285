"""What is found to be shared: by name and shape, through prefixes, adapters and tied weights."""

from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

from stagetrace import Chain, Frozen, Proximal, hf
from stagetrace.errors import DescriptionError
from stagetrace.results.table import Table
from tests.hf import tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft on transformers 5


def adapted(model: Any, **settings: Any) -> Any:
    lora: dict[str, Any] = {"r": 2, "target_modules": ["query", "value"], "modules_to_save": ["pooler"], **settings}
    return peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", **lora))


def entries(model: nn.Module, names: Any) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if name in set(names))


def check(found: hf.Shared, model: nn.Module, previous: nn.Module) -> None:
    """What holds of every map: the parts are all there is, shapes agree, and what is kept has kept its values."""
    ours, theirs = dict(model.named_parameters()), dict(previous.named_parameters())
    used = {name for name in ours if ".original_module." not in name}
    assert used == {*found, *found.new}
    assert set(theirs) - {name for name in theirs if ".original_module." in name} == {*found.values(), *found.left}
    for name, other in found.items():
        assert isinstance(other, str)
        assert ours[name].shape == theirs[other].shape
        assert torch.equal(ours[name], theirs[other]) == (name in found.kept)


def test_a_language_model_and_a_classifier_share_their_base():
    before = tiny.model("BertForMaskedLM")
    after = tiny.grown("BertForSequenceClassification", before)
    found = hf.shared(after, before)
    check(found, after, before)
    assert set(found) == {n for n, _ in after.named_parameters() if n.startswith("bert.") and "pooler" not in n}
    assert all(name == other for name, other in found.items())
    assert not found.moved
    tiny.stir(after, 0.1, only="bert.encoder")
    moved = hf.shared(after, before)
    check(moved, after, before)
    assert set(moved.moved) == {name for name in found if "encoder" in name}


def test_the_prefix_of_the_base_does_not_matter():
    """A bare `BertModel` has no prefix, and a copy of the base under another name is still the base."""
    before = transformers.BertModel(tiny.config("bert"))
    after = tiny.model("BertForSequenceClassification")
    found = hf.shared(after, before)
    check(found, after, before)
    assert found["bert.encoder.layer.0.output.dense.bias"] == "encoder.layer.0.output.dense.bias"
    assert found["bert.pooler.dense.weight"] == "pooler.dense.weight"
    assert set(found.new) == {"classifier.weight", "classifier.bias"}
    assert hf.shared(before, after)["pooler.dense.weight"] == "bert.pooler.dense.weight"


def test_a_head_of_the_same_name_and_shape_goes_on():
    before, after = tiny.model("BertForSequenceClassification"), tiny.model("BertForSequenceClassification", seed=1)
    assert hf.shared(after, before)["classifier.weight"] == "classifier.weight"
    other = tiny.model("BertForSequenceClassification", num_labels=5)
    found = hf.shared(other, before)
    check(found, other, before)
    assert "classifier.weight" in found.new
    assert found.reshaped["classifier.weight"] == ((5, 4), (2, 4))


def test_adapters_are_new_and_their_base_is_shared():
    before = tiny.model("BertForMaskedLM")
    after = adapted(tiny.grown("BertForSequenceClassification", before))
    found = hf.shared(after, before)
    check(found, after, before)
    inner = "base_model.model.bert.encoder.layer.0.attention.self"
    assert found[f"{inner}.query.base_layer.weight"] == "bert.encoder.layer.0.attention.self.query.weight"
    assert found[f"{inner}.key.weight"] == "bert.encoder.layer.0.attention.self.key.weight"
    assert not found.moved
    assert f"{inner}.query.lora_A.default.weight" in found.new
    assert "base_model.model.classifier.modules_to_save.default.weight" in found.new


def test_a_module_trained_beside_adapters_is_the_one_it_replaces():
    before = tiny.model("BertForSequenceClassification")
    after = adapted(tiny.model("BertForSequenceClassification"))
    tiny.stir(after, 0.1, only="modules_to_save")
    found = hf.shared(after, before)
    check(found, after, before)
    assert found["base_model.model.classifier.modules_to_save.default.weight"] == "classifier.weight"
    assert all("modules_to_save" in name for name in found.moved)
    assert len(found.moved) == 4


def test_adapters_go_on_from_adapters():
    before = adapted(tiny.model("BertForSequenceClassification"))
    after = adapted(tiny.model("BertForSequenceClassification"))
    found = hf.shared(after, before)
    check(found, after, before)
    assert not found.new
    assert not found.left


@pytest.mark.parametrize("ours_tied", [True, False])
@pytest.mark.parametrize("theirs_tied", [True, False])
def test_tied_embeddings_are_one_parameter(ours_tied: bool, theirs_tied: bool):
    before = tiny.model("GPT2LMHeadModel", tie_word_embeddings=theirs_tied)
    after = tiny.model("GPT2LMHeadModel", seed=1, tie_word_embeddings=ours_tied)
    found = hf.shared(after, before)
    check_sizes = {name: p.shape for name, p in after.named_parameters()}
    assert set(check_sizes) == {*found, *found.new}
    assert found["transformer.wte.weight"] == "transformer.wte.weight"
    assert ("lm_head.weight" in found) == (not ours_tied)
    if not ours_tied:
        assert found["lm_head.weight"] == ("transformer.wte.weight" if theirs_tied else "lm_head.weight")
    assert list(found.left) == (["lm_head.weight"] if ours_tied and not theirs_tied else [])
    data = [{"input_ids": [5, 6, 7]}]
    first = hf.stage("first", before, data)
    bound = Chain(first, hf.stage("second", after, data, after=first))["second"]
    assert bound.anchored_to == dict(found)


def test_an_extended_vocabulary_is_named_and_not_shared():
    before, after = tiny.model("BertForMaskedLM"), tiny.model("BertForMaskedLM", vocab_size=tiny.SIZE + 2)
    found = hf.shared(after, before)
    check(found, after, before)
    name = "bert.embeddings.word_embeddings.weight"
    assert found.reshaped[name] == ((tiny.SIZE + 2, 4), (tiny.SIZE, 4))
    assert name in found.new
    says = f"{name} is not shared: its shape is [{tiny.SIZE + 2}, 4], before it was [{tiny.SIZE}, 4]"
    assert says in " ".join(str(found).split())


def test_nothing_in_common_is_an_error():
    before, after = tiny.model("GPT2LMHeadModel"), tiny.model("BertForMaskedLM")
    with pytest.raises(DescriptionError, match="no parameter of BertForMaskedLM has the name and shape of one of GPT2"):
        hf.shared(after, before)
    first = hf.stage("first", before, [{"input_ids": [5, 6]}])
    with pytest.raises(DescriptionError, match=r"stage 'second': no parameter of .* by link=Frozen"):
        hf.stage("second", after, tiny.rows(), tokenizer=tiny.tokenizer(), after=first)
    with pytest.raises(DescriptionError, match="after= must be a Stage"):
        hf.stage("second", after, tiny.rows(), tokenizer=tiny.tokenizer(), after=before)


def test_the_map_is_shown_by_module_with_its_counts():
    before = tiny.model("BertForMaskedLM")
    after = tiny.grown("BertForSequenceClassification", before)
    tiny.stir(after, 0.1, only="bert.encoder")
    found = hf.shared(after, before)
    rows = found.table().rows
    encoder = [p for name, p in after.named_parameters() if ".encoder." in name]
    assert ("shared, moved", "encoder.layer", f"{sum(p.numel() for p in encoder):,}", f"{len(encoder)}") in rows
    total = {what: sum(int(row[2].replace(",", "")) for row in rows if row[0] == what) for what, *_ in rows}
    assert total == {
        "shared, kept": entries(after, found.kept),
        "shared, moved": entries(after, found.moved),
        "new here": entries(after, found.new),
        "left behind": entries(before, found.left),
    }
    assert isinstance(found.table(), Table)
    assert repr(found) == str(found) == found.table().text()
    assert "encoder.layer" in found._repr_html_()
    assert found.__rich__().row_count == len(rows)


@pytest.mark.parametrize("link", [Frozen, Proximal])
def test_the_map_stands_in_a_link(link: Any):
    before = tiny.model("BertForMaskedLM")
    after = tiny.grown("BertForSequenceClassification", before)
    found = hf.shared(after, before)
    assert link(found).pairs == dict(found)


class TestTheLinkThatIsFound:
    """`after=`: frozen where nothing moved, else proximal with what did not move kept."""

    @staticmethod
    def stages(after: Any, before: Any, **settings: Any) -> tuple[Any, Any]:
        first = hf.stage("first", before, tiny.rows(), tokenizer=tiny.tokenizer())
        second = hf.stage("second", after, tiny.rows(2), tokenizer=tiny.tokenizer(), after=first, **settings)
        return first, second

    def test_frozen_where_all_values_are_equal(self):
        before = tiny.model("BertForMaskedLM")
        after = tiny.grown("BertForSequenceClassification", before)
        first, second = self.stages(after, before)
        assert second.link == Frozen(dict(hf.shared(after, before)))
        assert second.model is after
        assert set(Chain(first, second)["second"].trained_values) == set(hf.shared(after, before).new)

    def test_proximal_where_some_moved_and_the_rest_is_kept(self):
        before = tiny.model("BertForMaskedLM")
        after = tiny.grown("BertForSequenceClassification", before)
        tiny.stir(after, 0.1, only="bert.encoder")
        first, second = self.stages(after, before, alpha=0.3)
        found = hf.shared(after, before)
        assert second.link == Proximal(dict(found), alpha=0.3)
        bound = Chain(first, second)["second"]
        assert set(bound.anchored_to) == set(found.moved)
        assert set(bound.inherited_from) == set(found.kept)
        assert all(p.requires_grad for p in after.parameters())  # the model that was given is as it was
        after_values = dict(after.named_parameters())
        assert all(p.data_ptr() == after_values[n].data_ptr() for n, p in second.model.named_parameters())

    def test_another_link_overrides(self):
        before = tiny.model("BertForMaskedLM")
        after = tiny.grown("BertForSequenceClassification", before)
        assert self.stages(after, before, link=Frozen("bert.embeddings"))[1].link == Frozen("bert.embeddings")

    def test_a_link_without_after_is_taken(self):
        after = tiny.model("BertForSequenceClassification")
        link = Frozen("bert.embeddings")
        assert hf.stage("s", after, tiny.rows(2), tokenizer=tiny.tokenizer(), link=link).link is link

    def test_the_link_of_a_run_reads_alike_each_time(self):
        before = tiny.model("BertForMaskedLM")
        after = tiny.grown("BertForSequenceClassification", before)
        one, other = (self.stages(after, before)[1] for _ in range(2))
        assert repr(one.link) == repr(other.link)
        assert "bert.encoder.layer.0.output.dense.bias" in repr(one.link)
