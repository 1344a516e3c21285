"""Which parameter of a stage is which: trained, kept, moved or constant; by name, prefix and alias."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stagetrace import Chain, Frozen, Link, Proximal, Stage
from stagetrace.errors import DescriptionError
from stagetrace.objectives import NextToken, Regression
from stagetrace.stages.bound import BoundStage
from stagetrace.stages.links.names import canonical_names, shared_names
from tests.objectives import tiny

ROWS = [(torch.ones(3), torch.zeros(2)), (torch.zeros(3), torch.ones(2))]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
        self.encoder_norm = nn.LayerNorm(4)  # no part of the prefix `encoder`
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder_norm(self.encoder(x)))


class Wrapped(nn.Module):
    """`Net` one level deeper, as a fine-tuning script has it."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def stage(name: str, model: nn.Module, link: Any = None, **settings: Any) -> Stage:
    described: dict[str, Any] = {"model": model, "objective": Regression(), "data": ROWS, "link": link}
    return Stage(name, **(described | settings))


def bound(link: Link, model: nn.Module, previous: nn.Module) -> BoundStage:
    return Chain(stage("before", previous), stage("after", model, link)).last


ENCODER = ["encoder.0.weight", "encoder.0.bias", "encoder.2.weight", "encoder.2.bias"]
NORM, HEAD = ["encoder_norm.weight", "encoder_norm.bias"], ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("shared", "names"),
    [
        ("encoder", ENCODER),
        ("encoder.0", ENCODER[:2]),
        ("encoder.0.weight", ENCODER[:1]),
        (["encoder.0.weight", "head"], ENCODER[:1] + HEAD),
        ({"encoder": "encoder", "encoder.0": "encoder.0"}, ENCODER),
        ("", ENCODER + NORM + HEAD),
    ],
    ids=repr,
)
def test_a_prefix_covers_what_lies_under_it(shared: Any, names: list[str]):
    model = Net()
    assert shared_names(Frozen(shared).pairs, model, Net(), "here") == {name: name for name in names}


@pytest.mark.parametrize(
    ("shared", "deeper"),
    [({"net": ""}, "ours"), ({"": "net"}, "theirs"), ({"net.encoder": "encoder", "net.head": "head"}, "ours")],
    ids=repr,
)
def test_the_empty_prefix_is_the_whole_model(shared: dict[str, str], deeper: str):
    net, wrapped = Net(), Wrapped(Net())
    pair = (wrapped, net) if deeper == "ours" else (net, wrapped)
    names = ENCODER + NORM + HEAD if "encoder" not in str(shared) else ENCODER + HEAD
    expected = {f"net.{name}": name for name in names}
    found = shared_names(Proximal(shared).pairs, *pair, "here")
    assert found == (expected if deeper == "ours" else {name: other for other, name in expected.items()})


def test_the_own_the_kept_the_moved_and_the_constant():
    previous, model = Net(), Net()
    model.encoder.load_state_dict(previous.encoder.state_dict())
    model.encoder_norm.requires_grad_(False)
    frozen = bound(Frozen("encoder"), model, previous)
    assert list(frozen.trained_values) == HEAD
    assert list(frozen.inherited_values) == ENCODER
    assert list(frozen.constant_names) == NORM
    assert frozen.anchored_to == {}

    model.encoder[0].requires_grad_(False)
    moved = bound(Proximal("encoder", alpha=0.5), model, previous)
    assert list(moved.trained_values) == ENCODER[2:] + HEAD
    assert moved.anchored_to == {name: name for name in ENCODER[2:]}
    assert list(moved.inherited_values) == ENCODER[:2]  # shared and not trained: kept, whatever the link
    torch.testing.assert_close(moved.penalty, torch.tensor([1.0] * 20 + [0.0] * 10))


