"""`bench maps`: what the attention branches see on unseen pictures, beside the networks that they learned from.

  manet bench maps --model run/model --queries shop/queries --out bench/maps

Text: pixel ROC-AUC of the branch's score map, brought to the picture's size, against where the detector's score exceeds
its threshold. Saliency: intersection over union of branch and teacher, each binarised at its own mean as training does, and
mean absolute error against that mask and against the teacher's grey map. With --out also `maps.json` and `sheet.jpg`:
pictures, each with the branch's map and its teacher's. --text and --text-weights put a text branch into a model without one,
--saliency-weights other weights into its saliency branch. What a teacher says of the mirrored picture is measured like a branch:
nothing that learns from it can be expected to come much nearer.
"""

from typing import Any

from pydantic import Field

from cluster.session import SessionConfig


class Config(SessionConfig):
    """Flags of `manet bench maps`."""

    model: str
    """Model artifact."""
    queries: str
    """Pictures that the model has not seen: queries artifact, or a Parquet file."""
    pictures: int = Field(default=200, ge=2)
    """Pictures, at most, spread evenly over the table."""
    saliency_weights: str = "none"
    """Weights of the saliency branch in place of the model's: own:saliency-lite0, a file or a URI."""
    text: str = "none"
    """Text branch to put into a model that has none, as `train` takes it."""
    text_weights: str = "none"
    """Its weights."""
    pseudo_text: str = "pip:db-text"
    """Text detector to compare with, as `train` takes it."""
    pseudo_masks: str = "pip:u2netp"
    """Saliency to compare with, as `train` takes it."""
    out: str = ""
    """Folder for `maps.json` and `sheet.jpg`; default: nothing is written."""
    shown: int = Field(default=24, ge=1)
    """Pictures on the sheet."""


def run(config: Config) -> dict[str, Any]:
    """Measure; returns the figures."""
    from jobs.bench.seeing import measure  # torch: the other benches' workers import this package too

    return measure(config)
