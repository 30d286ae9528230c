"""The replica that answers HTTP: it decodes pictures in processes of their own, has them described, searches the index.

It holds the index (memory-mapped: only the pages that searches touch are loaded) and hands pictures to the embedders.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError

from cluster.errors import ClusterError
from cluster.telemetry import say
from jobs.drawing import heat, jpeg
from jobs.pictures import Picture, fetch_picture
from jobs.serving.answers import BatchItem, IndexAnswer, Item, Items, Limits, Pair, Problem, SearchAnswer
from jobs.serving.dispatch import MESSAGES, Dispatch, LostError
from jobs.serving.embedder import Asked, EmbedderSettings, Seen
from jobs.serving.fetching import Fetcher
from jobs.serving.gallery import Edition, Gallery
from jobs.serving.guard import Guard
from jobs.serving.listening import listening_of, server_of
from jobs.serving.metrics import ServingMetrics
from jobs.serving.pictures import Decoders, Images
from jobs.serving.refusals import Refusal, of_picture
from jobs.serving.settings import AT_ONCE, MOST_ANSWERS, MOST_PICTURES, SIDES, ServingConfig
from jobs.serving.shaping import boxes_of, item_of, maps_of, present, result_of, shrunk, uri_of
from jobs.streaming import DescribeConfig
from manet.errors import PictureError
from manet.explain import contributions, strongest
from manet.names import DEAD
from manet.search import Allowed, Hit

_T = TypeVar("_T")
_TRIES = 4  # of describing a picture, when replicas are lost
_PAIRS = 5  # of regions shown
_IMAGE_WAIT_S = 5.0  # of a request for a gallery picture, until it is fetched and decoded
_GALLERY_S = float(
    DescribeConfig.model_fields["picture_seconds"].default
)  # of decoding a gallery picture: as `extract`
_FRESH_S = 5.0  # for so long after an embedder's answer one more is taken for granted


@dataclass(frozen=True, kw_only=True)
class Query:
    """What is searched with: exactly one of these."""

    picture: bytes | None = None
    image_id: str | None = None
    url: str | None = None


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How a search is answered."""

    k: int
    categories: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    rerank: bool = True
    fold: bool = True
    maps: bool = False
    explain: int = 0


