"""`why.ask`: answers of a causal model, a masked one and a classifier, and what is kept between questions."""

import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, final

import pytest
import torch
import torch.nn.functional as F

from stagetrace import Chain, GaussNewton, Lanczos, Recording, Shift, Stage, Unrolled, hf, index, trace, why
from stagetrace.errors import StagetraceError
from stagetrace.objectives import Classification, NextToken
from stagetrace.stages import fingerprint
from stagetrace.why.question import Contrast
from stagetrace.why.write import render
from tests.hf import tiny

pytestmark = pytest.mark.filterwarnings("ignore::stagetrace.errors.StagetraceWarning")

HOW: dict[str, Any] = {"curvature": GaussNewton(), "solver": Lanczos(damping=0.1, filter=Shift, rtol=1e-9)}
PLAIN = tiny.tokenizer(marks=False)
PAIRS = [{"prompt": "the cat", "completion": " sat on"}, *[{"prompt": "a dog", "completion": " ran"}] * 2]


@pytest.fixture(scope="module")
def causal() -> Chain:
    first = tiny.model("GPT2LMHeadModel").double()
    then = tiny.grown("GPT2LMHeadModel", first, by=0.05).double()
    pretrain = hf.stage("pretrain", first, tiny.rows(), tokenizer=PLAIN)
    return Chain(pretrain, hf.stage("sft", then, PAIRS, tokenizer=PLAIN, after=pretrain))


@pytest.fixture(scope="module")
def masked() -> Chain:
    return Chain(hf.stage("mlm", tiny.model("BertForMaskedLM").double(), tiny.rows(), tokenizer=tiny.tokenizer()))


