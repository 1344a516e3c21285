"""The stages of one seed, trained now or found on disk: each is a folder that `stagetrace.hf` reads.

OUT/checkpoints/tokenizer   of all models
OUT/checkpoints/STAGE       `save_pretrained` of the model, or of its adapters beside the base's folder
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, final

import torch

from experiments.checkpoints import Checkpoints, Record
from experiments.protocol import Prepared
from experiments.settings import Settings
from experiments.texts import Corpora
from experiments.training import Training, count_of, train_stage
from experiments.transformer_chains.data import corpora_of, rows, tokenizer_of
from experiments.transformer_chains.models import Architecture
from experiments.transformer_chains.training import finished_trainer, quality
from stagetrace import Chain, Stage, hf
from stagetrace.progress import Progress

PRETRAIN, TWEETS, FINETUNE = "pretrain", "tweets", "finetune"
UPDATED, LORA, THREE = "updated", "lora", "three"


@final
@dataclass(frozen=True)
class Recipe:
    """How the stages of a family are trained.

    general, tweets: texts of the first stage, and of both later ones. tests: test texts of each kind, at most.
    trainer: train the first stage by `transformers.Trainer` (causal language models only).
    three_lora: whether the chain of three ends with LoRA (the base kept), or with all parameters trained further.
    """

    architecture: Architecture
    pretraining: Training
    middle: Training
    finetuning: Training
    adapting: Training
    general: int = 2000
    tweets: int = 2000
    tests: int = 500
    trainer: bool = False
    three_lora: bool = True


def folder_of(chain: str, stage: str) -> str:
    """Where a chain's stage lies: the chains share their first stage."""
    return stage if stage != FINETUNE else f"{FINETUNE}-{chain}"


def prepare(recipe: Recipe, settings: Settings, chains: tuple[str, ...], progress: Progress) -> dict[str, Prepared]:
    """Every stage of these chains, each after those it starts from; their facts and states are by folder."""
    corpora = corpora_of(settings, recipe.general, recipe.tweets, recipe.tests)
    bench = _Bench(recipe, settings, corpora, progress)
    pretrain, made = bench.language(PRETRAIN, None, recipe.pretraining), dict[str, Prepared]()
    test = rows(corpora.tests, bench.tokenizer, labels=True)
    for name in chains:
        before = [pretrain] if name != THREE else [pretrain, bench.language(TWEETS, pretrain, recipe.middle)]
        lora = name == LORA or (name == THREE and recipe.three_lora)
        chain = Chain(*before, bench.sentiment(name, before[-1], lora=lora))
        query, states = (
            hf.query(test, stage=chain.stages[-1], batch_size=64),
            {s: bench.store.adam(s) for s in bench.facts},
        )
        made[name] = Prepared(chain, query, bench.facts, states, corpora)
    return made


class _Bench:
    """What the stages of a seed have in common."""

    def __init__(self, recipe: Recipe, settings: Settings, corpora: Corpora, progress: Progress) -> None:
        self.recipe, self.seed, self.corpora, self.progress = recipe, settings.seed, corpora, progress
        self.store = Checkpoints(settings.out / "checkpoints")
        shape = recipe.architecture
        self.tokenizer = tokenizer_of(self.store.folder / "tokenizer", corpora, shape.vocabulary, shape.length)
        self.given, self.facts = dict[str, Record](), dict[str, Record]()

    def language(self, name: str, after: Stage | None, plan: Training) -> Stage:
        """A language model: on general text from nothing, or on the tweets (as text alone) from the one before."""
        read, shape = self.corpora, self.recipe.architecture
        texts = (read.general, read.unseen) if after is None else (read.tweets, read.tests)

        def begin() -> Any:
            if after is None:
                return shape.language_model(len(self.tokenizer), self.seed)
            return copy.deepcopy(after.model).requires_grad_(True)

        data, tests = (rows(each, self.tokenizer, labels=False) for each in texts)
        return self._stage(name, name, begin, data, tests, plan, after, by_trainer=self.recipe.trainer and not after)

    def sentiment(self, chain: str, after: Stage, *, lora: bool) -> Stage:
        """A classifier on the body of the stage before: all of it trained further, or LoRA and the head alone."""
        shape, texts = self.recipe.architecture, (self.corpora.tweets, self.corpora.tests)

        def begin() -> Any:
            whole = shape.classifier(after.model, self.seed)
            if not lora:
                return whole
            whole.name_or_path = str(self.store.folder / after.name)  # the base's folder, for the adapters' own
            return shape.with_lora(whole, self.seed)

        data, tests = (rows(each, self.tokenizer, labels=True) for each in texts)
        plan = self.recipe.adapting if lora else self.recipe.finetuning
        return self._stage(folder_of(chain, FINETUNE), FINETUNE, begin, data, tests, plan, after)

    def _stage(
        self,
        folder: str,
        name: str,
        begin: Callable[[], Any],
        data: list[Any],
        tests: list[Any],
        plan: Training,
        after: Stage | None,
        *,
        by_trainer: bool = False,
    ) -> Stage:
        plan, place = plan.seeded(self.seed), self.store.folder / folder

        def train() -> Record:
            stage = self._described(name, begin(), data, plan, None)
            model: Any = stage.model
            query = hf.query(tests, stage=stage)
            before = quality(stage, query)
            if by_trainer:
                state = finished_trainer(model, data, self.tokenizer, plan).optimizer.state_dict()
            else:
                state = train_stage(stage, plan, self.progress)
            model.save_pretrained(place)
            return {
                "adam": state,
                "examples": len(stage.examples),
                "parameters": sum(p.numel() for p in model.parameters()),
                "trained_parameters": count_of(model),
                "train": quality(stage, hf.query(data, stage=stage)),
                "test_before": before,
                "test": quality(stage, query),
            }

        self.given[folder] = given = {
            "architecture": asdict(self.recipe.architecture),
            "training": asdict(plan),
            "data": self.corpora.digest,
            "by_trainer": by_trainer,
            "after": None if after is None else self.given[after.name],
        }
        self.facts[folder] = self.store.trained(folder, None, given, train)
        stage = self._described(name, place, data, plan, None if by_trainer else after)
        if not by_trainer:
            return stage
        trainer = finished_trainer(stage.model, data, self.tokenizer, plan, trained=True)
        return hf.from_trainer(trainer, name, weight_decay=plan.weight_decay)

    def _described(self, name: str, model: Any, data: list[Any], plan: Training, after: Stage | None) -> Stage:
        # adapters replace a head that the base's folder lacks: it is drawn, never used, and part of the fingerprint
        options: Any = {"tokenizer": self.tokenizer, "batch_size": 64, "weight_decay": plan.weight_decay}
        options["reduction"] = "mean"  # by which its training weighs sentences
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return hf.stage(name, model, data, after=after, **options)
