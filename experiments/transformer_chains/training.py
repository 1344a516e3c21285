"""`transformers.Trainer` as another way to train a first stage, and how well language models and classifiers do."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from experiments.training import Training
from stagetrace import Query, Stage
from stagetrace.stages.data import Batch, Examples


def finished_trainer(
    model: Any, rows: Sequence[Mapping[str, Any]], tokenizer: Any, plan: Training, *, trained: bool = False
) -> Any:
    """A `transformers.Trainer` of a causal language model, with the same optimiser and schedule as `train_stage`.

    rows: with `input_ids` and `attention_mask`.
    trained: the model was trained so before; the trainer only says how.
    Its loss is the mean over all tokens of a batch, in which a long text weighs more than a short one.
    """
    import transformers

    data: Any = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = transformers.Trainer(
            model=model,
            args=transformers.TrainingArguments(
                output_dir=scratch,
                num_train_epochs=plan.epochs,
                per_device_train_batch_size=plan.batch,
                learning_rate=plan.rate,
                max_grad_norm=0.0,
                seed=plan.seed,
                use_cpu=True,
                dataloader_pin_memory=False,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=data,
            data_collator=transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False),
            processing_class=tokenizer,
            optimizers=plan.optimiser(model, len(plan.batches(len(data)))),
        )
        if not trained:
            with torch.random.fork_rng(devices=[]):
                trainer.train()
    model.eval()
    return trainer


@torch.no_grad()
def quality(stage: Stage, query: Query) -> dict[str, float]:
    """Mean loss (nats) of the stage's model on the query's texts; and accuracy, or the perplexity of a language model.

    A text's loss is the mean over its predicted tokens, and perplexity is the exponential of the mean over texts.
    """
    losses, right = list[torch.Tensor](), list[torch.Tensor]()
    for batch, outputs in outputs_of(stage, query):
        losses.append(stage.loss.losses(outputs, batch.content))
        if outputs.ndim == 2:
            right.append(outputs.argmax(dim=1) == batch.content["labels"])
    loss = torch.cat(losses).double().mean().item()
    if right:
        return {"loss": loss, "accuracy": torch.cat(right).double().mean().item()}
    return {"loss": loss, "perplexity": math.exp(loss)}


@torch.no_grad()
def outputs_of(stage: Stage, query: Query) -> list[tuple[Batch, torch.Tensor]]:
    """The stage's model on the query's texts, batch by batch, in evaluation mode."""
    examples = Examples(query.data, 256, query.collate or stage.collate, 0, stage.where)
    model = stage.evaluated
    return [(batch, stage.loss.outputs(model, batch.content)) for batch in examples.read(examples.batch_indices())]
