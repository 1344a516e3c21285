"""`minilm`: a published model, pretrained further and fine-tuned as users do, and traced through every step.

The weights are those of a sentence encoder of 22.7 million parameters (`--weights FOLDER`: `config.json`,
`model.safetensors` and its tokenizer). It goes on as a masked language model of WikiText-2, and then learns the
sentiment of tweets, once with all parameters and once by LoRA. All three trainings are recorded; both chains are traced
by the exact derivative through the recorded steps, and groups of a tenth of the first stage's lines, drawn before
anything is scored, are left out of the same trainings, run again.
"""

import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import final

from experiments.estimators import EXACT, on_rows
from experiments.minilm.stages import FINETUNE, LORA, PRETRAIN, UPDATED, Recipe, prepare
from experiments.pages.texts import MEAN
from experiments.protocol import Experiment, Prepared, Run, Variant
from experiments.records import Record, of_scores, of_validation, summary
from experiments.settings import Settings
from experiments.texts import ends
from stagetrace import Trace, hf, trace
from stagetrace.progress import Progress
from stagetrace.results.sign import UNIT
from stagetrace.validation import BM25, GradientDot, GroupRemovals, Random, Validation
from stagetrace.validation.estimators.estimator import Precomputed

NAME = "minilm"
SHOWN = 5


@final
@dataclass(frozen=True)
class Plan:
    """recipe: of the stages. groups: how many; share: of the first stage's lines in each."""

    recipe: Recipe = field(default_factory=Recipe)
    groups: int = 8
    share: float = 0.1


PLAN = Plan()


def experiment(plan: Plan) -> Experiment[dict[str, Prepared]]:
    """The plan as a row of the table of experiments."""
    return Experiment(
        NAME,
        1,
        prepare=lambda settings, progress: prepare(plan.recipe, settings, progress),
        training=lambda prepared: next(iter(prepared.values())).facts,
        trace=lambda prepared, settings, progress: {
            name: _told(prepared[name], _traced(name, prepared[name], settings, progress)) for name in prepared
        },
        variants=lambda prepared, settings: _variants(plan, prepared, settings),
        fields=lambda run: _fields(plan, run),
    )


def _traced(name: str, prepared: Prepared, settings: Settings, progress: Progress | None = None) -> Trace:
    """The walk back of a chain; kept, and read where it was made before."""
    return trace(prepared.chain, prepared.query, out=settings.out / "run" / name, progress=progress or False)


def _told(prepared: Prepared, result: Trace) -> Record:
    """A trace in words and numbers; scores: positive = harmful; unit: nats."""
    chain, texts = prepared.chain, {PRETRAIN: prepared.data.general, FINETUNE: prepared.data.tweets}
    before, last = chain.stages
    return {
        "stages": [repr(stage) for stage in chain.stages],
        "shared": {last.name: str(hf.shared(last, before))},
        "links": {last.name: type(last.link).__name__},
        "alpha": {},
        "traces": {
            "recorded steps": {
                "replay agrees to": {name: found.relative_residual for name, found in result.solutions.items()},
                "seconds": result.statistics["seconds"],
                "peak_memory_of_the_process_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "spread": {name: of_scores(result[name]) for name in chain.names},
            }
        },
        "texts": {MEAN: {name: ends(result[name].values, texts[name], SHOWN) for name in chain.names}},
    }


def _variants(plan: Plan, prepared: Mapping[str, Prepared], settings: Settings) -> Iterator[Variant]:
    """Groups left out of the first stage of both chains, each recorded training repeated."""
    for name, each in prepared.items():
        effects = _traced(name, each, settings)[PRETRAIN].removal_effect
        yield Variant(
            where=(name,),
            chain=each.chain,
            query=each.query,
            fit=None,  # what was recorded, again
            choices=[GroupRemovals(plan.share, plan.groups, seed=settings.seed)],
            estimators=[
                Precomputed(EXACT, UNIT, effects),
                GradientDot(),
                on_rows(BM25("text")),
                Random(settings.seed),
            ],
            out=settings.root / "retrained" / name,
            together=1,
            processes=1,
            record=_of_groups,
        )


def _of_groups(validation: Validation) -> Record:
    """Effects: negative = leaving the group out helps; unit: nats."""
    found, (measured,) = of_validation(validation), validation.measured
    (groups,) = found.pop("choices").values()
    effects = {"true": measured.true, **measured.predicted}
    return {
        "groups": len(measured.removals),
        "examples_in_a_group": len(measured.removals[0]),
        **groups,
        "units": dict(validation.units),
        "effects": {name: values.tolist() for name, values in effects.items()},
        "seconds_of_retraining": validation.seconds,
        **found,
    }


def _fields(plan: Plan, run: Run) -> Record:
    return {
        "protocol": {**asdict(plan.recipe), "groups": plan.groups, "share": plan.share, "stages": [PRETRAIN, FINETUNE]},
        "training": {str(seed): facts for seed, facts in run.training.items()},
        "retraining": {
            name: {"each_seed": each, "summary": summary(each)["estimators"]} for (name,), each in run.found.items()
        },
        "chains": run.traced,
        "seconds_of_the_last_call": run.seconds,
        "cpu_seconds_of_the_last_call": time.process_time(),
    }


EXPERIMENT = experiment(PLAN)
__all__ = ["EXPERIMENT", "LORA", "NAME", "PLAN", "UPDATED", "Plan", "experiment"]