def test_without_a_trainable_parameter_there_is_no_stage():
    previous = Net()
    model = Net()
    model.load_state_dict(previous.state_dict())
    model.head.requires_grad_(False)
    with pytest.raises(DescriptionError, match=r"trained nothing: 6 of its parameters are kept.*2 have requires_grad"):
        bound(Frozen(["encoder", "encoder_norm"]), model, previous)


def test_a_displacement_is_in_the_moved_parameters_only():
    previous, model = Net(), Net()
    found = bound(Proximal("encoder"), model, previous)
    before, away = dict(previous.named_parameters()), found.anchored.displacement
    assert list(away) == ENCODER
    for name, value in model.named_parameters():
        if name in ENCODER:
            torch.testing.assert_close(away[name], (value - before[name]).detach())
    anchor = found.trained.unflatten(found.anchor)
    for name, value in found.trained_values.items():
        assert torch.equal(anchor[name], before[name] if name in ENCODER else value)


def test_a_kept_value_may_be_rounded_to_another_dtype():
    previous, model = Net(), Net().bfloat16()
    model.load_state_dict(previous.state_dict())
    assert not torch.equal(model.head.weight.float(), previous.head.weight)
    assert list(bound(Frozen("encoder"), model, previous).inherited_values) == ENCODER


def test_a_kept_value_may_differ_in_dtype_only():
    previous = Net().bfloat16()
    model = Net()
    model.load_state_dict(previous.state_dict())
    assert list(bound(Frozen("encoder"), model, previous).inherited_values) == ENCODER
    with torch.no_grad():
        dict(model.named_parameters())["encoder.2.bias"][1] += 0.25
    with pytest.raises(DescriptionError, match=r"'encoder.2.bias' should be kept.*differs from it by up to 0.25"):
        bound(Frozen("encoder"), model, previous)


# Tied weights: a tiny GPT-2, whose `lm_head.weight` is its `transformer.wte.weight`


def language(name: str, model: nn.Module, link: Any = None) -> Stage:
    data = [{"tokens": sentence} for sentence in tiny.SENTENCES]
    return Stage(name, model=model, objective=NextToken(), data=data, link=link, collate=tiny.collate)


def same(**settings: Any) -> tuple[nn.Module, nn.Module]:
    """Two models with the same values; `settings` of the second."""
    one, other = tiny.gpt2(), tiny.gpt2(**settings)
    other.load_state_dict(one.state_dict())
    return one, other


WTE, LM_HEAD = "transformer.wte.weight", "lm_head.weight"


def test_a_tied_weight_counts_once():
    model = tiny.gpt2()
    found = BoundStage.of(language("only", model), None)
    assert WTE in found.trained_values
    assert LM_HEAD not in found.trained_values
    assert found.trained.size == sum(p.numel() for p in model.parameters())
    assert canonical_names(model)[LM_HEAD] == WTE


@pytest.mark.parametrize("shared", [WTE, LM_HEAD, "lm_head", "transformer.wte", {LM_HEAD: WTE}, {WTE: LM_HEAD}])
def test_a_tied_weight_is_shared_by_either_name(shared: Any):
    previous, model = same()
    found = Chain(language("before", previous), language("after", model, Frozen(shared))).last
    assert found.inherited_from == {WTE: WTE}
    assert found.trained.size == sum(p.numel() for name, p in model.named_parameters() if name != WTE)


def test_everything_under_the_empty_prefix_includes_the_tied_weight_once():
    previous, model = same()
    found = Chain(language("before", previous), language("after", model, Proximal("", alpha=0.5))).last
    assert found.anchored_to == {name: name for name, _ in model.named_parameters()}


def test_two_parameters_may_start_from_one():
    previous, model = same(tied=False)
    link = Frozen({"transformer.wte": "transformer.wte", LM_HEAD: LM_HEAD})
    found = Chain(language("before", previous), language("after", model, link)).last
    assert found.inherited_from == {WTE: WTE, LM_HEAD: WTE}


