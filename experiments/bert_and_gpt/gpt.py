"""`gpt`: a small GPT-2, causal language modelling on general text, then the sentiment of tweets.

As `bert`, with the first stage trained by `transformers.Trainer`, and with all parameters trained further at the end of
the chain of three. Its chains are traced, not compared with retraining.
"""

from experiments.bert_and_gpt import protocol
from experiments.bert_and_gpt.models import Architecture
from experiments.bert_and_gpt.protocol import Plan
from experiments.bert_and_gpt.stages import FINETUNE, LORA, PRETRAIN, THREE, UPDATED, Recipe
from experiments.settings import Settings
from experiments.training import Training
from stagetrace.progress import Progress

NAME = "gpt"
PLAN = Plan(
    name=NAME,
    recipe=Recipe(
        architecture=Architecture("gpt"),
        pretraining=Training(epochs=8, rate=2e-3, batch=32, weight_decay=1e-4),
        middle=Training(epochs=3, rate=1e-3, batch=32, weight_decay=1e-4),
        finetuning=Training(epochs=4, rate=2e-3, batch=32, weight_decay=1e-4),
        adapting=Training(epochs=12, rate=5e-3, batch=32, weight_decay=1e-4),
        trainer=True,
        three_lora=False,
    ),
    chains=(UPDATED, LORA, THREE),
    validated=(),
    again={PRETRAIN: 40, FINETUNE: 30},
    seeds=1,
    curvature_examples=64,
)


def run(settings: Settings, progress: Progress) -> None:
    """See `experiments.bert_and_gpt.protocol`."""
    protocol.run(PLAN, settings, progress)