class Gateway:
    """What the API's routes call.

    It listens itself, at the socket that the job holds open; `ProxiedGateway` has a proxy of Ray Serve before it.

    Args:
        config: of the service.
        settings: what the embedders load.
        tokens: sha256 of each bearer token.
        pending: searches in hand, at most.
        embedder: handle of the embedders.
        batch: pictures of an embedder's pass.
        door: path of the `Door` whose socket it listens at; "": others listen for it.
    """

    def __init__(
        self,
        config: ServingConfig,
        settings: EmbedderSettings,
        tokens: frozenset[str],
        pending: int,
        embedder: Any,  # noqa: ANN401 - a handle of Ray Serve
        batch: int,
        door: str = "",
    ) -> None:
        cv2.setNumThreads(1)
        self.config, self._tokens, self._pending, self._embedder = config, tokens, pending, embedder
        self._dispatch = Dispatch(embedder, max(1, MESSAGES * config.embedders // config.gateways), batch)
        self.gallery = Gallery(config.index, nprobe=config.nprobe, refine=config.refine)
        bounded = settings.pictures.model_copy(update={"max_pixels": config.max_pixels})
        self._decoders = Decoders(bounded, config.decoders, config.picture_seconds)
        self._originals = Decoders(settings.pictures, config.decoders, _GALLERY_S)  # the gallery's: no upload's limits
        shown = settings.pictures.model_copy(update={"size": SIDES[-1]})
        self._looks = Decoders(shown, 1, _GALLERY_S)
        for decoders in (self._decoders, self._originals, self._looks):
            decoders.start()
        self._images = Images(2 * config.decoders, _IMAGE_WAIT_S)
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="search")
        self._fetching = ThreadPoolExecutor(16, thread_name_prefix="fetch")  # a store that hangs holds up no search
        self._fetcher = Fetcher(max_bytes=config.max_body, seconds=config.request_seconds / 2)
        self.metrics = ServingMetrics(serve.get_replica_context().replica_id.unique_id)
        self._show_version()
        self._refreshing: asyncio.Task[None] | None = None
        self._guard: Guard | None = None
        self._answered = float("-inf")  # when an embedder last did
        self._serving: asyncio.Task[None] | None = None
        if door:
            listening = listening_of(door)
            server = server_of(self.__serve_build_asgi_app__())
            self._serving = asyncio.get_running_loop().create_task(server.serve(sockets=[listening]))

    def __serve_build_asgi_app__(self) -> Any:  # noqa: ANN401 - the name that Ray Serve calls
        """The API behind its guard; called once."""
        from starlette.middleware.cors import CORSMiddleware

        from jobs.serving.api import build_api

        api = build_api(self, tokens=bool(self._tokens))
        app: Any = Guard(api, self.config, pending=self._pending, tokens=self._tokens, metrics=self.metrics)
        self._guard = app
        if self.config.cors_origin:
            headers = ["Authorization", "Content-Type"]
            app = CORSMiddleware(
                app,
                allow_origins=list(self.config.cors_origin),
                allow_methods=["*"],
                allow_headers=headers,
                expose_headers=["Retry-After"],
            )
        return app

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """Looks for new versions of the index while the replica lives."""
        self._refreshing = asyncio.create_task(self._refresh())
        yield
        self._refreshing.cancel()

    def check_health(self) -> None:
        """Ray Serve's question: a gateway that has stopped listening is started anew.

        Raises:
            RuntimeError: it has.
        """
        if self._serving is not None and self._serving.done():
            cause = None if self._serving.cancelled() else self._serving.exception()
            raise RuntimeError("this gateway no longer listens") from cause

    async def drain(self) -> tuple[str, int, int]:
        """Take no new request; the name of this gateway's actor, what it still has in hand, and searches on their way."""
        guard = present(self._guard)
        guard.stopping = True
        return present(ray.get_runtime_context().get_actor_name()), guard.pending + guard.others, guard.uploads

    async def ready(self) -> None:
        """Whether pictures can be described now.

        Raises:
            Refusal: no embedder answers, or the service is stopping.
        """
        if present(self._guard).stopping:
            raise Refusal(503, "stopping", "The service is stopping.", retry_after=5)
        if time.monotonic() - self._answered < _FRESH_S:
            return  # under load a question of its own would wait behind the pictures
        try:
            async with asyncio.timeout(5):
                await self._embedder.dim.remote()
        except (TimeoutError, RayActorError, DeploymentUnavailableError):
            raise Refusal(503, "not_ready", "No embedder answers.", retry_after=1) from None

    async def search(self, query: Query, wish: Wish) -> SearchAnswer:
        """The answers to one picture.

        Raises:
            Refusal: it cannot be answered.
        """
        edition = self.gallery.current
        with present(self._guard).explaining(wish.explain):
            if wish.explain and edition.processed:
                raise Refusal(422, "no_regions", f"This index's scores are not sums of regions ({edition.processed}).")
            clock = _Clock()
            allowed = await self._allowed(edition, wish)
            if allowed is not None:
                clock.stop("filter")
            return await self._answer(query, wish, edition, allowed, clock)

    async def _allowed(self, edition: Edition, wish: Wish) -> Allowed | None:
        """What passes the filter; None where all does.

        Raises:
            Refusal: it names no category of the index, or nothing passes.
        """
        filtered = wish.categories or wish.ids
        return await self._thread(edition.allow, wish.categories, wish.ids) if filtered else None

    async def _answer(
        self, query: Query, wish: Wish, edition: Edition, allowed: Allowed | None, clock: "_Clock"
    ) -> SearchAnswer:
        item = None if query.image_id is None else await self._thread(self._stored, edition, query.image_id)
        pixels, seen = None, None
        if item is None or wish.maps or wish.explain:
            pixels = await self._pixels(query, item[0] if item else None)
            clock.stop("decode")
            seen = await self._see(Asked(pixels=pixels, maps=wish.maps, parts=wish.explain > 0))
            clock.stop("describe")
        vector = item[1] if item else present(seen).vector
        own = None if query.image_id is None else [query.image_id]
        hits = await self._thread(
            lambda: edition.searcher.search(
                vector[None], wish.k, allowed, folded=wish.fold, rerank=wish.rerank, stored=item is not None, own=own
            )[0]
        )
        clock.stop("search")
        why: list[list[Pair] | None] = [None] * len(hits)
        if wish.explain:
            why[: wish.explain] = await asyncio.gather(*(self._why(present(seen), hit) for hit in hits[: wish.explain]))
            clock.stop("explain")
        self.metrics.stages(clock.milliseconds)
        return SearchAnswer(
            version=edition.number,
            results=[result_of(hit, pairs) for hit, pairs in zip(hits, why, strict=True)],
            maps=maps_of(present(pixels), present(seen)) if wish.maps else None,
            milliseconds=clock.milliseconds,
        )

    async def batch(self, queries: list[Query], wish: Wish) -> list[BatchItem]:
        """Each query's answers, or what is wrong with it; all are of one version of the index.

        Raises:
            Refusal: the filter names no category of the index, or nothing passes it.
        """
        present(self._guard).charge(len(queries) - 1)
        edition = self.gallery.current
        allowed = await self._allowed(edition, wish)
        turn = asyncio.Semaphore(AT_ONCE)

        async def one(query: Query) -> BatchItem:
            async with turn:
                try:
                    return BatchItem(answer=await self._answer(query, wish, edition, allowed, _Clock()))
                except Refusal as refusal:
                    return BatchItem(error=Problem(code=refusal.code, message=refusal.message))

        return list(await asyncio.gather(*map(one, queries)))

    async def item(self, image_id: str) -> Item:
        """A picture of the gallery.

        Raises:
            Refusal: there is none of that id.
        """
        edition = self.gallery.current
        hit, _ = await self._thread(self._stored, edition, image_id)
        return item_of(hit, edition.number)

    async def sample(self, count: int, seed: int) -> Items:
        """Some pictures of the gallery: the same for the same seed and version."""
        edition = self.gallery.current
        hits = await self._thread(edition.searcher.sample, count, seed)
        return Items(items=[item_of(hit, edition.number) for hit in hits])

    async def image(self, image_id: str, side: int) -> bytes:
        """A gallery picture as a JPEG square.

        Raises:
            Refusal: there is none of that id, its picture cannot be had, or too many are asked for.
        """
        edition = self.gallery.current

        async def load() -> Picture:
            hit, _ = await self._thread(self._stored, edition, image_id)
            return await self._pictured(self._looks, await self._fetch(uri_of(hit)))

        return await self._images.get((edition.index.sha256, image_id, side), load)

    async def image_map(self, image_id: str, side: int, kind: str) -> bytes:
        """Saliency or text map over a gallery picture, JPEG.

        Raises:
            Refusal: as `image`; or the model has no text branch.
        """
        hit, _ = await self._thread(self._stored, self.gallery.current, image_id)
        pixels = await self._load(hit)
        seen = await self._see(Asked(pixels=pixels, maps=True))
        grey = seen.saliency_hw if kind == "saliency" else seen.text_hw
        if grey is None:
            raise Refusal(404, "no_text_branch", "The model has no text branch.")
        return jpeg(heat(shrunk(pixels, side), grey))

    async def index(self) -> IndexAnswer:
        """The index and what a request may ask for."""
        about = await self._of_store(lambda: self.gallery.current.about)
        limits = Limits(
            body_bytes=self.config.max_body,
            pixels=self.config.max_pixels,
            answers=MOST_ANSWERS,
            pictures=MOST_PICTURES,
            url=self.config.allow_url,
        )
        return IndexAnswer(**about, limits=limits)

    async def _pixels(self, query: Query, hit: Hit | None) -> Picture:
        if hit is not None:
            return await self._load(hit)
        data = query.picture
        if query.url is not None:
            data = await self._fetcher.fetch(query.url)
        return await self._pictured(self._decoders, data or b"")

    async def _load(self, hit: Hit) -> Picture:
        """A gallery picture, prepared as it was when it was described."""
        return await self._pictured(self._originals, await self._fetch(uri_of(hit)))

    async def _fetch(self, uri: str) -> bytes:
        """The bytes of a gallery picture.

        Raises:
            Refusal: it is gone, or its store does not give it.
        """
        try:
            data = await asyncio.get_running_loop().run_in_executor(self._fetching, fetch_picture, uri)
        except ClusterError:
            raise Refusal(502, "store", "The gallery's store does not give the picture; try again.") from None
        if isinstance(data, PictureError):
            raise of_picture(data)
        return data

    async def recall_plot(self) -> bytes:
        """The frontier of the index's tuning, PNG.

        Raises:
            Refusal: it was not tuned, or the store does not give it.
        """
        return await self._of_store(self.gallery.current.recall_plot)

    async def _of_store(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._fetching, work)
        except ClusterError:
            raise Refusal(502, "store", "The index's store does not answer; try again.") from None

    async def _see(self, asked: Asked) -> Seen:
        """Describe a picture; again when the replica that was at it is lost.

        Raises:
            Refusal: the picture is dead, or no embedder answers.
        """
        for attempt in range(1, _TRIES + 1):
            try:
                seen = await self._dispatch(asked)
            except (RayActorError, DeploymentUnavailableError, LostError):
                self.metrics.retries.inc()
                await asyncio.sleep(0.2 * attempt)
                continue
            self._answered = time.monotonic()
            if seen is None:
                raise of_picture(DEAD)
            self.metrics.batch.observe(seen.batch)
            return seen
        raise Refusal(503, "no_embedder", "No embedder answers; try again in a moment.", retry_after=2)

    async def _why(self, query: Seen, hit: Hit) -> list[Pair] | None:
        """The strongest pairs of regions of the query and an answer; None where its picture cannot be had."""
        if query.parts_RD is None:
            raise Refusal(
                422, "no_regions", "This index's descriptor is not SR-MAC at one scale: its answers have no regions."
            )
        try:
            answer = await self._see(Asked(pixels=await self._load(hit), parts=True))
        except Refusal as refusal:
            if refusal.status == 503:
                raise
            return None
        pairs = contributions(query.parts_RD, present(answer.parts_RD))
        own, other = boxes_of(query), boxes_of(answer)
        return [
            Pair(part=round(part, 6), query=own[row], answer=other[column])
            for row, column, part in strongest(pairs, _PAIRS)
        ]

    @staticmethod
    def _stored(edition: Edition, image_id: str) -> tuple[Hit, Any]:
        found = edition.searcher.item(image_id)
        if found is None:
            raise Refusal(404, "unknown_item", "The index has no picture of this id.")
        return found

    async def _thread(self, work: Callable[..., _T], *arguments: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    @staticmethod
    async def _pictured(decoders: Decoders, data: bytes) -> Picture:
        try:
            return await asyncio.get_running_loop().run_in_executor(decoders.threads, decoders.decode, data)
        except PictureError as error:
            raise of_picture(error, decoders.max_pixels) from None

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(self.config.refresh_seconds)
            try:
                if await asyncio.to_thread(self.gallery.refresh):
                    self._show_version()
            except Exception as error:  # whatever it is, the version at hand goes on answering
                say(f"serve: a new version of the index is not taken up: {type(error).__name__}: {error}")
            decoders = (self._decoders, self._originals, self._looks)
            self.metrics.restarts.set(sum(each.restarts for each in decoders))

    def _show_version(self) -> None:
        edition = self.gallery.current
        self.metrics.version.set(edition.number)
        self.metrics.rows.set(len(edition.searcher))


ProxiedGateway = serve.ingress()(Gateway)


class _Clock:
    """Milliseconds of each stage, one after the other."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._at = time.monotonic()

    def stop(self, stage: str) -> None:
        now = time.monotonic()
        self.milliseconds[stage] = round((now - self._at) * 1e3, 2)
        self._at = now
