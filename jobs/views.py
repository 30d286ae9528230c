"""Training pictures as a Ray Data stream: decoded anew in every epoch, shown as often as the run's balance says, augmented.

The `masks` artifact says which pictures there are. No worker holds the set; what is drawn follows from the run's seed, the epoch
and the part of the artifact, so that the same run again sees the same batches.
"""

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from cluster.artifact import Artifact
from cluster.errors import JobFailedError
from cluster.session import beside_driver
from jobs.masks import UNIT_ROWS
from jobs.parquet import read_parquet
from jobs.pictures import load_picture
from manet.errors import PictureError
from manet.images import PictureConfig

if TYPE_CHECKING:
    from jobs.training_plan import Plan

DECODE_CPUS = 0.25  # of one task that decodes and augments a part
_DECODE_BYTES = 700 << 20  # that its process takes: torch's libraries, and the part


def open_clock() -> Any:  # noqa: ANN401 - a handle of a Ray actor
    """An actor that knows the epoch. A stream of Ray Data counts how often it was played, but anew after a restart."""
    import ray

    class Clock:
        def __init__(self) -> None:
            self._epoch = 0

        def set(self, epoch: int) -> None:
            self._epoch = epoch

        def get(self) -> int:
            return self._epoch

    return ray.remote(**beside_driver())(Clock).remote()


def stream_of(masks: Artifact, split: str, plan: "Plan", clock: Any, tasks: int | None) -> Any:  # noqa: ANN401 - ray.data.Dataset, imported lazily
    """A Ray Data stream of one split: `pixels` [V, S, S, 3], `mask` [V, S, S], `label`, `picture` (its number in the split).

    A mask is Y, 0 or 255; for the training of one branch alone its teacher's grey map. For training V augmented views, others
    in every epoch, and the parts in another order. For validation the picture as it is and, where the joint stage
    is trained, one augmented view, always the same.

    A task that decodes a part takes a core, though it books less, so that there is room for one on a machine that training has to
    itself: at most `tasks` run at a time there. None, on a cluster whose nodes come and go: as many as find memory.
    """
    import ray

    parts = [part for part in masks.parts(f"masks-{split}-") if part.rows]
    rows = [{"at": at} for at in range(len(parts))]
    return ray.data.from_items(rows, override_num_blocks=len(parts)).map_batches(
        cast(Any, _decode),
        batch_size=1,
        fn_args=(masks, plan, split == "train", clock),
        num_cpus=DECODE_CPUS,
        memory=None if tasks else _DECODE_BYTES,
        compute=ray.data.TaskPoolStrategy(size=tasks),
    )


def part_at(place: int, count: int, seed: int, epoch: int) -> int:
    """Which of `count` parts stands at a place of an epoch's stream: the stream has one order, the epochs have others."""
    return int(np.random.default_rng((seed, epoch)).permutation(count)[place])


def _decode(
    batch: dict[str, Any],
    masks: Artifact,
    plan: "Plan",
    augment: bool,
    clock: Any,  # noqa: ANN401 - a handle of a Ray actor
) -> dict[str, Any]:
    import cv2
    import ray
    import torch

    from manet.augment import binarised

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    cut = plan.branch == "text"  # letters are cut out, not made small
    whole = min(plan.network.pictures.size, plan.network.text_size)  # as the text branch sees them
    size = whole if cut else plan.train_size
    split = "train" if augment else "val"
    parts = [part for part in masks.parts(f"masks-{split}-") if part.rows]
    epoch, at = ray.get(clock.get.remote()) if augment else 0, int(batch["at"][0])
    at = part_at(at, len(parts), plan.seed, epoch) if augment else at
    draws = np.random.SeedSequence((plan.seed, epoch, at))
    torch.manual_seed(int(draws.generate_state(1)[0]))  # other views in every epoch, the same ones after a restart
    part = parts[at]
    rows = read_parquet(masks.read(part)).to_pylist()
    shown = np.arange(len(rows))
    if augment and plan.balance:
        often = np.array(plan.repeats)[[row["label"] for row in rows]]
        shown = np.repeat(shown, np.floor(often + np.random.default_rng(draws).random(len(rows))).astype(int))
        shown = shown if len(shown) else np.arange(1)
    pixels, grey, labels = [], [], []
    for row in (rows[place] for place in shown):
        picture = load_picture(row["uri"], PictureConfig(size=size))
        if isinstance(picture, PictureError):
            raise JobFailedError(
                f"{row['uri']} was usable when the masks were made and is not now: {picture.detail}; bring it back, or make the "
                "few-shot set anew"
            )
        pixels.append(picture)
        mask = cv2.imdecode(np.frombuffer(row["mask"], np.uint8), cv2.IMREAD_GRAYSCALE)
        grey.append(cv2.resize(mask, (size, size)))
        labels.append(row["label"])
    if augment:
        kinds = [_augmented(pixels, grey, plan) for _ in range(plan.views)]
    else:
        masks_as_they_are = [binarised(mask) for mask in grey] if plan.branch == "all" else grey
        kinds = [(np.stack(pixels), np.stack(masks_as_they_are))]
        kinds += [_augmented(pixels, grey, plan)] if plan.branch == "all" and plan.epochs else []
    return {
        "pixels": np.stack([pictures for pictures, _ in kinds], 1),
        "mask": np.stack([masks for _, masks in kinds], 1),
        "label": np.array(labels, np.int64),
        "picture": at * UNIT_ROWS + shown,
    }


def _augmented(pixels: list[Any], grey: list[Any], plan: "Plan") -> tuple[Any, Any]:
    """One random view of every picture and of its mask, [n, S, S, 3] and [n, S, S]: like a consumer's photo; where the saliency
    branch alone is trained, as its teacher saw it; for the text branch with words over it.
    """
    from manet.augment import consumer_view, framed_view
    from manet.lettering import lettered_view

    if plan.branch == "text":
        views = [lettered_view(*two, plan.train_size) for two in zip(pixels, grey, strict=True)]
    elif plan.branch == "saliency":
        views = [framed_view(*two) for two in zip(pixels, grey, strict=True)]
    else:
        views = [consumer_view(*two, plan.pasted) for two in zip(pixels, grey, strict=True)]
    return np.stack([picture for picture, _ in views]), np.stack([mask for _, mask in views])
