"""The saliency loss, the binary maps that it and SR-MAC use, the instance loss, and the text branch's loss.

Shape letters: B pictures, V views, C channels, H x W cells or pixels. Source: METHOD.md "Training", equation 1.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.1  # of the instance loss
TEXT_THRESHOLD = 0.3


def binarise_at_mean(map_BHW: Tensor) -> Tensor:
    """1 where a map is greater than its own mean, else 0; a constant map gives all zeros. [B, H, W], same dtype."""
    mean_B11 = map_BHW.mean(dim=(-2, -1), keepdim=True)
    constant_B11 = map_BHW.amax(dim=(-2, -1), keepdim=True) == map_BHW.amin(dim=(-2, -1), keepdim=True)
    return ((map_BHW > mean_B11) & ~constant_B11).to(map_BHW.dtype)


def dice_loss(predicted_BHW: Tensor, mask_BHW: Tensor) -> Tensor:
    """Equation 1 with the mean over the batch: 1 - mean_i 2 |f n Y| / (|f| + |Y|), a scalar in [0, 1].

    Args:
        predicted_BHW: saliency in [0, 1].
        mask_BHW: pseudo-saliency mask, 0 or 1. Both may have any equal shape behind the batch.

    An empty mask with an empty prediction scores 0 loss.

    Raises:
        ValueError: the shapes differ.
    """
    if predicted_BHW.shape != mask_BHW.shape:
        raise ValueError(f"prediction {tuple(predicted_BHW.shape)} and mask {tuple(mask_BHW.shape)} differ in shape")
    predicted, mask = predicted_BHW.flatten(1).float(), mask_BHW.flatten(1).float()
    overlap_B = (predicted * mask).sum(1)
    total_B = predicted.sum(1) + mask.sum(1)
    empty_B = total_B == 0
    score_B = 2 * overlap_B / torch.where(empty_B, torch.ones_like(total_B), total_B)
    return 1 - torch.where(empty_B, torch.ones_like(score_B), score_B).mean()


def instance_loss(descriptor_BVC: Tensor, picture_B: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Normalised temperature-scaled cross-entropy over views (NT-Xent, Chen et al. 2020, SimCLR), a scalar.

    Each view shall be nearer to the other view of its own row than to any view of another picture.

    Args:
        descriptor_BVC: unit-length descriptors, [B, 2, C].
        picture_B: number of each row's picture; rows of one picture are not held against each other.
        temperature: divides the similarities.

    Raises:
        ValueError: not two views.
    """
    pictures, views, channels = descriptor_BVC.shape
    if views != 2:
        raise ValueError(f"{views} views of a picture; the instance loss compares 2")
    flat = descriptor_BVC.reshape(pictures * views, channels).float()
    similarity = flat @ flat.T / temperature
    row = torch.arange(len(flat), device=flat.device)
    other_view = row ^ 1
    picture = picture_B.repeat_interleave(views)
    left_out = (picture[:, None] == picture) & (row != other_view[:, None])
    return F.cross_entropy(similarity.masked_fill(left_out, float("-inf")), other_view)


def teacher_loss(saliency_BHW: Tensor, map_BHW: Tensor) -> Tensor:
    """Cross-entropy with a teacher's grey map + Dice with where it exceeds its own mean, a scalar: how weights of the
    saliency branch alone are made. Dice by itself leaves nothing between 0 and 1, and a teacher's doubts are lost.

    Args:
        saliency_BHW: of the branch, in [0, 1].
        map_BHW: the teacher's, in [0, 1]; a hair beyond it, as resizing leaves it, is cut off.
    """
    # torch's cross-entropy raises at NaN; Dice passes it on, and the epoch's figures say that training diverged
    cross_entropy = F.binary_cross_entropy(saliency_BHW.nan_to_num(nan=0.5), map_BHW.clamp(0, 1))
    return cross_entropy + dice_loss(saliency_BHW, binarise_at_mean(map_BHW))


def text_loss(logits_BHW: Tensor, map_BHW: Tensor) -> Tensor:
    """Cross-entropy with a detector's scores + Dice with where they exceed 0.3, a scalar: how the text branch learns.

    Args:
        logits_BHW: score map before its sigmoid.
        map_BHW: the detector's scores in [0, 1].
    """
    logits = logits_BHW.float()
    return F.binary_cross_entropy_with_logits(logits, map_BHW) + dice_loss(torch.sigmoid(logits), is_text(map_BHW))


def is_text(map_BHW: Tensor) -> Tensor:
    """1 where a detector's score is above its threshold (0.3, as DB has it), else 0; same shape and dtype."""
    return (map_BHW > TEXT_THRESHOLD).to(map_BHW.dtype)
