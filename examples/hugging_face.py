"""Which pretraining sentences hurt a fine-tuned classifier? Two folders, two data sets, one function.

    export STAGETRACE_PRETRAINED=models/language        # written by save_pretrained, the tokenizer beside the model
    export STAGETRACE_FINETUNED=models/classifier       # the same model after fine-tuning; or a folder of adapters
    export STAGETRACE_PRETRAINING_DATA=data/sentences   # data sets in the Hugging Face layout, or names on the Hub
    export STAGETRACE_FINETUNING_DATA=data/reviews
    stagetrace check examples/hugging_face.py:job
    stagetrace score examples/hugging_face.py:job --out runs/reviews

The language model may be a masked or a causal one. The first data set needs a column 'text', the second 'text' and
'label' (other names: `hf.stage(..., text=, label=)`). The question is what caused the mean loss on the first hundred
test examples. Needs the extra `stagetrace[hf]`.
"""

import os

import datasets

from stagetrace import Chain, hf
from stagetrace.errors import DataError

WEIGHT_DECAY = 0.0  # the L2 term of both training losses; AdamW's weight decay is none


def from_env(name, what):
    if not os.environ.get(name):
        raise DataError(f"the environment variable {name} is not set; let it name {what}")
    return os.environ[name]


def job():
    sentences = datasets.load_dataset(from_env("STAGETRACE_PRETRAINING_DATA", "the data set of the first stage"))
    reviews = datasets.load_dataset(from_env("STAGETRACE_FINETUNING_DATA", "the data set of the second stage"))

    pretrain = hf.stage(
        "pretrain",
        from_env("STAGETRACE_PRETRAINED", "the folder of the language model"),
        sentences["train"].filter(lambda row: len(row["text"].split()) > 3),  # no empty lines, no headings
        weight_decay=WEIGHT_DECAY,
    )
    finetune = hf.stage(
        "finetune",
        from_env("STAGETRACE_FINETUNED", "the folder of the classifier"),
        reviews["train"],
        after=pretrain,
        weight_decay=WEIGHT_DECAY,
    )
    test = reviews["test"]
    query = hf.query(test.select(range(min(100, len(test)))), stage=finetune)
    return Chain(pretrain, finetune), query
