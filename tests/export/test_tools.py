"""The tools themselves read what we write. Each is skipped where it is not installed: all three require torchvision,
whose wheels do not go with a CPU build of PyTorch; `test_formats.py` reads the same files as they document them.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from stagetrace import Identity, Lanczos, Scores, trace
from stagetrace.export import export, read_kronfluence
from tests.export.test_formats import chain_and_query, scores


def tool(name: str) -> Any:
    """A module of a tool, or a skip that says why."""
    try:
        return import_module(name)
    except Exception as cause:  # also what a torchvision of another build raises
        pytest.skip(f"{name} cannot be imported: {type(cause).__name__}: {str(cause).splitlines()[0]}")


@pytest.mark.parametrize("n_queries", [None, 3])
def test_kronfluence_reads_its_scores(n_queries: int | None, tmp_path: Path):
    pairwise = tool("kronfluence.score.pairwise")
    given = scores(n_queries)
    export(given, "kronfluence", tmp_path)
    assert pairwise.pairwise_scores_exist(tmp_path)
    theirs = pairwise.load_pairwise_scores(tmp_path)["all_modules"]
    assert torch.equal(theirs, -given.values.float().reshape(-1, 7))


@pytest.mark.filterwarnings("ignore")
def test_kronfluence_own_scores_have_our_negative(tmp_path: Path):
    """Its gradient dot products (strategy "identity") of a last layer, against ours with the identity for curvature."""
    kronfluence = tool("kronfluence")
    chain, query = chain_and_query()
    ours = trace(chain, query, curvature=Identity(), solver=Lanczos(damping=0.0))["finetune"]
    stage = chain.stages[1]

    class Task(kronfluence.Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return ["head"]

    task = Task()
    model = kronfluence.prepare_model(stage.model, task)
    analyzer = kronfluence.Analyzer(
        "a", model, task, cpu=True, output_dir=str(tmp_path), disable_tqdm=True, disable_model_save=True
    )
    factors = kronfluence.FactorArguments(strategy="identity")
    analyzer.fit_all_factors("f", stage.data, factor_args=factors, per_device_batch_size=4)
    analyzer.compute_pairwise_scores(
        "s", "f", query.data, stage.data, per_device_query_batch_size=3, per_device_train_batch_size=4
    )
    theirs = read_kronfluence(tmp_path / "a" / "scores_s", "finetune")
    assert torch.allclose(theirs.values, ours.values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n_queries", [None, 3])
def test_bergson_reads_its_store(n_queries: int | None, tmp_path: Path):
    data = tool("bergson.data")
    given = scores(n_queries)
    export(given, "bergson", tmp_path)
    store = data.load_scores(tmp_path)
    assert len(store) == 7
    assert store.is_written()
    assert torch.equal(torch.tensor(store[:]).T, -given.values.float().reshape(-1, 7))
    signed, is_matrix = data.load_scores_loss_signed(str(tmp_path))  # negative lowers the query loss: our own sign
    assert torch.equal(signed.T, given.values.float().reshape(-1, 7))
    assert is_matrix == (n_queries is not None)


def test_quanda_runs_its_metrics_on_our_scores(tmp_path: Path):
    detection = tool("quanda.metrics.downstream_eval")
    ground_truth = tool("quanda.metrics.ground_truth.linear_datamodeling")
    cache = tool("quanda.utils.cache")
    helps = torch.tensor([[0.0, 5.0, 0.0, 4.0, -1.0, 3.0, -2.0], [3.0, 0.0, 2.0, 0.0, -1.0, 0.0, 1.0]]).double()
    export(Scores("pretrain", -helps), "quanda", tmp_path / "scores")  # ours: negative is helpful
    explanations = cache.ExplanationsCache.load(str(tmp_path / "scores"))[0]
    labels = torch.tensor([0, 1, 0, 1, 2, 1, 0])
    data = TensorDataset(torch.randn(7, 2), labels)
    metric = detection.ClassDetectionMetric(nn.Linear(2, 3), data, s=3)
    metric.update(explanations, torch.tensor([1, 0]))
    assert metric.compute()["score"] == 1.0  # the three most helpful of each are of its class

    subsets = [[0, 1, 2], [1, 3, 5], [0, 2, 6], [4, 5, 6], [0, 3, 4]]
    files = []
    for number, subset in enumerate(subsets):  # models whose logits are what the scores predict for their subset
        model = nn.Linear(2, 1, bias=True)
        nn.init.zeros_(model.weight)
        nn.init.constant_(model.bias, float(helps[0, subset].sum()))
        torch.save(model.state_dict(), tmp_path / f"{number}.ckpt")
        files.append(str(tmp_path / f"{number}.ckpt"))
    lds = ground_truth.LinearDatamodelingMetric(
        nn.Linear(2, 1), data, m=5, subset_ids=subsets, subset_ckpt_filenames=files, cache_dir=str(tmp_path)
    )
    lds.update(explanations[[0, 0]], torch.zeros(2, dtype=torch.long), torch.zeros(2, 2))
    assert lds.compute()["score"] == pytest.approx(1.0)
