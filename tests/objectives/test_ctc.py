"""CTC: against every alignment written out, PyTorch's own loss, and difference quotients of its gradient."""

from itertools import groupby, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.functional import hessian

from stagetrace.errors import BatchError, DescriptionError
from stagetrace.objectives import CTC
from stagetrace.stages.tangent import directional

FRAMES, TOKENS = 5, 4
TEXTS = [[1, 1], [2], [3, 1, 2], []]
"""One with a token twice, which needs a blank between, one of each length, and one that is empty."""

LABELS = torch.tensor([[1, 1, -100], [2, -100, -100], [3, 1, 2], [-100, -100, -100]])


def logits(seed: int = 0) -> Tensor:
    return torch.randn(4, FRAMES, TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def written_out(each: Tensor, text: list[int], blank: int = 0) -> float:
    """Minus the log of the summed probability of all alignments that read as the text."""
    logs, total = each.log_softmax(dim=1), 0.0
    for alignment in product(range(TOKENS), repeat=len(each)):
        if [token for token, _ in groupby(alignment) if token != blank] == text:
            total += float(logs[range(len(each)), list(alignment)].sum().exp())
    return -float(torch.tensor(total, dtype=torch.float64).log())


def test_all_alignments_are_summed():
    found = CTC().losses(logits(), {"labels": LABELS})
    assert found.tolist() == pytest.approx([written_out(*each) for each in zip(logits(), TEXTS, strict=True)])


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_it_is_pytorchs_loss_whose_gradient_and_tangent_it_has(reduction: Any):
    z, along = logits().requires_grad_(), logits(1)
    counts = (LABELS >= 0).sum(1)
    ours = CTC(reduction=reduction).losses(z, {"labels": LABELS})
    theirs = F.ctc_loss(
        z.log_softmax(2).transpose(0, 1), LABELS[LABELS >= 0], torch.full((4,), FRAMES), counts, reduction="none"
    )
    theirs = theirs / counts.clamp_min(1) if reduction == "mean" else theirs
    torch.testing.assert_close(ours, theirs)
    slopes = [torch.autograd.grad(losses.sum(), z)[0] for losses in (ours, theirs)]
    torch.testing.assert_close(slopes[0], slopes[1])
    _, tangent = directional(
        lambda at: CTC(reduction=reduction).losses(at["z"], {"labels": LABELS}), {"z": z.detach()}, {"z": along}
    )
    torch.testing.assert_close(tangent, (slopes[1] * along).sum(dim=(1, 2)))


def test_the_second_derivative_is_a_difference_of_gradients():
    z, label = logits()[2:3], {"labels": LABELS[2:3]}

    def slope(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(CTC().losses(at, label).sum(), at)[0]

    found: Any = hessian(lambda at: CTC().losses(at, label).sum(), z)
    matrix = found.reshape(z.numel(), -1)
    steps = 1e-5 * torch.eye(z.numel(), dtype=torch.float64).view(-1, *z.shape)
    quotients = torch.stack([(slope(z + step) - slope(z - step)).flatten() / 2e-5 for step in steps])
    torch.testing.assert_close(matrix, quotients, rtol=1e-6, atol=1e-8)


class Frames(nn.Module):
    """Logits as they are given, one frame for every two samples."""

    def forward(self, sounds: Tensor, attention_mask: Tensor) -> Tensor:
        del attention_mask
        return sounds

    def _get_feat_extract_output_lengths(self, samples: Tensor) -> Tensor:
        return samples // 2


def test_frames_of_padding_do_not_count():
    mask = torch.arange(10) < torch.tensor([[10], [7], [10], [2]])
    batch = {"sounds": logits(), "attention_mask": mask.long(), "labels": LABELS}
    found = CTC().losses(CTC().outputs(Frames(), batch), batch)
    own = [written_out(each[:n], text) for each, n, text in zip(logits(), (5, 3, 5, 1), TEXTS, strict=True)]
    assert found.tolist() == pytest.approx(own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_lends_a_text_no_frames(dtype: torch.dtype):
    """A text that its own frames cannot hold stays impossible, however many frames a batch adds."""
    for samples in (6, 10):
        mask = torch.arange(2 * FRAMES) < 6  # three frames, and [1, 1, 1] needs five
        batch = {
            "sounds": logits()[:1].to(dtype),
            "attention_mask": mask[:samples].long().unsqueeze(0),
            "labels": torch.tensor([[1, 1, 1]]),
        }
        batch["sounds"] = batch["sounds"][:, : samples // 2]
        assert CTC().losses(CTC().outputs(Frames(), batch), batch).tolist() == [float("inf")]
        assert CTC(zero_infinity=True).losses(CTC().outputs(Frames(), batch), batch).tolist() == [0.0]


def test_long_texts_in_single_precision_have_second_derivatives():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 500, 8, generator=generator).requires_grad_()
    along = torch.randn(1, 500, 8, generator=generator)
    batch = {"labels": torch.randint(1, 8, (1, 150), generator=generator)}
    found = list[Tensor]()
    for at in (z, z.detach().double().requires_grad_()):
        slope = torch.autograd.grad(CTC().losses(at, batch).sum(), at, create_graph=True)[0]
        found.append(torch.autograd.grad((slope * along.to(slope)).sum(), at)[0].double())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4 * float(found[1].abs().max()))


def test_empty_texts_are_blanks_throughout():
    z = logits()[:1]
    expected = -z.log_softmax(2)[0, :, 0].sum()
    for width in (0, 2):
        labels = torch.full((1, width), -100)
        torch.testing.assert_close(CTC().losses(z, {"labels": labels})[0], expected)


def test_a_text_that_is_too_long_has_no_probability_and_blanks_are_refused():
    batch = {"labels": torch.tensor([[1, 1, 1]])}  # five frames at least
    short = logits()[:1, :4]
    assert CTC().losses(short, batch).tolist() == [float("inf")]
    assert CTC(zero_infinity=True).losses(short, batch).tolist() == [0.0]
    with pytest.raises(BatchError, match="the token 0, which is the blank"):
        CTC().check({"labels": torch.tensor([[1, 0]])}, (FRAMES, TOKENS))
    with pytest.raises(BatchError, match="a token of the text is 4"):
        CTC().check({"labels": torch.tensor([[4]])}, (FRAMES, TOKENS))
    with pytest.raises(DescriptionError, match="CTC\\(blank="):
        CTC(blank=-1)
