"""Hugging Face models, data sets and trainers as stages.

    from stagetrace import Chain, hf, trace

    pretrain = hf.stage("pretrain", "models/bert-mlm", sentences)             # a folder written by save_pretrained
    finetune = hf.stage("finetune", "models/bert-classifier", reviews, after=pretrain)
    print(hf.shared(finetune, pretrain))                                      # what is shared, what is new
    result = trace(Chain(pretrain, finetune), hf.query(test_reviews, stage=finetune))

- `stage(name, model, data, ...)`: a folder, a hub name, a `PreTrainedModel` or a `PeftModel`, with its class's loss.
- `query(data, *, stage, ...)`: examples that are read as that stage reads its own.
- `shared(model, previous)`: which parameters came from the stage before, found by name; usable in `Frozen(...)`.
- `Masking(probability, seed, ...)`: masked language modelling whose masks depend on the example and the seed only.
- `from_trainer(trainer, name, ...)`: the stage that a finished `transformers.Trainer` trained.
- `checkpoints(trainer)`: what it left of its training, for stages before a recorded one.

Needs the extra `stagetrace[hf]`; adapters need `peft` as well. Both are imported when first used.
"""

from stagetrace.hf.checkpoints import checkpoints as checkpoints
from stagetrace.hf.describe import stage as stage
from stagetrace.hf.masking import Masking as Masking
from stagetrace.hf.questions import query as query
from stagetrace.hf.sharing import Shared as Shared
from stagetrace.hf.sharing import shared as shared
from stagetrace.hf.trainer import from_trainer as from_trainer

__all__ = ["Masking", "Shared", "checkpoints", "from_trainer", "query", "shared", "stage"]
