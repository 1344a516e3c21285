"""The stages of one seed, trained now or found on disk: each is a folder that `stagetrace.hf` reads.

OUT/checkpoints/tokenizer       of all models
OUT/checkpoints/STAGE           `save_pretrained` of the model, or of its adapters beside the base's folder
OUT/checkpoints/STAGE.json      settings and data it came from, and how training went; written last
OUT/checkpoints/STAGE.adam.safetensors   where Adam ended
"""

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, final

import torch

from experiments.bert_and_gpt.data import Corpora, corpora_of, rows, tokenizer_of
from experiments.bert_and_gpt.models import Architecture
from experiments.bert_and_gpt.training import by_adam, finished_trainer, quality
from experiments.checkpoints import Record, keep_state, saved_state
from experiments.settings import Settings
from experiments.training import Training
from stagetrace import Chain, Query, Stage, hf
from stagetrace.errors import ResultsError
from stagetrace.progress import Progress
from stagetrace.results.descriptions import differences, format_differences
from stagetrace.results.files import atomic

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


@final
@dataclass(frozen=True, eq=False)
class Trained:
    """The chains of one seed by name, the query of all of them, Adam's states by folder, and how training went."""

    corpora: Corpora
    chains: Mapping[str, Chain]
    queries: Mapping[str, Query]
    states: Mapping[str, Mapping[str, Any]]
    said: Mapping[str, Record]


def folder_of(chain: str, stage: str) -> str:
    """Where a chain's stage lies: the chains share their first stage."""
    return stage if stage != FINETUNE else f"{FINETUNE}-{chain}"


def train_all(recipe: Recipe, settings: Settings, chains: tuple[str, ...], progress: Progress) -> Trained:
    """Every stage of these chains, each after those it starts from."""
    corpora = corpora_of(settings, recipe.general, recipe.tweets, recipe.tests)
    bench = _Bench(recipe, settings, corpora, progress)
    pretrain = bench.language(PRETRAIN, None, recipe.pretraining)
    made: dict[str, Chain] = {}
    for name in chains:
        before = [pretrain] if name != THREE else [pretrain, bench.language(TWEETS, pretrain, recipe.middle)]
        lora = name == LORA or (name == THREE and recipe.three_lora)
        made[name] = Chain(*before, bench.sentiment(name, before[-1], lora=lora))
    test = rows(corpora.tweets_test, bench.tokenizer, labels=True)
    queries = {name: hf.query(test, stage=chain.stages[-1], batch_size=64) for name, chain in made.items()}
    return Trained(corpora, made, queries, bench.states, bench.said)


class _Bench:
    """What the stages of a seed have in common."""

    def __init__(self, recipe: Recipe, settings: Settings, corpora: Corpora, progress: Progress) -> None:
        self.recipe, self.settings, self.corpora, self.progress = recipe, settings, corpora, progress
        self.folder = settings.out / "checkpoints"
        shape = recipe.architecture
        self.tokenizer = tokenizer_of(self.folder / "tokenizer", corpora, shape.vocabulary, shape.length)
        self.states: dict[str, Mapping[str, Any]] = {}
        self.said: dict[str, Record] = {}

    def language(self, name: str, after: Stage | None, plan: Training) -> Stage:
        """A language model: on general text from nothing, or on the tweets (as text alone) from the one before."""
        texts, test = (
            (self.corpora.general, self.corpora.general_test)
            if after is None
            else (self.corpora.tweets, self.corpora.tweets_test)
        )
        data, tests = (rows(each, self.tokenizer, labels=False) for each in (texts, test))
        shape, seed = self.recipe.architecture, self.settings.seed

        def begin() -> Any:
            return shape.language_model(len(self.tokenizer), seed) if after is None else _copy(after.model)

        return self._stage(name, name, begin, data, tests, plan, after, by_trainer=self.recipe.trainer and not after)

    def sentiment(self, chain: str, after: Stage, *, lora: bool) -> Stage:
        """A classifier on the body of the stage before: all of it trained further, or LoRA and the head alone."""
        shape, seed = self.recipe.architecture, self.settings.seed
        data, tests = (
            rows(each, self.tokenizer, labels=True) for each in (self.corpora.tweets, self.corpora.tweets_test)
        )

        def begin() -> Any:
            whole = shape.classifier(after.model, seed)
            if not lora:
                return whole
            whole.name_or_path = str(self.folder / after.name)  # the base's folder, for the adapters' own
            return shape.with_lora(whole, seed)

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
        plan = plan.seeded(self.settings.seed)
        place, record = self.folder / folder, self.folder / f"{folder}.json"
        given = {
            "architecture": asdict(self.recipe.architecture),
            "training": asdict(plan),
            "data": self.corpora.digest,
            "by_trainer": by_trainer,
            "after": None if after is None else self.said[after.name]["given"],
        }
        given = json.loads(json.dumps(given))
        if not record.exists():
            described = self._described(name, begin(), data, plan, None)
            said = self._train(described, folder, plan, tests, by_trainer=by_trainer)
            with atomic(record) as temporary:
                temporary.write_text(json.dumps({"given": given, **said}, indent=1) + "\n")
        self.said[folder] = _read(record, given)
        self.states[folder] = saved_state(self.folder, folder)
        if by_trainer:
            model = self._described(name, place, data, plan, None).model
            trainer = finished_trainer(model, data, self.tokenizer, plan, trained=True)
            return hf.from_trainer(trainer, name, weight_decay=plan.weight_decay)
        return self._described(name, place, data, plan, after)

    def _described(self, name: str, model: Any, data: list[Any], plan: Training, after: Stage | None) -> Stage:
        # adapters replace a head that the base's folder lacks: it is drawn, never used, and part of the fingerprint
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            return hf.stage(
                name, model, data, tokenizer=self.tokenizer, after=after, batch_size=64, weight_decay=plan.weight_decay
            )

    def _train(
        self, stage: Stage, folder: str, plan: Training, tests: list[Any], *, by_trainer: bool
    ) -> dict[str, Any]:
        query = hf.query(tests, stage=stage)
        before, started = quality(stage, query), time.perf_counter()
        if by_trainer:
            state = finished_trainer(stage.model, stage.data.rows, self.tokenizer, plan).optimizer.state_dict()
        else:
            state = by_adam(stage, plan, self.progress)
        seconds, model = time.perf_counter() - started, cast(Any, stage.model)
        model.save_pretrained(self.folder / folder)
        keep_state(self.folder, folder, state)
        return {
            "examples": len(stage.examples),
            "parameters": sum(p.numel() for p in model.parameters()),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "train": quality(stage, hf.query(stage.data.rows, stage=stage)),
            "test_before": before,
            "test": quality(stage, query),
            "seconds": seconds,
        }


def _copy(model: Any) -> Any:
    """The model as it is, in memory of its own, all of it to be trained."""
    return copy.deepcopy(model).requires_grad_(True)


def _read(path: Path, given: dict[str, Any]) -> Record:
    record = json.loads(path.read_text())
    changed = differences(record["given"], given)
    if changed:
        raise ResultsError(
            f"{path.parent} holds the stage '{path.stem}' trained with other settings; give another --out, or delete "
            f"that folder:\n{format_differences(changed)}"
        )
    return record
