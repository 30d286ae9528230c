import numpy as np
import pytest
import torch

from manet.losses import binarise_at_mean, dice_loss, instance_loss, teacher_loss


def test_dice_against_loops() -> None:
    rng = np.random.default_rng(0)
    f, y = rng.random((5, 6, 7)), (rng.random((5, 6, 7)) > 0.5).astype(float)
    scores = [2 * (a * b).sum() / (a.sum() + b.sum()) for a, b in zip(f, y, strict=True)]
    assert dice_loss(torch.tensor(f), torch.tensor(y)).item() == pytest.approx(1 - np.mean(scores), abs=1e-6)


def test_dice_at_its_ends() -> None:
    mask = torch.zeros(2, 4, 4)
    mask[:, :2] = 1
    assert dice_loss(mask, mask).item() == pytest.approx(0)
    assert dice_loss(1 - mask, mask).item() == pytest.approx(1)
    assert dice_loss(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3)).item() == 0
    assert dice_loss(torch.zeros(1, 3, 3), torch.ones(1, 3, 3)).item() == 1
    with pytest.raises(ValueError, match="differ in shape"):
        dice_loss(mask, mask[:, :2])


def test_dice_has_a_finite_gradient_where_both_are_empty() -> None:
    predicted = torch.zeros(1, 3, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(dice_loss(predicted, torch.zeros(1, 3, 3)), predicted)
    assert torch.isfinite(gradient).all()


def test_binarise_is_strictly_greater_than_the_mean() -> None:
    given = torch.tensor([[[0.0, 1.0], [2.0, 1.0]], [[3.0, 3.0], [3.0, 3.0]]])
    assert binarise_at_mean(given).tolist() == [[[0, 0], [1, 0]], [[0, 0], [0, 0]]]
    constant = torch.full((1, 7, 9), 0.1)  # whose mean in float32 is not 0.1 exactly
    assert not binarise_at_mean(constant).any()


def test_the_instance_loss_against_loops() -> None:
    rng = np.random.default_rng(0)
    d = rng.normal(size=(5, 2, 8))
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    losses = []
    for picture in range(5):
        for view in range(2):
            others = [(p, v) for p in range(5) for v in range(2) if (p, v) != (picture, view)]
            scores = {key: np.exp(d[picture, view] @ d[key] / 0.2) for key in others}
            losses.append(-np.log(scores[picture, 1 - view] / sum(scores.values())))
    number = torch.arange(5)
    assert instance_loss(torch.tensor(d), number, 0.2).item() == pytest.approx(np.mean(losses), abs=1e-5)
    same = torch.nn.functional.one_hot(torch.arange(5), 8).float()[:, None].expand(5, 2, 8)
    assert instance_loss(same, number).item() < 0.001
    assert instance_loss(same.roll(1, 0) + torch.eye(8)[5:7], number).item() > 0.001
    with pytest.raises(ValueError, match="3 views"):
        instance_loss(torch.zeros(2, 3, 4), number)


def test_a_picture_that_is_shown_twice_is_not_held_against_itself() -> None:
    d = torch.nn.functional.normalize(torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    twice, number = torch.cat([d, d[:1]]), torch.tensor([0, 1, 2, 3, 0])
    flat = twice.reshape(10, 8)
    losses = []
    for row in range(10):
        others = [other for other in range(10) if other == row ^ 1 or number[other // 2] != number[row // 2]]
        losses.append(torch.logsumexp(flat[others] @ flat[row] / 0.1, 0) - flat[row ^ 1] @ flat[row] / 0.1)
    assert instance_loss(twice, number).item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)


def test_a_teachers_doubts_are_learned() -> None:
    """Each cell's best value lies at the teacher's own, moved by Dice; Dice alone would make it 0 or 1."""
    grey = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    grey[0, 0, 0] = 1 + 1e-6  # as resizing leaves it
    logits = torch.zeros(2, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        loss = teacher_loss(torch.sigmoid(logits), grey)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    learned = torch.sigmoid(logits.detach())
    assert (learned - grey).abs().mean() < 0.12
    assert ((learned > 0.05) & (learned < 0.95)).float().mean() > 0.7
    diverged = torch.where(grey > 0.5, torch.nan, grey.clamp(0, 1))
    assert teacher_loss(diverged, grey).isnan()  # and not an error, at which a worker would start again
    assert teacher_loss(grey.clamp(0, 1), grey) < teacher_loss(1 - grey.clamp(0, 1), grey)
