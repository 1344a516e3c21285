"""Chains of Hugging Face stages as rows of the page about models."""

from collections.abc import Callable
from functools import partial
from typing import Any

import peft

from stagetrace import hf
from stagetrace.errors import DescriptionError
from tests.hf import test_as_trained as trained
from tests.hf import tiny
from tests.hf.test_adapters import KINDS, classifier, lora, stirred
from tests.hf.test_adapters import LAYERS as ADAPTED
from tests.hf.test_adapters import ROWS as TOKENISED
from tests.hf.test_adapters import error as adapters_error
from tests.hf.test_chains import CASES, error
from tests.models import Refused, Right, Row

ADAPTERS = {
    "lora": "LoRA",
    "lora, all biases": 'LoRA, `bias="all"`',
    "lora, its own biases": 'LoRA, `bias="lora_only"`',
    "lora, ranks by pattern": "LoRA, `rank_pattern`, `alpha_pattern`, `use_rslora`",
    "lora, dropout": "LoRA, `lora_dropout` (off, as in eval mode)",
    "lora, some layers": "LoRA, `layers_to_transform`",
    "lora, token rows": "LoRA, `trainable_token_indices`",
    "lora on embeddings": "LoRA on embeddings",
    "dora": "DoRA on linear layers; the derivative of the norm included",
    "ia3": "IA3",
    "vera": "VeRA",
    "loha": "LoHa",
    "token rows alone": "`TrainableTokensConfig`",
    "norms": "`LNTuningConfig`",
}

TRAINED = {
    trained.packed: "packed rows with `position_ids`, of unequal length",
    trained.packed_without_labels: "packed rows without labels",
    trained.packed_by_lengths: "packed rows by `seq_lengths`",
    trained.completion_masks: "`completion_mask`",
    trained.completions: "rows of `prompt` and `completion`",
    trained.questions: "pairs of `question` and `sentence`",
    trained.several_labels_by_their_kind: "several labels, as floats",
    trained.images: "image classifier (ViT)",
    trained.choices: "multiple choice, by `objective=`",
    trained.translations: "encoder-decoder with `decoder_input_ids`",
}


def _stage(settings: Any) -> Callable[[], Any]:
    return lambda: hf.stage("s", stirred(peft.get_peft_model(classifier(), settings)), TOKENISED)


def _two_text_columns() -> Any:
    rows = [{"title": "a cat", "content": "the dog ran", "label": 0}]
    return hf.stage("s", tiny.model("BertForSequenceClassification"), rows, tokenizer=tiny.tokenizer())


ROWS: list[Row] = [
    *(Right("chains", name, partial(error, name), 1e-5, case.link.__name__) for name, case in CASES.items()),
    *(Right("adapters", words, partial(adapters_error, kind), 1e-5) for kind, words in ADAPTERS.items()),
    *(
        Refused("adapters", what, _stage(settings), DescriptionError, says, "`merge_and_unload()` and a plain model")
        for what, settings, says in (
            ("AdaLoRA", peft.AdaLoraConfig(**ADAPTED, total_step=9), "penalty on the adapters' orthogonality"),
            ("DoRA on embeddings", lora(target_modules=["word_embeddings"], use_dora=True), "is not linear"),
            ("LoRA on parameters", lora(target_modules=[], target_parameters=["query.weight"]), "LoRA on a parameter"),
        )
    ),
    *(Right("rows", words, partial(trained.error, case), 1e-6) for case, words in TRAINED.items()),
    Refused(
        "rows",
        "several text columns that could be meant",
        _two_text_columns,
        DescriptionError,
        "text=",
        '`text="content"`, or `text=("title", "content")`',
    ),
]
assert set(ADAPTERS) == set(KINDS), "every kind that is tried has its row"
