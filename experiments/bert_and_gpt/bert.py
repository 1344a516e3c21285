"""`bert`: a small BERT, masked language modelling on general text, then the sentiment of tweets.

Three chains over one pretrained model: all parameters trained further (`updated`), LoRA on the kept model (`lora`), and
masked language modelling on the tweets in between, then LoRA (`three`). The first two are compared with retraining.
"""

from experiments.bert_and_gpt import protocol
from experiments.bert_and_gpt.models import Architecture
from experiments.bert_and_gpt.protocol import Plan
from experiments.bert_and_gpt.stages import FINETUNE, LORA, PRETRAIN, THREE, UPDATED, Recipe
from experiments.settings import Settings
from experiments.training import Training
from stagetrace.progress import Progress

NAME = "bert"
PLAN = Plan(
    name=NAME,
    recipe=Recipe(
        architecture=Architecture("bert"),
        pretraining=Training(epochs=8, rate=2e-3, batch=32, weight_decay=1e-4),
        middle=Training(epochs=3, rate=1e-3, batch=32, weight_decay=1e-4),
        finetuning=Training(epochs=4, rate=2e-3, batch=32, weight_decay=1e-4),
        adapting=Training(epochs=12, rate=5e-3, batch=32, weight_decay=1e-4),
    ),
    chains=(UPDATED, LORA, THREE),
    validated=(LORA, UPDATED),
    again={PRETRAIN: 40, FINETUNE: 30},
)


def run(settings: Settings, progress: Progress) -> None:
    """See `experiments.bert_and_gpt.protocol`."""
    protocol.run(PLAN, settings, progress)