@pytest.fixture(scope="module")
def classes() -> Chain:
    model = tiny.model("BertForSequenceClassification", id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    return Chain(hf.stage("classes", model.double(), tiny.rows(2), tokenizer=tiny.tokenizer()))


def test_a_completion_is_traced_by_the_nats_of_its_tokens(causal: Chain):
    model = causal.last.stage.model
    found = why.ask(causal, "the cat", " sat on the mat", contrast=" ran", **HOW)
    tokens = torch.tensor([PLAIN("the cat sat on the mat")["input_ids"]])
    labels = torch.where(torch.arange(6) < 2, -100, tokens)
    with torch.no_grad():
        whole = 4 * float(model(input_ids=tokens, labels=labels).loss)  # the model's own mean over its four tokens
        other = float(-model(input_ids=tokens[:, :2]).logits[0, -1].log_softmax(-1)[PLAIN("ran")["input_ids"][0]])
        chances = model(input_ids=tokens).logits[0, 1:5].softmax(-1).max(-1).values.tolist()
    question = found.question
    with pytest.raises(KeyError, match=r"answer\['x'\]: no stage of that name.*type one of: 'pretrain', 'sft'"):
        found["x"]
    assert question.loss == pytest.approx(whole, rel=1e-6)  # which transformers computes in float32
    assert question.traced == pytest.approx(whole - other, rel=1e-6)
    assert float(question.query.loss(causal.last)) == pytest.approx(question.traced, rel=1e-10)
    assert [token.text for token in question.tokens] == [" sat", " on", " the", " mat"]
    assert [token.chance for token in question.tokens] == pytest.approx(chances)
    rows = [{"prompt": "the cat", "completion": text} for text in (" sat on the mat", " ran")]
    asked = hf.query(rows[:1], contrast=rows[1:], stage=causal.last.stage, objective=NextToken("sum"))
    whole_trace = trace(causal, asked, tokens=True, **HOW)
    expected = whole_trace["pretrain"]
    assert found.trace is not None
    torch.testing.assert_close(found.trace["pretrain"].values, expected.values, rtol=1e-6, atol=1e-9)
    stage = found["pretrain"]
    assert [each.index for each in stage.spoke_for] == [
        row.index for row in expected.top(5, harmful=False) if row.score < 0
    ]
    assert all(each.score > 0 > each.removal_effect for each in stage.spoke_against)
    for name in ("pretrain", "sft"):  # tokens: in order, and all of it
        for each in (*found[name].spoke_for, *found[name].spoke_against):
            scores = [piece.score for piece in each.pieces if piece.score is not None]
            assert scores == pytest.approx(whole_trace.tokens[name][each.index].values.tolist(), rel=1e-5, abs=1e-9)
            assert sum(scores) == pytest.approx(each.score, rel=1e-5)
    first = stage.spoke_for[0]
    assert "".join(piece.text for piece in first.pieces).replace(" ##", "") == first.text
    assert [piece.score is None for piece in first.pieces] == [True] + [False] * (len(first.pieces) - 1)
    largest = max(first.pieces, key=lambda piece: -(piece.score or 0.0))
    assert first.carried.startswith(largest.text.strip())


def test_without_a_completion_the_model_answers_and_examples_that_look_the_same_are_one(causal: Chain, tmp_path: Path):
    found = why.ask(causal, "the cat", max_new_tokens=2, out=tmp_path, **HOW)
    asked = torch.tensor([[5, 7]])
    first = int(causal.last.stage.model(input_ids=asked).logits[0, -1].argmax())
    assert found.question.query.data[0]["labels"][:3] == [-100, -100, first]
    assert found.question.tokens[0].is_likeliest
    assert found.question.cut
    twins = [each for each in (*found["sft"].spoke_for, *found["sft"].spoke_against) if each.alike]
    assert [(each.index, each.alike) for each in twins] == [(1, (2,))]
    printed = " ".join(f"{found}".split())
    assert "the model's own" in printed
    assert "cut after 2 tokens" in printed
    assert "spoke for the completion: score below 0, more of the example makes it likelier" in printed


@pytest.mark.slow
def test_a_masked_model_is_asked_at_its_masks(masked: Chain):
    found = why.ask(masked, "the [MASK] sat on the [MASK]", "dog mat", **HOW)
    tokens = torch.tensor([tiny.tokenizer()("the [MASK] sat on the [MASK]")["input_ids"]])
    logs = masked.last.stage.model(input_ids=tokens).logits[0].log_softmax(-1).detach()
    expected = -(logs[2, 8] + logs[6, 12])  # 'dog' and 'mat' behind [CLS] the, and behind the
    assert found.question.loss == pytest.approx(float(expected), rel=1e-9)
    assert float(found.question.query.loss(masked.last)) == pytest.approx(float(expected), rel=1e-9)
    (first, *_) = found["mlm"].spoke_for or found["mlm"].spoke_against
    assert [piece.text.strip() for piece in first.pieces if piece.score is not None]
    assert "[MASK]" not in [piece.text.strip() for piece in first.pieces]  # what was to be filled in is shown
    likeliest = why.ask(masked, "the [MASK] sat on the [MASK]", **HOW).question
    assert likeliest.loss < found.question.loss
    assert all(token.is_likeliest for token in likeliest.tokens)


def test_a_classifier_is_asked_about_its_label(classes: Chain):
    own = why.ask(classes, "the cat sat", **HOW).question
    tokens = torch.tensor([tiny.tokenizer()("the cat sat")["input_ids"]])
    logits = classes.last.stage.model(input_ids=tokens).logits.detach()
    said = int(logits.argmax())
    assert own.answer == ("bad", "good")[said]
    assert own.loss == pytest.approx(float(F.cross_entropy(logits, torch.tensor([said]))), rel=1e-9)
    other = why.ask(classes, "the cat sat", label=("good", "bad")[said], contrast=str(said), **HOW).question
    assert other.contrast is not None
    assert other.contrast.answer == own.answer
    assert other.traced == pytest.approx(float(logits[0, said] - logits[0, 1 - said]), rel=1e-9)


def test_a_question_asked_again_is_read_and_another_one_is_spared_the_fit(
    causal: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    how: dict[str, Any] = {"curvature": "ekfac", "out": tmp_path}
    gathered, reads = fingerprint._gathered, list[str]()  # pyright: ignore[reportPrivateUsage]

    def counted(examples: Any, *rest: Any, **named: Any) -> Any:
        reads.append(examples.where)
        return gathered(examples, *rest, **named)

    monkeypatch.setattr(fingerprint, "_gathered", counted)
    first = why.ask(causal, "the cat", " sat", **how)
    assert sorted(reads) == ["stage 'pretrain'", "stage 'sft'", "the query"]  # once for the run and for the fits
    fits = sorted(each.name for each in (tmp_path / "fits").iterdir())
    assert [name.split("-")[1] for name in fits] == ["pretrain", "sft"]

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr("stagetrace.curvature.ekfac.choice.fit", never)
    assert why.ask(causal, "the cat", " ran", **how).folder != first.folder
    monkeypatch.setattr(sys.modules["stagetrace.tracing.trace"], "backward_pass", never)
    again = why.ask(causal, "the cat", " sat", **how)
    assert len(reads) == 9  # each call by itself
    assert again.stages == first.stages  # the tokens, too
    assert again.trace is not None
    assert first.trace is not None
    assert torch.equal(again.trace["sft"].values, first.trace["sft"].values)
    assert again.page == first.page


@pytest.mark.slow
def test_an_index_names_what_is_scored(causal: Chain, tmp_path: Path):
    asked = hf.query(tiny.rows()[:2], stage=causal.last.stage)
    index.build(causal, asked, tmp_path / "index", numbers=4, queries=0, **HOW)
    found = why.ask(causal, "the cat", " sat", index=tmp_path / "index", out=tmp_path / "why", **HOW)
    whole = why.ask(causal, "the cat", " sat", **HOW)
    assert found.trace is None
    assert (found["pretrain"].looked_at, found["pretrain"].n_examples) == (8, 8)
    for stage in ("pretrain", "sft"):
        assert [each.index for each in found[stage].spoke_for] == [each.index for each in whole[stage].spoke_for]
        assert [each.score for each in found[stage].spoke_for] == pytest.approx(
            [each.score for each in whole[stage].spoke_for], rel=1e-5
        )
        for one, other in zip(found[stage].spoke_for, whole[stage].spoke_for, strict=True):
            assert one.pieces
            assert [piece.text for piece in one.pieces] == [piece.text for piece in other.pieces]
            scores = [[piece.score for piece in each.pieces if piece.score is not None] for each in (one, other)]
            assert scores[0] == pytest.approx(scores[1], rel=1e-5, abs=1e-9)
    assert "nothing is missing" in f"{found}"


def test_through_recorded_steps_tokens_sum_to_their_example_s_score(tmp_path: Path):
    model = tiny.model("GPT2LMHeadModel").double()
    read = hf.stage("pretrain", model, tiny.rows(), tokenizer=PLAIN)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    with Recording(tmp_path / "steps", model, optimizer) as recording:
        for ids in ([0, 1, 2], [3, 4, 5], [2, 6, 7]):
            (batch,) = read.examples.read([ids])
            with recording.batch(ids, batch.content):
                optimizer.zero_grad()
                labels = batch.content["labels"]
                logits = model(**{name: value for name, value in batch.content.items() if name != "labels"}).logits
                (NextToken("sum").losses(logits, batch.content).sum() / (labels[:, 1:] != -100).sum()).backward()
                optimizer.step()
    link = Unrolled(recording=tmp_path / "steps")
    chain = Chain(hf.stage("pretrain", model.eval(), tiny.rows(), tokenizer=PLAIN, link=link))
    found = why.ask(chain, "the cat", " sat", out=tmp_path / "why")
    assert found.trace is not None
    for each in (*found["pretrain"].spoke_for, *found["pretrain"].spoke_against):
        assert sum(piece.score or 0.0 for piece in each.pieces) == pytest.approx(each.score, rel=1e-5)


@final
class Read(HTMLParser):
    """The words of a page, and its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags = "", list[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_the_answer_and_nothing_in_it_acts():
    tokens = tuple(why.Token(text, 0.5, "<i>x</i>", 0.25, is_likeliest=False) for text in (" <b>sat</b>", " on\u202e"))
    contrast = Contrast(" ran", tokens[:1])
    query = hf.query("a", stage=hf.stage("s", tiny.model("GPT2LMHeadModel"), tiny.rows(), tokenizer=PLAIN))
    question = why.Question("completion", "<b> the cat", " sat on", "given", tokens, query, contrast)
    whole = why.Example(3, -0.25, 0.01, "<script>x</script> a dog", "<u>", (4, 5))
    parts = why.Example(2, 0.5, -0.02, "", "", (), (why.Piece("</style><img src=x>", 0.5), why.Piece(" sat", None)))
    page = render(why.Answer(question, (why.StageAnswer("only", 8, 8, (whole,), (parts,), ("<hr> solved",)),)))
    read = Read(page)
    assert not {"script", "img", "b", "i", "u", "hr"} & set(read.tags)
    assert "\u202e" not in page
    assert "Why the completion ' sat on' (given) rather than ' ran'?" in read.text
    assert "<b> the cat <b>sat</b>" in read.text
    assert all(text in read.text for text in ("<script>x</script> a dog", "</style><img src=x> sat", "<hr> solved"))
    assert "makes the completion likelier beside ' ran'" in read.text
    assert "−0.250 nats" in read.text
    assert "and 2 that look the same" in read.text
    assert "Carried by: </style><img src=x> +0.500 nats" in read.text


REFUSED: list[tuple[str, Callable[[dict[str, Chain]], Any], str]] = [
    ("no chain", lambda c: why.ask(c["causal"].last.stage, "a"), "must be a Chain"),  # type: ignore[arg-type]
    ("no hf stage", lambda c: why.ask(c["plain"], "a"), "whose tokenizer reads the prompt"),
    ("prompt", lambda c: why.ask(c["causal"], 3), "prompt must be a string"),  # type: ignore[arg-type]
    ("empty", lambda c: why.ask(c["causal"], "a", " "), "the completion is empty"),
    ("no token", lambda c: why.ask(c["causal"], ""), "the prompt has no token"),
    ("long", lambda c: why.ask(c["causal"], "a dog " * 20, " ran"), "are 41 tokens"),
    ("label of a language model", lambda c: why.ask(c["causal"], "a", label=1), "label= asks a classifier"),
    ("completion of a classifier", lambda c: why.ask(c["classes"], "a", "b"), "give label= in place of completion="),
    ("no such label", lambda c: why.ask(c["classes"], "a", label="fine"), "has no 'fine'"),
    ("label out of range", lambda c: why.ask(c["classes"], "a", label=2), "class 2 is not one of the model's 0 to 1"),
    ("empty text", lambda c: why.ask(c["classes"], " "), "the prompt is empty"),
    (
        "chat of a classifier",
        lambda c: why.ask(c["classes"], [{"role": "user", "content": "a"}]),
        "a conversation asks",
    ),
    ("empty", lambda c: why.ask(c["causal"], "", " dog ran"), "the prompt has no token.*give a prompt"),
    ("no messages", lambda c: why.ask(c["causal"], []), "prompt: a conversation must be a list of messages, and there"),
    ("no mask", lambda c: why.ask(c["masked"], "the cat"), r"the prompt has none; write \[MASK\]"),
    ("two words", lambda c: why.ask(c["masked"], "the [MASK]", "a dog"), "is 2 tokens and the prompt has 1 mask;"),
    ("same", lambda c: why.ask(c["causal"], "a", " dog", contrast=" dog"), "or the contrast is the same examples"),
    ("tags", lambda c: why.ask(c["tags"], "a"), "is one of tokens; write trace"),
]


@pytest.mark.parametrize(("ask", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_cannot_be_asked_is_refused(
    ask: Any, says: str, causal: Chain, masked: Chain, classes: Chain, tmp_path: Path
):
    plain = Chain(Stage("s", model=torch.nn.Linear(1, 2), objective=Classification(), data=[(torch.ones(1), 0)]))
    chains = {"causal": causal, "masked": masked, "classes": classes, "plain": plain}
    if "tokens; write" in says:
        rows = [{"tokens": ["a", "dog"], "tags": [0, 1]}]
        tags = hf.stage("tags", tiny.model("BertForTokenClassification"), rows, tokenizer=tiny.tokenizer())
        chains["tags"] = Chain(tags)
    with pytest.raises(StagetraceError, match=says):
        ask(chains)