def test_one_parameter_starts_from_only_one():
    model, previous = same(tied=False)
    with pytest.raises(DescriptionError, match=r"would be shared with both 'transformer.wte.weight' and 'lm_head.weig"):
        Chain(language("before", previous), language("after", model, Frozen([WTE, LM_HEAD])))


def test_a_tied_weight_has_the_gradient_of_both_uses():
    model = tiny.gpt2().double()
    found = BoundStage.of(language("only", model), None)
    batch = tiny.padded(tiny.SENTENCES[:1])
    logits = model.eval()(**batch).logits
    nn.functional.cross_entropy(logits[0, :-1], batch["input_ids"][0, 1:]).backward()
    losses = torch.func.grad(lambda own: found.risk.losses(own, {}, next(iter(found.risk.read([[0]])))).sum())(
        found.trained_values
    )
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(losses[name], parameter.grad, rtol=1e-10, atol=1e-12)


# Adapters


class LoRA(nn.Module):
    """A linear layer with a low-rank update beside it."""

    def __init__(self, base: Any, rank: int = 1) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("requires_grad", [True, False])
def test_adapters_are_own_and_the_base_is_kept(requires_grad: bool):
    previous = Net()
    model = Net()
    model.load_state_dict(previous.state_dict())
    model.requires_grad_(requires_grad)
    for position in (0, 2):
        model.encoder[position] = LoRA(model.encoder[position])
    link = Frozen(
        {
            "encoder.0.base": "encoder.0",
            "encoder.2.base": "encoder.2",
            "encoder_norm": "encoder_norm",
            "head": "head",
        }
    )
    found = bound(link, model, previous)
    assert list(found.trained_values) == [f"encoder.{i}.{side}.weight" for i in (0, 2) for side in ("down", "up")]
    assert found.inherited_from == {name: name.replace(".base", "") for name in found.inherited_values}
    assert found.inherited.size == sum(p.numel() for p in previous.parameters())
    assert found.constant_names == ()


# Links of one's own


@dataclass(frozen=True)
class Told(Link):
    """Says whatever strength it was given."""

    says: Any = 0.5

    def strength(self, anchored: Any) -> Any:
        return dict.fromkeys(anchored.values, self.says) if isinstance(self.says, float | Tensor) else self.says


def test_a_link_of_one_s_own_pulls_entry_by_entry():
    previous, model = Net(), Net()
    model.head.bias.requires_grad_(False)
    with torch.no_grad():
        model.head.bias.copy_(previous.head.bias)
    strengths = {"head.weight": torch.arange(8.0).reshape(2, 4), "beside it": torch.ones(1)}
    found = bound(Told("head", strengths), model, previous)
    assert found.anchored_to == {"head.weight": "head.weight"}
    assert found.inherited_from == {"head.bias": "head.bias"}
    expected = {name: torch.zeros_like(value) for name, value in found.trained_values.items()}
    expected["head.weight"] = 2 * strengths["head.weight"]
    assert torch.equal(found.pull, found.trained.flatten(expected))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float16, torch.int64])
def test_a_strength_is_doubled_without_wrapping_around(dtype: torch.dtype):
    most = {torch.float16: 40_000.0, torch.int8: 100.0}.get(dtype, 200.0)
    found = bound(Told("head.weight", torch.tensor(most, dtype=dtype)), Net(), Net())
    torch.testing.assert_close(found.pull, 2 * most * found.trained.mask(["head.weight"]))


def test_a_link_that_writes_into_what_it_is_given_changes_no_model():
    class Writes(Told):
        def strength(self, anchored: Any) -> Any:
            return {
                name: value.zero_().add_(0.05) + anchored.start[name].zero_() for name, value in anchored.values.items()
            }

    previous, model = Net(), Net()
    kept = [copy.deepcopy(each.state_dict()) for each in (previous, model)]
    found = bound(Writes("head.weight"), model, previous)
    torch.testing.assert_close(found.pull, 0.1 * found.trained.mask(["head.weight"]))
    for each, old in zip((previous, model), kept, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in each.state_dict().items())


