"""TRAK, `traker` 0.3.2 (Park et al. 2023), with its projector for CPUs and one checkpoint.

Its target is its own margin, one query an example: the query of a mean is the mean of its scores.
"""

# The other library is in an environment of its own.
# pyright: reportMissingImports=false, reportCallIssue=false

import logging
import tempfile

import torch
from torch.utils.data import DataLoader
from trak import TRAKer

from benchmarks.rivals.given import Given
from benchmarks.rivals.process import Found, Spent, command

PROJECTIONS = 512


def trak(given: Given, spent: Spent) -> Found:
    """Features of all examples, then scores of the queries, by way of files."""
    batch = given.settings.batch
    weights = given.model.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        with spent.on("fit"):
            traker = TRAKer(
                model=given.model,
                task="image_classification",
                train_set_size=len(given.train),
                save_dir=folder,
                device="cpu",
                proj_dim=PROJECTIONS,
                projector_seed=given.settings.seed,
                use_half_precision=False,
                logging_level=logging.ERROR,
            )
            traker.load_checkpoint(weights, model_id=0)
            for part in DataLoader(given.train, batch_size=batch):
                traker.featurize(batch=part, num_samples=len(part[0]))
            traker.finalize_features()
        with spent.on("score"):
            traker.start_scoring_checkpoint(
                exp_name="queries", checkpoint=weights, model_id=0, num_targets=len(given.tests)
            )
            for part in DataLoader(given.tests, batch_size=batch):
                traker.score(batch=part, num_samples=len(part[0]))
            found = torch.as_tensor(traker.finalize_scores(exp_name="queries")).float().mT
            if given.settings.mean:
                found = found.mean(dim=0, keepdim=True)
            scores = -found.clone()
    notes = (f"{PROJECTIONS} projections, one checkpoint, target: its margin",)
    return Found(scores, given.parameters, notes=notes)


if __name__ == "__main__":
    command("traker", {"TRAK": trak})
