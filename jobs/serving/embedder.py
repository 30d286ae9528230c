"""The replica that describes pictures: one model, one descriptor path (`manet.describe`), requests batched as they come.

Every pass has the size that the gallery's passes had, so a query's descriptor has the same bits in any company.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.artifact import Artifact
from jobs.inputs import local_copy
from jobs.querying import QuerySpec
from manet.images import PictureConfig

Array = np.ndarray[Any, np.dtype[Any]]
MOST_BATCHED = 64
_FAILED_PASSES = 3  # one after the other, after which the process, or what its device holds of it, counts as broken
_HUNG_S, _HUNG_PASSES = 60.0, 20  # a pass longer than both, so many usual ones, does not end any more


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One picture: uint8 [size, size, 3]; whether its maps are wanted, and its regions' parts."""

    pixels: Array
    maps: bool = False
    parts: bool = False


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a picture's pass yielded; `observed` names of `manet.describe.Observed`, for one picture."""

    vector: Array
    saliency_hw: Array | None = None
    text_hw: Array | None = None
    parts_RD: Array | None = None
    boxes_R4: Array | None = None
    batch: int = 1


@dataclass(frozen=True, kw_only=True)
class EmbedderSettings:
    """What an embedder loads."""

    model: Artifact
    spec: QuerySpec
    pictures: PictureConfig
    gpu: bool


class Embedder:
    """Describes pictures in batches."""

    def __init__(self, settings: EmbedderSettings) -> None:
        self._spec = settings.spec
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="model")  # one thread: one pool of torch's own
        batch = self._computing.submit(self._load, settings).result()
        self._together = Together(self._computing, self._observe, batch)

    def _load(self, settings: EmbedderSettings) -> int:
        """Load the model; returns how many pictures are described together."""
        import torch

        torch.set_num_threads(1)  # as in extraction: more threads add up in another order, and the last bits differ
        size = settings.pictures.size
        self._describer = self._spec.describer(local_copy(settings.model), gpu=settings.gpu)
        for _ in range(2):  # a first pass costs more than the others
            began = time.monotonic()
            self._describer.describe(np.full((1, size, size, 3), 255, np.uint8))
            self._usual_s = time.monotonic() - began
        return min(MOST_BATCHED, self._describer.batch_size)

    def dim(self) -> int:
        """Length of its descriptors."""
        return self._describer.dim

    def check_health(self) -> None:
        """Ray Serve's question: an embedder whose pass does not end (a device that no longer answers), or whose passes all fail
        (one that was lost), is started anew.

        Raises:
            RuntimeError: the pass at hand has taken too long, or the last three have failed.
        """
        if self._together.failed >= _FAILED_PASSES:
            raise RuntimeError(f"the last {self._together.failed} passes have failed")
        most = max(_HUNG_S, _HUNG_PASSES * self._usual_s)
        if self._together.busy_s > most:
            raise RuntimeError(f"a pass has not ended within {most:g} s")

    async def __call__(self, asked: list[Asked]) -> list[Seen | BaseException | None]:
        """Describe pictures; for each what was seen, None where its feature map is dead, or what its pass raised."""
        return list(await asyncio.gather(*map(self._together, asked), return_exceptions=True))

    def _observe(self, asked: list[Asked]) -> list[Seen | None]:
        pixels = np.stack([each.pixels for each in asked])
        if not any(each.maps or each.parts for each in asked):
            described = self._describer.describe(pixels)
            vectors = described.vectors[self._spec.descriptor]
            return [
                None if dead else Seen(vector=vector, batch=len(asked))
                for vector, dead in zip(vectors, described.dead, strict=True)
            ]
        seen = self._describer.observe(pixels)
        found: list[Seen | None] = []
        for row, each in enumerate(asked):
            if seen.described.dead[row]:
                found.append(None)
                continue
            found.append(
                Seen(
                    vector=seen.described.vectors[self._spec.descriptor][row],
                    saliency_hw=seen.saliency_Nhw[row] if each.maps else None,
                    text_hw=seen.text_Nhw[row] if each.maps and seen.text_Nhw is not None else None,
                    parts_RD=seen.parts_NRD[row] if each.parts and seen.parts_NRD is not None else None,
                    boxes_R4=seen.boxes_R4 if each.parts else None,
                    batch=len(asked),
                )
            )
        return found


class Together:
    """Dynamic batching: a pass takes all that came while the one before it ran, at most `most`; nobody waits for company.

    Not Ray Serve's own `@serve.batch`: it closes a batch when its wait is over although the model is still busy, so that under
    load most passes carry one picture (measured: 1.08 of 2), and a pass costs the same however many it carries.

    Args:
        thread: where passes run, one after the other.
        work: one pass.
        most: pictures of a pass.
    """

    def __init__(self, thread: ThreadPoolExecutor, work: Callable[[list[Asked]], list[Seen | None]], most: int) -> None:
        self._thread, self._work, self._most = thread, work, most
        self._waiting: list[tuple[Asked, asyncio.Future[Seen | None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._began: float | None = None  # the pass at hand
        self.failed = 0  # passes since the last one that did not

    @property
    def busy_s(self) -> float:
        """Seconds that the pass at hand has taken; 0: there is none."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    async def __call__(self, asked: Asked) -> Seen | None:
        """The answer of the pass that takes this one."""
        future: asyncio.Future[Seen | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work_off())
        return await future

    async def _work_off(self) -> None:
        await asyncio.sleep(0)  # for those that arrive at the same moment
        while self._waiting:
            alive = [pair for pair in self._waiting if not pair[1].done()]  # whoever gave up is not described
            taken, self._waiting = alive[: self._most], alive[self._most :]
            if not taken:
                break
            self._began = time.monotonic()
            try:
                running = asyncio.get_running_loop().run_in_executor(
                    self._thread, self._work, [asked for asked, _ in taken]
                )
                results = await running
            except Exception as error:
                self.failed += 1
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
                continue
            finally:
                self._began = None
            self.failed = 0
            for (_, future), result in zip(taken, results, strict=True):
                if not future.done():
                    future.set_result(result)
        self._task = None