@pytest.mark.parametrize("says", [0.25, torch.tensor(0.25), torch.full((1, 4), 0.25)], ids=repr)
def test_a_strength_may_stand_for_several_entries(says: Any):
    found = bound(Told("head.weight", says), Net(), Net())
    torch.testing.assert_close(found.pull, 0.5 * found.trained.mask(["head.weight"]))


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (-1.0, r"Told.strength of 'head.weight' has entries that are negative or not finite, from -1 to -1"),
        (torch.tensor([1.0, 2.0, float("nan"), 3.0]), "negative or not finite"),
        (
            torch.ones(3),
            r"'head.weight' has the shape \[3\], but the parameter has \[2, 4\]; give a number, or one for",
        ),
        (torch.ones(1, 2, 4), r"has the shape \[1, 2, 4\]"),
        ({}, r"must return a mapping with an entry for 'head.weight', got an empty mapping; give 0.0 where"),
        ({"head": 1.0}, r"an entry for 'head.weight', got one with 'head'"),
        ([1.0], r"an entry for 'head.weight', got list"),
        ({"head.weight": "strong"}, r"'head.weight' is str; give a real number, or a tensor of one for each entry"),
        (torch.tensor(0.5 + 0j), r"'head.weight' is torch.complex64; give a real number"),
        ({"head.weight": True}, r"'head.weight' is bool; give a real number"),
        (1e308, r"goes up to 1e\+308, beyond torch.float"),
    ],
    ids=repr,
)
def test_a_strength_that_does_not_fit_is_refused(says: Any, words: str):
    with pytest.raises(DescriptionError, match=f"stage 'after'.*{words}"):
        _ = bound(Told("head.weight", says), Net(), Net()).pull


@pytest.mark.parametrize(
    ("link", "got"), [(Frozen, "the class Frozen"), ("head", "str"), ({"head": "head"}, "dict")], ids=repr
)
def test_what_is_no_link_is_refused(link: Any, got: str):
    with pytest.raises(DescriptionError, match=rf"link must be Frozen\(...\), Proximal\(...\) or a Link .*, got {got}"):
        stage("after", Net(), link)


# What does not map


@pytest.mark.parametrize(
    ("link", "says"),
    [
        (Frozen("encode"), "no parameter 'encode' or under it; it has 'encoder.0.weight'"),
        (Frozen({"encoder": "body"}), "the previous stage has no parameter 'body' or under it"),
        (Frozen({"encoder": "head"}), "under 'encoder' has no counterpart under 'head' of the previous stage"),
        (Frozen({"encoder.0.weight": "encoder.2.weight"}), "shape [4, 3], but 'encoder.2.weight' of stage 'before'"),
        (Frozen({"head.weight": "head"}), "no counterpart|the previous stage"),
    ],
    ids=["no such name", "no such name before", "no counterparts", "another shape", "a parameter from a module"],
)
def test_what_does_not_map_is_named(link: Frozen, says: str):
    with pytest.raises(DescriptionError) as caught:
        bound(link, Net(), Net())
    assert any(part in str(caught.value) for part in says.split("|"))
    assert "stage 'after'" in str(caught.value)


@pytest.mark.parametrize("shared", [{}, [], {"a": 1}, [1]], ids=repr)
def test_what_is_no_mapping_of_names_is_refused(shared: Any):
    for link in (Frozen, Proximal):
        with pytest.raises(DescriptionError, match=r"no shared parameters given|maps names to names"):
            link(shared)


def test_a_chain_says_where_links_belong():
    one, other = stage("one", Net(), Frozen("")), stage("other", Net())
    with pytest.raises(DescriptionError, match="'one' is the first of the chain"):
        Chain(one, other)
    with pytest.raises(DescriptionError, match="'other' comes after 'plain' but does not say"):
        Chain(stage("plain", Net()), other)
    assert Chain(stage("plain", Net()), stage("next", Net(), Proximal(""))).names == ("plain", "next")
