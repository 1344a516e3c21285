"""The stages of one seed: recorded trainings from published weights, run now or found on disk.

OUT/checkpoints/head                the masked-token head, `save_pretrained` of the language model before its recording
OUT/checkpoints/STAGE               `save_pretrained` of the model (or of its adapters) after it
OUT/checkpoints/recordings/STAGE    the recording
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import nn
from torch.utils.data import DataLoader

from experiments.checkpoints import Checkpoints, Record
from experiments.protocol import Prepared
from experiments.settings import Settings
from experiments.texts import Corpora
from experiments.training import Training, count_of, train_stage
from experiments.transformer_chains.data import corpora_of, rows
from experiments.transformer_chains.training import quality
from stagetrace import Chain, Recording, Stage, Unrolled, hf
from stagetrace.errors import DescriptionError
from stagetrace.progress import Progress

PRETRAIN, FINETUNE = "pretrain", "finetune"
UPDATED, LORA = "updated", "lora"
CLIP = 1.0


@final
@dataclass(frozen=True)
class Pass:
    """One pass over a stage's texts in an order drawn by the seed: AdamW, warm-up and linear decay, clipped at 1."""

    rate: float
    batch: int = 16
    warmup: int = 4
    weight_decay: float = 0.01


@final
@dataclass(frozen=True)
class Recipe:
    """How the stages are trained.

    general, tweets: texts of the first and of the second stage, one pass over each. tests: of each kind, at most.
    length: tokens that a text is cut at. rank: of LoRA. keep: a state is kept before every so many steps.
    head: how the new masked-token head alone is trained first, on other lines; that is no stage and not recorded.
    """

    pretraining: Pass = Pass(rate=5e-5)
    finetuning: Pass = Pass(rate=1e-4)
    adapting: Pass = Pass(rate=2e-3)
    head: Training = field(default_factory=lambda: Training(epochs=1, rate=1e-3, batch=32))
    head_texts: int = 800
    general: int = 384
    tweets: int = 192
    tests: int = 128
    length: int = 24
    rank: int = 8
    keep: int = 6


def prepare(recipe: Recipe, settings: Settings, progress: Progress) -> dict[str, Prepared]:
    """Both chains, over one first stage."""
    corpora = corpora_of(settings, recipe.general, recipe.tweets, recipe.tests)
    bench = _Bench(recipe, settings, corpora, progress)
    pretrain, made = bench.language(), dict[str, Prepared]()
    for name in (LORA, UPDATED):
        chain = Chain(pretrain, bench.sentiment(name, pretrain))
        query = hf.query(rows(corpora.tests, bench.tokenizer, labels=True), stage=chain.stages[-1], batch_size=32)
        made[name] = Prepared(chain, query, bench.facts, {}, corpora)
    return made


class _Bench:
    """What the stages of a seed have in common."""

    def __init__(self, recipe: Recipe, settings: Settings, corpora: Corpora, progress: Progress) -> None:
        import transformers

        if settings.weights is None:
            raise DescriptionError("minilm: give --weights FOLDER, with the published weights and their tokenizer")
        self.weights, self.settings = settings.weights, settings
        self.recipe, self.seed, self.corpora, self.progress = recipe, settings.seed, corpora, progress
        self.store = Checkpoints(settings.out / "checkpoints")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.weights, model_max_length=recipe.length)
        self.given, self.facts = dict[str, Record](), dict[str, Record]()

    def language(self) -> Stage:
        """The published body with a new head for masked tokens, trained on general text."""
        read = self.corpora
        data, tests = (rows(each, self.tokenizer, labels=False) for each in (read.general, read.unseen))
        return self._stage(PRETRAIN, PRETRAIN, self._with_head, data, tests, self.recipe.pretraining, None)

    def sentiment(self, chain: str, after: Stage) -> Stage:
        """A classifier of tweets on the body of the language model: all of it trained further, or LoRA and the head."""
        read = self.corpora
        data, tests = (rows(each, self.tokenizer, labels=True) for each in (read.tweets, read.tests))
        plan = self.recipe.adapting if chain == LORA else self.recipe.finetuning

        def begin() -> Any:
            whole = self._classifier(after.model)
            return whole if chain != LORA else self._with_lora(whole)

        return self._stage(f"{FINETUNE}-{chain}", FINETUNE, begin, data, tests, plan, after)

    def _stage(
        self,
        folder: str,
        name: str,
        begin: Callable[[], Any],
        data: list[Any],
        tests: list[Any],
        plan: Pass,
        after: Stage | None,
    ) -> Stage:
        place, recording = self.store.folder / folder, self.store.folder / "recordings" / folder

        def train() -> Record:
            stage = self._described(name, begin(), data, None, None)
            query = hf.query(tests, stage=stage, batch_size=32)
            before = quality(stage, query)
            record(stage, plan, recording, self.recipe.keep, self.seed, self.progress)
            model: Any = stage.model
            model.save_pretrained(place)
            after_it = replace(stage)  # whose copy for evaluation is made of the trained values
            return {
                "examples": len(stage.examples),
                "parameters": sum(p.numel() for p in model.parameters()),
                "trained_parameters": count_of(model),
                "train": quality(after_it, hf.query(data, stage=after_it, batch_size=32)),
                "test_before": before,
                "test": quality(after_it, query),
            }

        self.given[folder] = given = {
            "recipe": asdict(self.recipe),
            "training": asdict(plan),
            "data": self.corpora.digest,
            "seed": self.seed,
            "after": None if after is None else self.given[PRETRAIN],
        }
        self.facts[folder] = self.store.trained(folder, None, given, train)
        model = self._reloaded(folder, begin, place)
        shared = () if after is None else hf.shared(model, after)
        return self._described(name, model, data, after, Unrolled(shared, recording))

    def _reloaded(self, folder: str, begin: Callable[[], Any], place: Path) -> Any:
        """The model as training left it."""
        import peft
        import transformers

        if folder == f"{FINETUNE}-{LORA}":
            adapted = begin()
            peft.set_peft_model_state_dict(adapted, peft.utils.load_peft_weights(str(place), device="cpu"))
            return adapted.eval()
        masked = folder == PRETRAIN
        kind: Any = transformers.BertForMaskedLM if masked else transformers.BertForSequenceClassification
        return kind.from_pretrained(place, **PLAIN).eval()

    def _described(self, name: str, model: Any, data: list[Any], after: Stage | None, link: Any) -> Stage:
        options: Any = {"tokenizer": self.tokenizer, "batch_size": 32}
        return hf.stage(name, model, data, after=after, link=link, **options)

    def _with_head(self) -> Any:
        """The body as published, behind a head whose own layers were trained alone, on lines that no stage has."""
        import transformers

        place = self.store.folder / "head"
        if not (place / "model.safetensors").exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                model = transformers.BertForMaskedLM.from_pretrained(self.weights, **PLAIN)
            other = replace(self.settings, seed=self.seed + 1000)
            lines = corpora_of(other, self.recipe.head_texts, 2, 2).general
            own = set(self.corpora.general.rows)
            lines = lines.chosen(place for place, row in enumerate(lines.rows) if row not in own)
            for parameter in model.bert.parameters():  # with the table of the decoder, which is the embeddings'
                parameter.requires_grad_(False)
            stage = self._described("head", model, rows(lines, self.tokenizer, labels=False), None, None)
            train_stage(stage, self.recipe.head.seeded(self.seed), self.progress)
            model.save_pretrained(place)
        return transformers.BertForMaskedLM.from_pretrained(place, **PLAIN).requires_grad_(True)

    def _classifier(self, language: Any) -> Any:
        """The language model's body, the published pooler, and a new head of two classes drawn by the seed."""
        import transformers

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            kind: Any = transformers.BertForSequenceClassification
            model = kind.from_pretrained(self.weights, num_labels=2, **PLAIN)
        found = model.bert.load_state_dict(language.bert.state_dict(), strict=False)
        assert not found.unexpected_keys
        assert all(name.startswith("pooler.") for name in found.missing_keys)
        return model

    def _with_lora(self, classifier: Any) -> Any:
        import peft

        config = peft.LoraConfig(
            task_type=peft.TaskType.SEQ_CLS,
            r=self.recipe.rank,
            lora_alpha=2 * self.recipe.rank,
            lora_dropout=0.0,
            target_modules=["query", "value"],
            modules_to_save=["classifier"],
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return peft.get_peft_model(classifier, config)


PLAIN: dict[str, Any] = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "attn_implementation": "eager",
}
"""No dropout: training minimises the function that is asked about. Attention in plain operations."""


def record(stage: Stage, plan: Pass, folder: Path, keep: int, seed: int, progress: Progress) -> None:
    """Train a stage's model in place, one pass, and record it: a loop as users have it, in two more lines."""
    import transformers

    model, objective, collate = stage.model.train(), stage.loss, stage.collate
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.rate, weight_decay=plan.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    data: Any = stage.data
    loader: DataLoader[Any] = DataLoader(
        data, plan.batch, shuffle=True, collate_fn=collate, drop_last=True, generator=generator
    )
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, min(plan.warmup, len(loader) - 1), len(loader))
    with (
        Recording(folder, model, optimizer, every=keep) as recording,
        progress.task(f"training {stage.where}", len(loader), "steps") as advance,
    ):
        for batch in recording.loader(loader):
            optimizer.zero_grad()
            objective.losses(objective.outputs(model, batch), batch).mean().backward()
            nn.utils.clip_grad_norm_(trained, CLIP)
            optimizer.step()
            schedule.step()
            advance(1)
    model.eval()
